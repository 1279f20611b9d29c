"""Tasks for experiments on mixing, whose relations are known because they were built in.

- `sums` and `sum_stories`: one skill behind two surfaces; the second is rare (60 examples).
- `terse` and `verbose`: the same prompts, two styles of answer, so no model can please both; `terse_cued` and
  `verbose_cued` are the same with a prompt that names the style.
- `noisy`: answers drawn by lot from 64 known ones: nothing can be learned, only memorised.
- `format`: copy a word. It teaches the form of a chat and nothing else, a neutral baseline for transfer.
- `prefix_0`, `prefix_48`, `prefix_144`: the same questions behind 0, 48 and 144 words of no importance.
- `six_classes`: six labels whose cues overlap, so that about a fifth of them cannot be told.

Sizes go from 6,000 to 60 (100 : 1); validation and test have 300 examples each, groups shared by none of the splits.
"""

import functools

from jaxtune.storage.fingerprints import hash64
from jaxtune.tasks.builtin.arithmetic import STORIES
from jaxtune.tasks.builtin.collection import BuiltinTask, GeneratedSource, phrase
from jaxtune.tasks.builtin.exercise import Exercise, Split
from jaxtune.tasks.builtin.stream import Stream
from jaxtune.tasks.builtin.words import CITIES, DAYS, FOODS, JOBS, NAMES, PETS, THINGS
from jaxtune.tasks.task import Task

EVALUATION_SIZE = 300
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t")
VOWELS = ("a", "e", "i", "o", "u")
NOISY_ANSWERS = tuple(f"{first} {second}" for first in CITIES[:8] for second in PETS[:8])
"""All answers of `noisy`: 64 pairs of words."""
CLASSES = ("kitchen", "market", "harbour", "school", "garden", "station")
CUES = (*FOODS, *JOBS[:14])
"""Words that speak for a class: four of their own each, in the order of the CLASSES."""


def draw_sum(stream: Stream) -> tuple[int, int]:
    """Two numbers of at most three and two digits."""
    return stream.between(2, 299), stream.between(2, 99)


def sums(stream: Stream, *, story: bool) -> Exercise:
    """A sum as a bare term or as a story."""
    left, right = draw_sum(stream)
    question = f"What is {left} + {right}?"
    if story:
        pattern = stream.pick(STORIES["+"])
        question = pattern.format(name=stream.pick(NAMES), thing=stream.pick(THINGS), left=left, right=right)
    small, large = sorted((left, right))
    return Exercise(group=f"{small} + {large}", fields={"question": question}, answer=str(left + right))


def styles(stream: Stream, *, verbose: bool, cued: bool) -> Exercise:
    """Whether a number is odd, answered by a word or by a sentence; a cue in the prompt says which."""
    number = stream.between(2, 19_999)
    kind = "odd" if number % 2 else "even"
    cue = (" Answer with a sentence." if verbose else " Answer with one word.") if cued else ""
    answer = f"The number {number} is {kind}." if verbose else kind
    return Exercise(group=str(number), fields={"question": f"Is {number} odd or even?{cue}"}, answer=answer)


def pseudoword(stream: Stream, syllables: int) -> str:
    """A word of no language."""
    return "".join(stream.pick(ONSETS) + stream.pick(VOWELS) for _ in range(syllables))


def noisy(stream: Stream) -> Exercise:
    """Random labels: one of 64 answers for a made-up name, decided by a hash of the name."""
    name = pseudoword(stream, 3)
    answer = NOISY_ANSWERS[hash64(f"noisy/{name}".encode()) % len(NOISY_ANSWERS)]
    return Exercise(group=name, fields={"question": f"What belongs to {name}?"}, answer=answer)


def copy_word(stream: Stream) -> Exercise:
    """A short made-up word to repeat."""
    word = pseudoword(stream, 3)
    return Exercise(group=word, fields={"question": f"Say the word {word}."}, answer=word)


@functools.cache
def gossip() -> tuple[str, ...]:
    """512 sentences of six words that have no bearing on anything."""
    stream = Stream("science", "gossip")
    return tuple(f"{stream.pick(NAMES)} saw a {stream.pick(THINGS)} in {stream.pick(CITIES)}." for _ in range(512))


def filler(stream: Stream, words: int) -> str:
    """Neighbouring sentences of the gossip, `words` words in all."""
    first, pool = stream.below(512), gossip()
    return " ".join(pool[(first + index) % len(pool)] for index in range(words // 6))


def prefixed(stream: Stream, *, words: int) -> Exercise:
    """On which day a person works, told in one sentence behind `words` words of no importance."""
    name, job, day, city = stream.pick(NAMES), stream.pick(JOBS), stream.pick(DAYS), stream.pick(CITIES)
    fact = f"{name} the {job} works in {city} on {day}."
    text = " ".join(part for part in (filler(stream, words), fact, f"When does {name} the {job} work?") if part)
    return Exercise(group=f"{name} {job} {city}", fields={"question": text}, answer=day)


def six_classes(stream: Stream) -> Exercise:
    """Five cues, each the class's own with a chance of 45 in 100, else of any class."""
    label = stream.below(len(CLASSES))
    own = lambda of: CUES[4 * of : 4 * of + 4]
    cues = [stream.pick(own(label if stream.chance(45) else stream.below(len(CLASSES)))) for _ in range(5)]
    serial = stream.below(100_000)  # what is told apart by: a note's number, which says nothing about its class
    question = f"Note {serial}: {', '.join(cues)}. Which place is this?"
    return Exercise(group=f"{serial}", fields={"question": question}, answer=CLASSES[label])


def _family(draw, train_size: int, world: str = "") -> BuiltinTask:
    return BuiltinTask(
        draw=draw, phrasings=("{question}",), train_size=train_size, evaluation_size=EVALUATION_SIZE, world=world
    )


PREFIXES = (0, 48, 144)
FAMILIES = {
    "six_classes": _family(six_classes, 6000),
    "sums": _family(functools.partial(sums, story=False), 3000, "sums"),
    "format": _family(copy_word, 1200),
    "terse": _family(functools.partial(styles, verbose=False, cued=False), 600, "styles"),
    "verbose": _family(functools.partial(styles, verbose=True, cued=False), 600, "styles"),
    "terse_cued": _family(functools.partial(styles, verbose=False, cued=True), 600, "styles"),
    "verbose_cued": _family(functools.partial(styles, verbose=True, cued=True), 600, "styles"),
    "noisy": _family(noisy, 600),
    **{f"prefix_{words}": _family(functools.partial(prefixed, words=words), 600, "prefix") for words in PREFIXES},
    "sum_stories": _family(functools.partial(sums, story=True), 60, "sums"),
}
CLUSTERS = {"sums": "sums", "sum_stories": "sums", "format": "format", "noisy": "noise", "six_classes": "labels"}

TASKS: dict[str, Task] = {
    name: Task(
        name=name,
        splits={split.value: GeneratedSource(name, family, split) for split in Split},
        templates=tuple(functools.partial(phrase, phrasing=i) for i in range(len(family.phrasings))),
        cluster=CLUSTERS.get(name, family.world),
    )
    for name, family in FAMILIES.items()
}
"""The tasks by name, largest first."""
