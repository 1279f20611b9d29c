import math
import sys
import types
from typing import ClassVar

import pytest

from jaxtune.errors import UserError
from jaxtune.runs.mirrors import Labels, MirrorKind, make_mirror, scalars

ROWS = [
    {"kind": "train", "step": 1, "loss": 2.0, "task_loss": {"qa": 1.5, "maths, easy": 2.5}, "skipped": False},
    {"kind": "train", "step": 2, "loss": 1.0, "task_loss": {"qa": 0.5}, "grad_norm": None},
    {"kind": "eval", "step": 2, "split": "validation", "loss": 0.75},
    {"kind": "spike", "step": 2, "examples": ["qa/7"]},
]


def logged_twice(kind, run_dir):
    """Steps 1 and 2, then a resume after step 1 that logs step 2 again with another loss."""
    for resume_step, rows in ((None, ROWS), (1, [{**ROWS[1], "loss": 0.25}])):
        mirror = make_mirror(kind, run_dir, config={"optim": {"peak_lr": 1e-3}}, resume_step=resume_step)
        for row in rows:
            mirror.log(row)
        mirror.close()
        mirror.close()


def test_scalars_are_the_finite_numbers_under_flat_names():
    row = {"kind": "eval", "step": 3, "split": "test", "task_score": {"qa": {"exact_match": 0.5, "n": 8}}, "loss": None}
    row |= {"macro_loss": math.nan, "spread": math.inf}
    assert scalars(row) == {"test/task_score/qa/exact_match": 0.5, "test/task_score/qa/n": 8.0}
    assert scalars(ROWS[3]) == {}


def test_an_unknown_mirror_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="unknown mirror 'tensorbord'; known: tensorboard, wandb, mlflow, trackio"):
        make_mirror("tensorbord", tmp_path, config={})


@pytest.mark.parametrize("kind", list(MirrorKind))
def test_a_mirror_whose_package_is_missing_says_what_to_install(kind, tmp_path, monkeypatch):
    for name in ("tensorboard", "tensorboard.summary.writer.event_file_writer", "wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"pip install {kind.value}"):
        make_mirror(kind, tmp_path, config={})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_rows_and_drops_what_was_trained_again(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged_twice("tensorboard", tmp_path)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 0.25)]
    assert "train/task_loss/maths, easy" in events.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")  # its database layer warns while it creates tables
def test_mlflow_continues_the_same_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    logged_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("jaxtune").experiment_id])
    assert [run.info.run_name for run in runs] == [tmp_path.name] and runs[0].info.status == "FINISHED"
    values = [(metric.step, metric.value) for metric in client.get_metric_history(runs[0].info.run_id, "train/loss")]
    assert values == [(1, 2.0), (2, 1.0), (2, 0.25)]
    assert (tmp_path / "mlflow").is_dir()


def test_wandb_offline_writes_into_the_run_folder_under_one_identity(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged_twice("wandb", tmp_path)
    identity = (tmp_path / "wandb_run_id").read_text()
    files = sorted(path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert files == [f"run-{identity}.wandb"] * 2


def test_wandb_without_a_login_says_how_to_work_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # a session that has started keeps its old environment
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        make_mirror("wandb", tmp_path, config={})


def test_trackio_keeps_the_steps_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    logged_twice("trackio", tmp_path)
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    logs = storage.get_logs("jaxtune", tmp_path.name)
    assert [(log["step"], log["train/loss"]) for log in logs if "train/loss" in log] == [(1, 2.0), (2, 1.0), (2, 0.25)]


def test_wandb_gets_group_and_tags_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch):
    class Wandb(types.ModuleType):
        errors = types.SimpleNamespace(UsageError=RuntimeError)
        asked: ClassVar[list] = []

        @classmethod
        def init(cls, **options):
            cls.asked.append(options)
            return types.SimpleNamespace(define_metric=lambda *a, **k: None, log=lambda row: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", Wandb("wandb"))
    labels = Labels(project="mixing", group="temperatures", tags=("paper", "v2"))
    for resume_step in (None, 40, None):
        make_mirror("wandb", tmp_path / "", config={}, labels=labels, resume_step=resume_step).close()
    first, resumed, again = Wandb.asked
    assert first["group"] == "temperatures" and first["tags"] == ["paper", "v2"] and first["project"] == "mixing"
    assert resumed["id"] == first["id"] and resumed["resume"] == "allow"
    assert again["id"] != first["id"]
