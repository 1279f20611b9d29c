"""`jaxtune verify`: honest runs pass and replay bit for bit; tampered ones fail with what differs and why."""

import importlib.util
import json
import pathlib
import shutil

import pytest

from jaxtune import cli, verify
from jaxtune.errors import UserError
from jaxtune.verify import Verification

pytestmark = pytest.mark.bits
SCRIPT = pathlib.Path(__file__).parent.parent / "experiments" / "06-kill-and-resume" / "kill.py"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> pathlib.Path:
    """A project folder with config, data, model and a finished run."""
    spec = importlib.util.spec_from_file_location("kill", SCRIPT)
    assert spec is not None and spec.loader is not None
    kill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill)
    folder = tmp_path_factory.mktemp("verify")
    config = kill.write_project(folder)
    assert cli.main(["train", str(config), "--run-dir", str(folder / "run"), "--duration.epochs", "0.6"]) == 0
    return folder


def check(folder: pathlib.Path, **options) -> Verification:
    return verify.verify(folder / "run", **options)


def lines(outcome: Verification, name: str) -> list[str]:
    """The lines of a failed check."""
    (found,) = [check for check in outcome.checks if check.name == name]
    assert not found.ok
    return list(found.lines)


class Restored:
    """Puts back a file that a test changes."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self) -> pathlib.Path:
        self.content = self.path.read_bytes()
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.content)


def test_an_honest_run_is_verified_and_replays_bit_for_bit(original, capsys):
    outcome = check(original, replay=4)
    assert outcome.ok, outcome.to_json()
    replayed = next(check for check in outcome.checks if check.name == "replay")
    same = next(check for check in outcome.checks if check.name == "code and environment")
    assert same.lines == ("equal",), "the sources were edited while the test ran; run it again"
    assert "equal bit for bit" in replayed.lines[0] and "and the state of step" in replayed.lines[0]
    assert cli.main(["verify", str(original / "run")]) == 0
    assert capsys.readouterr().out.strip().endswith("verified")


def test_a_changed_data_line_is_found_and_named(original):
    with Restored(original / "middle-train.jsonl") as path:
        rows = path.read_text().splitlines()
        rows[16] = rows[16].replace('"content": "', '"content": "x', 1)
        path.write_text("\n".join(rows) + "\n")
        outcome = check(original)
    line, source = lines(outcome, "data")
    assert source.startswith("data middle, its source: content changed")
    assert line.startswith("data middle: content changed")
    assert "(examples 17 to 17 of 40" in line and "middle-train.jsonl:17" in line
    assert any("because of the change in: data" in text for text in lines(outcome, "batches"))
    assert not outcome.ok


def test_a_change_that_reaches_no_token_is_found_too(original):
    with Restored(original / "middle-train.jsonl") as path:
        text = path.read_text()
        path.write_text(text.rstrip("\n") + "\n\n")
        outcome = check(original)
    (line,) = lines(outcome, "data")
    assert line.startswith("data middle, its source: content changed")
    assert not outcome.ok


def test_a_changed_config_value_is_found_in_the_config_file_and_in_the_run_folder(original):
    with Restored(original / "config.py") as path:
        path.write_text(path.read_text().replace("peak_lr=1e-2", "peak_lr=2e-2"))
        outcome = check(original)
    assert lines(outcome, "config") == ["config optim.peak_lr: was 0.01, is 0.02"]
    with Restored(original / "run" / "config.json") as path:
        path.write_text(path.read_text().replace('"seq_len": 64', '"seq_len": 128'))
        outcome = check(original)
    assert lines(outcome, "recorded config") == [
        "config.json was edited after the run: config data.seq_len: was 64, is 128"
    ]


def test_a_changed_seed_explains_the_changed_plan(original):
    with Restored(original / "config.py") as path:
        path.write_text(path.read_text().replace('name="killed",', 'name="killed", seed=1,'))
        outcome = check(original)
    assert any("config seed: was 0, is 1" in line for line in lines(outcome, "config"))
    assert lines(outcome, "seeds") == ["seeds run: was 0, is 1"]
    assert lines(outcome, "plan")[0].startswith("plan hash: content changed")


def test_a_changed_checkpoint_byte_is_found_and_its_file_named(original):
    folder = original / "run" / "checkpoints"
    latest = max(path for path in folder.iterdir() if path.name.isdigit())
    largest = max((path for path in latest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with Restored(largest) as path:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        outcome = check(original)
    (line,) = lines(outcome, "checkpoints")
    assert line.startswith(f"step {int(latest.name)}: {largest.relative_to(latest).as_posix()}: content changed")


def test_a_changed_log_does_not_pass(original):
    with Restored(original / "run" / "metrics.jsonl") as path:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        trained = [row for row in rows if row["kind"] == "train"]
        trained[-1]["loss"] += 1e-6
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = lines(check(original, replay=len(trained)), "replay")
        assert f"step {trained[-1]['step']}: loss was" in found[0]
        trained[-1]["loss_tokens"] += 1
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not trained[0]))
        found = lines(check(original), "log")
    assert "training steps, but ends at step" in found[0]
    assert "trained tokens were logged in all" in found[-1]


@pytest.mark.parametrize(("platform", "same"), [("cpu", False), ("gpu", True)])
def test_the_number_of_cpus_decides_bits_on_cpus_only(platform, same):
    facts = lambda cpus: {part: {"devices": {"platform": platform}, "cpus": cpus} for part in verify.CIRCUMSTANCES}
    assert verify.same_circumstances(facts(2), facts(1)) is same
    assert verify.same_circumstances(facts(2), facts(2))


def test_a_lost_log_does_not_pass(original):
    with Restored(original / "run" / "metrics.jsonl") as log:
        log.unlink()
        outcome = check(original, replay=2)
        assert lines(outcome, "log") == ["metrics.jsonl is missing"]
        assert lines(outcome, "replay") == ["metrics.jsonl holds no step to compare with"]


def test_a_changed_manifest_ends_the_verification(original):
    with Restored(original / "run" / "manifest.json") as path:
        path.write_text(path.read_text().replace('"peak_lr": 0.01', '"peak_lr": 0.02'))
        outcome = check(original)
    assert [check.name for check in outcome.checks] == ["manifest"] and not outcome.ok


def test_a_folder_that_is_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        verify.verify(tmp_path)


def test_the_command_fails_for_a_tampered_run_and_prints_json(original, tmp_path, capsys):
    shutil.copytree(original / "run", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert cli.main(["verify", str(tmp_path / "run"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False and any(check["name"] == "recorded config" for check in printed["checks"])
