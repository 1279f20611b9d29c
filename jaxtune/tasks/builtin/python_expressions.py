"""Code: small Python expressions and what the interpreter prints for them."""

from collections.abc import Callable

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import COLOUR_NAMES, FRUIT, PETS

PHRASINGS = (
    "What does this Python expression return?\n{expression}",
    "Evaluate this Python code.\n{expression}",
    "{expression}\nWhat is printed in the Python shell?",
    "Give the value of `{expression}` in Python.",
)
SYSTEMS = ("You are a Python interpreter.", "Reply as the Python shell would.")
WORDS = COLOUR_NAMES + PETS + FRUIT


def _words(stream: Stream, low: int, high: int) -> list[str]:
    return stream.sample(WORDS, stream.between(low, high))


def _numbers(stream: Stream, low: int, high: int) -> list[int]:
    return [stream.below(10) for _ in range(stream.between(low, high))]


def _items(stream: Stream, low: int, high: int) -> list[str] | list[int]:
    return _words(stream, low, high) if stream.chance(50) else _numbers(stream, low, high)


def _length(stream: Stream) -> str:
    return f"len({_items(stream, 1, 6)})"


def _index(stream: Stream) -> str:
    items = _items(stream, 2, 4)
    return f"{items}[{stream.pick((0, 1, -1))}]"


def _extreme(stream: Stream) -> str:
    return f"{stream.pick(('max', 'min'))}({_numbers(stream, 2, 4)})"


def _ordered(stream: Stream) -> str:
    return f"sorted({_numbers(stream, 2, 4)})"


def _reverse(stream: Stream) -> str:
    return f"{_items(stream, 2, 4)}[::-1]"


def _join(stream: Stream) -> str:
    return f"{stream.pick(('-', '+', ':'))!r}.join({_words(stream, 2, 3)})"


def _add(stream: Stream) -> str:
    return f"{_items(stream, 1, 2)} + {_items(stream, 1, 2)}"


def _upper(stream: Stream) -> str:
    return f"'{stream.pick(COLOUR_NAMES)}-{stream.pick(PETS)}'.upper()"


def _member(stream: Stream) -> str:
    items = _words(stream, 2, 4)
    word = stream.pick(items) if stream.chance(50) else stream.pick(WORDS)
    return f"{word!r} in {items}"


def _compare(stream: Stream) -> str:
    return f"{stream.below(10)} {stream.pick(('<', '>', '=='))} {stream.below(10)}"


def _range(stream: Stream) -> str:
    start = stream.below(6)
    return f"list(range({start}, {start + stream.between(2, 5)}))"


KINDS: tuple[Callable[[Stream], str], ...] = (
    _length,
    _index,
    _extreme,
    _ordered,
    _reverse,
    _join,
    _add,
    _upper,
    _member,
    _compare,
    _range,
)


def draw_expression(stream: Stream) -> str:
    """An expression of one of the KINDS; `eval` of it is safe and always succeeds."""
    return stream.pick(KINDS)(stream)


def value_of(expression: str) -> str:
    """Value that the interpreter prints, as its `repr`."""
    return repr(eval(expression, {}))


def draw(stream: Stream) -> Exercise:
    """An expression to be evaluated; one exercise in four has a system message."""
    expression = draw_expression(stream)
    return Exercise(
        group=expression,
        fields={"expression": expression},
        answer=value_of(expression),
        system=stream.pick(SYSTEMS) if stream.chance(25) else None,
    )
