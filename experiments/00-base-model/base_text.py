"""The text that the base model is trained on: documents that state things, and never ask or order.

Every item is drawn by the same code as the built-in tasks, and kept only if its problem group is in the training split:
no passage, report, phrase, expression, sum or list of a validation or test set occurs. There is no question mark in the
text, no control symbol, and no phrasing of the tasks.
"""

from collections.abc import Callable, Iterator

from jaxtune.tasks.builtin import (
    arithmetic,
    classification,
    open_ended,
    python_expressions,
    qa,
    summarization,
    translation,
)
from jaxtune.tasks.builtin.exercise import Split, split_of
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import CITIES, COLOUR_NAMES, FOODS, JOBS, NAMES, PETS, THINGS

HEADINGS = {
    "home": ("Where {name} lives", "Who lives in {value}"),
    "job": ("The job of {name}", "Who works as a {value}"),
    "pet": ("Which animal {name} has", "Who has a {value}"),
    "food": ("What {name} likes to eat", "Who likes {value}"),
    "colour": ("What colour the {thing} of {name} is", "Who has a {value} {thing}"),
}
"""Per relation of `qa`: the heading over the value, and the heading over the name."""


def _training_item(task: str, draw: Callable[[Stream], tuple[str, str]], stream: Stream) -> str:
    """The first drawn text whose group is in the training split."""
    while True:
        group, text = draw(stream)
        if split_of(task, group) is Split.TRAIN:
            return text


def _note(fact: qa.Fact, stream: Stream) -> tuple[str, str]:
    forward, backward = HEADINGS[fact.relation]
    return (fact.fill(forward), fact.value) if stream.chance(60) else (fact.fill(backward), fact.name)


def _passage(stream: Stream) -> tuple[str, str]:
    facts = qa.draw_facts(stream)
    text = qa.passage(facts, stream)
    notes = [_note(fact, stream) for fact in stream.sample(facts, stream.between(2, len(facts)))]
    if stream.chance(25):
        (first, value), rest = notes[0], notes[1:]
        return text, "\n".join([first, text, value, *(f"{heading}\n{found}" for heading, found in rest)])
    if stream.chance(25):
        return text, text + "\n" + " ".join(f"{heading}: {value}." for heading, value in notes)
    return text, text + "\n" + "\n".join(f"{heading}\n{value}" for heading, value in notes)


_SUMMARIES = (
    "{text}\nIn short\n{summary}",
    "{summary}\n{text}",
    "{text}\n{summary}",
    "{text}\nIn short: {summary}",
)


def _report(stream: Stream) -> tuple[str, str]:
    report = summarization.draw_report(stream)
    form = stream.pick(
        ("{text}\nIn short\n{summary}", "{summary}\n{text}", "{text}\n{summary}", "{text}\nIn short: {summary}")
    )
    return report.text, form.format(text=report.text, summary=report.summary)


_TRANSLATIONS = (
    "{source} in French\n{french}",
    "{source} in German\n{german}",
    "French\n{source}\n{french}",
    "German\n{source}\n{german}",
    "{source}\nFrench: {french}\nGerman: {german}",
    "English: {source}\nGerman\n{german}\nFrench\n{french}",
    "The French for {source} is {french}",
    "The German for {source} is {german}",
)


def _parallel(stream: Stream) -> tuple[str, str]:
    pair = translation.draw_parallel(stream)
    form = stream.pick(_TRANSLATIONS)
    return pair.source, form.format(source=pair.source, french=pair.french, german=pair.german)


def _labelled(stream: Stream) -> tuple[str, str]:
    item = classification.draw_labelled(stream)
    form = stream.pick(("{text}\nThe {kind}\n{label}", "{text}\nThe {kind}: {label}", "The {kind}\n{text}\n{label}"))
    return item.text, form.format(text=item.text, kind=item.kind, label=item.label)


def _transcript(stream: Stream) -> tuple[str, str]:
    expression = python_expressions.draw_expression(stream)
    value = python_expressions.value_of(expression)
    form = stream.pick((">>> {e}\n{v}", ">>> {e}\n{v}", ">>> {e}\n{v}", "The value of `{e}` is\n{v}"))
    return expression, form.format(e=expression, v=value)


_STORIES = {
    "+": (
        "{name} has {left} {thing}s and buys {right} more.{term} The {thing}s of {name} now\n{value}",
        "There are {left} {thing}s in one shop and {right} in another.{term} The {thing}s in all\n{value}",
    ),
    "-": (
        "{name} has {left} {thing}s and sells {right} of them.{term} The {thing}s left\n{value}",
        "Of {left} {thing}s {right} are broken.{term} The {thing}s that are fine\n{value}",
    ),
    "*": (
        "{name} has {left} boxes with {right} {thing}s in each.{term} The {thing}s of {name}\n{value}",
        "There are {left} rooms with {right} {thing}s in each.{term} The {thing}s in all\n{value}",
    ),
}


def _term(stream: Stream) -> tuple[str, str]:
    term = arithmetic.draw_term(stream)
    if stream.chance(60):
        return term.group, f"{term}\n{term.value}" if stream.chance(50) else f"{term} = {term.value}"
    step = f" {term} = {term.value}." if stream.chance(30) else ""
    text = stream.pick(_STORIES[term.operator]).format(
        name=stream.pick(NAMES),
        thing=stream.pick(THINGS),
        left=term.left,
        right=term.right,
        term=step,
        value=term.value,
    )
    return term.group, text


_CONVERSIONS = (
    "{n} {large} in {small}\n{value}",
    "{n} {large} are {value} {small}.",
    "{small} in {n} {large}\n{value}",
)


def _conversion(stream: Stream) -> tuple[str, str]:
    conversion = arithmetic.draw_conversion(stream)
    unit = conversion.unit
    form = stream.pick(
        ("{n} {large} in {small}\n{value}", "{n} {large} are {value} {small}.", "{small} in {n} {large}\n{value}")
    )
    text = form.format(n=conversion.amount, large=unit.large, small=unit.small, value=conversion.value)
    return f"{conversion.amount} {unit.large}", text


def _maths(stream: Stream) -> tuple[str, str]:
    return _term(stream) if stream.chance(75) else _conversion(stream)


def _piece(stream: Stream) -> tuple[str, str]:
    piece = open_ended.draw_piece(stream)
    return piece.group, f"{piece.title}\n{piece.text}" if stream.chance(80) else piece.text


def _prose(stream: Stream) -> str:
    """A passage, a report, or a text with a label; without what is said about it."""
    task = stream.pick(("qa", "summarization", "classification"))
    draw = {
        "qa": lambda s: qa.passage(qa.draw_facts(s), s),
        "summarization": lambda s: summarization.draw_report(s).text,
        "classification": lambda s: classification.draw_labelled(s).text,
    }[task]
    text = draw(stream)
    return text if split_of(task, text) is Split.TRAIN else _prose(stream)


_LISTED = (NAMES, CITIES, THINGS, FOODS, PETS, JOBS, COLOUR_NAMES)


def _repetition(stream: Stream) -> str:
    """Something said twice: a text, or a list of words of one kind or of several."""
    if stream.chance(30):
        text = _prose(stream)
        return f"{text}\n{text}"
    pool = stream.pick(_LISTED) if stream.chance(50) else tuple(word for words in _LISTED for word in words)
    words = stream.sample(pool, stream.between(3, 8))
    mark = stream.pick((", ", " ", "\n", "-", " and "))
    text = mark.join(words)
    return f"{text}\n{text}\n{mark.join(reversed(words))}" if stream.chance(30) else f"{text}\n{text}"


def _register(stream: Stream) -> str:
    """Pairs of a key and a value, and then some of the pairs again, in another order."""
    keys, values = stream.sample(_LISTED, 2)
    count = stream.between(3, 6)
    pairs = list(zip(stream.sample(keys, count), stream.sample(values, count), strict=True))
    form = stream.pick(("{}: {}", "{}\n{}", "{} has {}", "{}, {}"))
    lines = [form.format(*pair) for pair in pairs + stream.sample(pairs, stream.between(2, count))]
    return "\n".join(lines)


Draw = Callable[[Stream], str]


def _of(task: str, draw: Callable[[Stream], tuple[str, str]]) -> Draw:
    """Items of the task's training split."""
    return lambda stream: _training_item(task, draw, stream)


KINDS: dict[str, tuple[int, Draw]] = {
    "qa": (1, _of("qa", _passage)),
    "summarization": (2, _of("summarization", _report)),
    "translation": (4, _of("translation", _parallel)),
    "classification": (3, _of("classification", _labelled)),
    "code": (4, _of("code", _transcript)),
    "math": (7, _of("math", _maths)),
    "open_ended": (3, _of("open_ended", _piece)),
    "repetition": (1, _repetition),
    "register": (1, _register),
}
"""Per kind of document: most items in a document, and how an item is drawn."""

SHARES = {
    "qa": 28,
    "summarization": 10,
    "translation": 18,
    "classification": 6,
    "code": 18,
    "math": 15,
    "open_ended": 9,
}
"""Shares of the kinds among the first documents (they sum to 104)."""
LATER_SHARES = {
    "qa": 24, "summarization": 8, "translation": 9, "classification": 3, "code": 16, "math": 14, "open_ended": 8,
    "repetition": 10, "register": 8,
}  # fmt: skip
"""Percent of the later documents by kind: with repetitions and registers, from which copying is learned."""
LATER = 50_000
"""Number of the first document drawn with LATER_SHARES."""


def document(index: int) -> str:
    """Document number `index`: some items of one kind, a line break between them."""
    stream = Stream("base text", index)
    shares = SHARES if index < LATER else LATER_SHARES
    most, draw = KINDS[stream.pick([kind for kind, share in shares.items() for _ in range(share)])]
    return "\n".join(draw(stream) for _ in range(stream.between(1, most)))


def documents(start: int, stop: int) -> Iterator[str]:
    """Documents start, start + 1, ..., stop - 1."""
    return (document(index) for index in range(start, stop))
