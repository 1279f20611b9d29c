"""A config.json read into a ModelConfig, and written from one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.families import Family, family_of
from jaxtune.hf.fields import ZERO, Fields
from jaxtune.hf.ropes import RopeDefaults, read_ropes, write_rope
from jaxtune.model.rope import RopeScaling
from jaxtune.model.settings import MAX_LAYERS, Activation, ModelConfig

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_seq_len",
}
ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu": Activation.GELU,
    "relu2": Activation.RELU2,
}
ACTIVATION_NAMES = {
    Activation.SILU: "silu",
    Activation.GELU_TANH: "gelu_pytorch_tanh",
    Activation.GELU: "gelu",
    Activation.RELU2: "relu2",
}


RUN_OPTIONS = frozenset({"remat", "attention"})
"""Fields of ModelConfig that say how to run the model, not what it is: config.json knows nothing of them."""


def read_config(fields: Mapping[str, Any], origin: str) -> ModelConfig:
    """The ModelConfig of a config.json; UserError on unknown, unsupported and impossible fields names `origin`."""
    try:
        return _read_config(fields, origin)
    except UserError as error:
        if str(error).startswith(origin):
            raise
        raise UserError(f"{origin}: {error}") from error  # of a part of the model, which does not know the file


def _read_config(fields: Mapping[str, Any], origin: str) -> ModelConfig:
    family = family_of(fields.get("model_type"), origin)
    left = Fields(fields, origin)
    left.require("architectures", [family.architecture])
    for name in ZERO:
        if name in family.noise:
            left.left.pop(name, None)
        left.require(name, 0)
    sizes = {ours: left.take(theirs, int) for theirs, ours in _sizes(family).items()}
    if sizes["num_layers"] > MAX_LAYERS:
        raise UserError(f"{origin}: num_hidden_layers is {sizes['num_layers']!r:.20}; the most are {MAX_LAYERS}.")
    if family.partial_default is None:
        left.refuse("partial_rotary_factor", f"is not read by {fields['model_type']} models; remove it.")
    arguments = sizes | {
        "family": fields["model_type"],
        "num_kv_heads": left.take("num_key_value_heads", int, family.kv_heads_default or sizes["num_heads"]),
        "head_dim": _read_head_dim(left, family, sizes["d_model"], sizes["num_heads"]),
        "norm_eps": left.number(family.eps_field, family.eps_default),
        "tie_embeddings": left.take("tie_word_embeddings", bool, family.tie_default),
        **_read_activation(left, family),
        **read_ropes(
            left,
            sizes["max_seq_len"],
            RopeDefaults(
                theta=family.theta_default,
                local_theta=family.local_theta_default,
                local_unscaled=family.local_unscaled,
                partial=family.partial_default,
                interleaved=family.interleaved,
                query_growth=family.query_growth,
                unstated=family.rope_default,
                text_positions=family.text_positions,
            ),
        ),
        **family.read(left, sizes),
    }
    left.finish()
    return ModelConfig(**arguments)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that `read_config` turns back into `config`, run options aside."""
    family = family_of(config.family, "the model config")
    fields: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family}
    fields |= {theirs: getattr(config, ours) for theirs, ours in _sizes(family).items()}
    fields |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        family.eps_field: config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **({family.activation_field: ACTIVATION_NAMES[config.activation]} if family.activation_field else {}),
        **_write_partial(config, family),
        **write_rope(config.rope, config.max_seq_len, phi=config.family == "phi3"),
        **_write_plain_rope(config, family),
        **family.write(config),
    }
    _check_round_trip(fields, config)
    return fields


def _sizes(family: Family) -> dict[str, str]:
    """Fields of the family's config.json that hold sizes -> fields of ModelConfig."""
    return {family.inner_field if ours == "d_ff" else theirs: ours for theirs, ours in SIZES.items()}


def _write_partial(config: ModelConfig, family: Family) -> dict[str, Any]:
    partial = config.rope.partial
    return {} if family.partial_default in (None, partial) else {"partial_rotary_factor": partial}


def _write_plain_rope(config: ModelConfig, family: Family) -> dict[str, Any]:
    """A plain rope, where the absence of one would mean another."""
    plain = family.rope_default and config.rope.scaling is RopeScaling.NONE
    return {"rope_scaling": {"rope_type": "default"}} if plain else {}


def _check_round_trip(fields: Mapping[str, Any], config: ModelConfig):
    """Raise unless config.json says everything that the config holds."""
    back = read_config(fields, "the exported config.json")
    names = [f.name for f in dataclasses.fields(config) if f.name not in RUN_OPTIONS | {"layer_kinds"}] + ["kinds"]
    lost = [
        f"{name} = {getattr(config, name)!r} would come back as {getattr(back, name)!r}"
        for name in names
        if getattr(config, name) != getattr(back, name)
    ]
    if lost:
        raise UserError(f"a config.json of model_type {config.family!r} cannot express this model: {'; '.join(lost)}.")


def _read_head_dim(left: Fields, family: Family, width: int, heads: int) -> int:
    head_dim = left.take("head_dim", int, family.head_dim_default)
    if head_dim is None and (heads < 1 or width % heads):
        raise UserError(
            f"{left.origin}: hidden_size ({width}) is no multiple of num_attention_heads ({heads}); state head_dim."
        )
    return width // heads if head_dim is None else head_dim


def _read_activation(left: Fields, family: Family) -> dict[str, Activation]:
    if not family.activation_field:
        return {}
    name = left.take(family.activation_field, str, family.activation_default)
    if name not in ACTIVATIONS:
        raise UserError(
            f"{left.origin}: {family.activation_field} = {name!r} is not supported; known: {', '.join(ACTIVATIONS)}."
        )
    return {"activation": ACTIVATIONS[name]}
