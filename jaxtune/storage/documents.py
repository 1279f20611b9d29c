"""JSON documents on disk: written whole or not at all, read within limits, every fault told with file and place."""

import contextlib
import dataclasses
import enum
import io
import itertools
import json
import math
import os
import pathlib
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import orjson
from etils import epath

from jaxtune.errors import UserError
from jaxtune.storage.fingerprints import json_fingerprint

Json = dict[str, Any]
"""A JSON object as Python holds it."""

PathLike = str | os.PathLike[str]

_ASIDE = 12
"""Random digits in the name of a file that is being written."""
SEAL = "digest"
"""The key under which a sealed document keeps the SHA-256 of everything else in it."""


class UnreadableDocument(UserError):
    """A file that is missing, is not JSON, or is beyond the limits; the message names the file and the place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds for JSON from files; real documents stay far below all of them."""

    bytes: int = 1 << 28
    depth: int = 100
    """Objects and lists inside one another."""
    unique_keys: bool = False
    """Refuse an object that names a key twice (readers differ in which one they take)."""
    constants: bool = False
    """Accept `NaN`, `Infinity` and `-Infinity`, which JSON does not have."""


DEFAULT = Limits()


# ------------------------------------------------------------------------------------------------------ values as JSON


def plain(value: Any, *, other: Callable[[Any], Any] | None = None) -> Any:
    """The value as JSON can hold it: dataclasses, enums, paths and arrays become dicts, strings and lists.

    JSON has no non-finite numbers: NaN becomes null, infinities become "inf" and "-inf" (`number` reads both back).
    `other` turns values of any other type into JSON; without it they raise TypeError.
    """
    inner = lambda item: plain(item, other=other)
    if isinstance(value, enum.Enum):  # before str and int, which an enum may be as well
        return inner(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: inner(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): inner(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float | np.floating):
        return _finite(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [inner(item) for item in items]
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if other is not None:
        return other(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def _key(key: Any) -> str:
    return str(key.value if isinstance(key, enum.Enum) else key)


def _finite(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def number(value: Any) -> float:
    """A number that `plain` wrote: null is NaN, "inf" and "-inf" are infinities."""
    return math.nan if value is None else float(value)


def dotted(tree: Any) -> dict[str, Any]:
    """Nested objects as one mapping from dotted names to leaves; an empty object is a leaf."""
    return {".".join(path): leaf for path, leaf in leaves(tree)}


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys from the root, value) of everything that is not a filled object, in order."""
    if isinstance(tree, Mapping) and tree:
        for key, inner in tree.items():
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, tree


# ------------------------------------------------------------------------------------------------------------- writing


def json_bytes(value: Any) -> bytes:
    """`plain(value)` as UTF-8 text: two spaces a level, a newline at the end."""
    value = plain(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # lone surrogates, integers of more than 64 bits
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode(errors="backslashreplace")  # a surrogate's escape is JSON's own


def json_line(value: Any) -> bytes:
    """`plain(value)` as one line of UTF-8 text with its newline."""
    value = plain(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        return json.dumps(value, allow_nan=False).encode() + b"\n"


def write_json(path: PathLike, value: Any) -> None:
    """Replace the file by the text of `plain(value)`; a reader sees the whole old file or the whole new one."""
    replace_file(path, json_bytes(value))


def replace_file(path: PathLike, content: bytes) -> None:
    """Put `content` at `path` in one step that survives a kill at any moment; rights follow the umask.

    Raises OSError where the folder cannot be written; then the file is as before and nothing is left behind.
    """
    with replacing(path) as file:
        file.write(content)


def made_folder(folder: PathLike) -> pathlib.Path:
    """A folder on the disk, made with those above it where it is missing.

    Raises UserError where no folder can be: below a file, in a place that is no disk, by a name that no file can have.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError, FileExistsError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be made ({why}); give a folder on a disk, for example runs/first") from error
    return path


def check_writable(file: PathLike) -> None:
    """Raises UserError where no file can be put at a path: it is a folder, or its folder is missing or a file."""
    path = pathlib.Path(file)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        why = "is a file" if path.parent.exists() else "does not exist"
        raise UserError(f"{path} cannot be written: its folder {path.parent} {why}; make it, or give another place")


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Faults of the disk in the block bear the path; the system names files only where it opens them."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """A file to write; it takes the place of `path` at the end of the block, or vanishes where the block raises."""
    place = epath.Path(path)
    if _is_remote(place):  # an object store shows an object once it is whole
        with place.open("wb") as file:
            yield file
        return
    aside = place.parent / f".{place.name}.{secrets.token_hex(_ASIDE // 2)}"
    try:
        with (
            naming(place),
            open(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w+b") as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, place)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def is_remains(name: str) -> bool:
    """Whether a file is named as `replacing` names what is not finished: where nobody writes, of a killed process."""
    start, _, end = name.rpartition(".")
    return start.startswith(".") and len(start) > 1 and len(end) == _ASIDE and set(end) <= set("0123456789abcdef")


def clear_remains(folder: PathLike) -> None:
    """Remove what killed processes left unfinished in a folder. Only for the folder's one writer."""
    for path in epath.Path(folder).iterdir():
        if is_remains(path.name):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- reading


def read_json(path: PathLike, limits: Limits = DEFAULT) -> Any:
    """The JSON value in a file. Raises `UnreadableDocument` for one that is missing, broken or beyond `limits`."""
    return parse_json(_content(path, limits), name=os.fspath(path), limits=limits)


def read_object(path: PathLike, limits: Limits = DEFAULT) -> Json:
    """The JSON object in a file; any other JSON value is an `UnreadableDocument`, too."""
    value = read_json(path, limits)
    if not isinstance(value, dict):
        raise UnreadableDocument(
            f"{os.fspath(path)}: a JSON object is needed, this is {_kind(value)}; put back a whole copy of the file"
        )
    return value


def read_text(path: PathLike, limits: Limits = DEFAULT) -> str:
    """The UTF-8 text in a file, its lines ended by newlines alone.

    Raises `UnreadableDocument` for one that is missing, no file, too large or not UTF-8.
    """
    try:
        return io.StringIO(_content(path, limits).decode(), newline=None).read()
    except UnicodeDecodeError as error:
        problem = f"{os.fspath(path)}: byte {error.start + 1}: not UTF-8 ({error.reason})"
        raise UnreadableDocument(f"{problem}; put back a whole copy of the file") from None


def parse_json(content: bytes, *, name: str, limits: Limits = DEFAULT) -> Any:
    """The JSON value that `content` spells in UTF-8; `name` is what an `UnreadableDocument` calls the source."""
    if len(content) > limits.bytes:
        raise _too_large(name, len(content), limits)
    hooks: dict[str, Any] = {} if limits.constants else {"parse_constant": _no_constant}
    if limits.unique_keys:
        hooks["object_pairs_hook"] = _unique
    try:
        value = json.loads(content.decode("utf-8-sig"), **hooks)
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1}: not UTF-8 ({error.reason})"
    except RecursionError:
        problem = f"objects and lists are nested more than {limits.depth} deep"
    except ValueError as error:  # of the hooks, and numbers of more digits than Python converts
        problem = str(error)
    else:
        if not is_deeper(value, limits.depth):
            return value
        problem = f"objects and lists are nested more than {limits.depth} deep"
    raise UnreadableDocument(f"{name}: {problem}; put back a whole copy of the file")


def _content(path: PathLike, limits: Limits) -> bytes:
    place = epath.Path(path)
    try:
        if not _is_remote(place):
            _check_regular(place)
        if (size := place.stat().length) > limits.bytes:
            raise _too_large(str(place), size, limits)
        return place.read_bytes()
    except FileNotFoundError:
        raise UnreadableDocument(f"{place}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        raise UnreadableDocument(f"{place}: not readable ({why}); check its name and permissions") from None


def _check_regular(place: epath.Path) -> None:
    mode = os.stat(place).st_mode
    if not stat.S_ISREG(mode):  # reading a pipe would wait without end
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise UnreadableDocument(f"{place} is {kind}; a file is needed here")


def _is_remote(place: epath.Path) -> bool:
    return "://" in os.fspath(place)


def _too_large(name: str, size: int, limits: Limits) -> UnreadableDocument:
    return UnreadableDocument(f"{name}: {size} bytes; no file of more than {limits.bytes} bytes is read here")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def is_deeper(value: Any, depth: int) -> bool:
    """Whether more than `depth` objects and lists of JSON lie in one another."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        if not level:
            return False
        children = itertools.chain.from_iterable(item.values() if isinstance(item, dict) else item for item in level)
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# ----------------------------------------------------------------------------------------------------- with a digest


def write_sealed(path: PathLike, document: Mapping[str, Any]) -> None:
    """Write a JSON object with the SHA-256 of its content under `digest`, whole or not at all."""
    content = plain(document)
    write_json(path, content | {SEAL: json_fingerprint(content)})


def read_sealed(path: PathLike) -> Json:
    """The object that `write_sealed` wrote, without its digest.

    Raises `UnreadableDocument` where the file is missing, broken or was changed, by white space even, after it was
    written.
    """
    document = read_object(path)
    recorded = document.pop(SEAL, None)
    if recorded is None:
        said = "it has no digest"
    elif recorded != json_fingerprint(document):
        said = "its own digest does not fit"
    elif epath.Path(path).read_bytes() != json_bytes(document | {SEAL: recorded}):
        said = "its text is not as it is written"
    else:
        return document
    raise UnreadableDocument(f"{os.fspath(path)}: content changed after it was written ({said}); put back a copy")
