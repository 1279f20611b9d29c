"""The tensors of a family's checkpoint, and the parameters that each of them holds."""

import dataclasses
import enum
from collections.abc import Iterator

from jaxtune.hf.families import Family, family_of
from jaxtune.hf.heads import ByHead
from jaxtune.hf.qwen_next import DELTA_NAMES
from jaxtune.model.settings import ModelConfig
from jaxtune.model.stack import PARTS, Kind, kinds_of, place_in_part


@dataclasses.dataclass(frozen=True)
class ParameterSlice:
    """One parameter, or the slice of a stacked one at `index` (layer; or layer and expert)."""

    path: tuple[str, ...]
    index: tuple[int, ...]


class Form(enum.Enum):
    """Arrangement of a stored tensor's parts."""

    ROWS = "rows"  # one after the other along the first axis; matrices are [outputs, inputs]
    HEADS = "heads"  # rows of all parts, group of heads by group of heads; see `Tensor.by_head`
    EXPERTS = "experts"  # [experts, inputs, outputs]; biases [experts, outputs]; parts alternate along the last axis


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint; parts of the form EXPERTS come expert by expert."""

    name: str
    parts: tuple[ParameterSlice, ...]
    form: Form = Form.ROWS
    by_head: ByHead | None = None
    """Of the form HEADS."""


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of the family's checkpoint, in the order of the layers."""
    family = family_of(config.family, "the model config")
    yield Tensor("model.embed_tokens.weight", (ParameterSlice(("embed", "embedding"), ()),))
    for layer in range(config.num_layers):
        for tensor in _layer_tensors(config, family, layer):
            yield dataclasses.replace(tensor, name=f"model.layers.{layer}.{tensor.name}")
    yield Tensor("model.norm.weight", (ParameterSlice(("final_norm", "scale"), ()),))
    if not config.tie_embeddings:
        yield Tensor("lm_head.weight", (ParameterSlice(("head", "kernel"), ()),))


LAYER_TENSORS = {
    "attn_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    **{f"attn.{x}.kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"attn.{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"attn.{x}_norm.scale": f"self_attn.{x}_norm.weight" for x in "qk"},
    **{f"mlp.{x}.kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"mlp.{x}.bias": f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
    "moe.router.kernel": "mlp.gate.weight",
    "moe.shared_gate.kernel": "mlp.shared_expert_gate.weight",
    **{f"moe.shared.{x}.kernel": f"mlp.shared_expert.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"moe.{x}.kernel": f"mlp.experts.{{expert}}.{x}_proj.weight" for x in ("gate", "up", "down")},
}
"""Tensor names inside a layer, by parameter path, as Llama and Qwen have them."""


def _layer_tensors(config: ModelConfig, family: Family, layer: int) -> Iterator[Tensor]:
    """The tensors of one layer, by their names inside it."""
    kinds = kinds_of(config)
    in_stack = {name: place_in_part(kinds, layer, name) for name in PARTS}
    own = list(_layer_paths(config, kinds[layer]))

    def part(path: str, *index: int) -> ParameterSlice:
        name, *rest = path.split(".")
        return ParameterSlice(("layers", name, *rest), (in_stack.get(name, layer), *index))

    for name, paths in family.fused.items():
        if paths[0] in own:
            yield Tensor(name, tuple(part(path) for path in paths))
    by_head = family.by_head(config)
    for name, held in by_head.items():
        if held.parts[0] in own:
            yield Tensor(name, tuple(part(path) for path in held.parts), Form.HEADS, held)
    experts = range(0 if config.moe is None else config.moe.num_experts)
    for name, paths in family.stacked.items():
        if paths[0] in own:
            yield Tensor(name, tuple(part(path, expert) for expert in experts for path in paths), Form.EXPERTS)
    together = (*family.fused.values(), *family.stacked.values(), *(held.parts for held in by_head.values()))
    in_fused = {path for paths in together for path in paths}
    for path in own:
        if path in in_fused:
            continue
        name = family.names.get(path) or LAYER_TENSORS[path]
        if "{expert}" in name:
            yield from (Tensor(name.format(expert=expert), (part(path, expert),)) for expert in experts)
        else:
            yield Tensor(name, (part(path),))


def _layer_paths(config: ModelConfig, kind: Kind) -> Iterator[str]:
    """Paths of the parameters that one layer has."""
    if config.pre_norms:
        yield from ("attn_norm.scale",) if config.parallel_block else ("attn_norm.scale", "mlp_norm.scale")
    if config.post_norms:
        yield from ("attn_post_norm.scale", "mlp_post_norm.scale")
    yield from _attention_paths(config) if "attn" in kind else DELTA_NAMES
    if "moe" in kind and config.moe is not None:
        yield from (f"moe.{name}.kernel" for name in ("router", "gate", "up", "down"))
        if config.moe.bias:
            yield from (f"moe.{name}.bias" for name in ("router", "gate", "up", "down"))
        if config.moe.shared_d_ff is not None:
            yield from (f"moe.{name}.kernel" for name in ("shared_gate", "shared.gate", "shared.up", "shared.down"))
        return
    matrices = ("gate", "up", "down") if config.mlp_gate else ("up", "down")
    yield from (f"mlp.{name}.kernel" for name in matrices)
    if config.mlp_bias:
        yield from (f"mlp.{name}.bias" for name in matrices)


def _attention_paths(config: ModelConfig) -> Iterator[str]:
    yield from (f"attn.{name}.kernel" for name in "qkvo")
    if config.qkv_bias:
        yield from (f"attn.{name}.bias" for name in "qkv")
    if config.out_bias:
        yield "attn.o.bias"
    if config.attn_sinks:
        yield "attn.sink_bias"
    if config.qk_norm:
        yield from ("attn.q_norm.scale", "attn.k_norm.scale")
