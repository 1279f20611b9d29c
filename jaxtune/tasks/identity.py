"""The text that decides what a task's wordings make of a record: of a template its words, of a function its code."""

import functools
import inspect
from pathlib import Path
from types import CodeType
from typing import Any

from jaxtune.storage.fingerprints import bytes_fingerprint
from jaxtune.tasks.wording import Builder, Template


def wording_identity(wording: Template | Builder) -> str:
    """A wording as text: of a template its fields; of a function its file (helpers change too) and bound values."""
    return repr(wording) if isinstance(wording, Template) else repr(_code(wording))


def _code(value: Any) -> Any:
    """What decides the behaviour of a function, or of a value that is bound to one, in terms of text."""
    if isinstance(value, functools.partial):
        return "partial", _code(value.func), _code(value.args), _code(value.keywords)
    if inspect.ismethod(value):
        return "method", _code(value.__func__), _code(value.__self__)
    if inspect.isfunction(value):
        bound = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (value.__qualname__, _file_digest(value.__code__), value.__defaults__, value.__kwdefaults__, bound)
        return tuple(map(_code, parts))
    if isinstance(value, list | tuple):
        return tuple(map(_code, value))
    if isinstance(value, dict):
        return tuple((key, _code(item)) for key, item in value.items())
    if callable(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value).__qualname__, _code(type(value).__call__), _code(vars(value))
    return repr(value)


def _file_digest(code: CodeType) -> str:
    file = Path(code.co_filename)
    content = file.read_bytes() if file.is_file() else repr((code.co_code, code.co_consts, code.co_names)).encode()
    return bytes_fingerprint(content)
