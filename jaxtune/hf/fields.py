"""The fields of a Hugging Face config.json, taken one by one so that none is ignored; rope settings among them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.model.settings import LayerKind, ModelConfig

HARMLESS = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "_model_name_or_path",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "cls_token_id",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "length_penalty",
        "mask_token_id",
        "max_length",
        "max_new_tokens",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "router_aux_loss_coef",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Fields that change neither the forward pass nor the tensors; older files keep settings for generation among them."""

ZERO = (
    "attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop", "residual_dropout",
    "router_jitter_noise",
)  # fmt: skip
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
            raise UserError(f"{self.origin}: the field {name!r} is {value!r:.80}; it must be of type {names}.")
        return value

    def number(self, name: str, default: Any = dataclasses.MISSING) -> Any:
        """The value of a numeric field, as a float; or the default."""
        value = self.take(name, (int, float), default)
        return value if value is None else self._float(name, value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """The value of a field that is a list of numbers, as floats."""
        given = self.take(name, list)
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in given):
            raise UserError(f"{self.origin}: the field {name!r} is {given!r:.80}; it must be a list of numbers.")
        return tuple(self._float(name, value) for value in given)

    def positive(self, name: str, default: Any = dataclasses.MISSING) -> float:
        """A number of the config as `number` reads it, above 0 and finite."""
        value = self.number(name, default)
        if not 0 < value < math.inf:
            raise UserError(f"{self.origin}: the field {name!r} is {value}; it must be above 0 and finite.")
        return value

    def _float(self, name: str, value: float | int) -> float:
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{self.origin}: the field {name!r} is {value!r:.40}...; no float is so large.") from None

    def nullable(self, name: str, kind: type, default: Any) -> Any:
        """A field as `take` or `number` reads it, where null is a value of its own: the feature is off."""
        if name in self.left and self.left[name] is None:
            return self.left.pop(name)
        return self.number(name, default) if kind is float else self.take(name, kind, default)

    def require(self, name: str, allowed: Any):
        """Take a field that jaxtune supports with one value only; absent and null are fine."""
        value = self.left.pop(name, None)
        if value is not None and value != allowed:
            raise UserError(f"{self.origin}: {name} = {value!r:.80} is not supported; only {allowed!r} is.")

    def refuse(self, name: str, why: str):
        """Raise UserError if the file states a field; null is fine."""
        value = self.left.pop(name, None)
        if value is not None:
            raise UserError(f"{self.origin}: {name} = {value!r:.80} {why}")

    def finish(self):
        """Raise UserError if a field is left that could matter."""
        unknown = sorted(set(self.left) - HARMLESS)
        if unknown:
            listed = ", ".join(f"{name} = {self.left[name]!r:.60}" for name in unknown)
            raise UserError(
                f"{self.origin}: unknown for this model_type: {listed}. "
                "Such a field may change what the model computes, so it is not ignored; remove it if it does not."
            )


LAYER_NAMES = {"sliding_attention": LayerKind.LOCAL, "full_attention": LayerKind.GLOBAL}


Sizes = Mapping[str, int]


def read_kinds(left: Fields, num_layers: int, is_local: Callable[[int], bool]) -> tuple[LayerKind, ...]:
    """`layer_types`; where it is absent, the family's rule by layer index."""
    names = left.take("layer_types", list, None)
    if names is None:
        return tuple(LayerKind.LOCAL if is_local(i) else LayerKind.GLOBAL for i in range(num_layers))
    unknown = sorted({str(name) for name in names} - set(LAYER_NAMES))
    if unknown:
        raise UserError(f"{left.origin}: layer_types has {', '.join(unknown)}; known: {', '.join(LAYER_NAMES)}.")
    return tuple(LAYER_NAMES[name] for name in names)


def write_kinds(config: ModelConfig) -> list[str]:
    names = {kind: name for name, kind in LAYER_NAMES.items()}
    return [names[kind] for kind in config.kinds]


def read_biases(left: Fields, sizes: Sizes) -> dict[str, Any]:
    """`attention_bias` and `mlp_bias`, as Llama has them."""
    bias = left.take("attention_bias", bool, False)
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": left.take("mlp_bias", bool, False)}


def write_biases(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
