"""Checkpoints of process 0 alone: arrays gathered to it and handed out again, whatever their dtype and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_states import make_state, same

from jaxtune.errors import UserError
from jaxtune.runs import main_checkpoints
from jaxtune.runs.checkpoints import Checkpoints, abstract
from jaxtune.runs.main_checkpoints import MainCheckpoints
from jaxtune.runs.retention import CheckpointConfig


@pytest.fixture
def config(tmp_path):
    return CheckpointConfig(directory=f"memory://bucket{tmp_path.as_posix()}")


def test_what_process_0_saves_is_what_all_restore_and_what_one_process_alone_reads(tmp_path, config):
    sent = []
    with MainCheckpoints(tmp_path / "checkpoints", config, before=lambda: sent.append("metrics")) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {"step": step}, {"loss": abs(step - 20.0)})
        checkpoints.wait()
        assert len(sent) >= 3
        assert (checkpoints.steps(), checkpoints.best()) == ([20, 30], 20)
        assert checkpoints.extra(30) == {"step": 30} and checkpoints.metrics(20) == {"loss": 0.0}
        restored = checkpoints.restore(30, abstract(make_state()))
        assert same(restored, make_state(30))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
        checkpoints.set_metrics(30, {"loss": -1.0})
        assert checkpoints.best() == 30
        assert checkpoints.set_aside_after(20) == [30] and checkpoints.latest() == 20
        with pytest.raises(UserError, match="no checkpoint of step 30"):
            checkpoints.restore(30, abstract(make_state()))
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        assert same(checkpoints.restore(20, abstract(make_state())), make_state(20))


def test_an_empty_disk_gets_the_copies_and_a_stale_one_loses_what_is_not_among_them(tmp_path, config):
    for folder, steps in (("one", (10, 20)), ("two", (5,))):
        with MainCheckpoints(tmp_path / folder, config if folder == "one" else CheckpointConfig()) as checkpoints:
            for step in steps:
                checkpoints.save(step, make_state(step))
    for folder in ("two", "three"):
        bucket = config.bucket()
        assert bucket is not None
        bucket.bring(tmp_path / folder)
        with MainCheckpoints(tmp_path / folder, config) as checkpoints:
            assert checkpoints.steps() == [10, 20]
            assert same(checkpoints.restore(20, abstract(make_state())), make_state(20))


@pytest.mark.bits
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7, 5), (1, 9)])
def test_arrays_are_gathered_in_pieces_and_handed_out_with_every_bit(monkeypatch, dtype, shape):
    monkeypatch.setattr(main_checkpoints, "PIECE", 16)
    bits = np.random.default_rng(0).integers(
        0, 256, size=int(np.prod(shape)) * jnp.dtype(dtype).itemsize, dtype=np.uint8
    )
    bits = bits & 1 if dtype == "bool" else bits
    array = np.frombuffer(bits.tobytes(), jnp.dtype(dtype)).reshape(shape)
    whole = main_checkpoints._gathered(jnp.asarray(array))
    assert whole.dtype == array.dtype and whole.tobytes() == array.tobytes()
    wanted = jax.ShapeDtypeStruct(shape, array.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert np.asarray(main_checkpoints._handed_out(whole, wanted)).tobytes() == array.tobytes()
