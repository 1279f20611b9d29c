"""A run whose experts are split over devices has one device's losses; another mesh goes on from its checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import TINY, tiny_config, tiny_model

from jaxtune.errors import UserError
from jaxtune.hf import folder as hf
from jaxtune.model.moe import MoeConfig
from jaxtune.parallel.mesh import MeshConfig
from jaxtune.runs.history import read_run
from jaxtune.step.programs import Programs
from jaxtune.train import loop
from jaxtune.train import run as train
from jaxtune.train.decisions import Status

ONE = MeshConfig(devices=1)
SPLIT = MeshConfig(data=1, expert=2, fsdp=2, devices=4)
OTHER = MeshConfig(data=1, expert=4, devices=4)


MIXTURE = dataclasses.replace(
    TINY, family="qwen3_moe", qk_norm=True, tie_embeddings=False,
    moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=16),
)  # fmt: skip


def config_on(folder, mesh: MeshConfig, steps: int = 4):
    config = tiny_config(folder, mesh=mesh)
    return dataclasses.replace(
        config,
        duration=dataclasses.replace(config.duration, steps=steps),
        batch=dataclasses.replace(config.batch, rows=8, micro_rows=8),
        eval=dataclasses.replace(config.eval, every=2, generate=False),
    )


def losses(folder) -> list[float]:
    rows = read_run(folder)
    return [row.loss for row in rows.train]


def exported(folder) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(hf.import_model(folder / "model")[1])]


def test_a_run_over_experts_has_the_losses_of_one_device_and_goes_on_on_another_mesh(tmp_path, monkeypatch):
    tiny_model(tmp_path / "base", MIXTURE)
    train.train(config_on(tmp_path, ONE), tmp_path / "one", programs=Programs())

    with monkeypatch.context() as patch:
        patch.setattr(loop.StopSignal, "after", lambda self, step: setattr(self, "received", 15) or step == 2)
        stopped = train.train(config_on(tmp_path, SPLIT), tmp_path / "split", programs=Programs())
    assert stopped.status is Status.STOPPED
    resumed = train.train(config_on(tmp_path, OTHER), tmp_path / "split", resume=True, programs=Programs())
    assert resumed.status is Status.FINISHED
    np.testing.assert_allclose(losses(tmp_path / "split"), losses(tmp_path / "one"), rtol=1e-5)
    for ours, alone in zip(exported(tmp_path / "split"), exported(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-3, atol=1e-4)


def test_a_model_without_experts_is_refused_before_anything_is_loaded(tmp_path):
    tiny_model(tmp_path / "base")
    with pytest.raises(UserError, match="mesh.expert is 2, but the model has no mixture of experts"):
        train.train(config_on(tmp_path, SPLIT), tmp_path / "run", programs=Programs())
