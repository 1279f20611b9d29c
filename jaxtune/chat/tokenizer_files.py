"""The JSON files beside a tokenizer: which tokens they add, flag as special, and name as BOS, EOS and padding."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtune.errors import UserError
from jaxtune.storage.documents import read_object

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


_WITH_BOS = ("LlamaTokenizer", "GemmaTokenizer")
"""Tokenizer classes of `transformers` that put BOS first where their configuration does not say otherwise."""


def companions(path: Path) -> list[Path]:
    """The tokenizer files in the folder of `path`; `path` itself where there is none of them."""
    return [file for name in COMPANIONS if (file := path.parent / name).is_file()] or [path]


def _read_companion(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_object(path) if path.is_file() else {}


def special_names(folder: Path) -> dict[str, str]:
    """The pieces that a folder's configuration files name as `bos`, `eos` and `pad`, as far as they do."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the second wins
        for key, value in _read_companion(folder, file).items():
            content = value.get("content") if isinstance(value, dict) else value
            if key in ("bos_token", "eos_token", "pad_token") and isinstance(content, str):
                names[key.removesuffix("_token")] = content
    return names


def flagged_special(folder: Path) -> set[str]:
    """Pieces that `tokenizer_config.json` flags as special."""
    path = folder / "tokenizer_config.json"
    listed = _read_companion(folder, path.name).get("additional_special_tokens") or []
    if not isinstance(listed, list):
        raise _malformed(path, "additional_special_tokens", "a list")
    pieces = [item.get("content") if isinstance(item, dict) else item for item in listed]
    named = {piece for piece in pieces if isinstance(piece, str)}
    if len(named) < len({*map(repr, pieces)}):
        raise _malformed(path, "additional_special_tokens", "a list of texts")
    return named | set(_declared_special(folder))


def _declared_special(folder: Path) -> dict[str, int]:
    """Special tokens in the `added_tokens_decoder` of `tokenizer_config.json`, with their ids."""
    path = folder / "tokenizer_config.json"
    decoder = _read_companion(folder, path.name).get("added_tokens_decoder", {})
    if not isinstance(decoder, dict) or not all(
        number.isdecimal() and number.isascii() and isinstance(token, dict) and isinstance(token.get("content"), str)
        for number, token in decoder.items()
    ):
        raise _malformed(path, "added_tokens_decoder", "an object of ids with tokens")
    return {token["content"]: int(number) for number, token in decoder.items() if token.get("special")}


def _malformed(path: Path, key: str, wanted: str) -> UserError:
    return UserError(f"{path}: `{key}` is not {wanted}. The file is damaged; copy it again.")


def adds_bos(folder: Path) -> bool | None:
    """Whether the configuration says that BOS stands before every text; None where it says nothing."""
    config = _read_companion(folder, "tokenizer_config.json")
    if isinstance(stated := config.get("add_bos_token"), bool):
        return stated
    return True if str(config.get("tokenizer_class", "")).startswith(_WITH_BOS) else None


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that the configuration adds on top of a SentencePiece model."""
    added = _read_companion(folder, "added_tokens.json")
    if not all(type(number) is int and number >= 0 for number in added.values()):
        raise _malformed(folder / "added_tokens.json", "id", "a whole number everywhere")
    return added | _declared_special(folder)


def resolve_special_ids(
    path: Path, names: Mapping[str, str], id_of: Callable[[str], int | None], fallback: Mapping[str, int]
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
        resolved.append(token if type(token) is int and token >= 0 else None)
    return resolved[0], resolved[1], resolved[2]
