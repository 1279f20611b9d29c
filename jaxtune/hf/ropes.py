"""Rotary settings of a config.json, in both spellings that files have."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import Fields
from jaxtune.model.rope import RopeConfig, RopeScaling

OPTIONAL = {
    RopeScaling.NONE: (),
    RopeScaling.LINEAR: ("factor",),
    RopeScaling.LLAMA3: ("factor", "low_freq_factor", "high_freq_factor"),
    RopeScaling.YARN: ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    RopeScaling.LONGROPE: ("factor", "attention_factor"),
}
"""Numeric fields by kind of scaling."""
EXTENDED = (RopeScaling.LLAMA3, RopeScaling.YARN, RopeScaling.LONGROPE)
"""Kinds that know the context length of pretraining."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeDefaults:
    """Rotary settings of a family that its config.json need not state, or cannot."""

    theta: float
    local_theta: float | None
    """Set where local layers have a base of their own."""
    local_unscaled: bool
    """Local layers have the base of the others, without its scaling."""
    partial: float | None
    """Default of `partial_rotary_factor`; None where the family does not read it."""
    interleaved: bool
    query_growth: bool
    """The family reads `llama_4_scaling_beta`."""
    unstated: Mapping[str, Any]
    """The rope of a file that states none."""
    text_positions: bool
    """The rope may say how an image's token has three positions."""


def read_ropes(left: Fields, max_seq_len: int, family: RopeDefaults) -> dict[str, RopeConfig]:
    """`rope`, and `local_rope` for families whose local layers have their own: those with a default base for it, and
    those that stretch the frequencies of global layers only.

    Both spellings are read: rope_theta with rope_scaling, and rope_parameters (flat, or by layer type).
    """
    parameters: dict[str, Any] = {"rope_theta": left.number("rope_theta", family.theta)}
    parameters["partial_rotary_factor"] = left.number("partial_rotary_factor", family.partial or 1.0)
    older, stated = left.take("rope_scaling", dict, {}), left.left.get("rope_parameters") is not None
    plain = one_position if family.text_positions else dict
    parameters |= plain(older) if older or stated else family.unstated
    local_theta, local_unscaled = family.local_theta, family.local_unscaled
    if local_theta is not None:
        local_theta = left.number("rope_local_base_freq", local_theta)
    newer = left.take("rope_parameters", dict, {})
    if (local_theta is not None or local_unscaled) and "full_attention" in newer:
        by_layer = Fields(newer, f"{left.origin}: rope_parameters")
        newer = by_layer.take("full_attention", dict)
        local = Fields(by_layer.take("sliding_attention", dict, {}), f"{left.origin}: rope of sliding layers")
        by_layer.finish()
        local.require("rope_type", "default")
        local_theta = local.number("rope_theta", local_theta)
        local.finish()
    parameters |= plain(newer)
    original = left.take("original_max_position_embeddings", int, None)
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    left.require("rope_interleaved", False)
    rope = _read_rope(Fields(parameters, f"{left.origin}: rope"), max_seq_len, family)
    if local_unscaled:
        local_rope = RopeConfig(theta=rope.theta if local_theta is None else local_theta)
        return {"rope": rope} if local_rope == rope else {"rope": rope, "local_rope": local_rope}
    return {"rope": rope} if local_theta is None else {"rope": rope, "local_rope": RopeConfig(theta=local_theta)}


def one_position(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The rope without how an image's token has three positions: all three are equal where there is only text."""
    plain = {name: value for name, value in rope.items() if name not in ("mrope_section", "mrope_interleaved")}
    return plain | {name: "default" for name in ("type", "rope_type") if rope.get(name) == "mrope"}


def write_rope(rope: RopeConfig, max_seq_len: int, *, phi: bool) -> dict[str, Any]:
    """rope_theta and rope_scaling: the spelling that every release of transformers and most other tools read.

    Phi keeps the context length of pretraining outside rope_scaling, and accepts three fields in it.
    """
    fields: dict[str, Any] = {"rope_theta": rope.theta}
    if phi:
        fields["original_max_position_embeddings"] = rope.original_max_len or max_seq_len
    if rope.scaling is RopeScaling.NONE:
        return fields
    scaling: dict[str, Any] = {"type" if phi else "rope_type": rope.scaling.value}
    if rope.scaling in EXTENDED and not phi:
        scaling["original_max_position_embeddings"] = rope.original_max_len
    derived = rope.original_max_len is not None and rope.factor == max_seq_len / rope.original_max_len
    for name in OPTIONAL[rope.scaling]:
        value = getattr(rope, name)
        if value is not None and not (phi and name == "factor" and derived):
            scaling[name] = value
    if rope.scaling is RopeScaling.YARN and not rope.truncate:
        scaling["truncate"] = False
    if rope.scaling is RopeScaling.LONGROPE:
        scaling |= {name: list(getattr(rope, name)) for name in ("short_factor", "long_factor")}
    if rope.query_growth is not None:
        scaling["llama_4_scaling_beta"] = rope.query_growth
    return fields | {"rope_scaling": scaling}


def _read_rope(left: Fields, max_seq_len: int, family: RopeDefaults) -> RopeConfig:
    older = left.take("type", str, "default")
    kind = left.take("rope_type", str, older)
    kinds = {scaling.value: scaling for scaling in RopeScaling} | {"su": RopeScaling.LONGROPE}
    if kind not in kinds:
        raise UserError(f"{left.origin}: scaling type {kind!r} is not supported; known: {', '.join(kinds)}.")
    scaling = kinds[kind]
    original = left.take("original_max_position_embeddings", int, max_seq_len)
    values: dict[str, Any] = {name: left.number(name, None) for name in OPTIONAL[scaling]}
    if scaling in EXTENDED:
        values["original_max_len"] = original
    if scaling is RopeScaling.YARN:
        values["truncate"] = left.take("truncate", bool, True)
    if scaling is RopeScaling.LONGROPE:
        values |= {name: left.numbers(name) for name in ("short_factor", "long_factor")}
    if scaling in (RopeScaling.YARN, RopeScaling.LONGROPE) and values["factor"] is None:
        values["factor"] = max_seq_len / max(original, 1)
    values["interleaved"] = family.interleaved
    if family.query_growth:
        if scaling is not RopeScaling.YARN:
            raise UserError(f"{left.origin}: scaling type {kind!r} is not supported for this model_type; only yarn is.")
        values["query_growth"] = left.number("llama_4_scaling_beta")
        left.require("max_position_embeddings", max_seq_len)
    if family.partial is None:
        left.require("partial_rotary_factor", 1.0)
    theta, partial = left.number("rope_theta"), left.number("partial_rotary_factor", 1.0)
    left.finish()
    try:
        return RopeConfig(theta=theta, partial=partial, scaling=scaling, **values)
    except UserError as error:
        raise UserError(f"{left.origin}: {error}") from error
