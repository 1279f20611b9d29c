"""The fields of a Hugging Face config.json, taken one by one so that none is ignored; rope settings among them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.model.rope import RopeConfig, RopeScaling

HARMLESS = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Fields that change neither the forward pass nor the tensors."""

ZERO = ("attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop", "router_jitter_noise")
"""Training-time noise: accepted only when zero, because jaxtune would not apply it."""


class Fields:
    """The fields of one config.json; each is taken at most once, and `finish` raises for those that nobody took."""

    def __init__(self, fields: Mapping[str, Any], origin: str):
        self.left = dict(fields)
        self.origin = origin

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = dataclasses.MISSING) -> Any:
        """The value of a field, which must be of type `kind`; null counts as absent."""
        value = self.left.pop(name, None)
        if value is None:
            if default is dataclasses.MISSING:
                raise UserError(f"{self.origin}: the field {name!r} is missing; the model cannot be built without it.")
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{self.origin}: the field {name!r} is {value!r}; it must be of type {names}.")
        return value

    def number(self, name: str, default: Any = dataclasses.MISSING) -> Any:
        """The value of a numeric field, as a float; or the default."""
        value = self.take(name, (int, float), default)
        return float(value) if isinstance(value, int) else value

    def nullable(self, name: str, kind: type, default: Any) -> Any:
        """As `take` or `number`, but null is a value of its own: the feature is off."""
        if name in self.left and self.left[name] is None:
            return self.left.pop(name)
        return self.number(name, default) if kind is float else self.take(name, kind, default)

    def require(self, name: str, allowed: Any):
        """Take a field that jaxtune supports with one value only; absent and null are fine."""
        value = self.left.pop(name, None)
        if value is not None and value != allowed:
            raise UserError(f"{self.origin}: {name} = {value!r} is not supported; only {allowed!r} is.")

    def finish(self):
        """Raise UserError if a field is left that could matter."""
        unknown = sorted(set(self.left) - HARMLESS)
        if unknown:
            listed = ", ".join(f"{name} = {self.left[name]!r:.60}" for name in unknown)
            raise UserError(
                f"{self.origin}: unknown for this model_type: {listed}. "
                "Such a field may change what the model computes, so it is not ignored; remove it if it does not."
            )


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


def read_ropes(
    left: Fields, max_seq_len: int, *, theta_default: float, local_theta_default: float | None
) -> dict[str, RopeConfig]:
    """`rope`, and `local_rope` for families whose local layers have their own (those with a default for it).

    Both spellings are read: rope_theta with rope_scaling, and rope_parameters (flat, or by layer type).
    """
    parameters: dict[str, Any] = {"rope_theta": left.number("rope_theta", theta_default)}
    parameters["partial_rotary_factor"] = left.number("partial_rotary_factor", 1.0)
    parameters |= left.take("rope_scaling", dict, {})
    local_theta = local_theta_default
    if local_theta is not None:
        local_theta = left.number("rope_local_base_freq", local_theta)
    newer = left.take("rope_parameters", dict, {})
    if local_theta is not None and "full_attention" in newer:
        by_layer = Fields(newer, f"{left.origin}: rope_parameters")
        newer = by_layer.take("full_attention", dict)
        local = Fields(by_layer.take("sliding_attention", dict, {}), f"{left.origin}: rope of sliding layers")
        by_layer.finish()
        local.require("rope_type", "default")
        local_theta = local.number("rope_theta", local_theta)
        local.finish()
    parameters |= newer
    original = left.take("original_max_position_embeddings", int, None)
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    left.require("rope_interleaved", False)
    rope = _read_rope(Fields(parameters, f"{left.origin}: rope"), max_seq_len)
    return {"rope": rope} if local_theta is None else {"rope": rope, "local_rope": RopeConfig(theta=local_theta)}


def write_rope(rope: RopeConfig, max_seq_len: int, *, phi: bool) -> dict[str, Any]:
    """rope_theta and rope_scaling: the spelling that every release of transformers and most other tools read.

    Phi keeps the context length of pretraining outside rope_scaling, and accepts three fields in it.
    """
    fields: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.partial != 1.0:
        fields["partial_rotary_factor"] = rope.partial
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
    return fields | {"rope_scaling": scaling}


def _read_rope(left: Fields, max_seq_len: int) -> RopeConfig:
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
        values |= {name: tuple(map(float, left.take(name, list))) for name in ("short_factor", "long_factor")}
    if scaling in (RopeScaling.YARN, RopeScaling.LONGROPE) and values["factor"] is None:
        values["factor"] = max_seq_len / original
    theta, partial = left.number("rope_theta"), left.number("partial_rotary_factor", 1.0)
    left.finish()
    try:
        return RopeConfig(theta=theta, partial=partial, scaling=scaling, **values)
    except UserError as error:
        raise UserError(f"{left.origin}: {error}") from error
