"""The static schedule of a TPU program, as libtpu writes it: its loops, and the units that they use.

A TPU core runs one VLIW bundle a cycle and in order, so the bundles of a loop are its cycles, waits for memory aside.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_DELAY_SLOTS = 4  # bundles behind a branch that still run: seen in every loop of the three generations
_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(?:([A-Z]{2})\s*)?: (>*)")
_BRANCH = re.compile(r"sbr\.rel \(!?%(\w+)\) target = \$region(\d+)")
_PUSH = re.compile(r"\bvmat(?:mul|push)")
_MATRIX_UNITS = ("MXU", "MATMUL", "MATPUSH")


@dataclass(frozen=True)
class Loop:
    """One loop of a program, without what only some of its passes run (the first, or the last; see `_skipped`).

    Attributes:
        depth: 1 for the loop over the grid, 2 for loops in it, ...
        start, stop: its first bundle, and the one behind it.
        bundles: how many one pass takes; loops inside count once here.
        own: the bundles without those of the loops inside.
        trips: passes, where the schedule tells (a count from zero to a constant), else None.
        units: slots one pass uses, by unit (MXU, or MATMUL and MATPUSH, XLU, VALU, EUP, VLOAD, VSTORE, ...), loops
            inside once; VLOAD:FILL and VSTORE:SPILL are registers that did not fit.
        pushes: bundles that issue an operation of a matrix unit, of rows or of weights.
        busy: bundles in which a matrix unit is at work: one takes some eight for what a push gives it.
    """

    depth: int
    start: int
    stop: int
    bundles: int
    own: int
    trips: int | None
    units: dict[str, int]
    pushes: int
    busy: int


@dataclass(frozen=True)
class Program:
    """One kernel or fusion: libtpu's text of its bundles, and of the units that each of them uses."""

    name: str
    text: str
    usage: str

    @property
    def bundles(self) -> int:
        return len(self._units)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """In order of their ends, inner before outer; without those that only some steps of the grid enter."""
        return tuple(_loops(self.text, self._units))

    @property
    def inner(self) -> Loop:
        """The longest of the deepest loops.

        Raises:
            ValueError: the program has no loop.
        """
        if not self.loops:
            raise ValueError(f"program {self.name} of {self.bundles} bundles has no loop")
        return max(self.loops, key=lambda loop: (loop.depth, loop.bundles))

    def pass_cycles(self, depth: int = 1) -> int:
        """Cycles of one pass through the first loop at `depth`, loops inside times their trips.

        Raises:
            ValueError: there is no such loop, or trips of a loop inside are not known.
        """
        return self._cycles(self._first(depth))

    @cached_property
    def _units(self) -> list[dict[str, int]]:
        return _units(self.usage)

    @property
    def steps(self) -> int:
        """Steps of the grid. The loop over it makes two passes more, in which only copies are under way."""
        return max(1, (self._first(1).trips or 1) - 2)

    @property
    def inner_cycles(self) -> int:
        """Cycles that one step of the grid spends in the deepest of its loops (the longest of them), or in all."""
        inner = self.inner
        if inner.depth == 1:
            return inner.bundles
        around = [loop for loop in self.loops if 1 < loop.depth < inner.depth and loop.start <= inner.start < loop.stop]
        return inner.bundles * math.prod(loop.trips or 1 for loop in (inner, *around))

    def _first(self, depth: int) -> Loop:
        found = next((loop for loop in self.loops if loop.depth == depth), None)
        if found is None:
            raise ValueError(f"program {self.name} has no loop at depth {depth}")
        return found

    def _cycles(self, outer: Loop) -> int:
        total = outer.own
        for loop in self.loops:
            inside = outer.start <= loop.start and loop.stop <= outer.stop
            if inside and loop.depth == outer.depth + 1:
                if loop.trips is None:
                    raise ValueError(f"program {self.name}: the trips of the loop at bundle {loop.start} are not known")
                total += loop.trips * self._cycles(loop)
        return total


def programs_in(dump: Path) -> Iterator[Program]:
    """Read every program but the frame around the module (its name starts with "<")."""
    for file in sorted(dump.glob("*-final_bundles.txt")):
        found = re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", file.name)
        if found is None or found[1].startswith("<"):
            continue
        usage = next(dump.glob(f"{file.name.split('-')[0]}-{_escaped(found[1])}-*-final_hlo-static-per-bundle*.txt"))
        name = found[1] if "fusion" in found[1] else re.sub(r"\.\d+$", "", found[1])
        yield Program(name, file.read_text(), usage.read_text())


def _escaped(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _units(text: str) -> list[dict[str, int]]:
    """Slots used by each bundle, by unit."""
    lines = text.splitlines()
    names = next(line for line in lines if ", XLU, " in line).split(", ")
    start = next(i for i, line in enumerate(lines) if "UTILIZATION:" in line) + 1
    return [dict(zip(names, map(int, line.split()), strict=True)) for line in lines[start:] if line.strip()]


def _loops(text: str, units: list[dict[str, int]]) -> Iterator[Loop]:
    found = list(_jumps_back(text))
    skipped = _skipped(text, found)
    pushes = {address for address, line in _bundles(text) if _PUSH.search(line)}
    for depth, start, stop, trips in found:
        if start in skipped:
            continue
        kept = [address for address in range(start, stop) if address not in skipped]
        inside: set[int] = set()
        for other_depth, first, last, _ in found:
            if other_depth == depth + 1 and start <= first and last <= stop:
                inside.update(range(first, last))
        used: Counter[str] = Counter()
        for address in kept:
            used.update(units[address])
        yield Loop(
            depth,
            start,
            stop,
            len(kept),
            sum(address not in inside for address in kept),
            trips,
            {unit: count for unit, count in used.items() if count},
            sum(address in pushes for address in kept),
            sum(any(units[address].get(unit) for unit in _MATRIX_UNITS) for address in kept),
        )


def _bundles(text: str) -> Iterator[tuple[int, str]]:
    """Every line of the schedule behind the first bundle, with the address of its bundle."""
    address = -1
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        address = int(bundle[1], 16) if bundle else address
        if address >= 0:
            yield address, line


def _jumps_back(text: str) -> Iterator[tuple[int, int, int, int | None]]:
    """Depth, first bundle, the one behind, and trips of every loop."""
    headers: dict[str, tuple[int, int]] = {}  # region: depth, first bundle
    header: tuple[int, int] | None = None
    for address, line in _bundles(text):
        bundle = _BUNDLE.match(line)
        if bundle:
            header = (len(bundle[3]), address) if bundle[2] == "LB" else None
        if header:
            headers |= {region: header for region in re.findall(r"Start region (\d+)", line)}
        for predicate, region in _BRANCH.findall(line):
            if region in headers:  # backwards: a loop ends
                depth, start = headers[region]
                yield depth, start, address + 1 + _DELAY_SLOTS, _trips(text, predicate, address)


def _skipped(text: str, loops: list[tuple[int, int, int, int | None]]) -> set[int]:
    """The bundles that branches forward jump over within the body of the loop over the grid.

    Mosaic jumps over the body itself in the steps before the first and behind the last, in which only copies are under
    way: a jump over more than half of the loop.
    """
    starts: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for address, line in _bundles(text):
        starts |= {region: address for region in re.findall(r"Start(?:/End empty)? region (\d+)", line)}
        branches += [(address, region) for _, region in _BRANCH.findall(line)]
    jumps = [(branch + 1 + _DELAY_SLOTS, starts.get(region, -1)) for branch, region in branches]
    grid = next(((start, stop) for depth, start, stop, _ in loops if depth == 1), None)
    if grid is None:
        return set()
    within = [(first, last) for first, last in jumps if grid[0] <= first < last <= grid[1]]
    body = max(within, key=lambda jump: jump[1] - jump[0], default=grid)
    if 2 * (body[1] - body[0]) < grid[1] - grid[0]:
        body = grid
    inside = [jump for jump in within if jump != body and body[0] <= jump[0] and jump[1] <= body[1]]
    return {address for first, last in inside for address in range(first, last)}


def _trips(text: str, predicate: str, branch: int) -> int | None:
    """Passes of a counter from zero that the last comparison before the branch ends."""
    before: list[str] = []
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        if bundle and int(bundle[1], 16) > branch:
            break
        before.append(line)
    schedule = "\n".join(before)
    ends = re.findall(rf"%{predicate} = scmp\.ge\.s32\.totalorder %(\w+), (\d+)", schedule)
    if not ends:
        return None
    counter, stop = ends[-1]
    steps = re.findall(rf"%{counter} = sadd\.s32 (\d+), ", schedule)
    return -(-int(stop) // int(steps[-1])) if steps else None
