"""The tokenizer interface, and a byte tokenizer for tests and examples.

A *control token* (`<|im_end|>`, `<bos>`, ...) has an id that plain text never produces: `encode` turns the same
characters inside a user's text into ordinary tokens. Whoever builds a prompt inserts control ids on purpose (`id_of`,
`specials=True`).
"""

import abc
import enum
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtune.errors import UserError
from jaxtune.storage.fingerprints import bytes_fingerprint, text_fingerprint

TURN_MARKER = re.compile(r"<\|[^\s]*\|>|<｜[^\s]*｜>")
"""Shape of pieces that count as control tokens even when a tokenizer file forgot to flag them as special."""
"""Shape of pieces that count as control tokens even when a tokenizer file forgot to flag them as special."""


BLANK = "▁"
"""The character (U+2581, lower block) that SentencePiece vocabularies spell blanks with."""


class After(enum.IntEnum):
    """The context before a text that is encoded alone; decides whether a word-boundary `▁` is put before it."""

    NOTHING = 0  # the start of the whole text
    CONTROL = 1  # a control token
    TEXT = 2  # other text: the two parts read as one, so no prefix is added


@runtime_checkable
class Tokenizer(Protocol):
    """The tokenizer interface. Implementations pickle, so that worker processes can hold one."""

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
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own files put BOS before every text, as its model was trained."""
        ...

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


class TextEncoder(abc.ABC):
    """Base of tokenizers: `encode` and `encode_batch`, with and without control strings, over `_encode_texts`."""

    controls: Controls

    def encode(self, text: str, *, specials: bool = False, after: After = After.NOTHING) -> list[int]:
        return self.encode_batch([text], specials=specials, after=after)[0]

    def encode_batch(
        self, texts: Sequence[str], *, specials: bool = False, after: After = After.NOTHING
    ) -> list[list[int]]:
        if specials:
            return [self._encode_with_controls(text, after) for text in texts]
        for text in texts:
            require_encodable(text)
        if not any(BLANK in text for text in texts) or not self._blank_bytes:
            return self._encode_texts(texts, after)
        return [self._encode_blanks(text, after) for text in texts]

    def is_control(self, token: int) -> bool:
        return token in self.controls

    @functools.cached_property
    def _blank_bytes(self) -> list[int]:
        """Byte tokens of `▁`, where the vocabulary spells blanks with that character and has bytes; else nothing.

        Such a tokenizer reads the character itself as a blank: only its bytes say what it is.
        """
        ids = [self.id_of(f"<0x{byte:02X}>") for byte in BLANK.encode()]
        folds = BLANK not in self.decode(self._encode_texts([f"a{BLANK}b"], After.NOTHING)[0])
        return [token for token in ids if token is not None] if folds and None not in ids else []

    def _encode_blanks(self, text: str, after: After) -> list[int]:
        """Ids of a text with `▁` in it, each as its bytes."""
        ids: list[int] = []
        for k, part in enumerate(text.split(BLANK)):
            ids += self._blank_bytes if k else []
            ids += self._encode_texts([part], After.TEXT if k else after)[0] if part else []
        return ids

    @abc.abstractmethod
    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        """Text of `ids`."""

    @abc.abstractmethod
    def id_of(self, piece: str) -> int | None:
        """Id of a vocabulary entry."""

    @abc.abstractmethod
    def _encode_texts(self, texts: Sequence[str], after: After) -> list[list[int]]:
        """Ids of texts in which control strings are ordinary text."""

    def _encode_with_controls(self, text: str, after: After) -> list[int]:
        """Encode text whose control strings stand for control tokens."""
        ids: list[int] = []
        controls = self.controls
        start, strip_left = 0, False
        matches = [*controls.pattern.finditer(text), None]
        for match in matches:
            plain = text[start : match.start() if match else len(text)]
            plain = plain.lstrip() if strip_left else plain
            plain = plain.rstrip() if match and match[0] in controls.eats_left else plain
            if plain:
                ids += self.encode(plain, after=after)
            if match:
                ids.append(controls.ids[match[0]])
                start, after, strip_left = match.end(), After.CONTROL, match[0] in controls.eats_right
        return ids


class ByteTokenizer(TextEncoder):
    """One id per UTF-8 byte, then the control tokens. For tests and examples: exact, tiny, needs no file."""

    def __init__(
        self,
        controls: Sequence[str] = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"),
        *,
        bos: str | None = "<bos>",
        eos: str | None = "<eos>",
        pad: str | None = "<pad>",
        adds_bos: bool = False,
    ):
        self.adds_bos = adds_bos
        self.controls = Controls({piece: 256 + i for i, piece in enumerate(controls)})
        self.vocab_size = 256 + len(controls)
        self.bos_id, self.eos_id, self.pad_id = (None if name is None else self.id_of(name) for name in (bos, eos, pad))
        self.fingerprint = text_fingerprint(repr(("bytes", *controls, bos, eos, pad)))
        self.files: list[Path] = []

    def _encode_texts(self, texts: Sequence[str], after: After) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int], *, controls: bool = True) -> str:
        kept = ids if controls else [token for token in ids if token not in self.controls]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def piece(self, token: int) -> str:
        if token in self.controls:
            return self.controls.strings[token]
        return known(f"<0x{token:02X}>" if 0 <= token < 256 else None, token, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        return self.piece(token).encode() if token in self.controls else sentencepiece_bytes(self.piece(token))

    def id_of(self, piece: str) -> int | None:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        return int(byte[1], 16) if byte else self.controls.ids.get(piece)


def require_encodable(text: str) -> None:
    """Raise `UserError` for text that has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text holds a lone surrogate ({text[error.start]!a} at character {error.start}), which is not "
            "valid Unicode. Repair or remove the character in the data."
        ) from error


def sentencepiece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece entry: `<0x0A>` is one byte, `▁` a space."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def known(piece: str | None, token: int, vocab_size: int) -> str:
    """`piece`; raises `ValueError` where `token` has none."""
    if piece is None:
        raise ValueError(f"token id {token} is not in the vocabulary of {vocab_size}")
    return piece


def fingerprint(content: bytes, *facts: Any) -> str:
    """SHA-256 of a file's bytes and of facts with a stable `repr`."""
    return bytes_fingerprint(content + repr(facts).encode())
