"""Tokenizers kept as a SentencePiece `.model` file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtune.chat.tokenizer import TURN_MARKER, After, Controls, TextEncoder, fingerprint, known, sentencepiece_bytes
from jaxtune.chat.tokenizer_files import (
    added_tokens,
    adds_bos,
    companions,
    flagged_special,
    resolve_special_ids,
    special_names,
)
from jaxtune.errors import UserError


class SentencePieceTokenizer(TextEncoder):
    """A SentencePiece `.model` file.

    Its control symbols never match in text, and neither do turn markers that the model holds as user-defined symbols
    (those would match: the text is split inside them before it is encoded).
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
            size = self._model.get_piece_size()
            pieces = {self._model.id_to_piece(i): i for i in range(size)}
        except (RuntimeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: not a SentencePiece model ({error}). Copy it again.") from error
        names = special_names(self.path.parent)
        added = added_tokens(self.path.parent)
        marked = {p for p in pieces if TURN_MARKER.fullmatch(p)} | (
            (set(names.values()) | flagged_special(path.parent)) & set(pieces)
        )
        own = {
            p: i for p, i in pieces.items() if self._model.is_control(i) or (p in marked and i != self._model.unk_id())
        }
        self.controls = Controls(own | added)
        shielded = [p for p in own if not self._model.is_control(own[p])]
        self._shield = Controls({p: own[p] for p in shielded}).pattern if shielded else None
        fallback = {"bos": self._model.bos_id(), "eos": self._model.eos_id(), "pad": self._model.pad_id()}
        self.bos_id, self.eos_id, self.pad_id = resolve_special_ids(self.path, names, self.id_of, fallback)
        self.adds_bos = self.bos_id is not None and bool(adds_bos(path.parent))
        self.vocab_size = max([size - 1, *added.values()]) + 1
        self.fingerprint = fingerprint(proto, self.bos_id, self.eos_id, self.pad_id, sorted(self.controls.ids.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def files(self) -> list[Path]:
        return companions(self.path)

    def _encode_texts(self, texts: Sequence[str], after: After) -> list[list[int]]:
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
        return known(self._model.id_to_piece(int(token)) if inside else None, token, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        piece = self.piece(token)
        return piece.encode() if token in self.controls else sentencepiece_bytes(piece)

    def id_of(self, piece: str) -> int | None:
        if piece in self.controls.ids:
            return self.controls.ids[piece]
        token = self._model.piece_to_id(piece)
        return token if self._model.id_to_piece(token) == piece else None
