"""The grid of a sweep: every combination of option values with every seed."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from jaxtune.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and one seed."""

    overrides: Mapping[str, str]
    seed: int

    @property
    def name(self) -> str:
        """Folder name: the last part of each option with its value, and the seed."""
        parts = [f"{option.rpartition('.')[2]}={value}" for option, value in self.overrides.items()]
        return "_".join([*parts, f"seed={self.seed}"]).replace("/", "-")

    def arguments(self) -> list[str]:
        """As options of the command line."""
        return [text for option, value in self.overrides.items() for text in (f"--{option}", value)] + [
            "--seed",
            str(self.seed),
        ]


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """`mixture.temperature=1,2,inf` as option -> values."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        option, equals, values = text.partition("=")
        option = option.strip().removeprefix("--")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not option or not all(listed):
            raise UserError(f"--grid takes OPTION=V1,V2,...; got {text!r}")
        if option == "seed":
            raise UserError("give seeds with --seeds, not in the grid: every setting runs with every seed")
        if option in axes:
            raise UserError(f"--grid names {option!r} twice")
        if len(set(listed)) < len(listed):
            raise UserError(f"--grid {option} lists a value twice: {listed}")
        axes[option] = listed
    return axes


def grid(axes: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Trial]:
    """Every combination of values with every seed, seeds innermost."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds lists a seed twice: {list(seeds)}")
    combinations = itertools.product(*axes.values())
    return [
        Trial(overrides=dict(zip(axes, values, strict=True)), seed=seed) for values in combinations for seed in seeds
    ]
