"""Memory planned from shapes agrees with what XLA's compiler allocates, and answers the questions asked of it."""

import dataclasses
import json
import math
from typing import Any

import jax
import pytest
from helpers import tiny_config, tiny_model

from jaxtune.errors import UserError
from jaxtune.model import transformer as model
from jaxtune.model.attention.core import Backend
from jaxtune.model.lora import LoraConfig
from jaxtune.model.moe import MoeConfig
from jaxtune.model.quantize import Bits
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel import compilation
from jaxtune.parallel.mesh import AXES, MeshConfig, make_mesh
from jaxtune.train import memory
from jaxtune.train.memory import Work

QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
SMALL = ModelConfig(
    vocab_size=4096, d_model=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=704, max_seq_len=512,
    attention=Backend.REFERENCE,
)  # fmt: skip
AGAIN = dataclasses.replace(SMALL, remat=Remat.FULL)
ONE: dict[str, int] = dict.fromkeys(AXES, 1)
SPLIT = Work(
    model=dataclasses.replace(AGAIN, tie_embeddings=False), optim=OptimConfig(), axes=ONE | {"fsdp": 4, "tensor": 2},
    micro_rows=16, micro_batches=1, seq_len=512,
)  # fmt: skip
PLAIN = Work(model=SMALL, optim=OptimConfig(), axes=ONE, micro_rows=8, micro_batches=1, seq_len=256)
WORKS = {
    "one device, nothing computed again": PLAIN,
    "one device, layers computed again, two micro-batches": Work(
        model=dataclasses.replace(AGAIN, num_layers=8), optim=OptimConfig(), axes=ONE, micro_rows=4, micro_batches=2,
        seq_len=512,
    ),
    "parameters over four devices, heads over two": SPLIT,
    "eight experts, two a token": Work(
        model=dataclasses.replace(AGAIN, moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=352)),
        optim=OptimConfig(), axes=ONE, micro_rows=8, micro_batches=1, seq_len=512,
    ),
    "eight experts over four devices": Work(
        model=dataclasses.replace(AGAIN, moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=352)),
        optim=OptimConfig(), axes=ONE | {"expert": 4}, micro_rows=16, micro_batches=1, seq_len=512,
    ),
    "eight experts over two devices, nothing computed again, weights over two more": Work(
        model=dataclasses.replace(SMALL, moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=352)),
        optim=OptimConfig(), axes=ONE | {"expert": 2, "fsdp": 2}, micro_rows=8, micro_batches=1, seq_len=512,
    ),
    "tokens of a row over four devices, handed round": Work(
        model=dataclasses.replace(AGAIN, attention=Backend.RING), optim=OptimConfig(), axes=ONE | {"sequence": 4},
        micro_rows=4, micro_batches=1, seq_len=2048,
    ),
    "tokens of a row over four devices, exchanged for heads": Work(
        model=dataclasses.replace(AGAIN, attention=Backend.BLOCKWISE), optim=OptimConfig(),
        axes=ONE | {"sequence": 4}, micro_rows=4, micro_batches=1, seq_len=2048,
    ),
    "adapters in bfloat16 over a base on four devices": Work(
        model=dataclasses.replace(AGAIN, attention=Backend.BLOCKWISE, tie_embeddings=False), optim=OptimConfig(),
        axes=ONE | {"fsdp": 4}, micro_rows=16, micro_batches=1, seq_len=512, param_dtype="bfloat16",
        compute_dtype="bfloat16", lora=LoraConfig(rank=8),
    ),
}  # fmt: skip


def allocated(work: Work) -> int:
    """Bytes on one device by XLA's account of the compiled step: arguments, temporaries, results of their own."""
    sizes: dict[str, Any] = dict(work.axes)
    mesh = make_mesh(MeshConfig(**sizes, devices=math.prod(work.axes.values())))
    # Products in bfloat16 as devices that have them; XLA's own on other CPUs widen their operands to float32.
    products = {compilation.YNN: compilation.YNN_PRODUCTS} if work.compute_dtype == "bfloat16" else {}
    account = memory.lower(work, mesh).compile(QUICK | products).memory_analysis()
    assert account is not None
    new = account.output_size_in_bytes - account.alias_size_in_bytes
    return account.argument_size_in_bytes + account.temp_size_in_bytes + new


@pytest.mark.parametrize("name", WORKS)
def test_the_plan_is_within_fifteen_percent_of_the_compilers_account(name):
    assert memory.estimate(WORKS[name]).total == pytest.approx(allocated(WORKS[name]), rel=0.15)


def test_state_is_counted_exactly():
    planned = memory.estimate(SPLIT)
    shapes = model.abstract_params(SPLIT.model)[1]
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))
    norms = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes) if leaf.ndim < 3 and leaf.size <= 4 * 256)
    assert planned.parameters == (whole - norms) // 8 + norms
    assert planned.optimizer == pytest.approx(2 * planned.parameters, abs=64)  # two moments and a counter
    assert planned.gradients == planned.parameters


def test_experts_over_devices_leave_each_its_share_of_them():
    work = WORKS["eight experts over four devices"]
    whole = memory.estimate(dataclasses.replace(work, axes=ONE | {"data": 4}))
    experts = 4 * work.model.num_layers * 8 * 3 * 256 * 352
    split = memory.estimate(work)
    assert whole.parameters - split.parameters == experts * 3 // 4
    assert split.gradients == split.parameters
    assert whole.optimizer - split.optimizer == 2 * (experts * 3 // 4)


def test_experts_that_do_not_divide_are_a_user_error():
    with pytest.raises(UserError, match="mesh.expert is 3, which does not divide the model's 8 experts"):
        dataclasses.replace(WORKS["eight experts, two a token"], axes=ONE | {"expert": 3})
    with pytest.raises(UserError, match="mesh.expert is 2, but the model has no mixture of experts"):
        dataclasses.replace(PLAIN, axes=ONE | {"expert": 2})


def test_an_average_of_the_weights_and_a_second_micro_batch_are_counted():
    work = dataclasses.replace(PLAIN, optim=OptimConfig(ema_decay=0.99), micro_batches=2)
    plain, more = memory.estimate(PLAIN), memory.estimate(work)
    assert more.optimizer - plain.optimizer == plain.parameters
    assert more.gradients == 2 * plain.gradients


def test_adapters_have_small_optimizer_state_and_a_quantised_base_is_smaller():
    adapted = memory.estimate(dataclasses.replace(PLAIN, lora=LoraConfig(rank=4)))
    assert adapted.base == memory.estimate(PLAIN).parameters
    assert adapted.optimizer < memory.estimate(PLAIN).optimizer / 10
    quantised = memory.estimate(dataclasses.replace(PLAIN, lora=LoraConfig(rank=4, base=Bits.INT4)))
    assert quantised.base < 0.6 * adapted.base


def test_more_devices_need_less_each_and_more_rows_need_more():
    more = memory.estimate(dataclasses.replace(SPLIT, axes=ONE | {"fsdp": 16, "tensor": 2}))
    assert more.parameters < memory.estimate(SPLIT).parameters / 3
    double = memory.estimate(dataclasses.replace(SPLIT, micro_rows=32))
    assert double.activations == pytest.approx(2 * memory.estimate(SPLIT).activations, rel=0.01)


def test_rematerialised_layers_keep_only_their_inputs():
    kept = lambda remat: memory.estimate(
        dataclasses.replace(PLAIN, model=dataclasses.replace(SMALL, remat=remat))
    ).activations  # fmt: skip
    inputs = SMALL.num_layers * PLAIN.micro_rows * PLAIN.seq_len * SMALL.d_model * 4
    assert inputs <= kept(Remat.FULL) < 2.5 * inputs < kept(Remat.DOTS) < kept(Remat.NONE)


def test_the_most_rows_fit_and_one_more_does_not():
    space = 2**30
    most = memory.most_rows(SPLIT, space)
    need = lambda rows: memory.estimate(dataclasses.replace(SPLIT, micro_rows=rows)).total
    assert need(most) <= space < need(most + 4)
    assert memory.most_rows(SPLIT, 2**20) == 0


def test_rows_that_do_not_divide_are_a_user_error():
    with pytest.raises(UserError, match="6 rows of a forward pass do not divide over 4 devices.*multiple of 4"):
        memory.estimate(dataclasses.replace(SPLIT, micro_rows=6))


def test_a_config_is_planned_for_a_mesh_that_is_not_here(tmp_path, capsys):
    tiny_model(tmp_path / "base")
    config = tiny_config(tmp_path, mesh=MeshConfig(data=32, fsdp=2))
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, rows=64, micro_rows=64))
    table = memory.plan_memory(config, device_bytes=2**30)
    assert table["mesh"] == ONE | {"data": 32, "fsdp": 2}
    assert table["fits"] and table["most_micro_rows"] >= 64
    assert table["bytes"]["total"] >= table["bytes"]["parameters"] + table["bytes"]["optimizer"]
    json.dumps(table)
    memory.print_table(table)
    assert "fits into 1.0 GiB" in capsys.readouterr().out
    grown = memory.plan_memory(
        dataclasses.replace(config, mesh=MeshConfig(fsdp=2)), device_bytes=2**20, devices=16, platform="tpu"
    )
    assert grown["mesh"] == ONE | {"data": 8, "fsdp": 2} and not grown["fits"]
    memory.print_table(grown)
    assert "does NOT fit into 0.0 GiB" in capsys.readouterr().out
