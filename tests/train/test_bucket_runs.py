"""Runs whose folder is in a bucket, in one process: killed, moved to an empty disk, read by the other commands."""

import dataclasses
import json
import pathlib
import shutil

import jax
import pytest
from helpers import tiny_config, tiny_config_file, tiny_model
from run_records import timeless, weights
from writes import Writes

from jaxtune import cli
from jaxtune.errors import UserError
from jaxtune.runs import remote
from jaxtune.runs.history import read_run
from jaxtune.step.programs import Programs
from jaxtune.storage import lease
from jaxtune.train import arm
from jaxtune.train import run as train
from jaxtune.train.decisions import Status

pytestmark = pytest.mark.bits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, the programs of the runs here, and the run that nothing disturbed, in a local folder."""
    folder = tmp_path_factory.mktemp("buckets")
    tiny_model(folder / "base")
    programs = Programs()
    train.train(tiny_config(folder), folder / "whole", programs=programs)
    return folder, programs


def test_a_run_that_is_killed_and_loses_its_disk_ends_bit_for_bit_and_writes_into_the_cache_alone(
    place, tmp_path, monkeypatch
):
    folder, programs = place
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(
        tiny_config(folder), data=dataclasses.replace(tiny_config(folder).data, cache_dir=None)
    )
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    bucket, writes, updated = tmp_path / "bucket", Writes(), arm.Arm.updated

    def killed(self, waited):
        if self.done == 5:
            self.record.checkpoints.wait()
            shutil.copytree(bucket / "first", bucket / "second")  # what is in the bucket at this moment
            raise KeyboardInterrupt
        updated(self, waited)

    writes.open = True
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(arm.Arm, "updated", killed)
        train.train(config, f"file://{bucket}/first", programs=programs)
    writes.open = False
    rows = timeless(bucket / "second")
    assert max(row["step"] for row in rows) >= 4, "the rows up to a checkpoint are there with it"
    assert max(path.name for path in (bucket / "second" / "checkpoints").iterdir()) == "00000004"
    assert max(row["step"] for row in timeless(bucket / "first")) >= 4, "what a failing run has is sent at its end"

    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(lease, "STALE", 0.2)  # the lease says that this very process holds it
    writes.open = True
    outcome = train.train(config, f"file://{bucket}/second", resume=True, programs=programs)
    writes.open = False
    assert outcome.where("report.html") == f"file://{bucket}/second/report.html"
    assert timeless(bucket / "second") == timeless(folder / "whole")
    assert weights(bucket / "second") == weights(folder / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"bucket", "cache"}
    programs_cache = str(jax.config.values["jax_compilation_cache_dir"])  # the suite's own
    assert not writes.outside(tmp_path / "cache", bucket, programs_cache)
    assert any(path.startswith(str(tmp_path / "cache" / "runs")) for path in writes.seen)

    with pytest.raises(UserError, match=rf"file://{bucket}/second is not empty; continue its run with --resume"):
        train.train(config, f"file://{bucket}/second", programs=programs)
    again = train.train(config, f"file://{bucket}/second", resume=True, programs=programs)
    assert again.status is Status.FINISHED and weights(bucket / "second") == weights(folder / "whole")


@pytest.fixture(scope="module")
def finished(place):
    """The URL of a finished run, started from the command line, whose machine has gone since."""
    folder, _ = place
    tiny_config_file(folder, folder)
    url = f"file://{folder}/bucket/finished"
    assert cli.main(["train", str(folder / "config.py"), "--run-dir", url, "--restartable"]) == 0
    shutil.rmtree(folder / "cache")
    return url


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / ".cache"))
    return tmp_path


def test_the_bucket_holds_what_a_run_folder_holds(place, finished):
    here, there = place[0] / "whole", pathlib.Path(finished.removeprefix("file://"))
    names = lambda folder: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    facts = {name for name in names(there) if not name.startswith(("checkpoints/", "sources/"))}
    assert facts == {name for name in names(here) if not name.startswith(("checkpoints/", "sources/"))}
    assert weights(there) == weights(here) and timeless(there) == timeless(here)


def test_a_run_in_a_bucket_is_verified_replayed_and_reported(finished, elsewhere, capsys):
    assert cli.main(["verify", finished, "--replay", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"], found
    said = {check["name"]: " ".join(check["lines"]) for check in found["checks"]}
    assert "every file of the steps" in said["checkpoints"] and "6 is as it was written" in said["checkpoints"]
    assert "every file is as it was" in said["files"] and "bit for bit" in said["replay"]
    page = pathlib.Path(finished.removeprefix("file://")) / "report.html"
    page.unlink()
    assert cli.main(["report", finished]) == 0
    assert capsys.readouterr().out.strip() == f"{finished}/report.html" and page.read_text().startswith(
        "<!doctype html>"
    )
    assert finished in page.read_text() and str(elsewhere) not in page.read_text()
    assert cli.main(["verify", finished]) == 0
    assert {path.name for path in elsewhere.iterdir()} == {".cache"}


def test_commands_that_read_a_bucket_write_into_the_cache_and_the_bucket_alone(place, finished, elsewhere):
    writes, bucket = Writes(), finished.removeprefix("file://")
    writes.open = True
    assert cli.main(["evaluate", "--run-dir", finished, "--eval.no-generate"]) == 0
    assert cli.main(["generate", finished, "--prompt", "x", "--max-new-tokens", "2"]) == 0
    assert cli.main(["report", finished]) == 0
    assert cli.main(["verify", finished]) == 0
    writes.open = False
    tokens, programs_cache = place[0] / "cache", jax.config.values["jax_compilation_cache_dir"]
    assert not writes.outside(elsewhere / ".cache", bucket, tokens, programs_cache)
    assert any(path.startswith(str(elsewhere / ".cache")) for path in writes.seen)
    assert f"{bucket}/report.html" in "".join(writes.seen)


def test_a_changed_file_in_a_bucket_is_found_by_its_readers(finished, elsewhere, tmp_path, capsys):
    there = tmp_path / "copy"
    shutil.copytree(finished.removeprefix("file://"), there)
    assert cli.main(["generate", f"file://{there}", "--prompt", "x", "--max-new-tokens", "2"]) == 0
    content = bytearray((there / "model" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (there / "model" / "model.safetensors").write_bytes(content)
    assert cli.main(["generate", f"file://{there}", "--prompt", "x"]) == 1
    assert f"the exported model of file://{there} is not the one that the run wrote" in capsys.readouterr().err


def test_a_checkpoint_in_a_bucket_is_exported_and_its_model_evaluated(place, finished, elsewhere, capsys):
    assert cli.main(["export-hf", finished, str(elsewhere / "out"), "--step", "6"]) == 0
    assert (elsewhere / "out" / "model.safetensors").is_file()
    capsys.readouterr()
    assert cli.main(["evaluate", "--run-dir", finished, "--json", "--eval.no-generate"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = read_run(place[0] / "whole").summary
    assert found["loss"] == pytest.approx(summary["after"]["loss"], rel=1e-6)
    assert cli.main(["report", f"{finished}-none"]) == 1
    assert "nothing is there" in capsys.readouterr().err


def test_an_overwrite_removes_what_the_bucket_held(place, tmp_path):
    folder, programs = place
    there = tmp_path / "x"
    config = dataclasses.replace(
        tiny_config(folder), data=dataclasses.replace(tiny_config(folder).data, cache_dir=str(tmp_path / "c"))
    )
    train.train(config, f"file://{there}", programs=programs)
    (there / "stale").write_text("of the run before")
    kept = (there / "checkpoints" / "00000006" / "checkpoint.json").stat().st_mtime_ns
    train.train(config, f"file://{there}", overwrite=True, programs=programs)
    assert not (there / "stale").exists()
    assert (there / "checkpoints" / "00000006" / "checkpoint.json").stat().st_mtime_ns > kept
    assert weights(there) == weights(folder / "whole")
    assert remote.how_far(f"file://{there}", config.checkpoint) == [True, True]
