"""Settings of a mixture: how tasks are mixed, and how long a run is."""

import dataclasses
import enum
import math
from collections.abc import Mapping

from jaxtune.errors import UserError
from jaxtune.mixture.apportion import Number


class Strategy(enum.Enum):
    """How a task's size becomes its rate."""

    TEMPERATURE = "temperature"
    """rate = min(size * scale, rate_max) ** (1 / temperature)"""
    PROPORTIONAL = "proportional"
    """The same at temperature 1."""
    EQUAL = "equal"
    """The same at infinite temperature: every task alike."""
    UNIMAX = "unimax"
    """Equal, with the repetition caps filled from the smallest task up (UniMax, arXiv 2304.09151)."""
    WEIGHTS = "weights"
    """The given weights as they are."""


class OnCap(enum.Enum):
    """What happens to the examples that a capped task cannot supply."""

    REDISTRIBUTE = "redistribute"
    """The other tasks take them, keeping the ratios among themselves."""
    SHRINK = "shrink"
    """They are left out; the run is shorter."""
    STOP = "stop"
    """The run ends where the first task is exhausted: exact proportions."""
    ERROR = "error"
    """The mixture is refused."""


class MixingUnit(enum.Enum):
    """What the probabilities are shares of."""

    EXAMPLES = "examples"
    TOKENS = "tokens"
    LOSS_TOKENS = "loss_tokens"


class Selection(enum.Enum):
    """Which examples `max_examples` keeps."""

    PERMUTED = "permuted"
    """The first of a seeded permutation."""
    HEAD = "head"
    """The first of the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Tasks mixed among themselves first, then as one entry of the mixture around them; groups nest.

    p_i = sum over groups g that hold i of P_g * p_(i|g), as nested SeqIO mixtures do.
    """

    tasks: tuple[str, ...] = ()
    """Names of the member tasks."""
    groups: Mapping[str, "Group"] = dataclasses.field(default_factory=dict)
    """Member groups by name."""
    weight: Number | None = None
    """Rate among its siblings; None applies the strategy to the summed size of its tasks."""
    temperature: Number | None = None
    """Temperature among its own members; None inherits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """How tasks are mixed; see `allocate`."""

    strategy: Strategy = Strategy.TEMPERATURE
    """temperature, proportional, equal, unimax or weights."""
    temperature: Number = 2.0
    """T > 0: 1 is proportional, inf is equal."""
    rate_max: Number | None = None
    """K, the mixing rate maximum: no size counts for more than this before the temperature. None: no limit."""
    scale: Number = 1.0
    """Sizes are multiplied by this before `rate_max`."""
    max_examples: int | Mapping[str, int] | None = None
    """E: at most so many distinct examples of a task are used; for all tasks, or by task name."""
    selection: Selection = Selection.PERMUTED
    """Which examples `max_examples` keeps."""
    max_repeats: Number | Mapping[str, Number] = math.inf
    """R > 0: no task supplies more than floor(R * usable examples); for all tasks, or by task name."""
    weights: Mapping[str, Number] | None = None
    """Rates by task name, for the strategy `weights`; 0 leaves the task out."""
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)
    """Task clusters by name; tasks in no group stand beside the groups."""
    on_cap: OnCap = OnCap.REDISTRIBUTE
    """What happens when `max_repeats` binds."""
    allow_underfill: bool = False
    """Take every task at its cap when the caps together hold less than the budget."""
    unit: MixingUnit = MixingUnit.EXAMPLES
    """What the probabilities are shares of; budgets are always counted in examples."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, infinite=True)
        check_number("scale", self.scale)
        if self.rate_max is not None:
            check_number("rate_max", self.rate_max, infinite=True)
        if isinstance(self.max_repeats, Mapping):
            for task, value in self.max_repeats.items():
                check_number(f"max_repeats of {task!r}", value, infinite=True)
        else:
            check_number("max_repeats", self.max_repeats, infinite=True)
        limits = self.max_examples if isinstance(self.max_examples, Mapping) else {"": self.max_examples}
        for task, limit in limits.items():
            if limit is not None and limit < 1:
                raise UserError(f"max_examples{f' of {task!r}' if task else ''} must be at least 1, got {limit}")
        if (self.weights is not None) != (self.strategy is Strategy.WEIGHTS):
            raise UserError(
                "strategy 'weights' and `weights` go together: "
                f"got strategy {self.strategy.value!r} and weights {self.weights!r}; give both or neither"
            )
        for task, weight in (self.weights or {}).items():
            check_number(f"weight of {task!r}", weight, zero=True)
        if self.strategy is Strategy.UNIMAX and self.on_cap is not OnCap.REDISTRIBUTE:
            raise UserError(f"strategy 'unimax' redistributes by definition; on_cap is {self.on_cap.value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run is: exactly one of the four."""

    examples: int | None = None
    """Examples drawn, repeats included."""
    epochs: Number | None = None
    """Times the natural total: the sum of the usable examples of all tasks with a rate above 0."""
    steps: int | None = None
    """Optimizer steps."""
    tokens: int | None = None
    """Tokens of the drawn examples, prompts included, padding not."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise UserError(
                f"give exactly one of examples, epochs, steps and tokens as the budget; got {given or 'none'}"
            )
        for name, value in given.items():
            check_number(f"budget in {name}", value)


def check_number(name: str, value: Number, *, infinite: bool = False, zero: bool = False) -> None:
    allowed = (value > 0 or (zero and value == 0)) and (infinite or value != math.inf)
    if not allowed:  # also catches NaN, which compares as false
        bounds = "at least 0" if zero else "above 0"
        raise UserError(f"{name} must be {bounds}{'' if infinite else ' and finite'}, got {value}")
