"""A training step compiled ahead of time for a TPU slice that is not here: memory, collective operations, speed.

XLA's TPU compiler needs no TPU. What it says of memory and of collective operations is what runs; seconds are an
estimate, no measurement:

    share of peak = counted operations / (peak * seconds)
    seconds       = max(products + attention, hidden collectives) + collectives that stop the device

Products are XLA's own estimates of the cycles of its fusions, which include what waits for memory, over the clock;
where there are none, all products at the peak. Attention kernels, of which XLA knows nothing, and collectives run at
the shares of the makers' rates below.
"""

import dataclasses
import importlib.metadata
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxtune.config import ExperimentConfig
from jaxtune.errors import UserError, first_line
from jaxtune.model import delta_rule
from jaxtune.model.attention import choice
from jaxtune.model.attention.core import Backend
from jaxtune.model.settings import LayerKind, Remat
from jaxtune.parallel import compilation
from jaxtune.parallel.mesh import AXES, make_mesh
from jaxtune.step import losses
from jaxtune.storage.documents import Json
from jaxtune.train import memory
from jaxtune.train.chips import GIB, Chip, Slice, parse_slice
from jaxtune.train.hlo import Program
from jaxtune.train.memory import Work

ATTENTION_SHARE = 0.5
"""Share of the peak at which a TPU's attention kernels run: between the 40 and 60 % of published measurements."""
NETWORK_SHARE = 0.9
"""Share of the makers' rates that collective operations reach."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """Floating-point operations of a step on one device."""

    products: float
    """Products with weights that count: 6 a token and parameter; 4 where the weights are frozen."""
    attention: float
    """Products of causal attention and of linear attention that count, forward and backward."""
    products_again: float
    attention_again: float
    """What the backward pass repeats of both."""

    @property
    def counted(self) -> float:
        return self.products + self.attention


def operations(work: Work) -> Operations:
    """Operations of one step of `work` on one device."""
    shapes = memory.shapes_of(work)
    layers, head = matmul_parameters(work, shapes.params)
    adapters = 0 if work.lora is None else sum(leaf.size for leaf in jax.tree.leaves(shapes.trained))
    devices = math.prod(work.axes.values())
    tokens = work.micro_batches * work.micro_rows * work.seq_len / devices
    wide = work.model.num_heads * work.model.head_dim
    linear = sum(kind is LayerKind.LINEAR for kind in work.model.kinds)
    forward = 2.0 * (work.model.num_layers - linear) * wide * work.seq_len * tokens  # two products, half of the pairs
    if work.model.delta is not None:
        forward += linear * delta_rule.operations(*work.model.delta.sizes) * tokens
    again = 1.0 if work.model.remat is Remat.FULL else 0.0
    return Operations(
        products=((6 if work.lora is None else 4) * (layers + head) + 6 * adapters) * tokens,
        attention=3 * forward, products_again=again * 2 * layers * tokens, attention_again=again * forward,
    )  # fmt: skip


def matmul_parameters(work: Work, params: Any) -> tuple[float, float]:
    """Parameters that a token is multiplied with, in the layers and in the head; of experts those that it meets."""
    moe = work.model.moe
    met = 1.0 if moe is None else moe.experts_per_token / moe.num_experts
    layers = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["layers"]):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        experts = re.search(r"moe\.(gate|up|down)\.", name) is not None
        layers += leaf.size * (met if experts else 1.0) if "kernel" in name else 0.0
    return layers, float(work.model.vocab_size * work.model.d_model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """XLA's account of a step on one device of a slice."""

    bytes: Mapping[str, int]
    """Of arguments (the state and a batch), and of temporaries beside them; the state is updated in place."""
    collectives: Mapping[str, Mapping[str, float]]
    """Operations, gigabytes received and gigabytes hidden, by kind and devices that take part."""
    cycles: float
    """Of all fusions; 0 where the compiler says nothing."""
    flags: compilation.Options
    """Compiler options that it took."""
    seconds: float
    """Time that compiling took."""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


class DoesNotFit(Exception):
    """The compiler found no way to compute the step in a device's memory; the message is the compiler's."""


def compile_step(work: Work, place: Slice, devices: Sequence[Any], given: compilation.Options) -> Compiled:
    """Compile the step of `work` for the devices of a slice. Raises DoesNotFit."""
    begun = time.monotonic()
    mesh = make_mesh(memory.mesh_config(work), devices)
    try:
        lowered = memory.lower(work, mesh)
    except UserError:
        raise
    except (NotImplementedError, ValueError) as error:  # a kernel that has no such heads
        raise UserError(
            f"--compile {place.name}: the step cannot be built: {first_line(error)}; where that is the attention "
            "kernel's word on heads or rows, choose another --model.attention"
        ) from error
    flags: dict[str, Any] = {**compilation.PREFERRED["tpu"], **given}
    while True:
        try:
            compiled = lowered.compile(compiler_options=flags)
            break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(first_line(error)) from error
            unknown = [name for name in flags if name in str(error) and name not in given]
            if not unknown:
                raise UserError(f"--compile {place.name}: XLA refuses the step: {first_line(error)}") from error
            flags = {name: value for name, value in flags.items() if name not in unknown}
    account = compiled.memory_analysis()
    assert account is not None, "XLA's TPU compiler accounts for memory"
    program, chunks = Program(compiled.as_text() or "", len(devices)), chunks_of(work)
    fresh = account.output_size_in_bytes - account.alias_size_in_bytes
    return Compiled(
        bytes={
            "arguments": account.argument_size_in_bytes, "temporaries": account.temp_size_in_bytes + max(0, fresh),
        },
        collectives=program.collectives(chunks), cycles=program.cycles(chunks), flags=flags,
        seconds=time.monotonic() - begun,
    )  # fmt: skip


def chunks_of(work: Work) -> int:
    """Turns of the loss's loop over chunks of positions, on one device."""
    rows = work.micro_rows // work.row_ways
    return -(-rows * work.seq_len // (work.chunk or losses.CHUNK_POSITIONS))


def speed(work: Work, found: Compiled, chip: Chip) -> Json:
    """The estimate of a step's seconds and its share of peak, with every number that it is made of."""
    done = operations(work)
    again = done.products_again
    at_peak = (done.products + again) / chip.peak
    fusions = max(at_peak, found.cycles / chip.clock)
    kernels = work.model.attention is Backend.SPLASH
    attention = (done.attention + done.attention_again) / (chip.peak * (ATTENTION_SHARE if kernels else 1.0))
    whole, hidden = (
        sum(row[name] for row in found.collectives.values()) * 1e9 / (chip.receives * NETWORK_SHARE)
        for name in ("gigabytes", "hidden_gigabytes")
    )
    computing = fusions + attention
    seconds = max(computing, hidden) + whole - hidden
    return {
        "counted_tflop": done.counted / 1e12,
        "again_tflop": (again + done.attention_again) / 1e12,
        "peak_tflops": chip.peak / 1e12,
        "products_at_peak_seconds": at_peak,
        "fusions_seconds": fusions,
        "attention_seconds": attention,
        "hidden_collectives_seconds": hidden,
        "blocking_collectives_seconds": whole - hidden,
        "step_seconds": seconds,
        "share_of_peak": done.counted / chip.peak / seconds,
    }


def proposals(work: Work, found: Compiled | None, place: Slice) -> list[Json]:
    """For each way to rematerialise, the most rows that fit and the share of peak they would reach, the best first.

    The planned memory is scaled by what the compiler made of the step that was asked for, and so is the time of its
    fusions; the weights that cross the network are the same for any number of rows.
    """
    ratio = 1.0 if found is None else found.total / memory.estimate(work).total
    numbers = None if found is None else speed(work, found, place.chip)
    slower = 1.0 if numbers is None else numbers["fusions_seconds"] / numbers["products_at_peak_seconds"]
    rows = []
    for remat in (Remat.NONE, Remat.DOTS, Remat.FULL):
        other = dataclasses.replace(work, model=dataclasses.replace(work.model, remat=remat))
        most = memory.most_rows(other, int(place.chip.bytes / ratio))
        if most == 0:
            continue
        other = dataclasses.replace(other, micro_rows=most)
        planned = memory.estimate(other).total * ratio
        row: Json = {"remat": remat.value, "micro_rows": most, "planned_gib": planned / GIB}
        if found is not None:
            done = operations(other)
            cycles = slower * (done.products + done.products_again) / place.chip.peak * place.chip.clock
            row["share_of_peak"] = speed(other, dataclasses.replace(found, cycles=cycles), place.chip)["share_of_peak"]
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get("share_of_peak", 0.0))


def plan_ahead(config: ExperimentConfig, text: str) -> Json:
    """A config's step compiled for a slice (`v5p:4x4x4`): memory, collectives, speed, and what else would fit."""
    place = parse_slice(text)
    devices = place.devices()
    work = memory.work_of(config, devices=len(devices), platform="tpu")
    model, attention = choice.resolve(
        work.model, work.seq_len, work.compute_dtype, platform="tpu", sequence_shards=work.axes["sequence"],
        tensor_shards=work.axes["tensor"], proven=False,
    )  # fmt: skip
    work = dataclasses.replace(work, model=model)
    given = compilation.parsed_options(config.compiler_options)
    plan: Json = {
        "slice": text, "devices": len(devices), "rings": list(place.wrap[: len(place.sizes)]),
        "jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu"),
        "mesh": dict(work.axes), "micro_rows": work.micro_rows, "seq_len": work.seq_len,
        "remat": work.model.remat.value, "attention": attention.backend.value, "compute_dtype": work.compute_dtype,
        "device_gib": place.chip.bytes / GIB,
    }  # fmt: skip
    try:
        found = compile_step(work, place, devices, given)
    except DoesNotFit as error:
        return plan | {"fits": False, "compiler": str(error), "proposals": proposals(work, None, place)}
    others = proposals(work, found, place)
    if others and (others[0]["remat"], others[0]["micro_rows"]) != (work.model.remat.value, work.micro_rows):
        others[0] |= confirmed(work, others[0], place, devices, given)
    return plan | {
        "fits": found.total <= place.chip.bytes,
        "compile_seconds": found.seconds,
        "flags": found.flags,
        "gib": {**{name: size / GIB for name, size in found.bytes.items()}, "total": found.total / GIB},
        "planned_gib": memory.estimate(work).total / GIB,
        "collectives": found.collectives,
        "speed": speed(work, found, place.chip),
        "proposals": others,
    }


def confirmed(
    work: Work, row: Mapping[str, Any], place: Slice, devices: Sequence[Any], given: compilation.Options
) -> Json:
    """A proposal compiled: whether it fits, and its numbers then."""
    model = dataclasses.replace(work.model, remat=Remat(row["remat"]))
    other = dataclasses.replace(work, model=model, micro_rows=row["micro_rows"])
    try:
        found = compile_step(other, place, devices, given)
    except DoesNotFit as error:
        return {"compiled": True, "fits": False, "compiler": str(error)}
    share = speed(other, found, place.chip)["share_of_peak"]
    fits = found.total <= place.chip.bytes
    return {"compiled": True, "fits": fits, "gib": found.total / GIB, "share_of_peak": share}


def lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan in words."""
    axes = ", ".join(f"{axis}={plan['mesh'][axis]}" for axis in AXES if plan["mesh"][axis] > 1) or "one device"
    told = [
        f"{plan['slice']}, {plan['devices']} devices, mesh {axes}; {plan['micro_rows']} rows of {plan['seq_len']} "
        f"tokens a forward pass, remat {plan['remat']}, attention {plan['attention']}, {plan['compute_dtype']} "
        f"(jax {plan['jax']}, libtpu {plan['libtpu']})"
    ]
    if "gib" not in plan:
        told.append(f"does NOT fit into {plan['device_gib']:.2f} GiB: {plan['compiler']}")
    else:
        gib, verdict = plan["gib"], "fits into" if plan["fits"] else "does NOT fit into"
        told.append(
            f"{verdict} {plan['device_gib']:.2f} GiB: {gib['total']:.2f}, of it arguments {gib['arguments']:.2f} and "
            f"temporaries {gib['temporaries']:.2f}; planned without compiling {plan['planned_gib']:.2f}"
        )
        told += [
            f"  {name:<28} {row['operations']:7,.0f} operations {row['gigabytes']:8.2f} GB, hidden "
            f"{row['hidden_gigabytes'] / row['gigabytes'] if row['gigabytes'] else 0:.0%}"
            for name, row in plan["collectives"].items()
        ]
        told += speed_lines(plan["speed"])
    told += [proposal_line(row) for row in plan["proposals"]] or ["nothing fits: more devices along fsdp or tensor"]
    return told


def speed_lines(numbers: Mapping[str, float]) -> list[str]:
    """The arithmetic of an estimate."""
    return [
        f"counted {numbers['counted_tflop']:.1f} TFLOP a device and step, done again {numbers['again_tflop']:.1f}; "
        f"peak {numbers['peak_tflops']:.0f} TFLOP/s",
        f"fusions {numbers['fusions_seconds']:.3f} s (products at peak {numbers['products_at_peak_seconds']:.3f}), "
        f"attention {numbers['attention_seconds']:.3f} s, collectives hidden "
        f"{numbers['hidden_collectives_seconds']:.3f} s and blocking {numbers['blocking_collectives_seconds']:.3f} s",
        f"a step of {numbers['step_seconds']:.3f} s, {numbers['share_of_peak']:.0%} of peak: an estimate, not measured",
    ]


def proposal_line(row: Mapping[str, Any]) -> str:
    """Line about another number of rows and way to rematerialise: the memory they would take, the share they reach."""
    share = f", {row['share_of_peak']:.0%} of peak" if "share_of_peak" in row else ""
    how, verdict = f"{row['planned_gib']:.2f} GiB planned", "would do"
    if row.get("compiled"):
        verdict = "would do" if row["fits"] else "was planned to do, and does NOT fit"
        how = f"{row['gib']:.2f} GiB compiled" if "gib" in row else row["compiler"]
    return f"{verdict}: --batch.micro-rows {row['micro_rows']} --model.remat {row['remat']}: {how}{share}"
