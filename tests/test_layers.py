"""The import structure: every package has a layer and imports only from lower ones."""

import ast
import importlib.metadata
import itertools
import pathlib
import re
import sys
import tomllib

PACKAGE = pathlib.Path(__file__).parent.parent / "jaxtune"
LAYERS = (
    ("errors",),
    ("batch", "mixture", "optim", "parallel", "science", "storage"),
    ("chat", "model", "plan", "runs"),
    ("hf", "step", "tasks", "terminal"),
    ("data", "evaluate", "reports"),
    ("config",),
    ("train",),
    ("preview", "sweep", "validate", "verify"),
    ("commands",),
    ("cli",),
)
LAYER = {module: number for number, row in enumerate(LAYERS) for module in row}


def module_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def internal_imports() -> list[tuple[str, str]]:
    edges = set()
    for path in PACKAGE.rglob("*.py"):
        user = module_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxtune":
                names = [node.module] if node.module != "jaxtune" else [f"jaxtune.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("jaxtune.")]
            edges |= {(user, name.split(".")[1]) for name in names if name.split(".")[1] != user}
    return sorted(edges)


def modules() -> set[str]:
    return {module_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}


def test_every_package_has_a_layer():
    assert modules() == set(LAYER)


def test_imports_point_down():
    up = [(user, used) for user, used in internal_imports() if user in LAYER and LAYER[used] >= LAYER[user]]
    assert not up, f"imports that point up or sideways: {up}"


def test_no_module_imports_itself_through_the_package_front():
    assert not [(user, used) for user, used in internal_imports() if used not in LAYER]


def test_no_two_test_files_share_a_name():
    names = [path.name for path in pathlib.Path(__file__).parent.rglob("*.py")]
    assert len(names) == len(set(names)), "pytest imports test files by name: the second of two cannot be collected"


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    declared = {distribution_name(line) for line in (*project["dependencies"], *extras)}
    provided = importlib.metadata.packages_distributions()
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"jaxtune"}
    undeclared = {name for name in outside if not {distribution_name(d) for d in provided.get(name, [name])} & declared}
    assert not undeclared


def distribution_name(requirement: str) -> str:
    """`orbax-checkpoint>=0.12` -> `orbax-checkpoint`."""
    return re.split(r"[\[<>=~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_import_of_the_package_stands_for_a_module_also_inside_strings():
    """Programs that tests and experiments write into files are text: a moved module would break them unseen."""
    root = PACKAGE.parent
    files = [path for top in ("jaxtune", "tests", "configs", "experiments") for path in (root / top).rglob("*.py")]
    missing = []
    for path in [*files, *(root / "notebooks").glob("*.ipynb"), root / "README.md"]:
        for name in re.findall(r"\bfrom (jaxtune(?:\.\w+)*) import\b", path.read_text(encoding="utf-8")):
            place = root.joinpath(*name.split("."))
            if not place.is_dir() and not place.with_suffix(".py").is_file():
                missing.append((path.relative_to(root).as_posix(), name))
    assert not missing


NUMERIC_KERNELS = {("step/losses.py", "_run_chunks")}
"""Functions that a compiled program calls with its arrays one by one."""


def test_the_house_stays_small():
    """At most 10 modules and 18 packages at the top; modules of 400 lines, functions of 60 lines and 8 parameters."""
    top = [path for path in PACKAGE.iterdir() if path.suffix == ".py"]
    rooms = [path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert len(top) <= 10 and len(rooms) <= 18 and len(LAYERS) <= 10
    large = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        large += [f"{name}: {text.count(chr(10))} lines"] if text.count("\n") > 400 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (name, node.name) not in NUMERIC_KERNELS:
                given = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                parameters = len(given) - (given[:1] in (["self"], ["cls"]))
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60 or parameters > 8:
                    large.append(f"{name}: {node.name} has {lines} lines and {parameters} parameters")
    assert not large


RIDDLE = re.compile("(What|How|Which|Where|Who|Whatever|When|It|Its|As|That|Those|They|So) ")
"""Beginnings of docstrings that can be resolved only by readers who know the thing already."""


def test_the_first_line_of_a_docstring_names_the_thing():
    riddles = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                name, told = getattr(node, "name", "the module"), ast.get_docstring(node) or ""
                if not name.startswith("_") and RIDDLE.match(told):
                    riddles.append(f"{path.relative_to(PACKAGE)}: {name}: {told.splitlines()[0]}")
    assert not riddles
