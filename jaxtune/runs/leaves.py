"""Leaves of a training state by path: their shapes and dtypes, and how a checkpoint's differ from those wanted."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath


def parts(state: Any) -> tuple[Any, dict[str, Any]]:
    """`(params, everything else by field name)` of a state dataclass."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return fields.pop("params"), fields


def described(tree: Any) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of every leaf by its dotted path."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): (list(x.shape), str(x.dtype)) for p, x in paths}


def differences(item: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Lines on how the saved leaves of an item differ from the wanted ones, both as `described`; none where equal."""
    prefix = "params." if item == "params" else ""
    lines = [f"{prefix}{path}: not in the checkpoint" for path in sorted(set(wanted) - set(saved))]
    lines += [f"{prefix}{path}: only in the checkpoint" for path in sorted(set(saved) - set(wanted))]
    for path in sorted(set(saved) & set(wanted)):
        (shape, dtype), (wanted_shape, wanted_dtype) = saved[path], wanted[path]
        if list(shape) != list(wanted_shape) or dtype != wanted_dtype:
            lines.append(f"{prefix}{path}: saved as {dtype}{list(shape)}, wanted {wanted_dtype}{list(wanted_shape)}")
    return lines


def mismatch(step: int, folder: epath.Path, lines: Sequence[str]) -> str:
    """The message for a checkpoint whose leaves differ in these `lines` from the wanted ones."""
    listed = "".join(f"\n  - {line}" for line in lines[:20])
    more = f"\n  - and {len(lines) - 20} more" if len(lines) > 20 else ""
    return (
        f"checkpoint {step} does not fit this configuration ({folder}):{listed}{more}\n"
        "Resume with the model, optimizer and dtypes of the run that wrote it, or start another run folder."
    )


def placed(tree: Any) -> Any:
    """Give leaves without a sharding the first local device; only one process may leave the choice open."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            assert jax.process_count() == 1, "several processes need a sharding for every leaf"
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
