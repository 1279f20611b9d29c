"""Tensors that hold the matrices of all experts, seen as the tensors of one expert each."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from jaxtune.hf.safetensors import DTYPES, Entry

JOINED = {".mlp.experts.gate_up_proj": ("gate_proj", "up_proj"), ".mlp.experts.down_proj": ("down_proj",)}
"""End of the name of a tensor [experts, outputs, inputs] -> the matrices that lie one after the other in an expert."""


def apart(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries by name, with experts.0.gate_proj.weight and so on in the place of each joined tensor.

    Nothing is read: the rows of a matrix lie side by side in the file. What has another shape stays as it is.
    """
    found = {}
    for name, entry in entries.items():
        end = next((end for end in JOINED if name.endswith(end)), None)
        matrices = () if end is None else JOINED[end]
        if matrices and len(entry.shape) == 3 and entry.shape[1] % len(matrices) == 0 and entry.dtype in DTYPES:
            found.update(_parts(entry, name.rsplit(".", 1)[0], matrices))
        else:
            found[name] = entry
    return found


def _parts(entry: Entry, module: str, matrices: tuple[str, ...]) -> Iterator[tuple[str, Entry]]:
    experts, outputs, inputs = entry.shape
    shape = (outputs // len(matrices), inputs)
    each = math.prod(shape) * DTYPES[entry.dtype].itemsize
    for number in range(experts * len(matrices)):
        expert, matrix = divmod(number, len(matrices))
        start = entry.start + number * each
        yield f"{module}.{expert}.{matrices[matrix]}.weight", dataclasses.replace(entry, shape=shape, start=start)
