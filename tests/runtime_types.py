"""Runtime type checks of the package under test: every annotated function checks its arguments and results.

As PEP 484 has it, an int may stand where a float is annotated. jaxtyping's wrapper relates the shapes of a function's
arrays to each other and costs far more than beartype alone, so only modules with array annotations get it, and those
whose names beartype's own hook cannot resolve.
"""

import os
import pathlib

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.claw import beartype_package

_CONF = BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)
check = beartype(conf=_CONF)
_SIGNS = ("jaxtyping", "TYPE_CHECKING", "functools.wraps")
"""Words in the source of a module that gets jaxtyping's wrapper: the last two for names that are known to a type
checker alone, and for functions that bear the annotations of another library."""
_ROOT = pathlib.Path(__file__).parent.parent


def install() -> None:
    """Check modules of `jaxtune` that are imported from now on, unless `JAXTUNE_TEST_TYPES` is 0."""
    if os.environ.get("JAXTUNE_TEST_TYPES") == "0":
        return
    sources = {path: path.read_text(encoding="utf-8") for path in (_ROOT / "jaxtune").rglob("*.py")}
    del sources[_ROOT / "jaxtune" / "__init__.py"]  # the hook takes a package with all that is in it
    shaped = [path for path, source in sources.items() if any(sign in source for sign in _SIGNS)]
    beartype_package("jaxtune", conf=_CONF)
    jaxtyping.install_import_hook([_module(path) for path in shaped], f"{__name__}.check")


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")
