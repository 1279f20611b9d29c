"""Text models inside models of images and text: their config.json and their tensors, taken out of the wrapper's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import UserError
from jaxtune.hf.fields import HARMLESS
from jaxtune.hf.safetensors import Entry

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A `model_type` whose `text_config` is a model of its own."""

    text: Mapping[str, str]
    """model_type of the text model -> its architecture; the first is the default."""
    defaults: Fields = dataclasses.field(default_factory=dict)
    """Sizes that published text configs leave out."""


WRAPPERS = {
    "gemma3": Wrapper(
        text={"gemma3_text": "Gemma3ForCausalLM"},
        defaults={
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        },
    ),
    "mistral3": Wrapper(text={"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM"}),
}  # fmt: skip

IMAGES = frozenset(
    {
        *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"),
        *("image_token_id", "multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size"),
        *("vision_feature_layer", "tie_word_embeddings"),
    }
)
"""Fields of a wrapper that are about images, or repeat what the text model says."""
OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
"""How names of tensors begin that text alone does not need."""
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
    if not isinstance(inner, dict):
        raise UserError(
            f"{origin}: text_config is {inner!r:.60}; a {fields['model_type']} model needs an object there."
        )
    kind = inner.get("model_type", next(iter(wrapper.text)))
    if not isinstance(kind, str) or kind not in wrapper.text:
        raise UserError(
            f"{origin}: the text model of {fields['model_type']} is {kind!r:.60}; known: {', '.join(wrapper.text)}."
        )
    unknown = sorted(set(fields) - IMAGES - HARMLESS - {"text_config"})
    if unknown:
        raise UserError(f"{origin}: unknown for a {fields['model_type']} model: {', '.join(unknown)}.")
    return {**wrapper.defaults, **inner, "model_type": kind, "architectures": [wrapper.text[kind]]}


def text_tensors(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """A wrapper's tensors that belong to the text model, or to nothing known, by the names they have there."""
    found = {}
    for name, entry in entries.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        if not name.startswith(OTHER_PARTS):
            found[PREFIXES.get(prefix, "") + name.removeprefix(prefix)] = entry
    return found
