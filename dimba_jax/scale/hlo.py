"""A compiled program as text: its instructions, and how often each of them runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
FUSIONS = ("fusion", "fusion-start")
_REDUCERS = ("reduce", "all-reduce", "reduce-scatter", "scatter", "sort", "reduce-window", "select-and-scatter", "map")


@dataclass(frozen=True)
class Array:
    """One array of a shape. on_chip: it lies in a TPU's vector memory, not in HBM."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        if self.dtype in ("pred", "token"):
            return self.elements * (self.dtype == "pred")
        bits = re.search(r"\d+", self.dtype)
        return self.elements * int(bits[0]) / 8 if bits else 0


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    line: str
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Its results."""
        return arrays_in(self.shape)

    def attribute(self, name: str) -> str | None:
        """The text behind `name=`, up to a comma or a blank."""
        found = re.search(rf"[ ,]{name}=([^, ]+)", self.line)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        """Where JAX made it, such as jit(step)/while/body/dot_general; empty for what the compiler added."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""


class Computation(dict[str, Instruction]):
    """The instructions of one computation by their names, in their order."""

    @cached_property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.values() if instruction.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        found = [made for made in self.values() if made.opcode == "parameter"]
        return {int(made.line.partition(" parameter(")[2].partition(")")[0]): made for made in found}

    @cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """Of each value, the instructions that take it."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found


@dataclass(frozen=True)
class Run:
    """An instruction where it runs. times: in one call of the program. loops: the trips of the loops around it."""

    instruction: Instruction
    computation: Computation
    computation_name: str
    times: int
    loops: tuple[int, ...]
    fused: bool

    def operand(self, place: int) -> Instruction:
        return self.computation[self.instruction.operands[place]]

    @property
    def operand_arrays(self) -> tuple[Array, ...]:
        return tuple(array for name in self.instruction.operands for array in self.computation[name].arrays)


class Module:
    """An optimised module. Raises ValueError if the text is none."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        found = re.search(r"num_partitions=(\d+)", text[:100_000])
        self.partitions = int(found[1]) if found else 1
        current: Computation | None = None
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                current = self.computations[head[2]] = Computation()
                self.entry = head[2] if head[1] else self.entry
            elif current is not None and (made := _instruction(line)) is not None:
                current[made.name] = made
        if not self.entry:
            raise ValueError("this is no text of a compiled program: it has no ENTRY")

    def called(self, fusion: Instruction) -> Computation:
        """The computation inside a fusion."""
        return self.computations[(fusion.attribute("calls") or "").lstrip("%")]

    def runs(self) -> Iterator[Run]:
        """Every instruction, in the order of the program; those of loops once, with the times that they run.

        All branches of a conditional count as run. A loop whose trips are not a number in the program counts once.
        """
        yield from self._runs(self.entry, 1, (), False)

    def _runs(self, name: str, times: int, loops: tuple[int, ...], fused: bool) -> Iterator[Run]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield Run(instruction, computation, name, times, loops, fused)
            if instruction.opcode in _REDUCERS or instruction.opcode == "custom-call":
                continue
            trips = self._trips(instruction) if instruction.opcode == "while" else 1
            inner = (*loops, trips) if instruction.opcode == "while" else loops
            called = _CALLED.findall(_without_metadata(instruction.line))
            for branches in _BRANCHES.findall(instruction.line):
                called += re.findall(r"%?([\w.-]+)", branches)
            for callee in called:
                if callee in self.computations:
                    yield from self._runs(callee, times * trips, inner, fused or instruction.opcode in FUSIONS)

    def _trips(self, loop: Instruction) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition").lstrip("%")]  # type: ignore[union-attr]
        bounds = [
            int(found[1])
            for instruction in condition.values()
            if instruction.opcode == "constant" and instruction.arrays and instruction.arrays[0].dtype in ("s32", "u32")
            if (found := re.search(r" constant\((\d+)\)", instruction.line))
        ]
        return max(bounds, default=1)


def arrays_in(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape as HLO writes it, of a tuple all of them."""
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in (layout or ""))
        for dtype, sizes, layout in _ARRAY.findall(shape)
    )


def _instruction(line: str) -> Instruction | None:
    start = _NAME.match(line)
    if start is None:
        return None
    rest = line[start.end() :]
    shape = rest[: _closing(rest)] if rest.startswith("(") else rest.split(" ", 1)[0]
    rest = rest[len(shape) :].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    inside = rest[len(opcode) :]
    operands = re.findall(r"%([\w.-]+)", inside[: _closing(inside)])
    return Instruction(start[2], opcode, shape, tuple(operands), line, bool(start[1]))


def _closing(text: str) -> int:
    """Where the bracket that opens `text` is closed, the bracket included."""
    depth = 0
    for bracket in re.finditer(r"[()]", text):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.end()
    return len(text)


def _without_metadata(line: str) -> str:
    return line.partition(", metadata=")[0]
