"""Runs that train as one program: each is the run that it would be alone, whatever becomes of the others."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_xla
from helpers import TINY, tiny_config, tiny_config_file, tiny_model
from run_records import timeless

from jaxtune import cli, verify
from jaxtune import config as configs
from jaxtune.config import EarlyStoppingConfig
from jaxtune.errors import UserError
from jaxtune.mixture.settings import Budget
from jaxtune.model.lora import LoraConfig
from jaxtune.parallel import sharding
from jaxtune.parallel.job import StopSignal
from jaxtune.parallel.mesh import MeshConfig
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.retention import CheckpointConfig
from jaxtune.step import trials
from jaxtune.step.programs import Programs
from jaxtune.sweep import run as sweep
from jaxtune.sweep.language import Setting, crossed
from jaxtune.sweep.record import trials_of
from jaxtune.train import lanes, loop, measure, resolution, session
from jaxtune.train.arm import Arm
from jaxtune.train.decisions import Status
from jaxtune.train.rooms import read_room
from jaxtune.train.session import open_session, open_sessions

pytestmark = pytest.mark.bits
STACKED = sweep.Stacking(stacked=True)
AXES = {"optim.peak_lr": ["1e-2", "3e-3"], "mixture.temperature": ["1", "inf"]}
TRIALS = trials_of(crossed(AXES), [0])
NAMES = [f"peak_lr={lr}_temperature={t}_seed=0" for lr in AXES["optim.peak_lr"] for t in AXES["mixture.temperature"]]


@pytest.fixture(scope="module")
def place_of(tmp_path_factory):
    """A folder with a model and a config file."""
    folder = tmp_path_factory.mktemp("stacked")
    tiny_model(folder / "base")
    tiny_config_file(folder, folder)
    return folder


@pytest.fixture(scope="module")
def programs():
    """Compiled once for all tests of this file."""
    shared = Programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "Programs", lambda: shared)
        yield shared


@pytest.fixture(scope="module")
def alone(place_of, programs):
    """The four runs one after the other."""
    assert sweep.sweep(tiny_config(place_of), place_of / "alone", TRIALS) is Status.FINISHED
    return place_of / "alone" / "runs"


@pytest.fixture(scope="module")
def together(place_of, programs):
    """The four runs as one program, from the command line."""
    grid = [f"{option}={','.join(values)}" for option, values in AXES.items()]
    folder = place_of / "together"
    config = str(place_of / "config.py")
    assert cli.main(["sweep", config, "--sweep-dir", str(folder), "--grid", *grid, "--stacked"]) == 0
    return folder / "runs"


def model_digest(run_dir: pathlib.Path) -> str:
    return hashlib.sha256((run_dir / "model" / "model.safetensors").read_bytes()).hexdigest()


def summary(run_dir: pathlib.Path) -> dict:
    read = json.loads((run_dir / "summary.json").read_text())
    return {key: value for key, value in read.items() if key not in ("seconds", "peak_memory_mb", "trained_with")}


def check_same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Two folders of the same run, bit for bit: metrics, answers, ledger and best step, checkpoints, exported model."""
    assert timeless(ours) == timeless(theirs)
    assert summary(ours) == summary(theirs)
    assert (ours / "generations.json").read_bytes() == (theirs / "generations.json").read_bytes()
    saved = lambda folder: sorted(path.name for path in (folder / "checkpoints").glob("[0-9]*"))
    assert saved(ours) == saved(theirs)
    assert model_digest(ours) == model_digest(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_a_group_is_the_run_alone_bit_for_bit(alone, together, name):
    check_same(together / name, alone / name)


def test_runs_of_a_group_differ(together):
    assert len({model_digest(together / name) for name in NAMES}) == 4


def test_a_run_of_a_group_is_verified_and_replayed_alone(together):
    outcome = verify.verify(together / NAMES[1], replay=2)
    assert outcome.ok, outcome.to_json()
    replay = next(check for check in outcome.checks if check.name == "replay")
    assert "and the state of step 6 are equal bit for bit" in replay.lines[0]


def test_a_group_leaves_complete_run_folders_and_a_report(alone, together):
    files = lambda folder: {str(path.relative_to(folder)) for path in folder.glob("*")}
    for name in NAMES:
        assert files(together / name) == files(alone / name) | {"sources"}  # only a command line has a config file
        read = json.loads((together / name / "summary.json").read_text())
        assert read["trained_with"] == [other for other in NAMES if other != name]
    table = list(csv.DictReader((together.parent / "results.csv").read_text().splitlines()))
    assert [row["name"] for row in table] == NAMES
    assert (together.parent / "report.html").exists() and (together.parent / "heatmap.png").exists()


def test_a_group_says_what_it_does(place_of, together, capsys):
    again = ["sweep", str(place_of / "config.py"), "--sweep-dir", str(together.parent), "--stacked", "--grid"]
    assert cli.main([*again, *(f"{option}={','.join(values)}" for option, values in AXES.items())]) == 0
    assert capsys.readouterr().out.count("finished before") == 4


def test_a_run_that_is_not_finite_ends_alone(place_of, programs, alone, monkeypatch, capsys):
    real = session.beside

    def poisoned(first, inputs):
        found = real(first, inputs)
        if inputs.config.optim.peak_lr != 3e-3 or inputs.config.mixture.temperature != 1:
            return found
        spoiled = jax.tree.map(lambda x: x * np.nan, found.base.trainable)
        return dataclasses.replace(found, base=dataclasses.replace(found.base, trainable=spoiled))

    monkeypatch.setattr(session, "beside", poisoned)
    folder = place_of / "poisoned"
    with pytest.raises(UserError, match=rf"(?s)1 of 4 runs.*{NAMES[2]}: step 1: not finite.*(large|small): "):
        sweep.sweep(tiny_config(place_of), folder, TRIALS, stacking=STACKED)
    assert not (folder / "runs" / NAMES[2] / "summary.json").exists()
    assert "the others go on" in capsys.readouterr().err
    for name in (NAMES[0], NAMES[1], NAMES[3]):
        check_same(folder / "runs" / name, alone / name)
    table = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(table) == 3


class StopAt(StopSignal):
    """A stop signal that is there after one round."""

    def after(self, step: int) -> bool:
        if step == 3:
            self.received = signal.SIGTERM
        return step == 3


def test_a_stopped_sweep_goes_on_wherever_its_runs_are(place_of, programs, alone, monkeypatch, capsys):
    config, folder = tiny_config(place_of), place_of / "stopped"
    assert config.eval.every == 3, "the stop comes at a validation, which is then still to be done"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopSignal", StopAt)
        assert sweep.sweep(config, folder, TRIALS, stacking=STACKED) is Status.STOPPED
    assert all(summary(folder / "runs" / name)["status"] == "stopped" for name in NAMES)
    shutil.rmtree(folder / "runs" / NAMES[1] / "checkpoints" / "00000003")  # as after a kill in the midst of saving
    shutil.rmtree(folder / "runs" / NAMES[2] / "checkpoints")
    capsys.readouterr()
    assert sweep.sweep(config, folder, TRIALS, stacking=STACKED) is Status.FINISHED
    printed = capsys.readouterr().out
    assert f"{NAMES[2]}: has no checkpoint, starts again" in printed
    assert printed.count("goes on from its last checkpoint") == 3
    for name in NAMES:
        check_same(folder / "runs" / name, alone / name)


def test_a_run_that_stops_early_leaves_the_others_alone(place_of, programs, monkeypatch):
    real, watched = Arm.validated, {0: 9.0, 1: 3.0, 2: 2.0, 3: 2.5, 4: 1.9, 5: 1.0, 6: 1.5}

    def validated(self, *given):
        real(self, *given)
        return watched[self.done]

    monkeypatch.setattr(Arm, "validated", validated)
    config = dataclasses.replace(
        tiny_config(place_of),
        early_stopping=EarlyStoppingConfig(patience=2),
        checkpoint=CheckpointConfig(save_every=2),
        eval=dataclasses.replace(tiny_config(place_of).eval, every=1, generate=False),
    )
    axes = {"optim.peak_lr": ["1e-2", "3e-3"], "early_stopping.min_change": ["0", "1000"]}
    folders = {True: place_of / "early-together", False: place_of / "early-alone"}
    for together, folder in folders.items():
        assert (
            sweep.sweep(config, folder, trials_of(crossed(axes), [0]), stacking=sweep.Stacking(stacked=together))
            is Status.FINISHED
        )
    for path in (folders[True] / "runs").iterdir():
        assert timeless(path) == timeless(folders[False] / "runs" / path.name)
        assert summary(path) == summary(folders[False] / "runs" / path.name)
        assert model_digest(path) == model_digest(folders[False] / "runs" / path.name)
        ends = ("early_stopped", 3, 2) if "min_change=1000" in path.name else ("finished", 6, 5)
        assert tuple(summary(path)[key] for key in ("status", "steps", "exported_step")) == ends


def test_runs_side_by_side_on_a_mesh_agree_with_runs_alone(place_of, programs, alone):
    mesh = MeshConfig(trial=2, data=2, devices=4)
    config = dataclasses.replace(tiny_config(place_of), mesh=mesh)
    axes = {"optim.peak_lr": ["1e-2", "3e-3", "1e-3"], "mixture.temperature": ["1"]}  # 3 runs fill 2 devices unevenly
    assert sweep.sweep(config, place_of / "mesh", trials_of(crossed(axes), [0]), stacking=STACKED) is Status.FINISHED
    for name in (NAMES[0], NAMES[2]):
        ours, theirs = timeless(place_of / "mesh" / "runs" / name), timeless(alone / name)
        losses = [[row["loss"] for row in found if row["kind"] in ("train", "eval")] for found in (ours, theirs)]
        assert len(losses[0]) == 9
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_no_number_crosses_from_trial_to_trial(place_of):
    inputs = resolution.resolve(dataclasses.replace(tiny_config(place_of), mesh=MeshConfig(trial=2, data=2, devices=4)))
    placed = open_session(inputs, Programs())
    compiled = trials.build(placed.program, placed.base.trainable, placed.mesh, 4)
    leaves, tree = jax.tree.flatten(step_arguments(placed, compiled))  # lowering calls dataclasses with placeholders
    with jax.set_mesh(placed.mesh):
        step = jax.jit(lambda leaves: compiled.jitted_train_step.__wrapped__(*tree.unflatten(leaves)))  # type: ignore
        options = quick_xla.OPTIONS  # leave collectives alone
        text = step.lower(leaves).compile(options).as_text() or ""
    found = re.findall(r" (?:all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(.*", text)
    groups = {match[1].rstrip(",") for line in found if (match := re.search(r"replica_groups=([^a-z ]*)", line))}
    assert len(found) == len([line for line in found if "replica_groups=" in line])
    assert groups, "the rows of a batch are split over `data`, so gradients are summed"
    assert groups <= {"{{0,1},{2,3}}", "[2,2]<=[4]"}, groups


def step_arguments(placed, compiled) -> tuple:
    """What the stacked train step takes: the state as shapes."""
    with contextlib.closing(placed.train_batches(0)) as batches:
        batch = lanes.stacked_batch({0: next(batches)}, compiled.size)
    with jax.set_mesh(placed.mesh):
        put = sharding.put_batch(placed.mesh, batch, placed.inputs.micro_rows, trials=True)
    numbers = lanes.stacked_numbers([placed.numbers], compiled.size)
    who = trials.turns(range(compiled.size), compiled.size, placed.mesh)
    return jax.eval_shape(compiled.blank), placed.base.frozen, put, numbers, *who


def test_the_base_under_adapters_is_not_stacked(place_of):
    config = dataclasses.replace(tiny_config(place_of), lora=LoraConfig(rank=2))
    alike = [resolution.resolve(dataclasses.replace(config, seed=seed)) for seed in (0, 1)]
    placed, beside = open_sessions(alike, Programs())
    assert beside.base.frozen is placed.base.frozen
    compiled = trials.build(placed.program, placed.base.trainable, placed.mesh, 3)
    arguments = step_arguments(placed, compiled)
    state, metrics = jax.eval_shape(compiled.jitted_train_step, *arguments)
    stacked_shapes = jax.tree.map(lambda x: (3, *x.shape), placed.base.trainable)
    assert jax.tree.map(jnp.shape, state.params) == stacked_shapes and metrics.loss.shape == (3,)
    assert arguments[1] is placed.base.frozen


NUMBERS = (
    {"mixture.temperature": "1", "optim.peak_lr": "1e-2"},
    {"mixture.temperature": "inf", "optim.warmup_steps": "3", "lora.alpha": "8"},
    {"duration.steps": "3", "data.prompt_loss_weight": "0.5"},
    {"mixture.strategy": "weights", "mixture.weights": "large 1 small 0", "lora.rank": "2"},
    {"loss.label_smoothing": "0.1", "loss.z_loss": "1e-3", "optim.clip_norm": "0.05", "optim.schedule": "constant"},
)
"""Settings that differ in numbers alone: a compiled step takes all of them as data."""


def test_settings_that_differ_in_numbers_train_as_one_program_with_the_bits_of_runs_alone(place_of, programs, capsys):
    base = tiny_config(place_of, lora=LoraConfig(rank=4))
    config = dataclasses.replace(base, eval=dataclasses.replace(base.eval, generate=False))
    trials_here = trials_of([Setting(overrides=one) for one in NUMBERS], [0])
    for folder, together in (("numbers-alone", False), ("numbers-together", True)):
        stacking = sweep.Stacking(stacked=together)
        assert sweep.sweep(config, place_of / folder, trials_here, stacking=stacking) is Status.FINISHED
    assert capsys.readouterr().out.count("together with 4 others") == len(NUMBERS)
    digests = set()
    for trial in trials_here:
        ours, theirs = (place_of / folder / "runs" / trial.name for folder in ("numbers-together", "numbers-alone"))
        assert timeless(ours) == timeless(theirs) and summary(ours) == summary(theirs)
        assert model_digest(ours) == model_digest(theirs)
        digests.add(model_digest(ours))
    assert len(digests) == len(NUMBERS)
    assert {summary(place_of / "numbers-together" / "runs" / trial.name)["steps"] for trial in trials_here} == {3, 6}
    narrow = place_of / "numbers-together" / "runs" / trials_here[3].name
    inputs = resolution.resolve(configs.override(config, trials_here[3].arguments()))
    inputs = dataclasses.replace(inputs, room=read_room(narrow))
    placed = open_session(inputs, programs)
    with Checkpoints(narrow / "checkpoints", config.checkpoint, read_only=True) as saved:
        adapters = saved.restore(6, abstract(placed.initial_state())).params
    for adapter in jax.tree.leaves(adapters, is_leaf=lambda node: isinstance(node, dict) and "a" in node):
        assert adapter["a"].shape[-1] == 4 and np.any(adapter["b"])
        assert not np.any(adapter["a"][..., 2:]), "columns beyond the run's own rank stay zero"


def test_a_run_of_one_program_is_replayed_alone_in_its_room(place_of, programs):
    """Another setting of the sweep needs the larger room: alone, without the record, sums would be taken otherwise."""
    config, folder = tiny_config(place_of), place_of / "rooms"
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, generate=False))
    prompts = [Setting(overrides={"data.prompt_loss_weight": weight}) for weight in ("0", "0.5")]
    assert sweep.sweep(config, folder, trials_of(prompts, [0])) is Status.FINISHED
    run_dir = folder / "runs" / "prompt_loss_weight=0_seed=0"
    room = read_room(run_dir)
    assert room is not None and room.capacity == 2 * 64
    again = dataclasses.replace(resolution.resolve(config), room=None)
    alone = open_session(again, programs).program.spec.room
    assert alone.capacity is not None and alone.capacity < room.capacity
    (place_of / "quiet.py").write_text(
        "import dataclasses\nimport pathlib\n\nfrom helpers import tiny_config\n\n\ndef config():\n"
        f"    found = tiny_config(pathlib.Path({str(place_of)!r}))\n"
        "    return dataclasses.replace(found, eval=dataclasses.replace(found.eval, generate=False))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "Programs", lambda: programs)
        outcome = verify.verify(run_dir, config_path=str(place_of / "quiet.py"), replay=2)
    assert next(check for check in outcome.checks if check.name == "replay").ok, outcome.to_json()


def test_adapters_in_one_batch_have_the_losses_of_runs_alone(place_of, programs):
    base = tiny_config(place_of, lora=LoraConfig(rank=4), duration=Budget(steps=20))
    config = dataclasses.replace(base, eval=dataclasses.replace(base.eval, generate=False, every=10))
    settings = ({"optim.peak_lr": "3e-3"}, {"optim.peak_lr": "1e-3", "lora.rank": "2"}, {"duration.steps": "10"})
    trials_here = trials_of([Setting(overrides=one) for one in settings], [0])
    batched = sweep.Stacking(stacked=True, mode=trials.StackMode.BATCHED)
    for folder, stacking in (("batch-alone", sweep.Stacking()), ("batch", batched)):
        assert sweep.sweep(config, place_of / folder, trials_here, stacking=stacking) is Status.FINISHED
    for trial in trials_here:
        ours, theirs = (place_of / folder / "runs" / trial.name for folder in ("batch", "batch-alone"))
        losses = [[row["loss"] for row in timeless(run) if row["kind"] in ("train", "eval")] for run in (ours, theirs)]
        assert len(losses[0]) == len(losses[1]) >= 12 and losses[0][-1] < losses[0][0]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        modes = [json.loads((run / "manifest.json").read_text()).get("stack_mode") for run in (ours, theirs)]
        assert modes == ["batched", None]


@pytest.mark.parametrize("mode", trials.StackMode)
def test_rows_of_all_trials_go_through_frozen_kernels_at_once_in_a_batch_only(place_of, programs, mode):
    inputs = resolution.resolve(tiny_config(place_of, lora=LoraConfig(rank=2)))
    placed = open_session(inputs, programs)
    compiled = trials.build(placed.program, placed.base.trainable, placed.mesh, 3, mode)
    with jax.set_mesh(placed.mesh):
        jaxpr = jax.make_jaxpr(compiled.jitted_train_step.__wrapped__)(*step_arguments(placed, compiled))  # type: ignore
    leads = {lead for lead, kernel in products(jaxpr.jaxpr) if kernel == (TINY.d_model, TINY.d_ff)}
    assert {len(lead) for lead in leads} == {3 if mode is trials.StackMode.BATCHED else 2}, leads
    assert all(3 in lead for lead in leads) is (mode is trials.StackMode.BATCHED)


def products(jaxpr) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For every product with a kernel: the left operand's axes that are not summed, and the kernel's shape."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), (shared, _) = equation.params["dimension_numbers"]
            left, right = (operand.aval.shape for operand in equation.invars)
            if not shared:
                found.add((tuple(n for axis, n in enumerate(left) if axis not in summed), right))
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(one, "jaxpr", one)
                found |= products(inner) if hasattr(inner, "eqns") else set()
    return found


def test_the_prompts_loss_of_a_stack_is_that_of_each_run_alone(place_of):
    data = dataclasses.replace(tiny_config(place_of).data, prompt_loss_weight=0.1)
    alike = [resolution.resolve(dataclasses.replace(tiny_config(place_of, data=data), seed=seed)) for seed in (0, 1)]
    programs = Programs()
    sessions = open_sessions(alike, programs)
    lane = lanes.make_lane(sessions, programs)
    with jax.set_mesh(sessions[0].mesh):
        halved = dataclasses.replace(lane.state(0), params=jax.tree.map(lambda x: x / 2, lane.state(0).params))
        lane.replace(1, halved)
        together = lane.losses([0, 1])
        for number in (0, 1):
            alone = measure.validation_loss(sessions[number], lane.state(number).measured)
            assert alone is not None and alone.prompt_loss.keys() == alone.task_loss.keys()
            assert together[number] == alone
    first, second = (found for found in together.values() if found is not None)
    assert first.prompt_loss != second.prompt_loss and first.prompt_loss != first.task_loss


@pytest.mark.slow
def test_adapters_of_a_group_are_those_of_runs_alone(place_of):
    config = dataclasses.replace(tiny_config(place_of), lora=LoraConfig(rank=2))
    for folder, together in (("lora-alone", False), ("lora-together", True)):
        stacking, trials_here = sweep.Stacking(stacked=together), crossed({"optim.peak_lr": ["1e-2"]})
        sweep.sweep(config, place_of / folder, trials_of(trials_here, [0, 1, 2]), stacking=stacking)
    for seed in range(3):
        name = f"peak_lr=1e-2_seed={seed}"
        check_same(place_of / "lora-together" / "runs" / name, place_of / "lora-alone" / "runs" / name)
