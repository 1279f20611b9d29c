"""What a run's devices are asked for."""

import dataclasses

import pytest
from helpers import tiny_config

from jaxtune.config import ComputeDtype, Dtype, ModelSource
from jaxtune.errors import UserError
from jaxtune.parallel.mesh import MeshConfig, make_mesh
from jaxtune.train import session


def reduced(tmp_path, compute: ComputeDtype) -> str:
    config = tiny_config(tmp_path)
    model = dataclasses.replace(config.model, compute_dtype=compute, reduce_dtype=Dtype.BFLOAT16)
    return session.reduce_dtype(dataclasses.replace(config, model=model), make_mesh(MeshConfig(devices=2)))


def test_gradients_are_not_added_up_in_a_dtype_that_products_do_not_have(tmp_path):
    assert reduced(tmp_path, ComputeDtype.BFLOAT16) == "bfloat16"
    with pytest.raises(UserError, match="reduce_dtype is bfloat16, and products are in float32 here"):
        reduced(tmp_path, ComputeDtype.AUTO)  # float32 on a CPU
    with pytest.raises(UserError, match="reduce_dtype is bfloat16 and model.compute_dtype float32"):
        ModelSource(path="builtin", compute_dtype=ComputeDtype.FLOAT32, reduce_dtype=Dtype.BFLOAT16)
