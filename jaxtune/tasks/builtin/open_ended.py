"""Open-ended writing: lists and short letters, each request worded so that there is one right result."""

import dataclasses
from collections.abc import Callable

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import COLOUR_NAMES, DAYS, FRUIT, MONTHS, NAMES, THINGS

PHRASINGS = (
    "{request}",
    "{request} Write nothing else.",
    "Here is a small writing job. {request}",
    "Please help me with this. {request}",
)
SYSTEMS = ("You are a helpful writer.", "Write lists on one line, with commas.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """A piece of writing: its `group`, its title as a document would have it, the request for it, and its text."""

    group: str
    title: str
    request: str
    text: str


def _count(stream: Stream) -> Writing:
    low, span = stream.below(90), stream.between(3, 5)
    if stream.chance(50):
        start, stop, numbers = low, low + span, list(range(low, low + span + 1))
        request = f"Count up from {start} to {stop}."
    else:
        start, stop, numbers = low + span, low, list(range(low + span, low - 1, -1))
        request = f"Count down from {start} to {stop}."
    title = f"Numbers {start} to {stop}"
    return Writing(group=title, title=title, request=request, text=", ".join(map(str, numbers)))


def _calendar(stream: Stream) -> Writing:
    kind, names = stream.pick((("days", DAYS), ("months", MONTHS)))
    start, span = stream.below(len(names)), stream.between(2, 5)
    run = [names[(start + i) % len(names)] for i in range(span + 1)]
    title = f"{kind.capitalize()} {run[0]} to {run[-1]}"
    return Writing(
        group=title,
        title=title,
        request=f"List the {kind} from {run[0]} to {run[-1]}.",
        text=", ".join(run),
    )


def _alphabetical(stream: Stream) -> Writing:
    words = stream.sample(FRUIT, stream.between(2, 4))
    text = ", ".join(sorted(words))
    return Writing(
        group=f"Alphabetical {text}",
        title=f"Words {', '.join(words)}",
        request=f"Write these words in alphabetical order: {', '.join(words)}",
        text=text,
    )


def _thanks(stream: Stream) -> Writing:
    writer, reader = stream.sample(NAMES, 2)
    gift = f"{stream.pick(COLOUR_NAMES)} {stream.pick(THINGS)}"
    title = f"Thanks of {writer} to {reader}, {gift}"
    return Writing(
        group=title,
        title=title,
        request=f"Write a note in which {writer} thanks {reader} for the {gift}.",
        text=f"Dear {reader}, thank you for the {gift}. Yours, {writer}",
    )


def _invitation(stream: Stream) -> Writing:
    writer, reader = stream.sample(NAMES, 2)
    day = stream.pick(DAYS)
    title = f"Invitation of {writer} to {reader}, {day}"
    return Writing(
        group=title,
        title=title,
        request=f"Write a note in which {writer} invites {reader} to a party on {day}.",
        text=f"Dear {reader}, please come to my party on {day}. Yours, {writer}",
    )


KINDS: tuple[Callable[[Stream], Writing], ...] = (_count, _calendar, _alphabetical, _thanks, _invitation)


def draw_piece(stream: Stream) -> Writing:
    """A piece of one of the KINDS."""
    return stream.pick(KINDS)(stream)


def draw(stream: Stream) -> Exercise:
    """A request for a piece of writing; one exercise in four has a system message."""
    piece = draw_piece(stream)
    return Exercise(
        group=piece.group,
        fields={"request": piece.request},
        answer=piece.text,
        system=stream.pick(SYSTEMS) if stream.chance(25) else None,
    )
