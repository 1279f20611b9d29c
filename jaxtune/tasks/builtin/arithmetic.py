"""Mathematics: small sums, differences and products, as bare terms and as stories, and conversions of units."""

import dataclasses

from jaxtune.tasks.builtin.exercise import Exercise
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import NAMES, THINGS

PHRASINGS = (
    "{question}",
    "Solve this problem.\n{question}",
    "{question} Give only the number.",
    "Maths question: {question}",
)
SYSTEMS = ("You are a calculator.", "Answer with a number.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One `large` is `factor` times one `small`; amounts of the large unit go from 2 to `most`."""

    large: str
    small: str
    factor: int
    most: int


UNITS = (
    Unit(large="kilometres", small="metres", factor=1000, most=99),
    Unit(large="kilograms", small="grams", factor=1000, most=99),
    Unit(large="metres", small="centimetres", factor=100, most=99),
    Unit(large="centimetres", small="millimetres", factor=10, most=99),
    Unit(large="litres", small="millilitres", factor=1000, most=99),
    Unit(large="weeks", small="days", factor=7, most=12),
    Unit(large="hours", small="minutes", factor=60, most=12),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """`left operator right`, whose value is a natural number."""

    left: int
    operator: str
    right: int

    @property
    def value(self) -> int:
        """The result."""
        match self.operator:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case _:
                return self.left * self.right

    @property
    def group(self) -> str:
        """The term with the operands of a sum or product in order: 3 + 4 and 4 + 3 are one problem."""
        left, right = (self.left, self.right) if self.operator == "-" else sorted((self.left, self.right))
        return f"{left} {self.operator} {right}"

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """An amount of a large unit, to be told in small ones."""

    unit: Unit
    amount: int

    @property
    def value(self) -> int:
        """The amount in small units."""
        return self.amount * self.unit.factor


def draw_term(stream: Stream) -> Term:
    """A sum or difference of a number up to 60 and one up to 20, or a product up to 9 times 9."""
    operator = stream.pick(("+", "+", "-", "-", "*"))
    if operator == "*":
        return Term(left=stream.between(2, 9), operator="*", right=stream.between(2, 9))
    right = stream.between(2, 20)
    return Term(left=stream.between(2, 60) + (right if operator == "-" else 0), operator=operator, right=right)


def draw_conversion(stream: Stream) -> Conversion:
    """An amount of one of the UNITS."""
    unit = stream.pick(UNITS)
    return Conversion(unit=unit, amount=stream.between(2, unit.most))


STORIES = {
    "+": (
        "{name} has {left} {thing}s and buys {right} more. How many {thing}s does {name} have now?",
        "There are {left} {thing}s in one shop and {right} in another. How many {thing}s are there in all?",
    ),
    "-": (
        "{name} has {left} {thing}s and sells {right} of them. How many {thing}s are left?",
        "Of {left} {thing}s {right} are broken. How many {thing}s are fine?",
    ),
    "*": (
        "{name} has {left} boxes with {right} {thing}s in each. How many {thing}s does {name} have?",
        "There are {left} rooms with {right} {thing}s in each. How many {thing}s are there in all?",
    ),
}


def _term_question(term: Term, stream: Stream) -> str:
    if stream.chance(40):
        return f"What is {term}?"
    story = stream.pick(STORIES[term.operator])
    return story.format(name=stream.pick(NAMES), thing=stream.pick(THINGS), left=term.left, right=term.right)


def draw(stream: Stream) -> Exercise:
    """A term (60 %) or a conversion; one exercise in four has a system message."""
    if stream.chance(60):
        term = draw_term(stream)
        group, question, answer = term.group, _term_question(term, stream), term.value
    else:
        conversion = draw_conversion(stream)
        unit = conversion.unit
        group = f"{conversion.amount} {unit.large}"
        question, answer = f"How many {unit.small} are {conversion.amount} {unit.large}?", conversion.value
    return Exercise(
        group=group,
        fields={"question": question},
        answer=str(answer),
        system=stream.pick(SYSTEMS) if stream.chance(25) else None,
    )
