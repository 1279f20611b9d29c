"""Alternatives to a mixture: the same tasks and number of examples under other values of one option."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from jaxtune.errors import UserError, did_you_mean
from jaxtune.mixture.allocation import Allocation, allocate
from jaxtune.mixture.settings import MixtureConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternative:
    """One value of a mixture option and what it leads to."""

    value: str
    allocation: Allocation | None
    """None where the budget cannot be met."""
    problem: str = ""
    """Why not."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        if self.allocation is None:
            return {"value": self.value, "problem": self.problem}
        return {"value": self.value, **self.allocation.to_json()}


def parse_alternatives(text: str) -> tuple[str, list[str]]:
    """`temperature=1,2,4,inf` as the option's name and its values; `mixture.` in front is allowed."""
    option, equals, values = text.partition("=")
    name = option.strip().removeprefix("mixture.").replace("-", "_")
    listed = [value.strip() for value in values.split(",") if value.strip()]
    known = [field.name for field in dataclasses.fields(MixtureConfig) if field.name not in ("weights", "groups")]
    if not equals or not listed or name not in known:
        meant = did_you_mean(name, known) if name not in known else ""
        raise UserError(f"--compare takes OPTION=V1,V2,... with one of {', '.join(known)}; got {text!r}{meant}")
    return name, listed


def alternatives(
    sizes: Mapping[str, int],
    config: MixtureConfig,
    budget: int,
    option: str,
    values: Sequence[str],
    *,
    unit_totals: Mapping[str, Any] | None = None,
) -> list[Alternative]:
    """The mixture for each value of one option, all else the same, the number of examples included."""
    found = []
    for value in values:
        changed = dataclasses.replace(config, **{option: _parsed(option, value)})
        try:
            allocation = allocate(sizes, changed, budget, unit_totals=unit_totals)
        except UserError as error:
            found.append(Alternative(value=value, allocation=None, problem=str(error)))
        else:
            found.append(Alternative(value=value, allocation=allocation))
    return found


def _parsed(option: str, value: str) -> Any:
    """A value of an option of `MixtureConfig` from its text."""
    hint = get_type_hints(MixtureConfig)[option]
    kinds = [hint, *get_args(hint)]
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
    if enums:
        known = [member.value for member in enums[0]]
        if value not in known:
            raise UserError(f"{option} is one of {', '.join(known)}; got {value!r}")
        return enums[0](value)
    if value.lower() == "none" and type(None) in kinds:
        return None
    if bool in kinds:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{option} is true or false; got {value!r}")
        return value.lower() == "true"
    try:
        return int(value) if float not in kinds else float(value)
    except ValueError:
        raise UserError(f"{option} takes numbers; got {value!r}") from None
