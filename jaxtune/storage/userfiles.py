"""Python files of users: run with their folder importable; a fault in them is one message with the user's own line."""

import contextlib
import difflib
import importlib.util
import itertools
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from jaxtune.errors import UserError, nearest

_folders: list[Path] = []
"""Folders of the files that were run, the last one first: there modules and relative paths are looked up."""
_started_in: list[Path] = []
"""Where the run that is looked at was started, if one is: the working folder of the command, its config's folder."""
_LIBRARIES = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib"))
_LINE, _MESSAGE = 120, 2000
"""Most characters of a line of source, and of what an exception says, in a message."""
_MOST_NAMES = 10_000
"""Most names of a folder among which the nearest to a missing one is looked for."""
_PACKAGE = os.path.realpath(Path(__file__).parent.parent) + os.sep


def check_exists(path: Path) -> None:
    """Raises UserError where there is no such config file, with the names nearest to it in its folder."""
    if path.is_file():
        return
    there = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), there, n=8, cutoff=0)
    more = f" and {len(there) - len(near)} more" if len(there) > len(near) else ""
    listed = f"; in that folder there are: {', '.join(near)}{more}" if near else ""
    raise UserError(f"no config file at {path}{listed}")


def nearest_keyword(error: BaseException, kinds: Sequence[type]) -> str:
    """For an error about an unknown keyword of one of some dataclasses: the field that was probably meant."""
    text = _text(error)
    found = re.search(r"unexpected keyword argument '(\w+)'", text)
    if found is None:
        return ""
    owners = [kind for kind in kinds if re.match(rf"{kind.__name__}\b", text)] or list(kinds)
    known = [name for kind in owners for name in kind.__dataclass_fields__]
    near = nearest(found[1], known)
    return f". Did you mean {near!r}?" if near else ""


def load_module(path: Path) -> ModuleType:
    """Run a Python file. Modules beside it can be imported, then and later; those of another file's folder no longer.

    Raises UserError for what is no Python file; whatever the file itself raises is not caught (see `told`).
    """
    spec = importlib.util.spec_from_file_location(f"jaxtune_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with importable(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules of the folder go before all others inside, as for a script in it, and behind all others from then on."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        elsewhere = file is not None and Path(file).parent in _folders and Path(file).parent != folder
        if elsewhere and (folder / Path(str(file)).name).exists():
            del sys.modules[name]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in (str(folder), *map(str, _folders)))]
    _folders[:] = [folder, *(other for other in _folders if other != folder)]
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry != str(folder)), str(folder)]


@contextlib.contextmanager
def told(doing: str, *, hint: Callable[[BaseException], str] = lambda _: "") -> Iterator[None]:
    """Context that makes any exception, `sys.exit` too, a UserError: `doing`, the error, the user's own line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{_line(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"{doing} does not run: {_in_words(error)}{hint(error)}{_line(error)}") from error


def blame(error: BaseException) -> str | None:
    """The message for an error that a function of a user's file raised when it was called later; None for any other."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if os.path.realpath(frame.filename).startswith(_PACKAGE)]
    theirs = [i for i, frame in enumerate(frames) if _is_users(frame.filename)]
    if not theirs or (ours and ours[-1] > theirs[-1]):
        return None
    return f"{frames[theirs[-1]].name}() of {frames[theirs[-1]].filename}: {_in_words(error)}{_line(error)}"


def locate(path: str | os.PathLike[str]) -> Path:
    """A relative path beside the config file that was run last, if it is there; else as it is."""
    asked = Path(path).expanduser()
    if asked.is_absolute():
        return asked
    folders = [*_folders[:1], Path(), *_started_in]
    return next((folder / asked for folder in folders if os.path.exists(folder / asked)), asked)


def started_in(*folders: Path | None) -> None:
    """From now on, paths that are in neither place are looked up where a run was started as well."""
    _started_in[:] = [folder for folder in folders if folder is not None]


def looked_for(path: str | os.PathLike[str]) -> str:
    """For a message that a path does not exist: the folders in which `locate` looks, and the nearest path there."""
    asked = Path(path).expanduser()
    folders = [Path()] if asked.is_absolute() else [*_folders[:1], Path(), *_started_in]
    near = next(filter(None, (_nearest_path(folder / asked) for folder in folders)), None)
    meant = f"; did you mean {near}?" if near else ""
    if asked.is_absolute() or not _folders or _folders[0] == Path.cwd():
        return meant
    return f" (looked in {_folders[0]}, beside the config, and in the working folder {Path.cwd()}){meant}"


def _nearest_path(path: Path) -> Path | None:
    """The path that differs from one that does not exist in the first name that is not there."""
    parent = next((folder for folder in path.parents if os.path.isdir(folder)), None)
    if parent is None:
        return None
    first, *rest = path.relative_to(parent).parts
    try:
        names = [entry.name for entry in itertools.islice(os.scandir(parent), _MOST_NAMES)]
    except OSError:  # a folder that may not be listed has no name to offer
        return None
    near = [parent.joinpath(name, *rest) for name in difflib.get_close_matches(first, names, n=3)]
    return next((candidate for candidate in near if os.path.exists(candidate)), None)


def sources(path: Path) -> list[Path]:
    """The file and the modules of its folder that are imported: what a config is made of."""
    folder = path.resolve().parent
    files = {Path(file).resolve() for m in list(sys.modules.values()) if (file := getattr(m, "__file__", None))}
    beside = sorted(file for file in files if file.is_relative_to(folder) and _is_users(str(file)))
    return [path.resolve(), *(file for file in beside if file != path.resolve())]


def _is_users(filename: str) -> bool:
    """Whether a source file lies in the folder of a file that was run, and is no library's."""
    real = os.path.realpath(filename)
    if real.startswith(_LIBRARIES) or "site-packages" in real:
        return False
    return any(Path(real).is_relative_to(folder) for folder in _folders) and os.path.exists(real)


def _line(error: BaseException) -> str:
    """The last line of the user's that an error passed through, with its file and number, to stand below a message."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"\n  {error.filename}, line {error.lineno}: {_shortened(error.text or '')}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return ""
    frame = frames[-1]
    text = frame.line or linecache.getline(frame.filename, frame.lineno or 0)
    return f"\n  {frame.filename}, line {frame.lineno}, in {frame.name}: {_shortened(text)}"


def _shortened(line: str, most: int = _LINE) -> str:
    """A line without its indent, cut where it would fill a terminal."""
    text = line.strip()
    return text if len(text) <= most else f"{text[:most]} ..."


def _in_words(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KeyError) and frames and frames[-1].filename in (os.__file__, "<frozen os>"):
        return f"KeyError: the environment variable {error.args[0]} is not set"
    if isinstance(error, SystemExit):
        return f"it left with sys.exit({error.code!r})"
    text = " ".join(_text(error).split())
    return f"{type(error).__name__}: {_shortened(text, _MESSAGE)}" if text else type(error).__name__


def _text(error: BaseException) -> str:
    """The message of an exception, whose class may be the user's own and fail to give one."""
    try:
        return str(error)
    except Exception as failed:
        return f"(its message cannot be read: {type(failed).__name__})"
