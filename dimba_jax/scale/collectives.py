"""What devices of a compiled program send each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dimba_jax.scale.hlo import Instruction, Module, Run

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    size: bytes of the whole array on a device: what is gathered, reduced, scattered or passed on. shapes: of what a
    device brings. ways: the devices of a group. times: in one call of the program. loops: the trips of the loops around
    it. origin: where JAX made it.
    """

    kind: str
    size: float
    shapes: tuple[tuple[int, ...], ...]
    ways: int
    times: int
    loops: tuple[int, ...]
    origin: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one call of the program, by the best algorithms there are."""
        if self.kind == "collective-permute":
            return self.times * self.size
        rounds = 2 if self.kind == "all-reduce" else 1
        return self.times * rounds * self.size * (self.ways - 1) / self.ways


def collectives(module: Module) -> list[Collective]:
    """All of them, asynchronous ones once.

    XLA:TPU writes a reduce-scatter as a fusion of an all-reduce, and repeats a gather that runs beside other work in
    every fusion of its chain.
    """
    found, chains = [], set()
    for run in module.runs():
        kind = run.instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        chain = re.search(r'chain_id="(\d+)"', run.instruction.line)
        if chain is not None:
            if (kind, chain[1]) in chains:
                continue
            chains.add((kind, chain[1]))
        if kind == "all-reduce" and run.computation_name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        ways = 2 if kind == "collective-permute" else _ways(run.instruction, module.partitions)
        if ways > 1:
            found.append(_collective(run, kind, ways))
    return found


def _collective(run: Run, kind: str, ways: int) -> Collective:
    arrays = run.operand_arrays
    whole = ways if kind == "all-gather" else 1
    return Collective(
        kind=kind,
        size=whole * sum(array.bytes for array in arrays),
        shapes=tuple(array.sizes for array in arrays),
        ways=ways,
        times=run.times,
        loops=run.loops,
        origin=run.instruction.op_name,
    )


def _ways(instruction: Instruction, partitions: int) -> int:
    """Devices of a group: lists of them, an iota, or axes of a mesh."""
    text = instruction.line.partition("replica_groups=")[2]
    if text.startswith("mesh["):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", text[: text.index("]")]))
        named = re.search(r"\{('[^}]*)\}", text)
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[1]) if named else []
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    iota = re.match(r"\[\d+,(\d+)\]<=", text)
    if iota:
        return int(iota[1])
    listed = re.match(r"\{\{([\d,]*)\}", text)
    if listed and listed[1]:
        return listed[1].count(",") + 1
    return partitions


def stacks_gathered(found: Iterable[Collective], repeats: int, stacks: Sequence[int]) -> list[Collective]:
    """The gathers outside of the scan over layers that are of parameters of all layers at once.

    Args:
      repeats: trips of the scan over layers.
      stacks: elements of the stacked parameters that lie in parts.
    """

    def is_stack(shape: tuple[int, ...], ways: int) -> bool:
        whole = ways * math.prod(shape)
        padded = repeats in shape and any(stack <= whole <= 1.1 * stack for stack in stacks)
        return whole in stacks or padded

    return [
        gather
        for gather in found
        if gather.kind == "all-gather" and repeats not in gather.loops
        if any(is_stack(shape, gather.ways) for shape in gather.shapes)
    ]
