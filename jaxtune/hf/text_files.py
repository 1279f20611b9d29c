"""Files beside exported weights: tokenizer, chat template, and the settings that generation reads."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtune.errors import UserError
from jaxtune.storage.documents import read_object, write_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
GENERATION = "generation_config.json"
REWRITTEN = frozenset({"_from_model_config", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"})
"""Fields of a base's generation_config.json that are not copied: said anew, or about the file's writer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Tokenizer, template and special tokens of an exported model."""

    eos_token_id: int
    """The terminator that was trained: generation stops at it first of all."""
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    files: tuple[Path, ...] = ()
    """Tokenizer files, copied by name."""
    chat_template: str | None = None
    """The template that was trained; it replaces that of the files. None leaves theirs."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The base's settings for generation (see `read_generation`): sampling, and further end tokens."""

    @property
    def ids(self) -> dict[str, int]:
        """The special tokens that are known, under the names of config.json."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json: the base's, with the trained terminator first among the end tokens."""
        kept = {name: value for name, value in self.generation.items() if name not in REWRITTEN}
        others = {name: self.generation[name] for name in ("bos_token_id", "pad_token_id") if name in self.generation}
        ends = [self.eos_token_id, *(i for i in end_tokens(self.generation) if i != self.eos_token_id)]
        return kept | others | self.ids | {"eos_token_id": ends[0] if len(ends) == 1 else ends}

    def write(self, folder: Path) -> None:
        """Copy the tokenizer files into `folder` and put the template in the place of theirs."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
        if self.chat_template is None:
            return
        (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        if settings.exists():
            fields = read_object(settings)
            if fields.pop("chat_template", None) is not None:
                write_json(settings, fields)


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The tokenizer and template files of a model folder."""
    return [file for name in TOKENIZER_FILES if (file := Path(folder) / name).exists()]


def read_generation(folder: str | Path) -> dict[str, Any]:
    """generation_config.json of a model folder; where it names no end tokens, those of config.json.

    Raises UserError where a file is no JSON object or an end token is no token id.
    """
    folder = Path(folder)
    fields = read_object(folder / GENERATION) if (folder / GENERATION).exists() else {}
    if fields.get("eos_token_id") is None and (folder / "config.json").exists():
        fields = fields | {"eos_token_id": read_object(folder / "config.json").get("eos_token_id")}
    try:
        end_tokens(fields)
    except UserError as error:
        raise UserError(f"{folder / GENERATION}: {error}") from error
    return {name: value for name, value in fields.items() if value is not None}


def end_tokens(generation: Mapping[str, Any]) -> list[int]:
    """Ids at which generation ends, in the order of the file; one number or a list there."""
    given = generation.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or i < 0]
    if wrong:
        raise UserError(f"eos_token_id holds {json.dumps(wrong[0])[:60]}; end tokens are token ids, from 0")
    return ids
