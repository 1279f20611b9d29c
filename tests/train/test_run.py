"""The loop end to end on a tiny model: what it writes, that it repeats, resumes and refuses."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import fresh, tiny_config, tiny_model
from run_records import CLOCK

from jaxtune.chat import ChatTemplate
from jaxtune.config import EarlyStoppingConfig, HealthConfig
from jaxtune.errors import UserError
from jaxtune.model.moe import ClampedGate, MoeConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params
from jaxtune.runs import folder as runfolder
from jaxtune.runs.checkpoints import Checkpoints
from jaxtune.runs.history import read_rows, read_run
from jaxtune.runs.mirrors import Labels
from jaxtune.runs.remote import RemoteFolder
from jaxtune.runs.results import exact_over_steps, fixed_answers
from jaxtune.step.programs import Programs
from jaxtune.train import documents, loop, measure, plans, resolution
from jaxtune.train import run as train
from jaxtune.train.arm import Arm, labels_of
from jaxtune.train.decisions import Status
from jaxtune.train.planned import plan_run
from jaxtune.train.rows import peak_memory_mb
from jaxtune.train.session import flops_of, flops_per_token, open_session


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    tiny_model(folder / "base")
    return folder


@pytest.fixture(scope="module")
def programs():
    return Programs()


@pytest.fixture(scope="module")
def finished(place, programs):
    return train.train(tiny_config(place), place / "run", programs=programs)


def leaves(folder):
    """Bytes of every saved leaf of the last checkpoint."""
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        last = checkpoints.latest()
        return last, json.loads((folder / "checkpoints" / f"{last:08d}" / "checkpoint.json").read_text())["files"]


def training_rows(folder):
    """Train rows without what the clock decides."""
    return [
        dataclasses.replace(
            row, tokens_per_s=0.0, loss_tokens_per_s=0.0, extra={k: v for k, v in row.extra.items() if k not in CLOCK}
        )
        for row in read_run(folder).train
    ]


def test_a_run_folder_explains_itself(finished):
    names = {path.name for path in finished.run_dir.iterdir()}
    expected = {"config.json", "environment.json", "manifest.json", "mixture.json", "samples.json", "metrics.jsonl"}
    assert (
        expected | {"summary.json", "checkpoints", "report.html", "generations.json", "model", "command.json"} <= names
    )
    assert finished.status is Status.FINISHED and finished.exit_code == 0
    run = read_run(finished.run_dir)
    assert [row.step for row in run.train] == [1, 2, 3, 4, 5, 6]
    assert [row.step for row in run.evals] == [0, 3, 6]
    assert run.train[-1].loss < run.train[0].loss


def test_a_hook_and_fixed_questions_are_asked_at_every_validation(place, programs, capsys):
    seen = []

    def hook(step, params, metrics):
        seen.append((step, metrics["loss"]))
        return {"norm": np.linalg.norm(np.asarray(params["embed"]["embedding"]))}

    config = tiny_config(place, on_validation=hook, mirror_tags=("a",))
    settings = dataclasses.replace(config.eval, every=2, answers=3, print_answers=True)
    config = dataclasses.replace(config, eval=settings)
    done = train.train(config, place / "watched", programs=programs)
    run = read_run(done.run_dir)
    assert [step for step, _ in seen] == [0, 2, 4, 6]
    assert [loss for _, loss in seen] == [row.loss for row in run.evals]
    norms = [row.extra["hook"]["norm"] for row in run.evals]
    assert norms[0] > 0 and len(set(norms)) == 4
    assert [row["step"] for row in run.answers] == [2, 4]  # those of steps 0 and 6 are in generations.json
    chosen = fixed_answers(run)
    assert [[task for task, _ in asked] for asked in chosen.values()] == [["large", "large", "small"]] * 2
    assert set(chosen[2]) <= {(t, row["id"]) for t, rows in run.generations["before"].items() for row in rows}
    assert [step for step, _ in exact_over_steps(run)][:1] == [0]
    assert capsys.readouterr().err.count(" small: ") == 2
    assert "While training" in (done.run_dir / "report.html").read_text()


def test_a_run_of_a_sweep_is_filed_under_the_sweep(place, tmp_path):
    (tmp_path / "warmups" / "runs").mkdir(parents=True)
    run = plan_run(tiny_config(place, mirror_tags=("a",)), tmp_path / "warmups" / "runs" / "one")
    assert labels_of(run) == Labels(project="tiny", tags=("a",))
    (tmp_path / "warmups" / "sweep.json").write_text("{}")
    assert labels_of(run).group == "warmups"
    named = dataclasses.replace(
        run, inputs=dataclasses.replace(run.inputs, config=tiny_config(place, mirror_group="g"))
    )
    assert labels_of(named).group == "g"


def test_a_run_of_a_sweep_in_a_bucket_is_filed_under_the_sweep(place, tmp_path):
    sweep = RemoteFolder(f"memory://{tmp_path}/warmups", tmp_path / "cache", mark="sweep.json")
    run = plan_run(tiny_config(place), sweep.run("one"))
    assert labels_of(run).group is None
    sweep.store.write("sweep.json", b"{}")
    assert labels_of(run).group == "warmups"
    assert RemoteFolder("memory://bucket/one", tmp_path).sweep_name() is None


def test_the_size_of_a_run_is_said_before_it_starts(place):
    inputs = resolution.resolve(tiny_config(place), show_progress=False)
    text = documents.size_in_words(inputs)
    assert text.startswith("6 steps of 4 rows of 64 tokens: ")
    assert "; 3 validations of 16 examples; 8 test questions" in text
    assert documents.text_in_words(inputs) == ""
    asks = ChatTemplate(name="asks", source="{{ strftime_now('%d') }}", variables={"effort": "low"})
    assert documents.text_in_words(dataclasses.replace(inputs, template=asks)) == (
        "chat template asks, effort='low', dated 2024-07-26; its date is --model.template-date, on every day"
    )


def test_the_ledger_equals_the_plan(finished, place):
    ledger = json.loads((finished.run_dir / "summary.json").read_text())["ledger"]
    planned = resolution.resolve(tiny_config(place), show_progress=False).plan.ledger().to_json()
    assert ledger["examples"] == {task: row["examples"] for task, row in planned.items()}
    assert ledger["loss_tokens"] == {task: row["loss_tokens"] for task, row in planned.items()}


def test_the_same_seed_gives_the_same_run_bit_for_bit(finished, place, programs):
    again = train.train(tiny_config(place), fresh(place / "again"), programs=programs)
    assert leaves(again.run_dir)[0] == leaves(finished.run_dir)[0] == 6
    assert training_rows(again.run_dir) == training_rows(finished.run_dir)
    assert final_params(again.run_dir, place) == final_params(finished.run_dir, place)


def final_params(folder, place):
    """Digest of every exported tensor."""
    import hashlib

    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def traces(folder):
    """Profiler traces of a run."""
    return list((folder / "profile" / "process_0").rglob("*.xplane.pb"))


def train_until_stopped(config, folder, programs, monkeypatch, *, stop_after):
    """A run that gets SIGTERM after a step."""

    def after(self, step):
        self.received = signal.SIGTERM if step == stop_after else None
        return step == stop_after

    with monkeypatch.context() as patch:
        patch.setattr(loop.StopSignal, "after", after)
        return train.train(config, folder, programs=programs)


def test_a_stopped_run_resumes_to_the_same_end(finished, place, programs, monkeypatch):
    folder = fresh(place / "stopped")
    config = dataclasses.replace(tiny_config(place), health=HealthConfig(profile_steps=(2, 5)))
    stopped = train_until_stopped(config, folder, programs, monkeypatch, stop_after=3)
    assert stopped.status is Status.STOPPED and stopped.exit_code not in (0, 1, 2)
    assert len(traces(folder)) == 1  # of steps 2 and 3
    shutil.rmtree(folder / "profile")
    resumed = train.train(config, folder, resume=True, programs=programs)
    assert resumed.status is Status.FINISHED
    assert len(traces(folder)) == 1  # of steps 4 and 5
    assert training_rows(folder) == training_rows(finished.run_dir)
    assert final_params(folder, place) == final_params(finished.run_dir, place)
    ledger = lambda outcome: outcome.summary["ledger"]
    assert ledger(resumed) == ledger(finished)


def test_a_run_goes_on_from_copies_in_a_bucket_and_another_run_may_not_use_them(finished, place, programs, monkeypatch):
    folder, bucket = fresh(place / "copied"), f"memory://{place.name}/checkpoints"
    config = tiny_config(place)
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, directory=bucket))
    assert train_until_stopped(config, folder, programs, monkeypatch, stop_after=3).status is Status.STOPPED
    shutil.rmtree(folder / "checkpoints")
    for run_dir in (place / "another", folder):
        with pytest.raises(UserError, match=f"{bucket} holds checkpoints of another run; set checkpoint.directory"):
            train.train(config, run_dir, overwrite=True, programs=programs)
    assert not (place / "another").exists() and (folder / "metrics.jsonl").exists()
    assert train.train(config, folder, resume=True, programs=programs).status is Status.FINISHED
    assert training_rows(folder) == training_rows(finished.run_dir)
    assert final_params(folder, place) == final_params(finished.run_dir, place)


@pytest.mark.parametrize("killed_in", ["conclude", "score"])
def test_a_run_that_was_killed_at_its_end_ends_again(finished, place, programs, monkeypatch, killed_in):
    folder = fresh(place / "ending")
    real = getattr(Arm, killed_in)

    def killed(self, *arguments):
        if killed_in == "conclude" or "after" in arguments:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Arm, killed_in, killed)
        train.train(tiny_config(place), folder, programs=programs)
    assert (folder / "model").exists() == (killed_in == "conclude") and not (folder / "summary.json").exists()
    for left in (".model.partial-1", ".model.replaced-1"):  # as after a kill in the midst of writing the model
        (folder / left).mkdir()
    assert train.train(tiny_config(place), folder, resume=True, programs=programs).status is Status.FINISHED
    assert not list(folder.glob(".model.*"))
    rows = lambda run_dir: [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] != "train"]
    assert rows(folder) == rows(finished.run_dir)
    assert final_params(folder, place) == final_params(finished.run_dir, place)


def test_a_finished_run_has_nothing_to_resume(finished, place, programs, capfd):
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")}
    again = train.train(tiny_config(place), finished.run_dir, resume=True, programs=programs)
    assert again.summary == json.loads((finished.run_dir / "summary.json").read_text()) and again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in finished.run_dir.rglob("*")} == before
    assert "is finished; there is nothing to resume" in capfd.readouterr().err


def test_a_finished_run_that_goes_on_from_an_earlier_step_is_not_finished(finished, place, programs, monkeypatch):
    folder = fresh(place / "earlier")
    shutil.copytree(finished.run_dir, folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_arms", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train.train(tiny_config(place), folder, resume=True, resume_step=4, programs=programs)
    assert not (folder / "summary.json").exists()
    assert train.train(tiny_config(place), folder, resume=True, programs=programs).status is Status.FINISHED
    assert training_rows(folder) == training_rows(finished.run_dir)


def test_an_existing_run_is_never_written_over_unasked(finished, place):
    before = (finished.run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="not empty.*--resume.*--overwrite"):
        train.train(tiny_config(place), finished.run_dir)
    assert (finished.run_dir / "metrics.jsonl").read_bytes() == before


def test_overwrite_spares_folders_that_are_no_runs(place):
    other = place / "notes"
    other.mkdir()
    (other / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="no run"):
        train.train(tiny_config(place), other, overwrite=True)
    assert (other / "precious.txt").read_text() == "keep"


def test_resuming_nothing_is_an_error(place):
    with pytest.raises(UserError, match="nothing to resume"):
        train.train(tiny_config(place), place / "nowhere", resume=True)


def test_resuming_with_other_data_says_what_changed(finished, place):
    other = dataclasses.replace(tiny_config(place), seed=7)
    with pytest.raises(UserError, match="(?s)cannot be resumed.*seed"):
        train.train(other, finished.run_dir, resume=True)


def test_a_bad_input_leaves_an_existing_run_alone(finished, place):
    broken = tiny_config(place)
    broken = dataclasses.replace(broken, model=dataclasses.replace(broken.model, path=str(place / "missing")))
    before = sorted(path.name for path in finished.run_dir.iterdir())
    with pytest.raises(UserError):
        train.train(broken, finished.run_dir, overwrite=True)
    assert sorted(path.name for path in finished.run_dir.iterdir()) == before


def test_early_stopping_ends_the_run_and_exports_the_best_step(place, programs):
    config = dataclasses.replace(
        tiny_config(place),
        eval=dataclasses.replace(tiny_config(place).eval, every=1, generate=False),
        early_stopping=EarlyStoppingConfig(patience=2, min_change=100.0),
    )
    outcome = train.train(config, place / "early", programs=programs)
    assert outcome.status is Status.EARLY_STOPPED
    assert outcome.summary["steps"] == 3  # the first validation is the best by definition, then two without a change
    values = {row.step: row.macro_loss for row in read_run(outcome.run_dir).evals if row.step}
    assert outcome.summary["exported_step"] == outcome.summary["best"]["step"] == min(values, key=lambda s: values[s])


def test_a_non_finite_loss_names_step_and_examples(place, programs, monkeypatch):
    config = dataclasses.replace(tiny_config(place), health=HealthConfig(skip_budget=0, profile_steps=(1, 6)))
    real = train.open_sessions

    def poisoned(inputs, shared):
        [session] = real(inputs, shared)
        base = dataclasses.replace(session.base, trainable=jax.tree.map(lambda x: x * np.nan, session.base.trainable))
        return [dataclasses.replace(session, base=base)]

    monkeypatch.setattr(train, "open_sessions", poisoned)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, generate=False))
    with pytest.raises(UserError, match=r"step 1: not finite.*(large|small): "):
        train.train(config, place / "poisoned", programs=programs)
    assert len(traces(place / "poisoned")) == 1  # the error ended it


def test_run_folder_rules(tmp_path):
    with pytest.raises(UserError, match="one of them"):
        runfolder.check(tmp_path / "x", resume=True, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"), runfolder.only_writer(tmp_path / "file"):
        pass
    runfolder.check(tmp_path / "new", resume=False, overwrite=False)


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    code = "from jaxtune.train.rows import peak_memory_mb; print(peak_memory_mb())"
    held = np.ones(2**27, np.uint8)  # the parent's peak is at least 128 MB higher
    child = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert held[-1] and child < peak_memory_mb()


def test_the_loss_of_seen_examples_is_measured_beside_that_of_unseen_ones(finished):
    after = finished.summary["after"]
    assert after["seen_task_loss"].keys() == after["task_loss"].keys()
    assert all(np.isfinite(loss) for loss in after["seen_task_loss"].values())
    assert after["seen_task_loss"] != after["task_loss"]


def test_seen_examples_are_those_of_the_first_steps(place):
    inputs = resolution.resolve(tiny_config(place), questions=False)
    [met] = [{(p.task, p.example) for row in inputs.plan.rows(0) for p in row}]
    one_step = plans.seen_examples(inputs.plan, inputs.train, inputs.validation, 1)
    assert {(task, int(i)) for task, part in one_step.items() for i in part.numbers} <= met
    assert not plans.seen_examples(inputs.plan, inputs.train, inputs.validation, 0)
    for task, part in plans.seen_examples(inputs.plan, inputs.train, inputs.validation, inputs.total_steps).items():
        assert len(set(part.numbers.tolist())) == len(part.numbers) <= len(inputs.validation[task].numbers)


def test_validation_has_no_more_rows_than_its_examples_need(place, programs):
    def validated(rows):
        config = dataclasses.replace(tiny_config(place), eval=dataclasses.replace(tiny_config(place).eval, rows=rows))
        session = open_session(resolution.resolve(config, questions=False), programs)
        with jax.set_mesh(session.mesh):
            loss = measure.validation_loss(session, session.base.trainable)
        assert loss is not None and session.inputs.eval_plan is not None
        return session.inputs.eval_plan, loss.macro_loss

    wide, loss = validated(64)
    assert wide.num_steps == 1 and wide.rows_per_step == wide.num_rows < 64
    narrow, again = validated(wide.num_rows - 1)
    assert narrow.num_steps == 2 and narrow.rows_per_step == -(-wide.num_rows // 2)
    assert again == pytest.approx(loss, rel=1e-6)


def test_no_second_copy_of_the_parameters_is_kept(place, programs):
    session = open_session(resolution.resolve(tiny_config(place), questions=False), programs)
    size = flops_per_token(session)
    with jax.set_mesh(session.mesh):
        state = session.take_initial_state()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(session.base.trainable))
    assert flops_per_token(session) == size and not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_of_the_experts_those_count_that_a_token_is_sent_to():
    moe = MoeConfig(num_experts=8, experts_per_token=2, d_ff=5, bias=True, clamped=ClampedGate())
    config = ModelConfig(
        family="gpt_oss", vocab_size=11, d_model=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=5,
        max_seq_len=16, tie_embeddings=False, attn_sinks=True, moe=moe,
    )  # fmt: skip
    expert = 3 * 8 * 5 + 2 * 5 + 8
    attention = 8 * 4 * (2 + 1 + 1 + 2) + 2  # and a sink for each head
    layer = 2 * 8 + attention + 8 * 8 + 8 + 2 * expert
    assert flops_of(config, abstract_params(config)[1]) == 6 * (3 * layer + 8 + 8 * 11)
