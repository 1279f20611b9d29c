"""Collective operations of a compiled program, read from its HLO text: how many, and how many bytes a device receives.

XLA's CPU and TPU compilers write a reduce-scatter as an all-reduce whose result is sliced, and the TPU compiler an
all-gather as an all-reduce of a device's part written into zeros. Both are counted as what they are.

An operation is hidden where the device computes while it runs: where XLA starts it and waits for it later, or fuses it
with a product. The others stop the device. The TPU compiler also spreads one over several fusions, each of which holds
the operation again under the name of its chain: together they are one.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
LARGEST = 2**63 - 1
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
PASSED_ON = ("get-tuple-element", "bitcast", "copy", "convert", "transpose", "reshape")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO text."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str


Computation = dict[str, Instruction]


class Program:
    """Computations of a compiled program."""

    def __init__(self, text: str, num_devices: int):
        self.num_devices, self.entry = num_devices, ""
        self.computations: dict[str, Computation] = {}
        self._known_users: dict[str, dict[str, list[Instruction]]] = {}
        name = ""
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head is not None:
                name = head[2]
                self.entry = name if head[1] else self.entry
                self.computations[name] = {}
            elif name and (instruction := _parse(line)) is not None:
                self.computations[name][instruction.name] = instruction

    def collectives(self, chunks: int) -> dict[str, dict[str, float]]:
        """Operations and gigabytes received by a device in one run, and those hidden, by kind and group size.

        The body of a loop counts as often as it runs; a loop without a fixed count (that over chunks of the loss) runs
        `chunks` times.
        """
        found: dict[str, dict[str, float]] = collections.defaultdict(
            lambda: {"operations": 0, "gigabytes": 0.0, "hidden_gigabytes": 0.0}
        )
        chains: set[tuple[str, str]] = set()
        for name, instruction, times, fused in self.runs(chunks):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or (group := self._group(instruction)) == 1:
                continue
            if (chain := _chain(instruction)) is not None:
                if chain in chains:
                    continue
                chains.add(chain)
            kind = self._meaning(kind, name, instruction, group)
            received = _received(kind, instruction, group) * times / 1e9
            total = found[f"{kind} over {group}"]
            total["operations"] += times
            total["gigabytes"] += received
            total["hidden_gigabytes"] += received if fused or instruction.opcode.endswith("-start") else 0.0
        return {key: found[key] for key in sorted(found)}

    def cycles(self, chunks: int) -> float:
        """Cycles of a device by the compiler's own estimates, which it gives for its fusions; 0 where it gives none.

        Kernels that are no part of XLA, such as attention, and collective operations have none; nor have fusions whose
        estimate is the largest number that there is, which is how the compiler writes that it has none.
        """
        estimates = re.compile(r'"estimated_cycles":"?(\d+)')
        each = ((estimates.search(instruction.line), times) for _, instruction, times, _ in self.runs(chunks))
        return float(sum(int(found[1]) * times for found, times in each if found and int(found[1]) != LARGEST))

    def runs(self, chunks: int) -> Iterator[tuple[str, Instruction, int, bool]]:
        """Every instruction with its computation, how often it runs, and whether it is part of a fusion."""

        def visit(name: str, times: int, fused: bool) -> Iterator[tuple[str, Instruction, int, bool]]:
            for instruction in self.computations[name].values():
                yield name, instruction, times, fused
                if instruction.opcode.removesuffix("-start") in KINDS:
                    continue  # it calls the sum of two numbers
                inside = fused or instruction.opcode in ("fusion", "async-start")
                for role, called in called_by(instruction):
                    often = times * (self.trips(instruction) or chunks) if role == "body" else times
                    if called in self.computations and role != "condition":
                        yield from visit(called, often, inside)

        yield from visit(self.entry, 1, False)

    def trips(self, loop: Instruction) -> int | None:
        """Turns of a loop, if its condition compares with a constant."""
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.line)
        if known is not None:
            return int(known[1])
        condition = next(called for role, called in called_by(loop) if role == "condition")
        limits = [re.search(r" s32\[\]\S* constant\((\d+)\)", x.line) for x in self.computations[condition].values()]
        found = [int(limit[1]) for limit in limits if limit is not None]
        return found[0] if len(found) == 1 else None

    def _group(self, instruction: Instruction) -> int:
        """Devices that take part in one instance of the operation."""
        axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", instruction.line)
        if axes is not None:
            sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", axes[1])}
            return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes[2]))
        listed = re.search(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})", instruction.line)
        if listed is None:
            return self.num_devices
        return int(listed[1]) if listed[1] else len(listed[2].split(","))

    def _meaning(self, kind: str, computation: str, instruction: Instruction, group: int) -> str:
        if kind != "all-reduce" or max(sizes_of(instruction.type)) < 4 * group:
            return kind
        if all("dynamic-update-slice" in name for name in instruction.operands):
            return "all-gather"
        return "reduce-scatter" if self._only_sliced(computation, instruction.name) else kind

    def _only_sliced(self, computation: str, name: str) -> bool:
        """Whether nothing uses more than a slice of a result."""
        users = self._users(computation).get(name, [])
        return bool(users) and all(self._slices(computation, user, name) for user in users)

    def _slices(self, computation: str, user: Instruction, name: str) -> bool:
        if user.opcode in PASSED_ON:
            small = max(sizes_of(user.type), default=0) < 1e6  # norms travel in the same operation as large gradients
            return (small and user.opcode == "get-tuple-element") or self._only_sliced(computation, user.name)
        if user.opcode == "fusion":
            inside = next(called for role, called in called_by(user) if role == "calls")
            places = [i for i, operand in enumerate(user.operands) if operand == name]
            wanted = {f"parameter({i})" for i in places}
            inner = [x.name for x in self.computations[inside].values() if any(text in x.line for text in wanted)]
            return all(self._only_sliced(inside, parameter) for parameter in inner)
        return user.opcode == "dynamic-slice"

    def _users(self, computation: str) -> dict[str, list[Instruction]]:
        if computation not in self._known_users:
            users = self._known_users[computation] = collections.defaultdict(list)
            for instruction in self.computations[computation].values():
                for operand in set(instruction.operands):
                    users[operand].append(instruction)
        return self._known_users[computation]


def _parse(line: str) -> Instruction | None:
    match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$", line)
    if match is None:
        return None
    depth, end = 1, 0
    while depth and end < len(match[4]):
        depth += {"(": 1, ")": -1}.get(match[4][end], 0)
        end += 1
    operands = re.findall(r"%([\w.\-]+)", match[4][:end])
    return Instruction(match[1], match[2], match[3], tuple(operands), line)


def _chain(instruction: Instruction) -> tuple[str, str] | None:
    """Name of the operation that this is a part of; None: it stands alone."""
    channel, chain = (re.search(text, instruction.line) for text in (r"channel_id=(\d+)", r'chain_id="(\w+)"'))
    return None if channel is None or chain is None else (channel[1], chain[1])


def called_by(instruction: Instruction) -> list[tuple[str, str]]:
    """(role, computation) of the computations that an instruction runs, such as a loop's body and condition."""
    roles = re.findall(r"\b(body|condition|calls|to_apply|branch_computations)=(\{[^}]*\}|%[\w.\-]+)", instruction.line)
    return [(role, name) for role, names in roles for name in re.findall(r"%([\w.\-]+)", names)]


def sizes_of(text: str) -> list[int]:
    """Bytes of every array in a type."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    return [WIDTHS[kind] * math.prod(int(n) for n in filter(None, dims.split(","))) for kind, dims in arrays]


def _received(kind: str, instruction: Instruction, group: int) -> float:
    """Bytes that a device receives, by ring algorithms."""
    sizes = sizes_of(instruction.type)
    if instruction.opcode == "all-gather-start":  # its type holds operands, then results
        sizes = sizes[len(sizes) // 2 :]
    elif instruction.opcode == "collective-permute-start":
        sizes = sizes[1:2]
    whole, others = sum(sizes), (group - 1) / group
    match kind:
        case "all-reduce":
            return 2 * whole * others
        case "reduce-scatter" if instruction.opcode.startswith("reduce-scatter"):
            return whole * (group - 1)
        case "collective-permute":
            return whole
    return whole * others
