"""Text to token ids and back: `tokenizer.json` files, SentencePiece models, and a byte tokenizer for tests.

A *control token* (`<|im_end|>`, `<bos>`, ...) has an id that plain text never produces: `encode` turns the same
characters inside a user's text into ordinary tokens. Whoever builds a prompt inserts control ids on purpose (`id_of`,
`specials=True`).
"""

import enum
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tokenizers

from jaxtune.errors import UserError

COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Files of a tokenizer folder that travel with an exported model."""

_TURN_MARKER = re.compile(r"<\|[^\s]*\|>|<｜[^\s]*｜>")
"""Shape of pieces that count as control tokens even when a tokenizer file forgot to flag them as special."""


class After(enum.IntEnum):
    """What precedes a text that is encoded on its own; decides whether a word-boundary `▁` is put before it."""

    NOTHING = 0  # the start of the whole text
    CONTROL = 1  # a control token
    TEXT = 2  # other text: the two parts read as one, so no prefix is added


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of jaxtune needs of a tokenizer. Implementations pickle, so worker processes can hold one."""

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, control tokens included."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int | None: ...

    @property
    def controls(self) -> "Controls":
        """The control tokens and how to find them in text."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids; equal for equal behaviour on every machine."""
        ...

    @property
    def files(self) -> list[Path]:
        """The tokenizer's files, to copy next to an exported model; empty if it has none."""
        ...

    def encode(self, text: str, *, specials: bool = False, after: After = After.NOTHING) -> list[int]:
        """Ids of `text`. Control strings in it become control ids only with `specials=True`. Never adds BOS or EOS."""
        ...

    def encode_batch(
        self, texts: Sequence[str], *, specials: bool = False, after: After = After.NOTHING
    ) -> list[list[int]]:
        """`encode` of each text, faster."""
        ...

    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        """Text of `ids`, with control tokens visible, or left out with `controls=False`."""
        ...

    def piece(self, token: int) -> str:
        """The vocabulary entry as stored, e.g. `Ġthe`, `▁the`, `<0x0A>`."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that this token stands for; a character may be spread over several tokens."""
        ...

    def id_of(self, piece: str) -> int | None:
        """Id of a vocabulary entry, or None."""
        ...

    def is_control(self, token: int) -> bool: ...


class Controls:
    """The control tokens of a tokenizer: string to id, and a matcher that prefers the longest string."""

    def __init__(self, ids: Mapping[str, int], *, eats_left: Iterable[str] = (), eats_right: Iterable[str] = ()):
        """`eats_left` / `eats_right`: tokens that swallow the white space before / after them (`lstrip`, `rstrip`)."""
        self.ids = dict(ids)
        self.strings = {token: piece for piece, token in self.ids.items()}
        self.eats_left = frozenset(eats_left)
        self.eats_right = frozenset(eats_right)
        longest_first = sorted(filter(None, self.ids), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __contains__(self, token: int) -> bool:
        return token in self.strings


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer: a folder with `tokenizer.json` or `tokenizer.model` (the first is preferred), or one such file.

    BOS, EOS and padding are named by `tokenizer_config.json`, else `special_tokens_map.json`, else
    `generation_config.json`, else the SentencePiece model itself. Raises `UserError` for a missing or damaged file.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise UserError(
                f"{path}: no tokenizer here; expected tokenizer.json or tokenizer.model. "
                "Point to a model folder in Hugging Face layout, or to one of these files."
            )
        path = found[0]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder. Give a tokenizer folder, a tokenizer.json or a .model file.")
    return HfTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


class HfTokenizer:
    """A `tokenizer.json` file, read with the `tokenizers` library."""

    def __init__(self, path: Path):
        self.path = Path(path)
        raw = self.path.read_bytes()
        spec = _read_json(self.path)
        if not isinstance(spec.get("added_tokens"), list) or not isinstance(spec.get("model"), dict):
            raise UserError(
                f"{self.path}: not a tokenizer.json of the `tokenizers` library (no `model` or `added_tokens`). "
                "Save it again with `tokenizer.save_pretrained(folder)`."
            )
        names = _special_names(self.path.parent)
        changed = _flag_controls(spec, set(names.values()) | _flagged_special(self.path.parent))
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
        self.bos_id, self.eos_id, self.pad_id = _resolve_special_ids(self.path, names, self.id_of, {})
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = _fingerprint(raw, self.bos_id, self.eos_id, self.pad_id, sorted(self.controls.ids.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def files(self) -> list[Path]:
        return _companions(self.path)

    def encode(self, text: str, *, specials: bool = False, after: After = After.NOTHING) -> list[int]:
        return self.encode_batch([text], specials=specials, after=after)[0]

    def encode_batch(
        self, texts: Sequence[str], *, specials: bool = False, after: After = After.NOTHING
    ) -> list[list[int]]:
        if specials:
            return [_encode_with_controls(self, text, after) for text in texts]
        inside = after is After.TEXT or (after is After.CONTROL and self._prefix_at_start_only)
        backend = self._inside if inside else self._backend
        try:
            return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:
            for text in texts:
                require_encodable(text)
            raise

    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        kept = ids if controls else [token for token in ids if token not in self.controls]
        return self._backend.decode(list(kept), skip_special_tokens=False)

    def piece(self, token: int) -> str:
        return _known(self._backend.id_to_token(int(token)), token, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        piece = self.piece(token)
        if token in self.controls:
            return piece.encode()
        if self._byte_level:
            table = _byte_level_alphabet()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        return _sentencepiece_bytes(piece)

    def id_of(self, piece: str) -> int | None:
        return self._backend.token_to_id(piece)

    def is_control(self, token: int) -> bool:
        return token in self.controls


class SentencePieceTokenizer:
    """A SentencePiece `.model` file. Its control symbols never match in text, and neither do turn markers that the
    model holds as user-defined symbols (those would match: the text is split inside them before it is encoded).
    """

    def __init__(self, path: Path):
        import sentencepiece  # imported here: costs more than the rest of the command line's start-up

        self.path = Path(path)
        proto = self.path.read_bytes()
        if not proto:
            raise UserError(f"{self.path}: the file is empty; it should be a SentencePiece model. Copy it again.")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
            # A later occurrence of a protobuf field wins: normalizer_spec {add_dummy_prefix: false}.
            self._inside = sentencepiece.SentencePieceProcessor(model_proto=proto + b"\x1a\x02\x18\x00")
        except RuntimeError as error:
            raise UserError(f"{self.path}: not a SentencePiece model ({error}). Copy it again.") from error
        size = self._model.get_piece_size()
        pieces = {self._model.id_to_piece(i): i for i in range(size)}
        names = _special_names(self.path.parent)
        added = _added_tokens(self.path.parent)
        marked = {p for p in pieces if _TURN_MARKER.fullmatch(p)} | (
            (set(names.values()) | _flagged_special(path.parent)) & set(pieces)
        )
        own = {
            p: i for p, i in pieces.items() if self._model.is_control(i) or (p in marked and i != self._model.unk_id())
        }
        self.controls = Controls(own | added)
        shielded = [p for p in own if not self._model.is_control(own[p])]
        self._shield = Controls({p: own[p] for p in shielded}).pattern if shielded else None
        fallback = {"bos": self._model.bos_id(), "eos": self._model.eos_id(), "pad": self._model.pad_id()}
        self.bos_id, self.eos_id, self.pad_id = _resolve_special_ids(self.path, names, self.id_of, fallback)
        self.vocab_size = max([size - 1, *added.values()]) + 1
        self.fingerprint = _fingerprint(proto, self.bos_id, self.eos_id, self.pad_id, sorted(self.controls.ids.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def files(self) -> list[Path]:
        return _companions(self.path)

    def encode(self, text: str, *, specials: bool = False, after: After = After.NOTHING) -> list[int]:
        return self.encode_batch([text], specials=specials, after=after)[0]

    def encode_batch(
        self, texts: Sequence[str], *, specials: bool = False, after: After = After.NOTHING
    ) -> list[list[int]]:
        if specials:
            return [_encode_with_controls(self, text, after) for text in texts]
        for text in texts:
            require_encodable(text)
        model = self._inside if after is After.TEXT else self._model
        if self._shield is None:
            return model.encode(list(texts))
        return [self._encode_shielded(model, text) for text in texts]

    def _encode_shielded(self, model: Any, text: str) -> list[int]:
        """Encode `text` cut after the first character of every user-defined marker, so that none of them matches."""
        assert self._shield is not None
        cuts = [0, *(match.start() + 1 for match in self._shield.finditer(text)), len(text)]
        parts = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        ids: list[int] = model.encode(parts[0])
        for part in parts[1:]:
            ids += self._inside.encode(part)
        return ids

    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        parts: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in self.controls:
                run.append(int(token))
                continue
            parts.append(self._model.decode(run) if run else "")
            run = []
            if token is not None and controls:
                parts.append(self.controls.strings[token])
        return "".join(parts)

    def piece(self, token: int) -> str:
        if token in self.controls:
            return self.controls.strings[token]
        inside = 0 <= token < self._model.get_piece_size()
        return _known(self._model.id_to_piece(int(token)) if inside else None, token, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        piece = self.piece(token)
        return piece.encode() if token in self.controls else _sentencepiece_bytes(piece)

    def id_of(self, piece: str) -> int | None:
        if piece in self.controls.ids:
            return self.controls.ids[piece]
        token = self._model.piece_to_id(piece)
        return token if self._model.id_to_piece(token) == piece else None

    def is_control(self, token: int) -> bool:
        return token in self.controls


class ByteTokenizer:
    """One id per UTF-8 byte, then the control tokens. For tests and examples: exact, tiny, needs no file."""

    def __init__(
        self,
        controls: Sequence[str] = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"),
        *,
        bos: str | None = "<bos>",
        eos: str | None = "<eos>",
        pad: str | None = "<pad>",
    ):
        self.controls = Controls({piece: 256 + i for i, piece in enumerate(controls)})
        self.vocab_size = 256 + len(controls)
        self.bos_id, self.eos_id, self.pad_id = (None if name is None else self.id_of(name) for name in (bos, eos, pad))
        self.fingerprint = hashlib.sha256(repr(("bytes", *controls, bos, eos, pad)).encode()).hexdigest()
        self.files: list[Path] = []

    def encode(self, text: str, *, specials: bool = False, after: After = After.NOTHING) -> list[int]:
        if specials:
            return _encode_with_controls(self, text, after)
        require_encodable(text)
        return list(text.encode())

    def encode_batch(
        self, texts: Sequence[str], *, specials: bool = False, after: After = After.NOTHING
    ) -> list[list[int]]:
        return [self.encode(text, specials=specials, after=after) for text in texts]

    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        kept = ids if controls else [token for token in ids if token not in self.controls]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def piece(self, token: int) -> str:
        if token in self.controls:
            return self.controls.strings[token]
        return _known(f"<0x{token:02X}>" if 0 <= token < 256 else None, token, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        return self.piece(token).encode() if token in self.controls else _sentencepiece_bytes(self.piece(token))

    def id_of(self, piece: str) -> int | None:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        return int(byte[1], 16) if byte else self.controls.ids.get(piece)

    def is_control(self, token: int) -> bool:
        return token in self.controls


def _encode_with_controls(tokenizer: Tokenizer, text: str, after: After) -> list[int]:
    """Encode text whose control strings stand for control tokens."""
    ids: list[int] = []
    controls = tokenizer.controls
    start, strip_left = 0, False
    matches = [*controls.pattern.finditer(text), None]
    for match in matches:
        plain = text[start : match.start() if match else len(text)]
        plain = plain.lstrip() if strip_left else plain
        plain = plain.rstrip() if match and match[0] in controls.eats_left else plain
        if plain:
            ids += tokenizer.encode(plain, after=after)
        if match:
            ids.append(controls.ids[match[0]])
            start, after, strip_left = match.end(), After.CONTROL, match[0] in controls.eats_right
    return ids


def require_encodable(text: str) -> None:
    """Raise `UserError` for text that has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds a lone surrogate ({text[error.start]!a} at character {error.start}), which is not "
            "valid Unicode. Repair or remove the character in the data."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}). The file is damaged or incomplete; copy it again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}. Copy the file again.")
    return value


def _read_companion(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return _read_json(path) if path.is_file() else {}


def _special_names(folder: Path) -> dict[str, str]:
    """The pieces that a folder's configuration files name as `bos`, `eos` and `pad`, as far as they do."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the second wins
        for key, value in _read_companion(folder, file).items():
            content = value.get("content") if isinstance(value, dict) else value
            if key in ("bos_token", "eos_token", "pad_token") and isinstance(content, str):
                names[key.removesuffix("_token")] = content
    return names


def _flagged_special(folder: Path) -> set[str]:
    """Pieces that `tokenizer_config.json` flags as special."""
    config = _read_companion(folder, "tokenizer_config.json")
    flagged = {t["content"] for t in config.get("added_tokens_decoder", {}).values() if t.get("special")}
    listed = config.get("additional_special_tokens") or []
    return flagged | {t["content"] if isinstance(t, dict) else t for t in listed}


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that the configuration adds on top of a SentencePiece model."""
    added = {piece: int(i) for piece, i in _read_companion(folder, "added_tokens.json").items()}
    decoder = _read_companion(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
    return added | {token["content"]: int(i) for i, token in decoder.items() if token.get("special")}


def _resolve_special_ids(
    path: Path, names: Mapping[str, str], id_of: Any, fallback: Mapping[str, int]
) -> tuple[int | None, int | None, int | None]:
    """Ids of BOS, EOS and padding; a named piece without an id is an error."""
    generation = _read_companion(path.parent, "generation_config.json")
    resolved: list[int | None] = []
    for kind in ("bos", "eos", "pad"):
        token = generation.get(f"{kind}_token_id", fallback.get(kind, -1))
        token = token[0] if isinstance(token, list) and token else token
        if kind in names:
            token = id_of(names[kind])
            if token is None:
                raise UserError(
                    f"{path.parent}: the tokenizer's configuration names {names[kind]!r} as {kind}_token, "
                    f"but {path.name} has no such piece. Use files that belong together."
                )
        resolved.append(token if isinstance(token, int) and token >= 0 else None)
    return resolved[0], resolved[1], resolved[2]


def _flag_controls(spec: dict[str, Any], named: set[str]) -> bool:
    """Flag as special each added token that is one in effect: named by the configuration, or shaped like a turn marker.

    A named piece of the plain vocabulary becomes an added token. Says whether `spec` was changed.
    """
    changed = False
    for token in spec["added_tokens"]:
        if not token["special"] and (token["content"] in named or _TURN_MARKER.fullmatch(token["content"])):
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
    except ValueError as error:
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


def _sentencepiece_bytes(piece: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _known(piece: str | None, token: int, vocab_size: int) -> str:
    if piece is None:
        raise ValueError(f"token id {token} is not in the vocabulary of {vocab_size}")
    return piece


def _companions(path: Path) -> list[Path]:
    return [file for name in COMPANIONS if (file := path.parent / name).is_file()] or [path]


def _fingerprint(content: bytes, *facts: Any) -> str:
    return hashlib.sha256(content + repr(facts).encode()).hexdigest()
