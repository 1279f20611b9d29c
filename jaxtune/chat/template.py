"""Chat templates: the built-in ones, and those that come with a model."""

import dataclasses
import datetime
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtune.errors import UserError
from jaxtune.storage.documents import read_json, read_text
from jaxtune.storage.fingerprints import text_fingerprint


class Reasoning(enum.Enum):
    """Policy for the assistant's reasoning: which of it is trained on."""

    LAST = "last"  # as the template shows it; a turn shown without its reasoning carries no weight
    KEEP = "keep"  # every turn's; a conversation of which the template leaves reasoning out is refused
    DROP = "drop"  # none: it is taken out before the template sees it, and answers train alone


class Bos(enum.Enum):
    """Rule for the token that begins a text (BOS): who writes it."""

    TEMPLATE = "template"  # the template; that it writes none is a problem where the tokenizer's model wants one
    ADD = "add"  # put before the text where the template writes none
    NONE = "none"  # nobody, and that is meant


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja chat template in the dialect of Hugging Face `transformers`."""

    name: str
    source: str
    variables: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    """Further variables the template sees, e.g. `{"enable_thinking": False}`; kept as sorted pairs."""
    today: datetime.date = datetime.date(2024, 7, 26)
    """The date that `strftime_now` tells. Fixed, so that the same data give the same tokens on every day."""
    exact_marks: bool = False
    """Train on exactly what `{% generation %}` encloses. By default the generation prompt, and what follows the
    end-of-turn token, are left out even where the marks enclose them, and an end-of-turn token right after the marks is
    taken in."""

    reasoning: Reasoning = Reasoning.LAST
    bos: Bos = Bos.TEMPLATE

    def __post_init__(self) -> None:
        pairs = self.variables.items() if isinstance(self.variables, Mapping) else self.variables
        object.__setattr__(self, "variables", tuple(sorted(pairs)))
        for name, _ in self.variables:
            if not name.isidentifier() or name.startswith("_"):
                raise UserError(f"a template variable can't be named {name!r}. Give the name that the template uses.")

    @property
    def asks_date(self) -> bool:
        """Whether it asks for today's date."""
        return "strftime_now" in self.source

    @property
    def described(self) -> str:
        """The template's name, with what it is told: its variables, and the date where it asks for one."""
        told = [f"{name}={value!r}" for name, value in self.variables]
        told += [f"dated {self.today.isoformat()}"] * self.asks_date
        told += ["exact marks"] * self.exact_marks + [f"BOS: {self.bos.value}"] * (self.bos is not Bos.TEMPLATE)
        return ", ".join([self.name, *told])

    @property
    def portable(self) -> str:
        """Source for a model's folder: its variables have the values given here for defaults, and BOS is added if it is
        here."""
        defaults = "".join(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
            for name, value in self.variables
        )
        return defaults + ("{{- bos_token }}" if self.bos is Bos.ADD else "") + self.source

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides a render."""
        applied = (self.exact_marks, self.reasoning.value, self.bos.value)
        facts = (self.source, self.variables, self.today.isoformat(), *applied)
        return text_fingerprint(repr(facts))


def _literal(value: Any) -> str:
    """A value as Jinja writes it; JSON's notation but for its names of constants."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False)


def _built_in(name: str) -> ChatTemplate:
    file = Path(__file__).parent / "templates" / f"{name}.jinja"
    return ChatTemplate(name=name, source=file.read_text(encoding="utf-8"))


TEMPLATES: dict[str, ChatTemplate] = {
    name: _built_in(name)
    for name in (
        *("chatml", "gemma2", "gemma3", "llama3", "mistral", "phi3", "phi4-mini", "plain"),
        *("qwen2.5", "qwen3", "smollm2", "zephyr"),
    )
}
"""The built-in templates by name. Each renders the same text as its family's own and marks what trains."""


class NoTemplate(UserError):
    """A model folder without a chat template, as base models are."""


def load_template(folder: str | Path, variant: str = "default") -> ChatTemplate:
    """The chat template that comes with a model or tokenizer.

    Reads `chat_template.jinja`, else `chat_template.json`, else the `chat_template` of `tokenizer_config.json`, which
    may hold several named ones: `variant` picks. `folder` may also be a `.jinja` file. Raises `UserError` without one.
    """
    path = Path(folder)
    if path.is_file() and path.suffix == ".jinja":
        return ChatTemplate(name=path.stem, source=read_text(path))
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder or .jinja file. Give a model folder, or one of: {', '.join(TEMPLATES)}."
        )
    if variant != "default" and (file := path / "additional_chat_templates" / f"{variant}.jinja").is_file():
        return ChatTemplate(name=f"{path.name}/{variant}", source=read_text(file))
    if variant == "default" and (file := path / "chat_template.jinja").is_file():
        return ChatTemplate(name=path.name, source=read_text(file))
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (path / name).is_file():
            found = _variants(path / name)
            if variant in found:
                return ChatTemplate(name=path.name, source=found[variant])
            if found:
                raise UserError(
                    f"{path / name} has no chat template {variant!r}; it has: {', '.join(sorted(found))}. "
                    "Name one of them."
                )
    raise NoTemplate(
        f"{path}: no chat template here (chat_template.jinja, chat_template.json, or `chat_template` in "
        f"tokenizer_config.json). Base models have none: choose a built-in one: {', '.join(TEMPLATES)}."
    )


def _variants(path: Path) -> dict[str, str]:
    """Named templates in a JSON file; a single one is called `default`."""
    value = read_json(path)
    value = value.get("chat_template") if isinstance(value, dict) else value
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(
        isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str) for t in value
    ):
        return {t["name"]: t["template"] for t in value}
    if isinstance(value, dict) and all(isinstance(t, str) for t in value.values()):
        return value
    raise UserError(
        f"{path}: `chat_template` is neither a text nor a list of {{name, template}}. Copy the file again, or choose a "
        f"built-in template: {', '.join(TEMPLATES)}."
    )
