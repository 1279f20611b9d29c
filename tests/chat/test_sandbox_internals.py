"""Parts of Jinja that the sandbox overrides. Some are internal: hence the pin below Jinja's next minor release."""

import importlib.metadata
import inspect
import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from jaxtune.chat import sandbox

PROJECT = pathlib.Path(__file__).parent.parent.parent / "pyproject.toml"
SUBCLASSES = [
    kind
    for _, kind in inspect.getmembers(sandbox, inspect.isclass)
    if kind.__module__ == sandbox.__name__ and any(base.__module__.startswith("jinja2") for base in kind.__mro__)
]
OWN = {"tick", "tilde", "_mark", "identifier"}
"""Names that the sandbox adds, or Jinja gives to each extension."""


def test_there_are_subclasses_of_jinjas_classes():
    assert {kind.__name__ for kind in SUBCLASSES} >= {"_CodeGenerator", "_Environment", "_Namespace"}


@pytest.mark.parametrize("kind", SUBCLASSES, ids=lambda kind: kind.__name__)
def test_what_the_sandbox_overrides_is_still_there(kind):
    """An override of a method that Jinja renamed would be dead code, and the guard in it gone."""
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("jinja2")]
    added = OWN | set(vars(type("Empty", (), {})))
    overridden = {name for name in vars(kind) if name not in added}
    assert overridden
    for name in overridden:
        assert any(hasattr(base, name) for base in bases), f"Jinja has no {name} any more"


def test_the_pin_stops_below_the_next_minor_release():
    lines = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    (pin,) = [requirement for requirement in map(Requirement, lines) if requirement.name == "jinja2"]
    installed = Version(importlib.metadata.version("jinja2"))
    assert installed in pin.specifier
    assert Version(f"{installed.major}.{installed.minor + 1}") not in pin.specifier
