"""Tokenizers kept as a `tokenizer.json` file, read with the `tokenizers` library."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jaxtune.chat.tokenizer import TURN_MARKER, After, Controls, TextEncoder, fingerprint, known, sentencepiece_bytes
from jaxtune.chat.tokenizer_files import adds_bos, companions, flagged_special, resolve_special_ids, special_names
from jaxtune.errors import UserError
from jaxtune.storage.documents import read_object


class HfTokenizer(TextEncoder):
    """A `tokenizer.json` file, read with the `tokenizers` library."""

    def __init__(self, path: Path):
        self.path = Path(path)
        spec = read_object(self.path)  # within its limits
        raw = self.path.read_bytes()
        if not _is_well_formed(spec):
            raise UserError(
                f"{self.path}: not a tokenizer.json of the `tokenizers` library (`model` is no object with a "
                "vocabulary, or `added_tokens` no list of tokens). "
                "Save it again with `tokenizer.save_pretrained(folder)`."
            )
        names = special_names(self.path.parent)
        changed = _flag_controls(spec, set(names.values()) | flagged_special(self.path.parent))
        control = [token for token in spec["added_tokens"] if token["special"]]
        self.controls = Controls(
            {token["content"]: token["id"] for token in control},
            eats_left=[token["content"] for token in control if token["lstrip"]],
            eats_right=[token["content"] for token in control if token["rstrip"]],
        )
        self._backend = _make_backend(spec if changed else raw, self.path)
        inside, self._prefix_at_start_only = _without_prefix(spec)
        self._inside = _make_backend(inside, self.path) if inside is not None else self._backend
        self._byte_level = "ByteLevel" in json.dumps(spec.get("decoder"))
        self.bos_id, self.eos_id, self.pad_id = resolve_special_ids(self.path, names, self.id_of, {})
        self.adds_bos = self._puts_bos_first()
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise UserError(f"{self.path}: its vocabulary is empty. Copy the file again.")
        self.vocab_size = max(ids) + 1
        self.fingerprint = fingerprint(raw, self.bos_id, self.eos_id, self.pad_id, sorted(self.controls.ids.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def files(self) -> list[Path]:
        return companions(self.path)

    def _puts_bos_first(self) -> bool:
        stated = adds_bos(self.path.parent)
        first = self._backend.encode("a", add_special_tokens=True).ids[:1]
        return self.bos_id is not None and (first == [self.bos_id] if stated is None else stated)

    def _encode_texts(self, texts: Sequence[str], after: After) -> list[list[int]]:
        inside = after is After.TEXT or (after is After.CONTROL and self._prefix_at_start_only)
        backend = self._inside if inside else self._backend
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        kept = ids if controls else [token for token in ids if token not in self.controls]
        return self._backend.decode(list(kept), skip_special_tokens=False)

    def piece(self, token: int) -> str:
        return known(self._backend.id_to_token(int(token)), token, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        piece = self.piece(token)
        if token in self.controls:
            return piece.encode()
        if self._byte_level:
            table = _byte_level_alphabet()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        return sentencepiece_bytes(piece)

    def id_of(self, piece: str) -> int | None:
        return self._backend.token_to_id(piece)


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _is_well_formed(spec: dict[str, Any]) -> bool:
    """Whether the parts of a tokenizer.json that are read here have the types that they should have."""
    added, model = spec.get("added_tokens"), spec.get("model")
    if not isinstance(added, list) or not isinstance(model, dict):
        return False
    vocab = model.get("vocab", {})
    pairs = isinstance(vocab, list) and all(isinstance(e, list) and e and isinstance(e[0], str) for e in vocab)
    return (isinstance(vocab, dict) or pairs) and all(
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and type(token.get("id")) is int
        and all(isinstance(token.get(flag), bool) for flag in _FLAGS)
        for token in added
    )


def _flag_controls(spec: dict[str, Any], named: set[str]) -> bool:
    """Flag as special each added token that is one in effect: named by the configuration, or shaped like a turn marker.

    A named piece of the plain vocabulary becomes an added token. Says whether `spec` was changed.
    """
    changed = False
    for token in spec["added_tokens"]:
        if not token["special"] and (token["content"] in named or TURN_MARKER.fullmatch(token["content"])):
            token["special"] = changed = True
    vocab = spec["model"].get("vocab", {})
    ids = vocab if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    for piece in sorted(named - {token["content"] for token in spec["added_tokens"]}):
        if piece in ids:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            spec["added_tokens"].append({"id": ids[piece], "content": piece, **flags})
            changed = True
    return changed


def _make_backend(spec: dict[str, Any] | bytes, path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_buffer(spec if isinstance(spec, bytes) else json.dumps(spec).encode())
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: the `tokenizers` library can't read it ({error}). Copy the file again.") from error
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # control strings in text stay text
    return backend


def _without_prefix(spec: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """A copy of `spec` that puts no `▁` or space before a text, or None where there is no such rule.

    The second result says whether the rule holds only at the very start of the text, not after control tokens.
    """
    found: list[str] = []

    def strip(node: Any) -> Any:
        if isinstance(node, list):
            return [
                strip(item)
                for item in node
                if not (isinstance(item, dict) and item.get("type") == "Prepend" and not found.append("all"))
            ]
        if not isinstance(node, dict):
            return node
        if node.get("type") == "Metaspace" and node.get("prepend_scheme", "always") != "never":
            found.append(node.get("prepend_scheme", "always"))
            return {**node, "prepend_scheme": "never"}
        if node.get("type") == "ByteLevel" and node.get("add_prefix_space"):
            found.append("all")
            return {**node, "add_prefix_space": False}
        return {key: strip(value) for key, value in node.items()}

    normalizer, pre_tokenizer = spec.get("normalizer"), spec.get("pre_tokenizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "Prepend":
        normalizer = {"type": "Sequence", "normalizers": [normalizer]}
    bare = {**spec, "normalizer": strip(normalizer), "pre_tokenizer": strip(pre_tokenizer)}
    return (bare if found else None), found == ["first"]


@functools.cache
def _byte_level_alphabet() -> dict[str, int]:
    """Byte of each character of the byte-level alphabet: printable Latin-1 is itself, the rest follow from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
