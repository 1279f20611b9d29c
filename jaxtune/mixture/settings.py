"""Settings of a mixture: how tasks are mixed, and how long a run is."""

import dataclasses
import enum
import itertools
import math
from collections.abc import Mapping
from typing import Annotated

from jaxtune.errors import Range, UserError, check_fields
from jaxtune.mixture.apportion import Number

POSITIVE = Range(0, 1e6, above=True, infinite=True)
Positive = Annotated[Number, POSITIVE]
TEMPERATURE = Range(0.01, 1e6, infinite=True)
"""Below, powers of sizes have too many digits to reckon with, and all but the largest task have no share left."""
LARGEST = 2**63 - 1
"""Most examples of a task, and of a budget."""


class Strategy(enum.Enum):
    """Strategy that turns a task's size into its mixing rate."""

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
    """Policy for the examples that a capped task cannot supply."""

    REDISTRIBUTE = "redistribute"
    """The other tasks take them, keeping the ratios among themselves."""
    SHRINK = "shrink"
    """They are left out; the run is shorter."""
    STOP = "stop"
    """The run ends where the first task is exhausted: exact proportions."""
    ERROR = "error"
    """The mixture is refused."""


class MixingUnit(enum.Enum):
    """Unit of the mixing probabilities: shares of examples or of tokens."""

    EXAMPLES = "examples"
    TOKENS = "tokens"
    LOSS_TOKENS = "loss_tokens"


class Policy(enum.Enum):
    """Policy by which the shares of a stage follow from what the stages before it measured (`mixture.policies`)."""

    CONSTANT = "constant"
    """The same shares in every stage."""
    LOSS_GAP = "loss_gap"
    """Shares grow with the validation loss above a reference loss of the task."""
    BANDIT = "bandit"
    """Shares grow with the share of its validation loss that a task lost in the stages so far."""


class Selection(enum.Enum):
    """Choice of the examples that `max_examples` keeps."""

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
    weight: Annotated[Number | None, Range(0, 1e12)] = None
    """Rate among its siblings; None applies the strategy to the summed size of its tasks."""
    temperature: Annotated[Number | None, TEMPERATURE] = None
    """Temperature among its own members; None inherits."""

    def __post_init__(self):
        check_fields(self, "group")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Settings of a mixture of tasks; `allocate` applies them."""

    strategy: Strategy = Strategy.TEMPERATURE
    """temperature, proportional, equal, unimax or weights."""
    temperature: Annotated[Number, TEMPERATURE] = 2.0
    """T, at least 0.01: 1 is proportional, inf is equal."""
    rate_max: Annotated[Number | None, Range(0, 1e15, above=True, infinite=True)] = None
    """K, the mixing rate maximum: no size counts for more than this before the temperature. None: no limit."""
    scale: Annotated[Number, Range(0, 1e12, above=True)] = 1.0
    """Sizes are multiplied by this before `rate_max`."""
    max_examples: Annotated[int, Range(1, 1e15)] | Mapping[str, Annotated[int, Range(1, 1e15)]] | None = None
    """E: at most so many distinct examples of a task are used; for all tasks, or by task name."""
    selection: Selection = Selection.PERMUTED
    """Choice of the examples that `max_examples` keeps."""
    max_repeats: Annotated[Number | Mapping[str, Positive], POSITIVE] = math.inf
    """R > 0: no task supplies more than floor(R * usable examples); for all tasks, or by task name."""
    weights: Mapping[str, Annotated[Number, Range(0, 1e12)]] | None = None
    """Rates by task name, for the strategy `weights`; 0 leaves the task out."""
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)
    """Task clusters by name; tasks in no group stand beside the groups."""
    on_cap: OnCap = OnCap.REDISTRIBUTE
    """What happens when `max_repeats` binds."""
    allow_underfill: bool = False
    """Take every task at its cap when the caps together hold less than the budget."""
    unit: MixingUnit = MixingUnit.EXAMPLES
    """What the probabilities are shares of; budgets are always counted in examples."""
    stages: Annotated[int, Range(1, 1000)] = 1
    """Parts of the run, as long as each other, each with shares of its own by `policy`."""
    policy: Policy = Policy.CONSTANT
    """constant, loss_gap or bandit."""
    policy_strength: Annotated[Number, Range(0, 1000)] = 1.0
    """beta: how far the policy moves the shares; 0 leaves them."""
    policy_reference: Mapping[str, Annotated[Number, Range(0, 1e6)]] | None = None
    """For loss_gap: the loss of each task to compare with, in nats per token, such as that of a run on it alone. Other
    policies have no use for it."""
    stage_shares: tuple[Annotated[Number, Range(0, 1)], ...] = ()
    """Shares of the second stage, the third and so on, each a number for every trained task in their order; the run
    fills them in as its stages end."""

    @property
    def staged(self) -> bool:
        """Whether shares change between stages: the plan of a stage is made when the one before it has ended."""
        return self.policy is not Policy.CONSTANT

    def __post_init__(self) -> None:
        check_fields(self, "mixture")
        self._check_stages()
        if (self.weights is not None) != (self.strategy is Strategy.WEIGHTS):
            raise UserError(
                "strategy 'weights' and `weights` go together: "
                f"got strategy {self.strategy.value!r} and weights {self.weights!r}; give both or neither"
            )
        if self.strategy is Strategy.UNIMAX and self.on_cap is not OnCap.REDISTRIBUTE:
            raise UserError(f"strategy 'unimax' redistributes by definition; on_cap is {self.on_cap.value!r}")

    def _check_stages(self) -> None:
        if self.staged and self.stages == 1:
            raise UserError(
                f"mixture.policy {self.policy.value!r} sets the shares of a stage by those before it, and there is one "
                "stage; give mixture.stages, 4 for example"
            )
        if self.policy is Policy.LOSS_GAP and self.policy_reference is None:
            raise UserError(
                "mixture.policy 'loss_gap' compares the loss of each task with a reference; give "
                "mixture.policy_reference, a loss in nats per token for every trained task"
            )
        if self.stage_shares and not self.staged:
            raise UserError("mixture.stage_shares belong to a mixture whose policy is not constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Length of a run: exactly one of the four."""

    examples: Annotated[int, Range(1, 1e12)] | None = None
    """Examples drawn, repeats included."""
    epochs: Annotated[Number | None, Range(0, 1e6, above=True)] = None
    """Times the natural total: the sum of the usable examples of all tasks with a rate above 0."""
    steps: Annotated[int, Range(1, 1e9)] | None = None
    """Optimizer steps."""
    tokens: Annotated[int, Range(1, 1e15)] | None = None
    """Tokens of the drawn examples, prompts included, padding not."""
    lengthened: tuple[Annotated[int, Range(1, 1e9)], ...] = ()
    """Steps that the run was planned with before it was lengthened; `--resume --duration.steps N` fills it in. The plan
    begins with theirs, example by example, and goes on from there."""

    def __post_init__(self) -> None:
        check_fields(self, "duration")
        given = {name: value for name in LENGTHS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise UserError(
                f"give exactly one of examples, epochs, steps and tokens as the budget; got {given or 'none'}"
            )
        ends = (*self.lengthened, self.steps or 0)
        if self.lengthened and any(before >= after for before, after in itertools.pairwise(ends)):
            raise UserError(
                f"duration.lengthened holds the steps before, each fewer than the next and than duration.steps; got "
                f"{list(self.lengthened)} and {self.steps}"
            )


LENGTHS = ("examples", "epochs", "steps", "tokens")
"""Units of a budget."""


def check_number(name: str, value: Number, *, infinite: bool = False, zero: bool = False) -> None:
    allowed = (value > 0 or (zero and value == 0)) and (infinite or value != math.inf)
    if not allowed:  # also catches NaN, which compares as false
        bounds = "at least 0" if zero else "above 0"
        raise UserError(f"{name} must be {bounds}{'' if infinite else ' and finite'}, got {value}")
