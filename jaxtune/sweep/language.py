"""The settings of a sweep as they are written on the command line: grids, pairs, files, random designs, mixtures.

Every form is expanded into a plain list of settings before anything runs.
"""

import dataclasses
import enum
import itertools
import json
import math
import pathlib
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import qmc

from jaxtune.errors import UserError
from jaxtune.storage.documents import UnreadableDocument, parse_json, read_text

DIGITS = 4
"""Significant digits of generated values: enough to tell settings apart, short enough to read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Options with their values as written; a value may be several words, quoted as in a shell."""

    overrides: Mapping[str, str]
    tag: str = ""
    """A name of its own, in place of the options'."""

    @property
    def name(self) -> str:
        """Part of a folder's name: the tag, or the last part of each option with its value."""
        parts = [f"{option.rpartition('.')[2]}={value}" for option, value in self.overrides.items()]
        return (self.tag or "_".join(parts) or "config").replace("/", "-").replace(" ", "+")

    def arguments(self) -> list[str]:
        """Options of the command line that set these values."""
        return [word for option, value in self.overrides.items() for word in (f"--{option}", *shlex.split(value))]


# OPTION=V1,V2


def parse_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """`mixture.temperature=1,2,inf` and `"mixture.weights=qa 1 math 1,qa 1"` as option -> values."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        option, values = parse_option(text, "--grid takes OPTION=V1,V2,...")
        listed = [value.strip() for value in values.split(",")]
        if not all(listed):
            raise UserError(f"--grid takes OPTION=V1,V2,...; {text!r} has an empty value")
        for value in listed:
            check_words(option, value)
        if option in axes:
            raise UserError(f"--grid names {option!r} twice")
        if len(set(listed)) < len(listed):
            raise UserError(f"--grid {option} lists a value twice: {listed}")
        axes[option] = listed
    return axes


def parse_option(text: str, usage: str) -> tuple[str, str]:
    """The option and what stands behind its first equals sign."""
    option, equals, values = text.partition("=")
    option = option.strip().removeprefix("--")
    if not equals or not option or not values.strip():
        raise UserError(f"{usage}; got {text!r}")
    if option == "seed":
        raise UserError("give seeds with --seeds: every setting runs with every seed")
    return option, values.strip()


def check_words(option: str, value: str) -> None:
    """Refuse a value whose quotes do not close, or that holds an option of its own."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise UserError(f"the value {value!r} of {option} cannot be read as words: {error}") from None
    if not words or any(word.startswith("--") for word in words):
        raise UserError(f"the value {value!r} of {option} is to be one or more words, none of them an option")


def crossed(axes: Mapping[str, Sequence[str]]) -> list[Setting]:
    """Every combination of values, the last option innermost."""
    return [Setting(overrides=dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def zipped(axes: Mapping[str, Sequence[str]]) -> list[Setting]:
    """The first values together, then the second, and so on."""
    lengths = {option: len(values) for option, values in axes.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{option} {count}" for option, count in lengths.items())
        raise UserError(f"--zip pairs values one by one, so every option needs as many; got {listed}")
    return [Setting(overrides=dict(zip(axes, values, strict=True))) for values in zip(*axes.values(), strict=True)]


# Files


def read_settings(path: pathlib.Path) -> list[Setting]:
    """A JSONL file with an object `{"overrides": {option: value}, "tag": name}` a line."""
    try:
        lines = read_text(path).splitlines()
    except UnreadableDocument as error:
        raise UserError(f"--arms cannot be read: {error}") from None
    settings = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            settings.append(setting_of(parse_json(line.encode(), name=f"{path}:{number}"), f"{path}:{number}"))
    if not settings:
        raise UserError(f"--arms {path} lists no setting; each line is an object with `overrides` and, optional, `tag`")
    tags = [one.tag for one in settings if one.tag]
    if len(set(tags)) < len(tags):
        raise UserError(f"--arms {path} gives two settings one tag: {sorted({t for t in tags if tags.count(t) > 1})}")
    return settings


def setting_of(value: object, where: str) -> Setting:
    """A line of the file."""
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("overrides"), dict)
        or value.keys() - {"overrides", "tag"}
    ):
        raise UserError(
            f'{where}: expected {{"overrides": {{"option": "value"}}, "tag": "name"}}, got {json.dumps(value)}'
        )
    tag = value.get("tag", "")
    if not isinstance(tag, str) or not tag.replace("-", "").replace("_", "").replace(".", "").isalnum() and tag:
        raise UserError(f"{where}: a tag is letters, digits, '-', '_' and '.', got {tag!r}")
    overrides = {}
    for option, given in value["overrides"].items():
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise UserError(f"{where}: the value of {option!r} is to be a string or a number, got {json.dumps(given)}")
        option, text = parse_option(f"{option}={given}", f"{where}: overrides are option: value")
        check_words(option, text)
        overrides[option] = text
    return Setting(overrides=overrides, tag=tag)


# Random designs


class Law(enum.Enum):
    """Distribution of a random value over its range."""

    LINEAR = "lin"
    LOG = "log"  # evenly in the logarithm
    INVERSE = "inv"  # evenly in 1 / value: the range may end at inf
    WHOLE = "int"  # whole numbers, both ends included
    CHOICE = "choice"  # one of the listed values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The values an option may take in a random design."""

    option: str
    law: Law
    low: float = math.nan
    high: float = math.nan
    choices: tuple[str, ...] = ()

    def value(self, u: float) -> str:
        """The value at a position in [0, 1)."""
        if self.law is Law.CHOICE:
            return self.choices[int(u * len(self.choices))]
        if self.law is Law.WHOLE:
            return str(int(self.low + math.floor(u * (self.high - self.low + 1))))
        if self.law is Law.LOG:
            number = self.low * (self.high / self.low) ** u
        elif self.law is Law.INVERSE:
            inverse = 1 / self.low + u * (1 / self.high - 1 / self.low)
            number = 1 / inverse if inverse else math.inf
        else:
            number = self.low + u * (self.high - self.low)
        return f"{number:.{DIGITS}g}"


def parse_space(text: str) -> Space:
    """`optim.peak-lr=log:1e-4:1e-2`, `mixture.temperature=inv:1:inf`, `batch.rows=choice:8:16`."""
    usage = "--space takes OPTION=LAW:LOW:HIGH with the laws lin, log, inv, int, or OPTION=choice:V1:V2:..."
    option, values = parse_option(text, usage)
    name, *ends = values.split(":")
    if name not in {law.value for law in Law} or len(ends) < 2 or (name != "choice" and len(ends) != 2):
        raise UserError(f"{usage}; got {text!r}")
    law = Law(name)
    if law is Law.CHOICE:
        for value in ends:
            check_words(option, value)
        return Space(option=option, law=law, choices=tuple(ends))
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        raise UserError(f"{usage}; {text!r} has ends that are no numbers") from None
    positive = law in (Law.LOG, Law.INVERSE)
    finite = math.isfinite(low) and (math.isfinite(high) or law is Law.INVERSE)
    whole = law is not Law.WHOLE or (low == int(low) and high == int(high)) if finite else False
    if not finite or not low < high or (positive and low <= 0) or not whole:
        need = {Law.LOG: "above 0", Law.INVERSE: "above 0, the higher may be inf", Law.WHOLE: "whole numbers"}
        raise UserError(f"--space {text!r}: LOW is to be below HIGH, {need.get(law, 'both finite')}")
    return Space(option=option, law=law, low=low, high=high)


def random_settings(spaces: Sequence[Space], count: int, *, seed: int = 0) -> list[Setting]:
    """`count` settings spread evenly over the spaces: scrambled Sobol points, the same for the same seed."""
    if count < 1 or not spaces:
        raise UserError(f"--random {count} takes at least one setting and --space OPTION=LAW:LOW:HIGH ...")
    options = [space.option for space in spaces]
    if len(set(options)) < len(options):
        raise UserError(f"--space names an option twice: {options}")
    engine = qmc.Sobol(len(spaces), scramble=True, rng=np.random.default_rng(seed))
    points = engine.random_base2(max(1, math.ceil(math.log2(count))))[:count]
    return [
        Setting(overrides={space.option: space.value(float(u)) for space, u in zip(spaces, point, strict=True)})
        for point in points
    ]


def mixture_settings(
    sizes: Mapping[str, int], count: int, *, concentration: float = 1.0, seed: int = 0
) -> list[Setting]:
    """`count` mixtures drawn from a Dirichlet law around the tasks' natural shares.

    Its parameters are `concentration` x tasks x share: 1 spreads as widely as a flat law, larger stays nearer.
    """
    if count < 1 or not (math.isfinite(concentration) and concentration > 0):
        raise UserError(f"--mixtures {count} is at least 1 and --concentration {concentration} above 0")
    if len(sizes) < 2:
        raise UserError(f"--mixtures needs two tasks to mix; the config has {list(sizes)}")
    shares = np.array([float(size) for size in sizes.values()])
    alpha = concentration * len(shares) * shares / shares.sum()
    drawn = np.random.default_rng(seed).dirichlet(alpha, count)
    settings = []
    for row in drawn:
        weights = " ".join(f"{shlex.quote(task)} {share:.{DIGITS}f}" for task, share in zip(sizes, row, strict=True))
        settings.append(Setting(overrides={"mixture.strategy": "weights", "mixture.weights": weights}))
    return settings
