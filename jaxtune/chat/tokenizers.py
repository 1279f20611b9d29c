"""Tokenizers from disk: `load_tokenizer` picks the reader by the file."""

from pathlib import Path

from jaxtune.chat.hf_tokenizer import HfTokenizer
from jaxtune.chat.sentencepiece import SentencePieceTokenizer
from jaxtune.chat.tokenizer import Tokenizer
from jaxtune.errors import UserError


def load_tokenizer(path: str | Path) -> Tokenizer:
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
