"""The user's error, as opposed to a bug; and the check of a config's fields against their types and ranges."""

import dataclasses
import difflib
import enum
import functools
import math
import numbers
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


class UserError(ValueError):
    """Input that jaxtune cannot use: says what was given, what is allowed, and what to do.

    The command line prints the message alone and exits with code 1; any other exception is a bug
    and keeps its traceback.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


_HARMLESS = "\n\t\N{NO-BREAK SPACE}\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def printable(text: str) -> str:
    """Text of data, file names, models and users as a terminal or a page may show it.

    Control characters, marks that turn the direction of writing, and characters that no font has become their escapes
    (`\\x1b`): else the author of a data file could clear a screen, rename a window or hide half a line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _HARMLESS else c.encode("unicode_escape").decode() for c in text)


def say(text: object = "", *, file: Any = None, end: str = "\n", flush: bool = False) -> None:
    """Print text on stdout or another stream, as `printable` has it. Nothing else in this package prints lines."""
    print(printable(str(text)), file=file, end=end, flush=flush)


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """`; did you mean ...?` with the nearest of the known words, or nothing where none is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


_PEERS = {
    "lr": "peak_lr", "learning_rate": "peak_lr", "lr_scheduler_type": "schedule", "lr_scheduler": "schedule",
    "warmup_ratio": "warmup_frac", "max_grad_norm": "clip_norm", "grad_clip": "clip_norm", "adam_beta1": "b1",
    "beta1": "b1", "adam_beta2": "b2", "beta2": "b2", "adam_epsilon": "eps", "epsilon": "eps", "wd": "weight_decay",
    "batch_size": "rows", "train_batch_size": "rows", "global_batch_size": "rows", "micro_batch_size": "micro_rows",
    "per_device_train_batch_size": "micro_rows", "max_length": "seq_len", "max_seq_length": "seq_len",
    "max_seq_len": "seq_len", "sequence_len": "seq_len", "num_train_epochs": "epochs", "num_epochs": "epochs",
    "max_steps": "steps", "model_name_or_path": "path", "model_name": "path", "chat_template": "template",
    "dtype": "param_dtype", "torch_dtype": "param_dtype", "attn_implementation": "attention",
    "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha", "target_modules": "targets",
    "eval_steps": "every", "eval_every": "every", "max_tokens": "max_new_tokens", "save_steps": "save_every",
    "save_total_limit": "keep_latest", "output_dir": "directory", "temp": "temperature",
}  # fmt: skip
"""Words of other libraries for fields of ours."""


def peers_word(word: str, known: Iterable[str]) -> str | None:
    """The known word that other libraries write as `word`: `peak_lr` for `learning_rate`."""
    ours = _PEERS.get(word.lower().replace("-", "_"))
    return ours if ours is not None and ours in known else None


def nearest(word: str, known: Iterable[object]) -> str | None:
    """The known word that is meant by another: the same in another library's words, the nearest, the one it begins."""
    words = [str(each) for each in known]
    last = word.rsplit(".", 1)[-1]
    if ours := peers_word(last, words):
        return ours
    near = difflib.get_close_matches(word, words, n=1)
    begun = [each for each in words if len(last) > 1 and last in each.split("_") or each.startswith(word)]
    return near[0] if near else begun[0] if len(begun) == 1 else None


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field may hold; written beside its type, as `Annotated[float, Range(0, 1)]`."""

    low: float | int = -math.inf
    high: float | int = math.inf
    above: bool = False
    """`low` itself is excluded."""
    below: bool = False
    """`high` itself is excluded."""
    infinite: bool = False
    """Infinity is allowed, whatever `high` is."""

    def holds(self, value: float | int) -> bool:
        """Whether a number lies inside; NaN never does."""
        if value == math.inf:
            return self.infinite
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        text = f"{'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}"
        return text + (" or inf" if self.infinite else "")


WHOLE, REAL = Range(-(2**63), 2**63 - 1), Range(-1e300, 1e300)
"""Numbers of a field beside which no range is written."""


def check_fields(config: Any, section: str) -> None:
    """Check every field of a config class: its type, and for numbers their range. Enums given as text become members.

    For `__post_init__` of a frozen dataclass. Raises UserError that names the field as `section.field`, what it is and
    what it may be.
    """
    for name, hint in _hints(type(config)).items():
        label = f"{section}.{name}" if section else name
        value = getattr(config, name)
        fitted = fit(value, hint, label)
        if fitted is not value:
            object.__setattr__(config, name, fitted)


def fit(value: Any, hint: Any, label: str) -> Any:
    """The value as its type wants it: text of an enum as its member, a list as a tuple. Raises UserError naming it."""
    kinds = [(kind, allowed) for kind, allowed in _alternatives(hint) if _is_of_kind(value, kind)]
    if not kinds:
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        raise UserError(f"{label} is {shown}; it must be {describe(hint)}")
    kind, allowed = kinds[0]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number: Any = value if type(value) in (int, float) else kind(value)
        if not allowed.holds(number):
            raise UserError(f"{label} is {number!r}; it must be {describe(hint)}")
        return number
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if get_origin(kind) is tuple:
        return _fit_tuple(value, get_args(kind), label)
    if get_origin(kind) in (dict, Mapping):
        key, item = get_args(kind)
        return {fit(k, key, f"a name in {label}"): fit(v, item, f"{label}[{k!r}]") for k, v in value.items()}
    return value


def describe(hint: Any) -> str:
    """A type with its range in words, as `a number in [0, 1], or None`."""
    kinds = _alternatives(hint)
    real = any(kind is float for kind, _ in kinds)
    texts = [_in_words(kind, allowed) for kind, allowed in kinds if not (real and kind is int)]
    return ", or ".join(dict.fromkeys(text for text in texts if text))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(kind)}
    return {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if name in fields}


def _alternatives(hint: Any, allowed: Range | None = None) -> list[tuple[Any, Range]]:
    """The types of a union, each with the range of its numbers."""
    if get_origin(hint) is Annotated:
        ranges = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        return _alternatives(hint.__origin__, ranges[0] if ranges else allowed)
    if get_origin(hint) in (Union, types.UnionType):
        return [pair for part in get_args(hint) for pair in _alternatives(part, allowed)]
    return [(hint, allowed or (WHOLE if hint is int else REAL))]


def _is_of_kind(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if kind is None or kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if origin is Literal:
        return value in get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple | list)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return isinstance(value, kind) or (isinstance(value, str) and value in {member.value for member in kind})
    return not isinstance(kind, type) or isinstance(value, kind)


def _fit_tuple(value: Any, kinds: tuple[Any, ...], label: str) -> Any:
    of_any_length = len(kinds) == 2 and kinds[1] is Ellipsis
    if not of_any_length and len(value) != len(kinds):
        raise UserError(f"{label} is {value!r}; it must be {len(kinds)} values")
    each = (kinds[0],) * len(value) if of_any_length else kinds
    fitted = tuple(fit(item, kind, f"{label}[{i}]") for i, (item, kind) in enumerate(zip(value, each, strict=True)))
    return value if fitted == value else fitted


def _in_words(kind: Any, allowed: Range) -> str:
    if kind is None or kind is type(None):
        return "None"
    if kind in (int, float):
        name = "a whole number" if kind is int else "a number"
        return name if allowed in (WHOLE, REAL) and kind is int else f"{name} in {allowed}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    if get_origin(kind) is tuple:
        return f"a tuple of {describe(get_args(kind)[0])}"
    if get_origin(kind) in (dict, Mapping):
        return f"a mapping from {describe(get_args(kind)[0])} to {describe(get_args(kind)[1])}"
    return {str: "text", bool: "True or False"}.get(kind, getattr(kind, "__name__", str(kind)))


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
