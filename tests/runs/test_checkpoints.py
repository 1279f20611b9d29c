"""Checkpoints: what is saved comes back, what was damaged is found and named, and what must stay stays."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toy_states import State, make_state, same

from jaxtune.errors import UserError
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import init_params
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.parallel.sharding import replicated, shardings
from jaxtune.runs.checkpoints import Checkpoints, DamagedCheckpoint, abstract
from jaxtune.runs.retention import CheckpointConfig


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with Checkpoints(folder, CheckpointConfig(keep_latest=5)) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {"plan_hash": "abc", "step": step}, {"loss": 3.0 - step / 10})
    return folder


@pytest.fixture
def saved(three_steps, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(three_steps, tmp_path / "checkpoints"))


def test_everything_saved_comes_back_with_its_types(three_steps):
    state = make_state(20)
    with Checkpoints(three_steps, read_only=True) as checkpoints:
        restored = checkpoints.restore(20, abstract(state))
        assert same(restored, state)
        assert same(checkpoints.restore_params(20, abstract(state).params), state.params)
        assert checkpoints.extra(20) == {"plan_hash": "abc", "step": 20}
        assert checkpoints.metrics(20) == {"loss": 1.0}
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([10, 20, 30], 30, 30)
        assert checkpoints.leaves(20)["params"] == {
            "embed.embedding": ((64, 32), "float32"),
            "norm.scale": ((32,), "bfloat16"),
        }


def test_shapes_alone_restore_onto_the_first_device(three_steps):
    shapes = jax.eval_shape(lambda: make_state(10))
    with Checkpoints(three_steps, read_only=True) as checkpoints:
        assert same(checkpoints.restore(10, shapes), make_state(10))


def test_a_sharded_state_is_restored_onto_another_mesh(tmp_path):
    state = make_state(3)
    by_eight = make_mesh(MeshConfig(fsdp=8, data=1))
    rows = lambda mesh: jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()), state
    )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, jax.device_put(state, rows(by_eight)))
        by_two = make_mesh(MeshConfig(fsdp=2, data=2, tensor=2))
        restored = checkpoints.restore(1, abstract(jax.eval_shape(lambda: state), rows(by_two)))
    assert same(restored, state)
    assert restored.params["embed"]["embedding"].sharding.shard_shape((64, 32)) == (32, 32)


def test_experts_over_devices_are_kept_by_each_and_restored_onto_another_mesh(tmp_path):
    mixture = MoeConfig(num_experts=4, experts_per_token=2, d_ff=4)
    shape = ModelConfig(
        vocab_size=8, d_model=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=4, max_seq_len=8,
        moe=mixture,
    )  # fmt: skip
    params = init_params(shape, 0)[1]
    state = State(step=jnp.asarray(3), params=params, opt_state=())
    wheres: Any = lambda mesh: State(
        step=replicated(mesh),  # type: ignore[arg-type]
        params=shardings(mesh, params), opt_state=(),
    )  # fmt: skip
    four = wheres(make_mesh(MeshConfig(data=2, expert=4)))
    other = wheres(make_mesh(MeshConfig(data=2, expert=2, fsdp=2)))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        placed = jax.device_put(state, four)
        assert placed.params["layers"]["moe"]["up"]["kernel"].addressable_shards[0].data.shape == (2, 1, 8, 4)
        checkpoints.save(1, placed)
        restored = checkpoints.restore(1, abstract(jax.eval_shape(lambda: state), other))
    assert same(restored, state)
    kernel = restored.params["layers"]["moe"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 2, 4, 4)


def test_a_save_is_a_snapshot_even_when_the_buffers_are_donated_at_once(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = State(step=jnp.asarray(0), params={"w": jnp.zeros((512, 1024))}, opt_state=())
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep_latest=9)) as checkpoints:
        for step in range(1, 6):
            state = bump(state)
            checkpoints.save(step, state)
        for _ in range(50):
            state = bump(state)
        shapes = jax.eval_shape(lambda: state)
        for step in range(1, 6):
            assert np.all(np.asarray(checkpoints.restore(step, shapes).params["w"]) == step)


def data_files(folder: pathlib.Path, step: int) -> list[pathlib.Path]:
    return sorted(path for path in (folder / f"{step:08d}").rglob("*") if path.is_file())


def flip_bit(path: pathlib.Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1 << 3
    path.write_bytes(content)


def damage_flip_in_every_third_file(folder):
    for path in data_files(folder, 30)[::3]:
        if path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            flip_bit(path, 0.4)


def damage_flip_one_bit_of_an_array(folder):
    largest = max(data_files(folder, 30), key=lambda path: path.stat().st_size)
    flip_bit(largest, 0.7)


def damage_truncate(folder):
    largest = max(data_files(folder, 30), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def damage_empty(folder):
    max(data_files(folder, 30), key=lambda path: path.stat().st_size).write_bytes(b"")


def damage_remove_array(folder):
    max(data_files(folder, 30), key=lambda path: path.stat().st_size).unlink()


def damage_remove_item(folder):
    shutil.rmtree(folder / "00000030" / "rest")


def damage_add_file(folder):
    (folder / "00000030" / "params" / "d" / "extra").write_bytes(b"x")


def damage_change_document(folder):
    path = folder / "00000030" / "checkpoint.json"
    document = json.loads(path.read_text())
    assert document["extra"]["plan_hash"] == "abc"
    document["extra"]["plan_hash"] = "abd"  # nothing but the document's own digest can tell
    path.write_text(json.dumps(document))


def damage_break_document(folder):
    path = folder / "00000030" / "checkpoint.json"
    path.write_text(path.read_text()[:-20])


def damage_remove_document(folder):
    (folder / "00000030" / "checkpoint.json").unlink()


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_last_good_one_offered(saved, damage):
    damage(saved)
    with Checkpoints(saved) as checkpoints:
        for use in (lambda: checkpoints.restore(30, abstract(make_state())), lambda: checkpoints.extra(30)):
            with pytest.raises(DamagedCheckpoint, match="checkpoint 30 is damaged and was not used") as caught:
                use()
            assert caught.value.good == 20
            assert "--resume-step 20" in str(caught.value)
            assert caught.value.problems
        assert same(checkpoints.restore(20, abstract(make_state())), make_state(20))


def test_every_single_bit_flip_in_array_files_is_found(saved):
    arrays = [path for path in data_files(saved, 30) if path.parent.name == "d"]
    assert arrays
    with Checkpoints(saved) as checkpoints:
        for path in arrays:
            whole = path.read_bytes()
            for where in (0.0, 0.33, 0.66, 1.0):
                flip_bit(path, where)
                assert [line.split(":")[0] for line in checkpoints.problems(30)] == [
                    path.relative_to(saved / "00000030").as_posix()
                ]
                path.write_bytes(whole)
        assert checkpoints.problems(30) == []


def test_a_truncated_file_is_described_by_its_size(saved):
    damage_truncate(saved)
    with Checkpoints(saved, read_only=True) as checkpoints:
        (problem,) = checkpoints.problems(30)
    found, written = (int(word) for word in problem.split() if word.isdigit())
    assert found == written - 1


def test_what_a_kill_left_of_a_document_that_was_being_replaced_is_no_damage(saved):
    with Checkpoints(saved) as checkpoints:
        folder = saved / "00000030"
        (folder / ".checkpoint.json.0123456789ab").write_text('{"half')
        assert not checkpoints.problems(30)
        (folder / "params" / ".checkpoint.json.0123456789ab").write_text("stranger")
        assert len(checkpoints.problems(30)) == 1


def test_when_nothing_good_is_left_the_message_says_so(saved):
    for step in (10, 20, 30):
        flip_bit(max(data_files(saved, step), key=lambda path: path.stat().st_size), 0.5)
    with Checkpoints(saved) as checkpoints, pytest.raises(DamagedCheckpoint, match="start again with --overwrite"):
        checkpoints.restore(30, abstract(make_state()))


def test_leaves_that_do_not_fit_are_all_listed(three_steps):
    state = abstract(make_state())
    other = jax.ShapeDtypeStruct
    params = {
        "embed": {"embedding": other((64, 48), jnp.float32)},
        "norm": {"scale": other((32,), jnp.float32)},
        "head": other((2,), jnp.float32),
    }
    with Checkpoints(three_steps, read_only=True) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore_params(10, params)
        message = str(caught.value)
        assert "params.head: not in the checkpoint" in message
        assert "params.embed.embedding: saved as float32[64, 32], wanted float32[64, 48]" in message
        assert "params.norm.scale: saved as bfloat16[32], wanted float32[32]" in message
        with pytest.raises(UserError, match="opt_state.0.mu.norm.scale: only in the checkpoint"):
            checkpoints.restore(10, dataclasses.replace(state, opt_state=()))
        with pytest.raises(UserError, match="no checkpoint of step 15.*there are: 10, 20, 30"):
            checkpoints.restore(15, state)


def test_the_best_and_the_latest_stay_also_across_a_restart(tmp_path):
    config = CheckpointConfig(keep_latest=1, keep_best=2)
    losses = {1: float("nan"), 2: 1.0, 3: 5.0, 4: 1.5, 5: 1.0}
    for step, loss in losses.items():
        with Checkpoints(tmp_path / "c", config) as checkpoints:
            checkpoints.save(step, make_state(step), metrics={"loss": loss})
    with Checkpoints(tmp_path / "c", config) as checkpoints:
        checkpoints.save(6, make_state(6))
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 5, 6], 2)  # the earlier of two equals is the best
        checkpoints.save(7, make_state(7), metrics={"loss": 9.0})
        assert checkpoints.steps() == [2, 5, 7]


def test_the_best_stays_also_where_none_is_asked_for(tmp_path):
    config = CheckpointConfig(keep_latest=1, keep_best=0)
    with Checkpoints(tmp_path / "c", config) as checkpoints:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan"))):
            checkpoints.save(step, make_state(step), metrics={"loss": loss})
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 4], 2)


def test_saving_an_old_step_again_is_an_error(saved):
    with Checkpoints(saved) as checkpoints:
        for step in (30, 25):
            with pytest.raises(RuntimeError, match="not after the newest checkpoint, step 30"):
                checkpoints.save(step, make_state())


def test_later_checkpoints_are_set_aside_not_deleted(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.set_aside_after(10) == [20, 30]
        assert checkpoints.steps() == [10]
        checkpoints.save(20, make_state(99))
        assert same(checkpoints.restore(20, abstract(make_state())), make_state(99))
    assert sorted(path.name for path in (saved / "set-aside").iterdir()) == ["00000020", "00000030"]
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [10, 20]


def test_a_failed_save_is_reported_by_the_next_call(tmp_path, monkeypatch):
    from jaxtune.runs import written

    def full(folder, names):
        raise OSError("no space left on device")

    checkpoints = Checkpoints(tmp_path / "c")
    monkeypatch.setattr(written, "file_digests", full)
    checkpoints.save(1, make_state())
    with pytest.raises(OSError, match=r"No space left on device: .*c.$"):  # with its folder
        checkpoints.wait()
    monkeypatch.undo()
    assert checkpoints.steps() == []
    checkpoints.close()


def test_reading_a_run_leaves_its_unfinished_save_alone_and_training_removes_it(saved):
    unfinished = saved / "00000040.orbax-checkpoint-tmp"
    shutil.copytree(saved / "00000030", unfinished)
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.steps() == [10, 20, 30]
    assert unfinished.exists()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [10, 20, 30]
        checkpoints.save(40, make_state(40))
    assert not unfinished.exists()


def test_options_out_of_range_and_a_missing_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="checkpoint.save_every is 0"):
        CheckpointConfig(save_every=0)
    with pytest.raises(UserError, match="checkpoint.keep_latest is 0"):
        CheckpointConfig(keep_latest=0)
    with pytest.raises(UserError, match="checkpoint.keep_best is -1"):
        CheckpointConfig(keep_best=-1)
    with pytest.raises(UserError, match="need the package gcsfs"):
        Checkpoints("gs://bucket/run")
    with pytest.raises(UserError, match="no checkpoints here"):
        Checkpoints(tmp_path / "none", read_only=True)


SAVER = """
import dataclasses, sys
import jax, jax.numpy as jnp
from jaxtune.runs.checkpoints import Checkpoints
from jaxtune.runs.retention import CheckpointConfig

@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict

with Checkpoints(sys.argv[1], CheckpointConfig(keep_latest=2)) as checkpoints:
    first = (checkpoints.latest() or 0) + 1
    for step in range(first, 1000):
        value = {str(i): jnp.full((1 << 20,), step * 16 + i, jnp.float32) for i in range(6)}
        checkpoints.save(step, State(jnp.asarray(step), value), {"step": step})
        print(step, flush=True)
"""


def test_a_kill_during_an_asynchronous_save_leaves_the_last_committed_step_intact(tmp_path):
    random = np.random.default_rng(0)
    folder, begun = tmp_path / "checkpoints", 0
    shapes = {str(i): jax.ShapeDtypeStruct((1 << 20,), jnp.float32) for i in range(6)}
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), folder],
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        for _ in range(3):
            begun = int(child.stdout.readline())
        time.sleep(random.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with Checkpoints(folder, read_only=True) as checkpoints:
            latest = checkpoints.latest()
            assert latest is not None and latest >= begun - 1
            assert all(checkpoints.problems(step) == [] for step in checkpoints.steps())
            restored = checkpoints.restore_params(latest, shapes)
            assert checkpoints.extra(latest) == {"step": latest}
        assert all(np.all(np.asarray(restored[str(i)]) == latest * 16 + i) for i in range(6))


def test_the_document_lists_every_file_with_its_digest(three_steps):
    document = json.loads((three_steps / "00000010" / "checkpoint.json").read_text())
    on_disk = {path.relative_to(three_steps / "00000010").as_posix() for path in data_files(three_steps, 10)}
    assert on_disk - set(document["files"]) == {"_CHECKPOINT_METADATA", "commit_success.txt", "checkpoint.json"}
