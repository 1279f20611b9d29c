"""Retention texts: plain documents and completions that a run does not train on, to see what tuning makes it forget."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt64

from jaxtune.batch import Example
from jaxtune.chat import Tokenizer
from jaxtune.data.store import TaskTokens
from jaxtune.data.subset import Encoded
from jaxtune.errors import UserError
from jaxtune.storage.fetching import fetched_file
from jaxtune.storage.stores import default_cache, is_url
from jaxtune.storage.userfiles import locate, looked_for
from jaxtune.tasks.sources.open import from_file

BUILTIN = {"builtin": "documents.jsonl", "builtin-completions": "completions.jsonl"}
"""Names that stand for texts of the built-in base model: 200 held-out documents, and beginnings with one right end."""
WINDOW = 32
"""Tokens in a row that a text and the training data may not share."""


def read_texts(
    names: Sequence[str], tokenizer: Tokenizer, seq_len: int, trained: Mapping[str, TaskTokens]
) -> dict[str, Encoded]:
    """The texts of `eval.retention` by name, without a template, cut to `seq_len` tokens.

    A record is `{"text": ...}`, every token of which counts, or `{"prompt": ..., "completion": ...}`, of which those of
    the completion do. Raises UserError for a file that is missing, a record of another form, and a text that shares 32
    tokens in a row with the training data.
    """
    found: dict[str, Encoded] = {}
    for name in names:
        path = place(name)
        label = name if name in BUILTIN else path.name
        if label in found:
            raise UserError(f"eval.retention names two texts {label!r}; their files need different names")
        source = from_file(path)
        examples = [encoded(source[i], tokenizer, seq_len, where=source.where(i)) for i in range(len(source))]
        if not examples:
            raise UserError(f"eval.retention: {path} holds no document")
        found[label] = Encoded(examples=tuple(examples))
    refuse_shared(found, trained)
    return found


def place(name: str) -> pathlib.Path:
    """Path of a text's file."""
    if name in BUILTIN:
        return pathlib.Path(__file__).parent.parent / "assets" / "retention" / BUILTIN[name]
    if is_url(name):
        return fetched_file(name, default_cache())
    path = locate(name)
    if not path.is_file():
        raise UserError(
            f"eval.retention: no file {name}{looked_for(name)}; give JSONL files of documents, "
            f"or {' or '.join(BUILTIN)}"
        )
    return path


def encoded(record: Mapping[str, Any], tokenizer: Tokenizer, seq_len: int, *, where: str) -> Example:
    """One document or completion as tokens, its weights on what counts."""
    if set(record) >= {"prompt", "completion"}:
        prompt, text = record["prompt"], record["completion"]
    else:
        prompt, text = "", record.get("text")
    if not isinstance(prompt, str) or not isinstance(text, str) or not text:
        raise UserError(f'{where}: a retention text is {{"text": ...}} or {{"prompt": ..., "completion": ...}}')
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    before = start + tokenizer.encode(prompt) if prompt else start
    tokens = start + tokenizer.encode(prompt + text)
    shared = next((i for i, (a, b) in enumerate(zip(before, tokens, strict=False)) if a != b), len(before))
    tokens = tokens[:seq_len]
    if len(tokens) < 2 or shared >= len(tokens):
        raise UserError(f"{where}: nothing of it is left to measure in {seq_len} tokens")
    weights = np.zeros(len(tokens), np.float32)
    weights[max(shared, 1) :] = 1
    return Example(tokens=np.array(tokens, np.int32), loss_weights=weights)


def refuse_shared(texts: Mapping[str, Encoded], trained: Mapping[str, TaskTokens]) -> None:
    """Raise UserError where a text has a run of tokens in common with a training set: it would measure memory."""
    for name, text in texts.items():
        hashes = [windows(np.asarray(example.tokens)) for example in text.examples]
        held = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
        for task, store in trained.items():
            if len(held) and np.isin(windows(store.all_tokens), held).any():
                raise UserError(
                    f"eval.retention: {name} shares {WINDOW} tokens in a row with the training data of {task}; "
                    "take text that is not trained on"
                )


def windows(tokens: Integer[np.ndarray, " n"]) -> UInt64[np.ndarray, " windows"]:
    """A hash of every run of `WINDOW` tokens."""
    count = len(tokens) - WINDOW + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    wide, found = tokens.astype(np.uint64) + np.uint64(1), np.zeros(count, np.uint64)
    for offset in range(WINDOW):
        found = (found ^ wide[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found
