"""Classification: the tone of a review (positive, negative, mixed), and the topic of a sentence."""

import dataclasses

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import CITIES, FOODS, NAMES, split

PHRASINGS = (
    "{question}\n{text}",
    "{text}\n{question}",
    "Classify the text. {question}\nText: {text}",
    "{text}\nChoose one label. {question}",
)
SYSTEMS = ("Answer with one label.", "You sort texts into classes.")
QUESTIONS = {
    "tone": (
        "Is this review positive, negative or mixed?",
        "Which tone does the review have: positive, negative or mixed?",
    ),
    "topic": (
        "Is this about sport, music, food or weather?",
        "Which topic is it: sport, music, food or weather?",
    ),
}

ASPECTS = split("soup bread room bed garden view waiter cook music coffee menu service price pool lobby")
GOOD = split("great lovely excellent perfect wonderful superb charming fine")
BAD = split("awful terrible poor horrible bad dreadful nasty dull")

TOPICS = {
    "sport": (
        "{name} scored in the last minute.",
        "The team from {city} won the cup.",
        "{name} ran the race in {city}.",
        "The coach praised {name} after the game.",
    ),
    "music": (
        "{name} sang an old song.",
        "The band played in {city}.",
        "{name} plays the violin.",
        "The choir of {city} sang with {name}.",
    ),
    "food": (
        "{name} cooked {food} for dinner.",
        "The kitchen serves {food} with {food2}.",
        "{name} ate {food} in {city}.",
        "A plate of {food} costs little in {city}.",
    ),
    "weather": (
        "It snowed all night in {city}.",
        "A storm hit {city}.",
        "The sun is out in {city}.",
        "The rain kept {name} at home.",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text and its label; `kind` is a key of QUESTIONS."""

    kind: str
    text: str
    label: str


def _review(stream: Stream) -> Labelled:
    label = stream.pick(("positive", "negative", "mixed"))
    count = stream.between(2, 3)
    if label == "mixed":
        tones = [True, False] + [stream.chance(50)] * (count - 2)
        stream.shuffle(tones)
    else:
        tones = [label == "positive"] * count
    aspects = stream.sample(ASPECTS, count)
    clauses = [f"The {a} was {stream.pick(GOOD if good else BAD)}." for a, good in zip(aspects, tones, strict=True)]
    return Labelled(kind="tone", text=" ".join(clauses), label=label)


def _news(stream: Stream) -> Labelled:
    topic = stream.pick(tuple(TOPICS))
    food, food2 = stream.sample(FOODS, 2)
    first, second = stream.sample(TOPICS[topic], 2)
    words = {"name": stream.pick(NAMES), "city": stream.pick(CITIES), "food": food, "food2": food2}
    return Labelled(kind="topic", text=f"{first} {second}".format(**words), label=topic)


def draw_labelled(stream: Stream) -> Labelled:
    """A review (60 %) or a piece of news."""
    return _review(stream) if stream.chance(60) else _news(stream)


def draw(stream: Stream) -> Exercise:
    """A text to be classified; one exercise in four has a system message."""
    labelled = draw_labelled(stream)
    return Exercise(
        group=labelled.text,
        fields={"text": labelled.text, "question": stream.pick(QUESTIONS[labelled.kind])},
        answer=labelled.label,
        system=stream.pick(SYSTEMS) if stream.chance(25) else None,
    )
