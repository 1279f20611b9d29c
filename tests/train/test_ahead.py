"""A step compiled ahead of time: what is read from a compiler's text, the arithmetic of speed, what is proposed."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import pytest
from helpers import tiny_model

from jaxtune.errors import UserError
from jaxtune.model.attention.core import Backend
from jaxtune.model.lora import LoraConfig
from jaxtune.model.moe import MoeConfig
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel.mesh import AXES
from jaxtune.train import ahead, chips, memory
from jaxtune.train.ahead import Compiled, operations, proposals, speed
from jaxtune.train.chips import CHIPS, Slice, parse_slice
from jaxtune.train.hlo import Program
from jaxtune.train.memory import Work

TEXT = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%async_collective_fusion (p: bf16[8,128], q: bf16[64,64]) -> (bf16[64,128], bf16[64,64]) {
  %p = bf16[8,128] parameter(0)
  %q = bf16[64,64] parameter(1)
  %gather.1 = bf16[64,128] all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %product = bf16[64,64] convolution(%q, %q), dim_labels=bf_io->bf
  ROOT %both = (bf16[64,128], bf16[64,64]) tuple(%gather.1, %product)
}

%chain_begin (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128] parameter(0)
  %gather.5 = bf16[64,128] all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %begun.5 = bf16[64,128] custom-call(%gather.5), custom_call_target="AsyncCollectiveStart"
}

%chain_goes_on (p: bf16[8,128], q: bf16[64,64]) -> (bf16[64,128], bf16[64,64]) {
  %p = bf16[8,128] parameter(0)
  %q = bf16[64,64] parameter(1)
  %gather.6 = bf16[64,128] all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
  %product = bf16[64,64] convolution(%q, %q), dim_labels=bf_io->bf
  ROOT %both = (bf16[64,128], bf16[64,64]) tuple(%gather.6, %product)
}

%body (carry: (s32[], bf16[8,128], bf16[64,64])) -> (s32[], bf16[8,128], bf16[64,64]) {
  %carry = (s32[], bf16[8,128], bf16[64,64]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %w = bf16[8,128] get-tuple-element(%carry), index=1
  %x = bf16[64,64] get-tuple-element(%carry), index=2
  %fused = (bf16[64,128], bf16[64,64]) fusion(%w, %x), kind=kOutput, calls=%async_collective_fusion, backend_config={"estimated_cycles":"1000"}
  %gather.2 = bf16[64,128] all-gather(%w), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  %chain.1 = bf16[64,128] fusion(%w), kind=kCustom, calls=%chain_begin
  %chain.2 = (bf16[64,128], bf16[64,64]) fusion(%w, %x), kind=kOutput, calls=%chain_goes_on, backend_config={"estimated_cycles":"9223372036854775807"}
  %y = bf16[64,64] get-tuple-element(%fused), index=1
  ROOT %next = (s32[], bf16[8,128], bf16[64,64]) tuple(%i, %w, %y)
}

%condition (carry: (s32[], bf16[8,128], bf16[64,64])) -> pred[] {
  %carry = (s32[], bf16[8,128], bf16[64,64]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %limit = s32[] constant(32)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (w: bf16[8,128], x: bf16[64,64], g: f32[2]) -> f32[2] {
  %w = bf16[8,128] parameter(0)
  %x = bf16[64,64] parameter(1)
  %g = f32[2] parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,128], bf16[64,64]) tuple(%zero, %w, %x)
  %loop = (s32[], bf16[8,128], bf16[64,64]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"32"}}
  %begun = (bf16[8,128], bf16[64,128]) all-gather-start(%w), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %alone = f32[2] fusion(%g), kind=kLoop, calls=%add, backend_config={"estimated_cycles":"500"}
  ROOT %norm = f32[2] all-reduce(%alone), channel_id=4, replica_groups=[1,8]<=[8], to_apply=%add
}
"""  # noqa: E501
GATHERED = 64 * 128 * 2 * 7 / 8 / 1e9
"""Gigabytes that a device of eight receives for one gather of TEXT."""


def test_collectives_count_as_often_as_their_loop_runs_and_are_hidden_where_the_device_computes_meanwhile():
    program = Program(TEXT, 8)
    found = program.collectives(1)
    assert sorted(found) == ["all-gather over 8", "all-reduce over 8"]
    gathers = found["all-gather over 8"]
    assert gathers["operations"] == 97
    assert gathers["gigabytes"] == pytest.approx(97 * GATHERED)
    hidden = "32 in a fusion, 32 in steps of several fusions that are one each, one begun and awaited later"
    assert gathers["hidden_gigabytes"] == pytest.approx(65 * GATHERED), hidden
    assert found["all-reduce over 8"]["hidden_gigabytes"] == 0
    assert program.cycles(1) == 32 * 1000 + 500, "the largest number that it can write is the compiler's for none"


SHAPE = ModelConfig(
    vocab_size=1000, d_model=64, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=16, d_ff=256, max_seq_len=512,
    attention=Backend.SPLASH, remat=Remat.FULL, tie_embeddings=False,
)  # fmt: skip
LAYER = 4 * 64 * 64 + 3 * 64 * 256
HEAD = 1000 * 64
TOKENS = 2 * 512


def work(**changes) -> Work:
    model = dataclasses.replace(SHAPE, **changes.pop("model", {}))
    axes = dict.fromkeys(AXES, 1) | {"fsdp": 4}
    return Work(
        model=model, optim=OptimConfig(), axes=axes, micro_rows=8, micro_batches=1, seq_len=512, platform="tpu",
        **changes,
    )  # fmt: skip


def test_operations_are_six_a_parameter_and_token_and_half_of_all_pairs():
    found = operations(work())
    assert found.products == 6 * (4 * LAYER + HEAD) * TOKENS
    assert found.products_again == 2 * 4 * LAYER * TOKENS
    pairs = TOKENS * 512 / 2
    assert found.attention == 3 * 4 * 4 * 64 * pairs, "two products of 2 operations forward, twice that backward"
    assert found.attention_again == found.attention / 3
    assert operations(work(model={"remat": Remat.DOTS})).products_again == 0


def test_operations_of_adapters_and_of_experts():
    frozen = operations(work(lora=LoraConfig(rank=2)))
    adapters = 6 * 4 * 2 * (4 * (64 + 64) + 3 * (64 + 256)) * TOKENS
    assert frozen.products == 4 * (4 * LAYER + HEAD) * TOKENS + adapters
    experts = operations(work(model={"moe": MoeConfig(num_experts=8, experts_per_token=2, d_ff=128)}))
    met = 4 * 64 * 64 + 8 * 64 + 2 * 3 * 64 * 128
    assert experts.products == 6 * (4 * met + HEAD) * TOKENS


CHIP = dataclasses.replace(CHIPS["v5p"], peak=1e12, receives=1e9 / 0.9, clock=1e9, bytes=2.0**30)
FOUND = Compiled(
    bytes={"arguments": 2**20, "temporaries": 2**20}, flags={}, seconds=1.0, cycles=4e9,
    collectives={
        "all-gather over 4": {"operations": 2, "gigabytes": 3.0, "hidden_gigabytes": 2.0},
        "all-reduce over 4": {"operations": 1, "gigabytes": 0.5, "hidden_gigabytes": 0.0},
    },
)  # fmt: skip


def test_the_share_of_peak_is_what_its_parts_say():
    done, found = operations(work()), speed(work(), FOUND, CHIP)
    attention = (done.attention + done.attention_again) / (1e12 * ahead.ATTENTION_SHARE)
    assert found["fusions_seconds"] == 4.0 and found["attention_seconds"] == pytest.approx(attention)
    assert found["hidden_collectives_seconds"] == pytest.approx(2.0)
    assert found["blocking_collectives_seconds"] == pytest.approx(1.5)
    assert found["step_seconds"] == pytest.approx(4.0 + attention + 1.5)
    assert found["share_of_peak"] == pytest.approx(done.counted / 1e12 / found["step_seconds"])
    without = speed(work(), dataclasses.replace(FOUND, cycles=0.0), CHIP)
    assert without["fusions_seconds"] == without["products_at_peak_seconds"], "a compiler that says nothing"
    assert without["step_seconds"] == pytest.approx(2.0 + 1.5), "hidden collectives take longer than what hides them"


def test_more_rows_are_proposed_as_far_as_the_compilers_memory_allows(monkeypatch):
    """The plan's own numbers, which other tests hold, are a gibibyte for 8 rows here."""
    place, asked = Slice(name="v5p:2x2x1", chip=CHIP, sizes=(2, 2, 1)), []
    most = {Remat.NONE: 0, Remat.DOTS: 16, Remat.FULL: 64}

    def most_rows(work: Work, device_bytes: int) -> int:
        asked.append(device_bytes)
        return most[work.model.remat]

    monkeypatch.setattr(memory, "most_rows", most_rows)
    monkeypatch.setattr(memory, "estimate", lambda work: types.SimpleNamespace(total=work.micro_rows * 2**27))
    twice = dataclasses.replace(FOUND, bytes={"arguments": 2**30, "temporaries": 2**30})
    rows = proposals(work(), twice, place)
    assert asked == [2**29] * 3, "the compiler needs twice what was planned"
    assert [row["remat"] for row in rows] == ["full", "dots"] or [row["remat"] for row in rows] == ["dots", "full"]
    assert rows[0]["share_of_peak"] >= rows[1]["share_of_peak"], "the best first"
    assert {row["remat"]: row["planned_gib"] for row in rows} == {"dots": 4.0, "full": 16.0}
    slower = speed(work(), FOUND, CHIP)
    slower = slower["fusions_seconds"] / slower["products_at_peak_seconds"]
    other = dataclasses.replace(work(model={"remat": Remat.DOTS}), micro_rows=16)
    cycles = slower * operations(other).products / CHIP.peak * CHIP.clock
    expected = speed(other, dataclasses.replace(FOUND, cycles=cycles), CHIP)["share_of_peak"]
    assert next(row for row in rows if row["remat"] == "dots")["share_of_peak"] == pytest.approx(expected)
    assert "share_of_peak" not in proposals(work(), None, place)[0], "the compiler said nothing"


def test_slices_are_rings_where_they_are_rented_so():
    make = lambda kind, *sizes: Slice(name="", chip=CHIPS[kind], sizes=sizes).wrap
    assert make("v5p", 4, 4, 8) == (True, True, True) and make("v5p", 2, 2, 1) == (False, False, False)
    assert make("v6e", 4, 4) == (False, False, False) and make("v5e", 16, 16) == (True, True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7x:4x4", "a kind of TPU"),
        ("v5:4x4x4", "did you mean v5"),
        ("v5p", "3 sizes, for example v5p:4x4x4"),
        ("v5p:4x4", "3 sizes"),
        ("v6e:4x4x4", "2 sizes, for example v6e:4x4"),
        ("v6e:0x4", "2 sizes"),
    ],
)
def test_a_slice_that_is_none_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_slice(text)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install jaxtune\[tpu\]"):
        parse_slice("v5p:4x4x4")


def test_a_plan_in_words():
    row = {"remat": "dots", "micro_rows": 16, "planned_gib": 1.25, "share_of_peak": 0.5}
    plan = {
        "slice": "v5p:2x2x1", "devices": 4, "mesh": dict.fromkeys(AXES, 1) | {"fsdp": 4}, "micro_rows": 8,
        "seq_len": 512, "remat": "full", "attention": "splash", "compute_dtype": "bfloat16", "jax": "1", "libtpu": "2",
        "device_gib": 95.0, "fits": True, "gib": {"arguments": 1.0, "temporaries": 2.0, "total": 3.0},
        "planned_gib": 2.5, "collectives": FOUND.collectives, "speed": speed(work(), FOUND, CHIP),
        "proposals": [row | {"compiled": True, "fits": False, "gib": 96.0}, row],
    }  # fmt: skip
    text = "\n".join(ahead.lines(plan))
    assert "fits into 95.00 GiB: 3.00, of it arguments 1.00 and temporaries 2.00" in text
    assert "2 operations" in text and "3.00 GB, hidden 67%" in text
    assert "planned to do, and does NOT fit: --batch.micro-rows 16 --model.remat dots: 96.00 GiB compiled" in text
    assert "\nwould do: --batch.micro-rows 16 --model.remat dots: 1.25 GiB planned, 50% of peak" in text
    failed = {name: value for name, value in plan.items() if name not in ("gib", "speed", "collectives")}
    failed |= {"fits": False, "compiler": "37G exceeds 31G", "proposals": []}
    text = "\n".join(ahead.lines(failed))
    assert "does NOT fit into 95.00 GiB: 37G exceeds 31G" in text and "nothing fits: more devices" in text


@pytest.mark.slow
def test_the_tpu_compiler_compiles_a_small_step(tmp_path):
    """With libtpu, on its path or in JAXTUNE_LIBTPU; its devices are those of a process of its own."""
    folder = os.environ.get("JAXTUNE_LIBTPU", "")
    path = os.pathsep.join([*sys.path, folder])
    found = subprocess.run([sys.executable, "-c", "import libtpu"], env={**os.environ, "PYTHONPATH": path}, check=False)
    if found.returncode:
        pytest.skip("libtpu is not installed")
    tiny_model(tmp_path / "base")
    (tmp_path / "config.py").write_text(
        "import dataclasses, pathlib\nfrom helpers import tiny_config\nfrom jaxtune.parallel.mesh import MeshConfig\n"
        "from jaxtune.model.attention.core import Backend\n"
        f"def config():\n    config = tiny_config(pathlib.Path({str(tmp_path)!r}), mesh=MeshConfig(fsdp=4))\n"
        "    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, micro_rows=4))\n"
        "    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention=Backend.REFERENCE))\n"
    )
    command = [sys.executable, "-m", "jaxtune", "plan-memory", str(tmp_path / "config.py"), "--json"]
    command += ["--compile", "v5e:2x2"]
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["devices"] == 4 and plan["fits"] and plan["attention"] == "reference"
    assert plan["gib"]["total"] < 1 and any(name.startswith("all-gather") for name in plan["collectives"])
    assert plan["speed"]["fusions_seconds"] > plan["speed"]["products_at_peak_seconds"]
    assert plan["proposals"][0]["compiled"]
