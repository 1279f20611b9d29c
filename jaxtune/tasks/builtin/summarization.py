"""Summarisation: the headline of a short report, with all that does not matter left out."""

import dataclasses

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import CITIES, COLOUR_NAMES, DAYS, FOODS, NAMES, THINGS

PHRASINGS = (
    "Summarize this report in a headline.\n{text}",
    "{text}\nGive the text above a headline.",
    "What would a newspaper print above this text?\n{text}",
    "{text}\nTL;DR, as a headline",
)
SYSTEMS = ("You write short summaries.", "Be brief.")

CHATTER = (
    "The weather was cold.",
    "The weather was warm.",
    "It rained in the morning.",
    "Many people came.",
    "The room was full.",
    "There was music.",
    "Lunch was late.",
    "The news came by phone.",
    "Nobody was surprised.",
    "A local paper wrote about it.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewsReport:
    """A report, its summary in a sentence, which text of base models may hold, and the headline that is asked for."""

    sentences: tuple[str, ...]
    summary: str
    headline: str

    @property
    def text(self) -> str:
        """The report as one paragraph."""
        return " ".join(self.sentences)


def _with_chatter(sentences: list[str], stream: Stream) -> tuple[str, ...]:
    """One or two idle sentences, anywhere after the first."""
    for idle in stream.sample(CHATTER, stream.between(1, 2)):
        sentences.insert(stream.between(1, len(sentences)), idle)
    return tuple(sentences)


def _meeting(stream: Stream) -> NewsReport:
    first, second = stream.sample(NAMES, 2)
    city, day = stream.pick(CITIES), stream.pick(DAYS)
    plan = f"{stream.pick(('buy', 'sell', 'paint', 'repair'))} the {stream.pick(COLOUR_NAMES)} {stream.pick(THINGS)}"
    sentences = [f"On {day} {first} met {second} in {city}.", f"They agreed to {plan}."]
    return NewsReport(
        sentences=_with_chatter(sentences, stream),
        summary=f"{first} and {second} agreed to {plan}.",
        headline=f"{first} meets {second} in {city}",
    )


def _match(stream: Stream) -> NewsReport:
    home, away = stream.sample(CITIES, 2)
    home_goals, away_goals = stream.sample(range(10), 2)
    day = stream.pick(DAYS)
    sentences = [f"{home} played {away} on {day}.", f"{home} scored {home_goals}.", f"{away} scored {away_goals}."]
    (winner, most), (loser, fewest) = sorted(
        [(home, home_goals), (away, away_goals)], key=lambda side: side[1], reverse=True
    )
    return NewsReport(
        sentences=_with_chatter(sentences, stream),
        summary=f"{winner} beat {loser} {most} to {fewest} on {day}.",
        headline=f"{winner} {most}, {loser} {fewest}",
    )


def _shop(stream: Stream) -> NewsReport:
    name, city, day = stream.pick(NAMES), stream.pick(CITIES), stream.pick(DAYS)
    ware = stream.pick(FOODS)
    sentences = [f"{name} has a new shop in {city}.", f"It opened on {day}.", f"The shop sells {ware}."]
    return NewsReport(
        sentences=_with_chatter(sentences, stream),
        summary=f"{name} opened a {ware} shop in {city} on {day}.",
        headline=f"{name} opens shop in {city}",
    )


def draw_report(stream: Stream) -> NewsReport:
    """A report about a meeting, a match, or a new shop."""
    return stream.pick((_meeting, _match, _shop))(stream)


def draw(stream: Stream) -> Exercise:
    """A report to be summarised; one exercise in five has a system message."""
    report = draw_report(stream)
    return Exercise(
        group=report.text,
        fields={"text": report.text},
        answer=report.headline,
        system=stream.pick(SYSTEMS) if stream.chance(20) else None,
    )
