"""Names of modules, files and functions that stand in text: in imports inside strings, in prose, in notebooks."""

import functools
import importlib
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("jaxtune", "tests", "configs", "experiments", "notebooks", "docs")
KINDS = {".py", ".md", ".ipynb", ".sh", ".sbatch", ".yaml", ".toml"}
IMPORT = re.compile(r"from (jaxtune[\w.]*) import (\([^)]*\)|[^\n\\]+)")
DOTTED = re.compile(r"(?<![\w/.@-])jaxtune(?:\.[A-Za-z_]\w*)+(?![\w/-])")
PATH = re.compile(r"(?<![\w/.-])jaxtune(?:/[\w.-]+)+")
NOT_MODULES = {"jaxtune.alocate", "jaxtune.git"}
"""Dotted words that are no Python names: a misspelling that a test looks for, a repository."""

ELSEWHERE = ("jaxtune/logs", "jaxtune/.venv")
"""Files of a clone on another host, which is called like the package."""


def texts() -> list[pathlib.Path]:
    """Files that people read or run; histories keep the names of their time."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    return sorted([*inside, *(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md")])


def read(path: pathlib.Path) -> str:
    """The text; of a notebook, that of its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


@functools.cache
def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                return part in getattr(value, "__annotations__", {}) or part in getattr(
                    value, "__dataclass_fields__", {}
                )
            value = getattr(value, part)
        return True
    return False


def imported(text: str) -> set[str]:
    """Dotted names of all `from jaxtune... import ...` lines, also those inside strings."""
    names = set()
    for module, listed in IMPORT.findall(text):
        parts = (part.split(" as ")[0].split("#")[0].strip() for part in listed.strip("()").split(","))
        names |= {f"{module}.{part}" for part in parts if re.fullmatch(r"\w+", part)}
    return names


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_text_exist(path):
    text = read(path)
    dotted = (imported(text) | set(DOTTED.findall(text))) - NOT_MODULES
    missing = {name for name in dotted if not resolves(name)}
    paths = {found.rstrip(".") for found in PATH.findall(text) if not found.startswith(ELSEWHERE)}
    missing |= {found for found in paths if not (ROOT / found).exists()}
    assert not missing
