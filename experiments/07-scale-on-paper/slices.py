"""Steps compiled by XLA's TPU compiler for slices that are rented, without and with our compiler options.

    PYTHONPATH=.:FOLDER_OF_LIBTPU python experiments/07-scale-on-paper/slices.py
    python experiments/07-scale-on-paper/slices.py --table

Every case is compiled in a process of its own, at low priority and with a limit of processor time, and its account is
added to `slices.jsonl`; what is there is not compiled again. `--table` prints the accounts as the README has them.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from jaxtune.batch import Batch
from jaxtune.hf.configs import read_config
from jaxtune.model import lora
from jaxtune.model.attention import choice
from jaxtune.model.lora import LoraConfig
from jaxtune.model.rope import RopeConfig
from jaxtune.model.settings import ModelConfig, Remat
from jaxtune.optim import OptimConfig
from jaxtune.parallel import compilation, sharding
from jaxtune.parallel.mesh import AXES
from jaxtune.step import programs, trials
from jaxtune.step.programs import ProgramSpec
from jaxtune.step.room import Room
from jaxtune.step.update import Hparams, LossConfig, hparams
from jaxtune.train import ahead, memory
from jaxtune.train.chips import GIB, Slice, parse_slice
from jaxtune.train.memory import Work

HERE = pathlib.Path(__file__).parent
ACCOUNTS = HERE / "slices.jsonl"
CPU_SECONDS, WALL_SECONDS = 400, 3600
TRIALS = 16


def llama(d_model: int, num_layers: int, num_heads: int, d_ff: int) -> ModelConfig:
    """Sizes in the published config.json of Llama-3.1."""
    return ModelConfig(
        vocab_size=128256, d_model=d_model, num_layers=num_layers, num_heads=num_heads, num_kv_heads=8, head_dim=128,
        d_ff=d_ff, max_seq_len=131072, tie_embeddings=False, rope=RopeConfig(theta=500000.0),
    )  # fmt: skip


GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152,
    "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "tie_word_embeddings": True, "attention_bias": False,
}  # fmt: skip
"""The published config.json, in its own words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A step on a slice."""

    title: str
    slice: str
    model: ModelConfig
    axes: dict[str, int]
    rows: int
    """Of a forward pass: over all devices; of one trial where there are trials."""
    seq_len: int
    param_dtype: str = "float32"
    lora: LoraConfig | None = None

    def work(self) -> Work:
        model = dataclasses.replace(self.model, remat=Remat.FULL)
        model, _ = choice.resolve(model, self.seq_len, "bfloat16", platform="tpu", sequence_shards=1, proven=False)
        return Work(
            model=model, optim=OptimConfig(), axes=dict.fromkeys(AXES, 1) | self.axes, micro_rows=self.rows,
            micro_batches=1, seq_len=self.seq_len, param_dtype=self.param_dtype, compute_dtype="bfloat16",
            lora=self.lora, platform="tpu",
        )  # fmt: skip


CASES = {
    "8b-v5p": Case(
        title="Llama-3.1-8B, fsdp=64, 64 rows of 4,096", slice="v5p:4x4x4", model=llama(4096, 32, 32, 14336),
        axes={"fsdp": 64}, rows=64, seq_len=4096,
    ),
    "8b-v6e": Case(
        title="Llama-3.1-8B, fsdp=16, 16 rows of 8,192", slice="v6e:4x4", model=llama(4096, 32, 32, 14336),
        axes={"fsdp": 16}, rows=16, seq_len=8192,
    ),
    "adapters-v5e": Case(
        title="16 runs with adapters of Gemma-3-1B, trial=16, 4 rows of 2,048 each", slice="v5e:4x4",
        model=read_config(GEMMA_3_1B, "config.json"), axes={"trial": TRIALS}, rows=4, seq_len=2048,
        param_dtype="bfloat16", lora=LoraConfig(rank=16),
    ),
    "70b-v5p": Case(
        title="Llama-3.1-70B, fsdp=256, 256 rows of 4,096", slice="v5p:4x8x8", model=llama(8192, 80, 64, 28672),
        axes={"fsdp": 256}, rows=256, seq_len=4096,
    ),
}  # fmt: skip
WHEN = ("without", "with")


def lower_trials(work: Work, mesh: jax.sharding.Mesh, *_: Any) -> jax.stages.Lowered:
    """The step of `TRIALS` runs side by side, as `memory.lower` has that of one."""
    assert work.lora is not None
    shapes, adapters = memory.shapes_of(work), work.lora
    frozen = jax.eval_shape(lambda p: lora.freeze_base(p, adapters), shapes.params)
    spec = ProgramSpec(
        model=work.model, optim=work.optim, loss=LossConfig(chunk=work.chunk), lora=work.lora,
        compute_dtype=work.compute_dtype, num_tasks=2, room=Room(capacity=None), mesh=mesh,
    )  # fmt: skip
    program = programs.build(spec, shapes.trained)
    stacked = trials.build(program, shapes.trained, mesh, TRIALS)
    whole, split = sharding.replicated(mesh), jax.NamedSharding(mesh, trials.OVER_TRIALS)
    place = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    each = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((TRIALS, *x.shape), x.dtype, sharding=split), tree)
    ids = jax.ShapeDtypeStruct((1, work.micro_rows, work.seq_len), jnp.int32)
    fields = {field.name: ids for field in dataclasses.fields(Batch)}
    batch = Batch(**fields | {"loss_weights": jax.ShapeDtypeStruct(ids.shape, jnp.float32)})  # type: ignore[arg-type]
    numbers = Hparams(**{name: jax.ShapeDtypeStruct((), x.dtype) for name, x in vars(hparams(1.0)).items()})
    active = jax.ShapeDtypeStruct((TRIALS,), bool, sharding=split)
    with jax.set_mesh(mesh):
        # A device has one trial: a count that the compiler knows, so that what it says of the loop can be added up.
        step = jax.jit(lambda *given: stacked.jitted_train_step(*given, jnp.int32(1)), donate_argnums=0)
        return step.lower(
            each(jax.eval_shape(program.init, shapes.trained)), place(frozen, whole), each(batch),
            each(numbers), active,
        )  # fmt: skip


def account(case: Case, when: str) -> dict[str, Any]:
    """Compile a case; its numbers."""
    place, work = parse_slice(case.slice), case.work()
    if when == "without":
        compilation.PREFERRED["tpu"] = {}
        getattr(compilation, "CHIPS", {}).clear()
    if case.lora is not None:
        memory.lower = lower_trials
    told: dict[str, Any] = {"rings": list(place.wrap[: len(place.sizes)]), "planned_gib": planned(work)}
    try:
        found = ahead.compile_step(work, place, place.devices(), {})
    except ahead.DoesNotFit as error:
        return told | {"fits": False, "compiler": str(error), "device_gib": place.chip.bytes / GIB}
    return told | numbers(case, work, place, found)


def planned(work: Work) -> float:
    """GiB of a device, by `jaxtune plan-memory` without the compiler."""
    return memory.estimate(work).total / GIB


def numbers(case: Case, work: Work, place: Slice, found: ahead.Compiled) -> dict[str, Any]:
    """What the compiler says, and the estimate that is made of it."""
    everything = dataclasses.replace(work, micro_rows=case.rows * case.axes.get("trial", 1))
    return {
        "fits": found.total <= place.chip.bytes,
        "device_gib": place.chip.bytes / GIB,
        "gib": {**{name: size / GIB for name, size in found.bytes.items()}, "total": found.total / GIB},
        "collectives": found.collectives,
        "flags": found.flags,
        "speed": ahead.speed(everything, found, place.chip),
        "attention": work.model.attention.value,
    }


def one(name: str, when: str) -> dict[str, Any]:
    """The account of a case, made in a process of its own, or why there is none."""
    begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--one", name, when]
    limit = lambda: (os.nice(10), resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS)))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WALL_SECONDS, preexec_fn=limit)
        if done.returncode in (-signal.SIGTERM, -signal.SIGINT):
            raise SystemExit(f"{name} {when} was interrupted")
        failed = f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}" if done.returncode else ""
        told = {"compiler": failed} if failed else json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        told = {"compiler": f"stopped after {WALL_SECONDS} s"}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {
        "case": name, "options": when, "cpu_seconds": round(seconds, 1), "seconds": round(time.monotonic() - begun, 1),
        **told,
    }  # fmt: skip


def accounts() -> dict[tuple[str, str], dict[str, Any]]:
    """What was compiled so far."""
    if not ACCOUNTS.exists():
        return {}
    rows = map(json.loads, ACCOUNTS.read_text(encoding="utf-8").splitlines())
    return {(row["case"], row["options"]): row for row in rows}


def table() -> str:
    """The accounts as a table in Markdown, with every flag below it."""
    lines = [
        "| step | slice (rings) | options | CPU-s | GiB a device: arguments + temporaries | of | plan "
        "| collectives: GB received (operations), hidden | fusions, attention, blocking, s | share of peak |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    found = accounts()
    for name, case in CASES.items():
        for when in WHEN:
            if (name, when) in found:
                lines.append(table_line(case, when, found[name, when]))
    flags: dict[str, list[str]] = {}
    for (name, _), row in found.items():
        if row.get("flags"):
            flags.setdefault(" ".join(f"{flag}={value}" for flag, value in row["flags"].items()), []).append(name)
    return "\n".join([*lines, "", *(f"Options of {', '.join(names)}: `{text}`" for text, names in flags.items())])


def table_line(case: Case, when: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    rings = ", rings" if all(row.get("rings", [])) else ""
    begin = f"| {case.title} | {case.slice}{rings} | {when} | {row['cpu_seconds']:.0f} |"
    if "gib" not in row:
        return f"{begin} {row['compiler']} | {row.get('device_gib', 0):.2f} | {row.get('planned_gib', 0):.1f} | | | |"
    gib, speed = row["gib"], row["speed"]
    collectives = "; ".join(
        f"{kind.split(' over ')[0]} {of['gigabytes']:.1f} ({of['operations']:,.0f}), "
        f"{of['hidden_gigabytes'] / of['gigabytes']:.0%}"
        for kind, of in row["collectives"].items()
        if of["gigabytes"] > 0.05  # the loss, the norm and a counter
    )
    times = ", ".join(
        f"{speed[part]:.2f}" for part in ("fusions_seconds", "attention_seconds", "blocking_collectives_seconds")
    )
    return (
        f"{begin} {gib['arguments']:.2f} + {gib['temporaries']:.2f} | {row['device_gib']:.2f} | "
        f"{row['planned_gib']:.1f} | {collectives or 'none'} | {times} | {speed['share_of_peak']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--one", nargs=2, metavar=("CASE", "OPTIONS"), help="compile one case here and print its account"
    )
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="by default all")
    options = parser.parse_args()
    if options.one:
        name, when = options.one
        print(json.dumps(account(CASES[name], when)))
        return
    if not options.table:
        for name in options.cases or CASES:
            for when in WHEN:
                if (name, when) in accounts():
                    continue
                with ACCOUNTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(one(name, when)) + "\n")
    print(table())


if __name__ == "__main__":
    main()
