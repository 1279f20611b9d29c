"""Translation into French and German: numbers up to 999 in words, and noun phrases with agreement and case."""

import dataclasses

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import COLOURS, NOUNS, french_number, french_phrase, german_number, german_phrase

LANGUAGES = ("French", "German")
PHRASINGS = (
    "Translate into {language}: {source}",
    "How do you say this in {language}?\n{source}",
    "{source}\nWrite this in {language}.",
    "Give the {language} translation.\n{source}",
)
SYSTEMS = ("You are a translator.", "Reply with the translation only.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """The same thing in English (or in digits), French and German."""

    source: str
    french: str
    german: str

    def into(self, language: str) -> str:
        """The translation into one of LANGUAGES."""
        return {"French": self.french, "German": self.german}[language]


def _number(stream: Stream) -> Parallel:
    n = stream.below(100) if stream.chance(30) else stream.below(1000)
    return Parallel(source=str(n), french=french_number(n), german=german_number(n))


def _phrase(stream: Stream) -> Parallel:
    noun, colour = stream.pick(NOUNS), stream.pick(COLOURS)
    english, french = f"the {colour.english} {noun.english}", french_phrase(noun, colour)
    frame = stream.below(3)
    if frame == 0:
        return Parallel(source=english, french=french, german=german_phrase(noun, colour))
    if frame == 1:
        return Parallel(
            source=f"Here is {english}.", french=f"Voici {french}.", german=f"Hier ist {german_phrase(noun, colour)}."
        )
    return Parallel(
        source=f"I see {english}.",
        french=f"Je vois {french}.",
        german=f"Ich sehe {german_phrase(noun, colour, accusative=True)}.",
    )


def draw_parallel(stream: Stream) -> Parallel:
    """A number or a phrase, half and half."""
    return _number(stream) if stream.chance(50) else _phrase(stream)


def draw(stream: Stream) -> Exercise:
    """Something to translate; one exercise in six goes on to the other language, one in five has a system message."""
    pair = draw_parallel(stream)
    first, second = stream.sample(LANGUAGES, 2)
    follow_ups = ((f"And in {second}?", pair.into(second)),) if stream.chance(16) else ()
    return Exercise(
        group=pair.source,
        fields={"source": pair.source, "language": first},
        answer=pair.into(first),
        follow_ups=follow_ups,
        system=stream.pick(SYSTEMS) if stream.chance(20) else None,
    )
