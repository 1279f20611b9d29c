"""Whether a model folder can be tuned, and what it holds: every check that a run makes of its base model."""

import math
from pathlib import Path
from typing import Any

import jax

from jaxtune import chat
from jaxtune.chat import ChatTemplate, Conversation, Message, Tokenizer, load_template, load_tokenizer
from jaxtune.chat.template import NoTemplate
from jaxtune.errors import UserError
from jaxtune.hf.folder import load_config, model_tensors, resolve
from jaxtune.hf.layout import match_tensors
from jaxtune.hf.text_files import read_generation, tokenizer_files
from jaxtune.model.settings import ModelConfig
from jaxtune.model.transformer import abstract_params

PROBE = Conversation(messages=(Message("user", "Is this folder whole?"), Message("assistant", "Yes.")))
"""A conversation that any template renders."""


def inspect(source: str | Path) -> dict[str, Any]:
    """Contents of a model folder or Hub name, after every tensor, the tokenizer and the template have been checked.

    Raises UserError for what a run would refuse: a config of an unknown kind, tensors that do not fit it or hold NaN, a
    tokenizer or template that cannot be used, a conversation with tokens that the embedding has no row for.
    """
    folder = resolve(source)
    config = load_config(folder)
    shapes = abstract_params(config)[1]
    entries = model_tensors(folder)
    for pieces in match_tensors(folder, config, shapes, entries).values():
        for piece in pieces:
            piece.read()  # which raises for values that are not finite
    read_generation(folder)
    files = tokenizer_files(folder)
    return {
        "folder": str(folder),
        "family": config.family,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)),
        "tensors": len(entries),
        "layers": config.num_layers,
        "d_model": config.d_model,
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key/value, {config.head_dim} wide",
        "vocabulary": config.vocab_size,
        "context": config.max_seq_len,
        "tied head": config.tie_embeddings,
        "tokenizer files": [file.name for file in files],
        **(_text(folder, config) if files else {}),
    }


def _text(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Facts of the tokenizer; the tokens of a conversation must have rows in the embedding, spare entries need none."""
    words = load_tokenizer(folder)
    try:
        ids, template = _probe(load_template(folder), words), "here"
    except NoTemplate:
        ids, template = words.encode(PROBE.messages[0].content or ""), "none; a config names one with model.template"
    check_rows(ids, words, config, folder)
    spare = max(0, words.vocab_size - config.vocab_size)
    facts = {"chat template": template, "tokens": words.vocab_size}
    return facts | ({"tokens without a row in the embedding": spare} if spare else {})


def check_rows(ids: list[int], words: Tokenizer, config: ModelConfig, origin: str | Path) -> None:
    """Raise UserError if a token of `ids` has no row in the embedding.

    Sizes say nothing: published tokenizers have entries for images that the text model has no row for.
    """
    beyond = sorted({token for token in ids if token >= config.vocab_size})
    if beyond:
        raise UserError(
            f"{origin}: text becomes token {beyond[0]} ({words.piece(beyond[0])!r}), and the model's embedding has "
            f"only {config.vocab_size} rows. Use the tokenizer that belongs to the model."
        )


def _probe(template: ChatTemplate, words: Tokenizer) -> list[int]:
    return [int(token) for token in chat.render(PROBE, template, words).tokens]
