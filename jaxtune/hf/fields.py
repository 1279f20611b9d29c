"""The fields of a Hugging Face config.json, taken one by one so that none is ignored; rope settings among them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError

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
