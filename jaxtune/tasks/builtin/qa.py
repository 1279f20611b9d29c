"""Question answering: who lives where, works as what, owns or likes what, read from a passage of a few sentences."""

import dataclasses

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import CITIES, COLOUR_NAMES, FOODS, JOBS, NAMES, PETS, THINGS

PHRASINGS = (
    "{passage}\n{question}",
    "Read the text, then answer the question.\n{passage}\n{question}",
    "{question}\n{passage}",
    "Text: {passage}\nQuestion: {question}",
)
_BELONGINGS = tuple(thing for thing in THINGS if thing not in PETS)
SYSTEMS = ("Answer with one word from the text.", "You answer questions about short texts.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relation:
    """A fact about a person, and its questions, forwards (person known) and backwards (value known)."""

    sentences: tuple[str, ...]
    forward: str
    backward: str
    values: tuple[str, ...]


RELATIONS = {
    "home": Relation(
        sentences=("{name} lives in {value}.", "{name} has a flat in {value}."),
        forward="Where does {name} live?",
        backward="Who lives in {value}?",
        values=CITIES,
    ),
    "job": Relation(
        sentences=("{name} works as a {value}.", "{name} is a {value}."),
        forward="What is the job of {name}?",
        backward="Who works as a {value}?",
        values=tuple(job for job in JOBS if job[0] not in "aeiou"),
    ),
    "pet": Relation(
        sentences=("{name} has a {value}.", "{name} keeps a {value}."),
        forward="Which animal does {name} have?",
        backward="Who has a {value}?",
        values=PETS,
    ),
    "food": Relation(
        sentences=("{name} likes {value}.", "{name} often eats {value}."),
        forward="What does {name} like to eat?",
        backward="Who likes {value}?",
        values=FOODS,
    ),
    "colour": Relation(
        sentences=("The {thing} of {name} is {value}.", "{name} has a {value} {thing}."),
        forward="What colour is the {thing} of {name}?",
        backward="Who has a {value} {thing}?",
        values=COLOUR_NAMES,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """One statement of a passage."""

    name: str
    relation: str
    value: str
    thing: str

    def fill(self, pattern: str) -> str:
        """The pattern with this fact's words."""
        return pattern.format(name=self.name, value=self.value, thing=self.thing)


def draw_facts(stream: Stream, *, people: tuple[int, int] = (2, 3), facts: tuple[int, int] = (3, 5)) -> list[Fact]:
    """Facts about some people, as many of each as the ranges say; no value occurs twice in a relation.

    So a question about one fact has one answer, whether it asks for the value or for the name.
    """
    named = stream.sample(NAMES, stream.between(*people))
    thing = stream.pick(_BELONGINGS)
    slots = [(name, relation) for name in named for relation in RELATIONS]
    drawn = []
    used = set()
    for name, relation in stream.sample(slots, stream.between(*facts)):
        value = stream.pick([v for v in RELATIONS[relation].values if (relation, v) not in used])
        used.add((relation, value))
        drawn.append(Fact(name=name, relation=relation, value=value, thing=thing))
    return drawn


def passage(facts: list[Fact], stream: Stream) -> str:
    """The facts as prose."""
    return " ".join(fact.fill(stream.pick(RELATIONS[fact.relation].sentences)) for fact in facts)


def _ask(fact: Fact, stream: Stream) -> tuple[str, str]:
    relation = RELATIONS[fact.relation]
    if stream.chance(60):
        return fact.fill(relation.forward), fact.value
    return fact.fill(relation.backward), fact.name


def draw(stream: Stream) -> Exercise:
    """A passage and a question; one exercise in five has a second question, one in four a system message."""
    facts = draw_facts(stream, people=(2, 2), facts=(2, 4))
    text = passage(facts, stream)
    asked = [_ask(fact, stream) for fact in stream.sample(facts, 2 if stream.chance(20) else 1)]
    return Exercise(
        group=text,
        fields={"passage": text, "question": asked[0][0]},
        answer=asked[0][1],
        follow_ups=tuple(asked[1:]),
        system=stream.pick(SYSTEMS) if stream.chance(25) else None,
    )
