"""A run whose rows are split over devices has one device's losses, and records how attention saw whole rows."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import TINY, tiny_config, tiny_model

from jaxtune.model.attention.core import Backend
from jaxtune.parallel.mesh import MeshConfig
from jaxtune.runs.history import read_run
from jaxtune.step.programs import Programs
from jaxtune.train import run as train


@pytest.mark.parametrize("attention", [Backend.RING, Backend.AUTO])
def test_a_run_of_split_rows_has_the_losses_of_one_device(tmp_path, attention):
    tiny_model(tmp_path / "base", TINY)
    losses = []
    for name, mesh in (("one", MeshConfig(devices=1)), ("split", MeshConfig(data=1, sequence=2, devices=2))):
        config = tiny_config(tmp_path, mesh=mesh)
        chosen = attention if name == "split" else Backend.AUTO
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, attention=chosen),
            duration=dataclasses.replace(config.duration, steps=3),
            eval=dataclasses.replace(config.eval, generate=False),
        )
        train.train(config, tmp_path / name, programs=Programs())
        rows = read_run(tmp_path / name)
        losses.append([row.loss for row in (*rows.train, *rows.evals)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    summary = json.loads((tmp_path / "split" / "summary.json").read_text())
    assert summary["attention"]["backend"] == ("ring" if attention is Backend.RING else "blockwise")
