"""Launch files: the script for TPU slices against a stand-in for gcloud, and what the others must say."""

import os
import pathlib
import re
import stat
import subprocess

import pytest

import jaxtune

ROOT = pathlib.Path(jaxtune.__file__).parent.parent
LAUNCH = ROOT / "configs" / "launch"
SCRIPT = LAUNCH / "tpu-vm.sh"

GCLOUD = r"""#!/usr/bin/env bash
# One host: its home is a folder, its slice a file with a state.
place=PLACE
verb=$4
echo "$*" >> $place/calls
case "$3 $4" in
    "tpu-vm describe") cat $place/state 2> /dev/null || exit 1 ;;
    "queued-resources create") echo READY > $place/state; rm -rf $place/home; mkdir -p $place/home ;;
    "queued-resources delete") rm -f $place/state ;;
    "queued-resources describe") echo ACTIVE ;;
    "tpu-vm scp") grep -q READY $place/state ;;
    "tpu-vm ssh")
        grep -q READY $place/state || exit 255
        for word in "$@"; do command=$word; done
        cd $place/home
        if [[ $command == *"uv venv"* ]]; then
            mkdir -p jaxtune/.venv/bin && cp $place/jaxtune jaxtune/.venv/bin/
        else
            bash -c "$command"
        fi ;;
esac
"""
JAXTUNE = r"""#!/usr/bin/env bash
# Takes the next end from a list: an exit code, or the loss of the slice.
echo "$*" >> PLACE/runs
end=$(head -1 PLACE/ends)
sed -i 1d PLACE/ends
if [ "$end" = preempted ]; then echo PREEMPTED > PLACE/state; sleep 5; fi
exit $end
"""


@pytest.fixture
def slice_of_one(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("the script sends what is committed, and this is no repository")
    for name, text in (("gcloud", GCLOUD), ("jaxtune", JAXTUNE)):
        path = tmp_path / name
        path.write_text(text.replace("PLACE", str(tmp_path)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def launch(place: pathlib.Path, *ends: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script until it ends."""
    (place / "ends").write_text("".join(f"{end}\n" for end in ends))
    settings = {"TPU": "my-slice", "ZONE": "z", "TYPE": "v5p-128", "PAUSE": "0.05", "TMPDIR": str(place), **variables}
    environment = {**os.environ, **settings, "PATH": f"{place}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), "configs/my config.py", "--run-dir", "/mnt/runs/my"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_slice_that_is_not_there_is_made_and_the_job_runs_once(slice_of_one):
    done = launch(slice_of_one, 0)
    assert done.returncode == 0, done.stderr
    assert lines(slice_of_one / "runs") == ["train configs/my config.py --run-dir /mnt/runs/my --restartable"]
    assert sum("queued-resources create" in call for call in lines(slice_of_one / "calls")) == 1


def test_a_job_that_saved_and_stopped_starts_again_on_the_same_slice(slice_of_one):
    done = launch(slice_of_one, 75, 0)
    assert done.returncode == 0, done.stderr
    assert len(lines(slice_of_one / "runs")) == 2
    assert sum("queued-resources create" in call for call in lines(slice_of_one / "calls")) == 1


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_of_the_user_is_not_tried_again(slice_of_one, code):
    assert launch(slice_of_one, code, 0).returncode == code
    assert len(lines(slice_of_one / "runs")) == 1


def test_a_preempted_slice_is_made_again(slice_of_one):
    done = launch(slice_of_one, "preempted", 0)
    assert done.returncode == 0, done.stderr
    assert len(lines(slice_of_one / "runs")) == 2
    assert sum("queued-resources create" in call for call in lines(slice_of_one / "calls")) == 2


def test_without_a_type_nothing_is_made(slice_of_one):
    done = launch(slice_of_one, 0, TYPE="")
    assert done.returncode != 0 and "TYPE names no accelerator" in done.stderr
    assert not any("create" in call for call in lines(slice_of_one / "calls"))


def test_a_sweep_is_started_and_goes_on_by_the_same_script(slice_of_one):
    done = launch(slice_of_one, 75, 0, COMMAND="sweep")
    assert done.returncode == 0, done.stderr
    assert lines(slice_of_one / "runs") == ["sweep configs/my config.py --run-dir /mnt/runs/my"] * 2


SCRIPTS = ("ssh.sh", "slurm.sbatch", "tpu-vm.sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound_and_start_sweeps_too(name):
    assert subprocess.run(["bash", "-n", str(LAUNCH / name)], capture_output=True, check=False).returncode == 0
    text = (LAUNCH / name).read_text()
    assert "${COMMAND:-train}" in text and "jaxtune train" not in text


def test_the_ssh_script_starts_a_sweep_on_every_host_as_one_job(tmp_path):
    said = tmp_path / "said"
    (tmp_path / "ssh").write_text(f'#!/bin/bash\nfor word in "$@"; do last=$word; done\necho "$last" >> {said}\n')
    (tmp_path / "ssh").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOSTS": "a b", "COMMAND": "sweep"}
    command = ["bash", str(LAUNCH / "ssh.sh"), "c.py", "--grid", "mixture.weights=qa 1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for number, line in enumerate(sorted(said.read_text().splitlines())):
        assert f"JAXTUNE_PROCESSES=2 JAXTUNE_PROCESS={number}" in line
        assert ".venv/bin/jaxtune sweep c.py --grid mixture.weights=qa\\ 1" in line and "--restartable" not in line


def test_slurm_hands_the_cores_on_and_logs_where_a_clone_has_a_folder():
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert "--cpus-per-task" in text.split("srun", 1)[1]
    (output,) = re.findall(r"^#SBATCH --output=(\S+)", text, re.MULTILINE)
    assert (ROOT / output).parent.is_dir()


def test_every_launch_file_is_in_the_table():
    table = (LAUNCH / "README.md").read_text()
    assert {path.name for path in LAUNCH.iterdir()} - {"README.md"} == set(re.findall(r"^\| \[([^]]+)\]", table, re.M))


def test_the_image_is_built_from_files_that_are_there():
    sources = re.findall(r"^COPY (.+) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    assert sources and all((ROOT / name).exists() for line in sources for name in line.split())
