"""Text models inside models of images and text: their config.json and their tensors, taken out of the wrapper's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import HARMLESS
from jaxtune.hf.ropes import one_position
from jaxtune.hf.safetensors import Entry

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A `model_type` whose `text_config` is a model of its own."""

    text: Mapping[str, tuple[str, str]]
    """model_type of the text model -> the family that it is alone, and its architecture; the first is the default."""
    defaults: Fields = dataclasses.field(default_factory=dict)
    """Sizes that published text configs leave out."""
    flat: bool = False
    """Older files have the text model's fields beside those about images, without a `text_config`."""


WRAPPERS = {
    "gemma3": Wrapper(
        text={"gemma3_text": ("gemma3_text", "Gemma3ForCausalLM")},
        defaults={
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        },
    ),
    "mistral3": Wrapper(
        text={"mistral": ("mistral", "MistralForCausalLM"), "ministral3": ("ministral3", "Ministral3ForCausalLM")}
    ),
    "qwen2_vl": Wrapper(text={"qwen2_vl_text": ("qwen2", "Qwen2ForCausalLM")}, flat=True),
    "qwen2_5_vl": Wrapper(text={"qwen2_5_vl_text": ("qwen2", "Qwen2ForCausalLM")}, flat=True),
    "qwen3_vl": Wrapper(text={"qwen3_vl_text": ("qwen3", "Qwen3ForCausalLM")}),
    "qwen3_5": Wrapper(text={"qwen3_5_text": ("qwen3_5_text", "Qwen3_5ForCausalLM")}),
    "qwen3_5_moe": Wrapper(text={"qwen3_5_moe_text": ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM")}),
}  # fmt: skip

IMAGES = frozenset(
    {
        *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"),
        *("image_token_id", "multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size"),
        *("vision_feature_layer", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    }
)
"""Fields of a wrapper that are about images."""
OTHER_PARTS = tuple(
    start + part for start in ("", "model.") for part in ("vision_tower.", "multi_modal_projector.", "visual.")
)
"""How names of tensors begin that text alone does not need."""
TIED = "tie_word_embeddings"
PREFIXES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."}
"""How names of the text model's tensors begin in a wrapper -> and alone. Both spellings of transformers."""


def is_wrapped(fields: Fields) -> bool:
    """Whether a config.json is that of a wrapper."""
    return isinstance(fields.get("model_type"), str) and fields["model_type"] in WRAPPERS


def text_fields(fields: Fields, origin: str) -> Fields:
    """The config.json of the text model alone; of a model without a wrapper, all of it.

    Raises UserError where the text model is not described, is of another kind, or the wrapper says more than is known.
    """
    if not is_wrapped(fields):
        return fields
    wrapper, inner = WRAPPERS[fields["model_type"]], fields.get("text_config")
    if inner is None and wrapper.flat:
        first = next(iter(wrapper.text))
        inner = {name: value for name, value in fields.items() if name not in IMAGES} | {"model_type": first}
        fields = {"model_type": fields["model_type"]}
    if not isinstance(inner, dict):
        raise UserError(
            f"{origin}: text_config is {inner!r:.60}; a {fields['model_type']} model needs an object there."
        )
    kind = inner.get("model_type", next(iter(wrapper.text)))
    if not isinstance(kind, str) or kind not in wrapper.text:
        raise UserError(
            f"{origin}: the text model of {fields['model_type']} is {kind!r:.60}; known: {', '.join(wrapper.text)}."
        )
    unknown = sorted(set(fields) - IMAGES - HARMLESS - {"text_config", TIED})
    if unknown:
        raise UserError(f"{origin}: unknown for a {fields['model_type']} model: {', '.join(unknown)}.")
    family, architecture = wrapper.text[kind]
    tied = {TIED: fields[TIED]} if fields.get(TIED) is not None else {}
    return {
        **wrapper.defaults, **tied, **_one_position(inner), "model_type": family, "architectures": [architecture],
    }  # fmt: skip


def _one_position(inner: Fields) -> Fields:
    """The fields of a text model whose ropes know one position of each token."""
    ropes = ((name, inner.get(name)) for name in ("rope_scaling", "rope_parameters"))
    return {**inner, **{name: one_position(rope) for name, rope in ropes if isinstance(rope, dict)}}


def text_tensors(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """A wrapper's tensors that belong to the text model, or to nothing known, by the names they have there."""
    found = {}
    for name, entry in entries.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        if not name.startswith(OTHER_PARTS):
            found[PREFIXES.get(prefix, "") + name.removeprefix(prefix)] = entry
    return found
