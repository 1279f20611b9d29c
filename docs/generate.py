"""Pages that are made: one for each package from its docstrings, the options of a config, the chapter as a notebook.

MkDocs calls `on_files` (see `hooks` in mkdocs.yml); nothing is written into the repository.
"""

import ast
import dataclasses
import enum
import inspect
import json
import pathlib
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtune.errors import describe

PACKAGE = pathlib.Path(__file__).parent.parent / "jaxtune"
NOTEBOOKS = PACKAGE.parent / "notebooks"
TOP = "jaxtune"
"""Name of the page of the modules that lie beside the packages."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those in the folder."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """All generated pages: file name -> Markdown."""
    api = {f"api/{name}.md": api_page(name, modules) for name, modules in packages().items()}
    return {"options.md": options_page(), "models.md": models_page(), "chapter.md": notebook_page("chapter"), **api}


def packages() -> dict[str, list[str]]:
    """Package -> its modules that have something to say; `jaxtune` holds those of the top."""
    found: dict[str, list[str]] = {TOP: []}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if "assets" in parts or parts[-1] in ("__main__", "__init__"):
            continue
        found.setdefault(parts[0] if len(parts) > 1 else TOP, []).append(".".join(("jaxtune", *parts)))
    return found


def api_page(name: str, modules: list[str]) -> str:
    """One heading a module, filled from its docstrings."""
    title = "jaxtune" if name == TOP else f"jaxtune.{name}"
    front = PACKAGE / "__init__.py" if name == TOP else PACKAGE / name / "__init__.py"
    said = ast.get_docstring(ast.parse(front.read_text(encoding="utf-8"))) or ""
    parts = [f"# {title}", said, *(f"## {module}\n\n::: {module}" for module in modules)]
    return "\n\n".join(parts) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A leaf of the config: how it is spelled, what it takes, what it is without being given, what it means."""

    name: str
    kind: str
    default: str
    meaning: str


def options_page() -> str:
    """Every option of a config as tables, one for each part."""
    from jaxtune.config import ExperimentConfig

    said = """What a config says is also an option of the commands that take a config, and of `sweep --grid`; given on
the command line it replaces the config's. `jaxtune options CONFIG` prints the same with the values of that config."""
    lines = ["# Options", said]
    for part, options in parts(ExperimentConfig):
        heading = part or "The experiment"
        rows = [
            f"| `{option.name}` | {cell(option.kind)} | {cell(option.default)} | {cell(option.meaning)} |"
            for option in options
        ]
        table = ["| option | takes | default | meaning |", "|---|---|---|---|", *rows]
        lines += [f"## {heading}", "\n".join(table)]
    return "\n\n".join(lines) + "\n"


def notebook_page(name: str) -> str:
    """A notebook with the outputs that it was kept with."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [shown(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def shown(output: Mapping[str, Any]) -> str:
    """One output of a notebook's cell as Markdown; of several forms the richest."""
    forms = {form: "".join(text) for form, text in output.get("data", {"text/plain": output.get("text", [])}).items()}
    if "text/html" in forms:  # a blank line would end the HTML of a Markdown page
        return forms["text/html"].replace("\n", "&#10;")
    return forms["text/markdown"] if "text/markdown" in forms else f"```text\n{forms['text/plain'].rstrip()}\n```"


def models_page() -> str:
    """Every model family as a table, what is taken out of models of images and text, and what is missing."""
    from jaxtune.hf.families import FAMILIES
    from jaxtune.hf.unsupported import MISSING
    from jaxtune.hf.wrapped import WRAPPERS

    said = """A folder of a Hugging Face model is read by the `model_type` of its config.json; `jaxtune import-hf
FOLDER` makes every check that a run makes. A field that is not known for a family is an error, never ignored: it may
change what the model computes. Each family is compared with transformers on random weights: padded, packed and cached
logits, the loss, and folders that go both ways."""
    families = [f"| `{name}` | {family.models} | `{family.architecture}` |" for name, family in FAMILIES.items()]
    inside = [
        f"| `{name}` | {', '.join(f'`{alone}`' for alone, _ in wrapper.text.values())} |"
        for name, wrapper in WRAPPERS.items()
    ]
    missing = [f"| `{name}` | {why} |" for name, why in MISSING.items()]
    texts = """Their text model is tuned, and exported as a text model; what belongs to images stays in the folder it
came from. So do layers that draft tokens ahead (`mtp.` of Qwen3-Next and Qwen 3.5), with or without images."""
    layers = """Layers of a stack may differ: in the reach of attention, in whether they are rotated, in having a dense
feed-forward or experts, and in having linear attention by the gated delta rule, whose memory and short convolution
begin anew at each packed example. Layers are scanned by the blocks that repeat, so that compile time does not grow
with depth. Weights that a checkpoint holds as MXFP4 (gpt-oss) are read into floats, and exported so. On GPUs, attention
with sinks or soft caps takes memory that grows with the square of a row's length: no kernel there has them."""
    return "\n\n".join(
        [
            "# Models", said, layers, "\n".join(["| model_type | models | architecture |", "|---|---|---|", *families]),
            "## Text inside models of images and text", texts,
            "\n".join(["| model_type | its text model |", "|---|---|", *inside]),
            "## Not supported", "These are refused with what they would need.",
            "\n".join(["| model_type | needs |", "|---|---|", *missing]),
        ]
    ) + "\n"  # fmt: skip


def parts(kind: type, prefix: str = "") -> Iterator[tuple[str, list[Option]]]:
    """(part, its options) of a config class and the classes inside."""
    hints, meanings = typing.get_type_hints(kind), meanings_of(kind)
    ranged = typing.get_type_hints(kind, include_extras=True)
    leaves, inside = [], []
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        nested = [each for each in alternatives(hints[field.name]) if dataclasses.is_dataclass(each)]
        if nested and name != "tasks":
            inside.append((name, nested[0]))
        elif name != "tasks":  # objects: these have no form on the command line
            option = f"--{name.replace('_', '-')}"
            meaning = meanings.get(field.name) or meaning_of_choice(hints[field.name])
            leaves.append(
                Option(name=option, kind=kind_of(option, ranged[field.name]), default=value_of(field), meaning=meaning)
            )
    yield prefix.rstrip("."), leaves
    for name, nested_kind in inside:
        yield from parts(nested_kind, f"{name}.")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def meaning_of_choice(hint: Any) -> str:
    """What an enum says of itself, for a field that adds nothing to it."""
    chosen = [each for each in alternatives(hint) if isinstance(each, type) and issubclass(each, enum.Enum)]
    return " ".join((inspect.getdoc(chosen[0]) or "").split()) if chosen else ""


def meanings_of(kind: type) -> dict[str, str]:
    """Field -> the string under it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        is_text = (
            isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        )
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def kind_of(option: str, hint: Any) -> str:
    """What an option takes; of one that is on or off, how it is turned off."""
    if hint is bool:
        part, dot, name = option.rpartition(".")
        return f"nothing; `{part}{dot}no-{name}` turns it off" if dot else f"nothing; `--no-{name[2:]}` turns it off"
    return describe(hint)


def value_of(field: dataclasses.Field) -> str:
    """The default as the command line spells it."""
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "empty"
    value = field.default.value if isinstance(field.default, enum.Enum) else field.default
    return f"`{value}`" if value != () else "empty"


def cell(text: str) -> str:
    """Text that cannot end a table's cell."""
    return text.replace("|", "\\|")
