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
from jaxtune.tasks.builtin.words import CITIES, COLOUR_NAMES, DAYS, FOODS, JOBS, NAMES, PETS, THINGS

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


_OPENINGS = ("Note {n}. ", "Page {n}\n", "From the notebook of {name}\n", "Seen in {city}: ", "On {day}\n", "({n}) ")
_JOINTS = (
    "\n", "\n", "\n\n", ":\n", " - ", " -> ", "\nResult\n", "\nResult: ", "\n---\n", "\nIt is\n", "\nThus\n",
    "\n* * *\n", ".\n", " =\n", "\nNote\n", "\n\nOutcome\n",
)  # fmt: skip


def _framed(content: str, result: str, stream: Stream) -> str:
    """Content and result with something before and between, so that neither has a fixed place."""
    opening = ""
    if stream.chance(40):
        words = {
            "n": stream.below(100),
            "name": stream.pick(NAMES),
            "city": stream.pick(CITIES),
            "day": stream.pick(DAYS),
        }
        opening = stream.pick(_OPENINGS).format(**words)
    return f"{opening}{content}{stream.pick(_JOINTS)}{result}"


def _framed_passage(stream: Stream) -> tuple[str, str]:
    facts = qa.draw_facts(stream, facts=(2, 5))
    text = qa.passage(facts, stream)
    (first, value), *rest = [_note(fact, stream) for fact in stream.sample(facts, stream.between(2, len(facts)))]
    content = f"{first}\n{text}" if stream.chance(25) else f"{text}\n{first}"
    return text, "\n".join(
        [_framed(content, value, stream), *(_framed(heading, found, stream) for heading, found in rest)]
    )


def _framed_report(stream: Stream) -> tuple[str, str]:
    report = summarization.draw_report(stream)
    content = stream.pick(("{text}", "{text}", "{text}\nIn short", "In short\n{text}", "The main point\n{text}"))
    return report.text, _framed(content.format(text=report.text), report.summary, stream)


def _framed_parallel(stream: Stream) -> tuple[str, str]:
    pair = translation.draw_parallel(stream)
    forms = (
        "{source} in {language}",
        "{language} for {source}",
        "{language}: {source}",
        "{source}\nThis in {language}",
    )
    language = stream.pick(translation.LANGUAGES)
    content = stream.pick(forms).format(source=pair.source, language=language)
    return pair.source, _framed(content, pair.into(language), stream)


def _framed_transcript(stream: Stream) -> tuple[str, str]:
    expression = python_expressions.draw_expression(stream)
    content = stream.pick((">>> {e}", "{e}", "`{e}`", "The value of `{e}`", "What {e} is", "Python: {e}")).format(
        e=expression
    )
    return expression, _framed(content, python_expressions.value_of(expression), stream)


_FRAMED_STORIES = {
    "+": (
        "{name} has {left} {thing}s and buys {right} more. How many {thing}s {name} has now",
        "There are {left} {thing}s in one shop and {right} in another. How many {thing}s there are in all",
    ),
    "-": (
        "{name} has {left} {thing}s and sells {right} of them. How many {thing}s are left",
        "Of {left} {thing}s {right} are broken. How many {thing}s are fine",
    ),
    "*": (
        "{name} has {left} boxes with {right} {thing}s in each. How many {thing}s {name} has",
        "There are {left} rooms with {right} {thing}s in each. How many {thing}s there are in all",
    ),
}


def _framed_term(stream: Stream) -> tuple[str, str]:
    term = arithmetic.draw_term(stream)
    plain = stream.chance(50)
    form = stream.pick(("{term}", "What {term} is", "The value of {term}") if plain else _FRAMED_STORIES[term.operator])
    words = {"name": stream.pick(NAMES), "thing": stream.pick(THINGS), "left": term.left, "right": term.right}
    return term.group, _framed(form.format(term=term, **words), str(term.value), stream)


def _framed_conversion(stream: Stream) -> tuple[str, str]:
    conversion = arithmetic.draw_conversion(stream)
    unit = conversion.unit
    form = stream.pick(("{n} {large} in {small}", "How many {small} {n} {large} are", "{small} in {n} {large}"))
    content = form.format(n=conversion.amount, large=unit.large, small=unit.small)
    return f"{conversion.amount} {unit.large}", _framed(content, str(conversion.value), stream)


def _framed_maths(stream: Stream) -> tuple[str, str]:
    return _framed_term(stream) if stream.chance(75) else _framed_conversion(stream)


_TITLES = {"Write a note": "A note", "Write these": "These", "List the": "The", "Count up": "Up", "Count down": "Down"}
"""How a request begins -> how a title begins."""


def _framed_piece(stream: Stream) -> tuple[str, str]:
    piece = open_ended.draw_piece(stream)
    start = next(start for start in _TITLES if piece.request.startswith(start))
    title = _TITLES[start] + piece.request.removeprefix(start).removesuffix(".")
    return piece.group, _framed(title if stream.chance(80) else piece.title, piece.text, stream)


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
    "framed qa": (1, _of("qa", _framed_passage)),
    "framed summarization": (2, _of("summarization", _framed_report)),
    "framed translation": (3, _of("translation", _framed_parallel)),
    "framed code": (3, _of("code", _framed_transcript)),
    "framed math": (4, _of("math", _framed_maths)),
    "framed open_ended": (2, _of("open_ended", _framed_piece)),
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
LAST_SHARES = {
    "framed qa": 35, "framed summarization": 15, "framed translation": 6, "classification": 3, "framed code": 13,
    "framed math": 12, "framed open_ended": 10, "repetition": 3, "register": 3,
}  # fmt: skip
"""Percent of the documents by kind from number 120,000 on: openings and joints vary, so no answer has a fixed place."""
PARTS = ((120_000, LAST_SHARES), (50_000, LATER_SHARES), (0, SHARES))
"""First document of each part, and its shares."""


def document(index: int) -> str:
    """Document number `index`: some items of one kind, a line break between them."""
    stream = Stream("base text", index)
    shares = next(shares for first, shares in PARTS if index >= first)
    most, draw = KINDS[stream.pick([kind for kind, share in shares.items() for _ in range(share)])]
    return "\n".join(draw(stream) for _ in range(stream.between(1, most)))


def documents(start: int, stop: int) -> Iterator[str]:
    """Documents start, start + 1, ..., stop - 1."""
    return (document(index) for index in range(start, stop))
