"""The commands that read a run, as jobs of two processes without a shared disk: each says what one process says."""

import json
import shutil

import pytest
from helpers import tiny_model
from local_job import finish, spawn

from jaxtune.evaluate.decoding import SamplingConfig
from jaxtune.evaluate.dialogue import answer

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]

SCRIPT = """
import json, sys
from jaxtune import cli
for command in json.loads(sys.argv[1]):
    print("RUN", command[0], flush=True)
    print("CODE", cli.main(command), flush=True)
"""
NAMES = ("train", "verify", "evaluate", "generate", "export-hf", "chat")
CONFIG = """
import dataclasses
import pathlib
from helpers import tiny_config
from jaxtune.parallel.mesh import MeshConfig

def config():
    config = tiny_config(pathlib.Path({folder!r}), mesh=MeshConfig(fsdp=2, devices=2))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir={cache!r}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("job-commands")


@pytest.fixture(scope="module")
def said(place):
    """What each of two processes printed, by command; the run is in a bucket and nothing else is shared."""
    tiny_model(place / "base")
    bucket, hosts = f"file://{place}/bucket", [place / "host0", place / "host1"]
    (place / "config.py").write_text(CONFIG.format(folder=str(place), cache=f"{bucket}/cache"))
    for host in hosts:
        host.mkdir()
    run = f"{bucket}/run"
    commands = [
        ["train", str(place / "config.py"), "--run-dir", run],
        ["verify", run, "--replay", "2"],
        ["evaluate", "--run-dir", run, "--json"],
        ["generate", run, "--prompt", "large: say abc 1", "--prompt", "hello", "--max-new-tokens", "6", "--json"],
        ["export-hf", run, str(place / "exported")],
        ["generate", run],
    ]
    job = spawn(["-c", SCRIPT, json.dumps(commands)], 2, hosts)
    logs = finish(job)
    assert [child.returncode for child in job] == [1, 1], logs  # the last command is refused
    return [dict(zip(NAMES, log.split("RUN ")[1:], strict=True)) for log in logs]


def result(text: str) -> object:
    """The JSON that a command printed, among lines of progress."""
    start = min(at for at in (text.find("\n{"), text.find("\n[")) if at >= 0)
    return json.JSONDecoder().raw_decode(text[start + 1 :])[0]


def test_a_run_is_verified_and_replayed_by_both_and_told_by_one(said):
    for log in said:
        assert "CODE 0" in log["verify"], log["verify"]
    assert "steps 5 to 6: losses and gradient norms, and the state of step 6 are equal bit for bit" in said[0]["verify"]
    assert "verified" not in said[1]["verify"]


def test_an_evaluation_gives_the_numbers_of_the_runs_end(place, said):
    found = result(said[0]["evaluate"])
    after = json.loads((place / "bucket" / "run" / "summary.json").read_text())["after"]
    assert isinstance(found, dict) and found["task_loss"] == pytest.approx(after["task_loss"], rel=1e-6)
    assert "task_loss" not in said[1]["evaluate"] and "CODE 0" in said[1]["evaluate"]


def test_answers_are_those_of_one_process(place, said):
    shutil.copytree(place / "bucket" / "run" / "model", place / "model", dirs_exist_ok=True)
    prompts = ["large: say abc 1", "hello"]
    alone = answer(place / "model", prompts, system=None, sampling=SamplingConfig(max_new_tokens=6))
    found = result(said[0]["generate"])
    assert isinstance(found, list) and [row["answer"] for row in found] == alone
    assert '"answer"' not in said[1]["generate"]


def test_an_export_writes_the_model_once(place, said):
    ours = (place / "exported" / "model.safetensors").read_bytes()
    assert ours == (place / "bucket" / "run" / "model" / "model.safetensors").read_bytes()
    assert str(place / "exported") in said[0]["export-hf"] and str(place / "exported") not in said[1]["export-hf"]


def test_a_chat_is_refused_on_every_host(said):
    for number, log in enumerate(said):
        assert f"process {number} of 2: a chat is typed into one process" in log["chat"]
