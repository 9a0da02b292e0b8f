"""What a function compiles to for a TPU, on a machine without one: memory, and the static schedule of its loops.

    compiled = compile_for("v5e", function, *shapes)
    compiled.kernel("my_kernel").inner.bundles

libtpu (the `tpu` extra, any Linux machine) holds the real Mosaic and XLA compilers, which refuse here what they would
refuse on the machine: a layout, too much VMEM. A TPU core runs one VLIW bundle a cycle and in order, so the bundles
of a loop are its cycles, waits for memory aside. libtpu writes the final bundles of every program into a directory
that it is told of when it is loaded: `compile_for` must come before anything else touches libtpu in a process.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

GENERATIONS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_DELAY_SLOTS = 4  # bundles behind a branch that still run: seen in every loop of the three generations
_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(?:([A-Z]{2})\s*)?: (>*)")


@dataclass(frozen=True)
class Loop:
    """One loop of a program.

    Attributes:
        depth: 1 for the loop over the grid, 2 for loops in it, ...
        start, bundles: first bundle, and how many one pass takes; loops inside count once here.
        own: the bundles without those of the loops inside.
        trips: passes, where the schedule tells (a count from zero to a constant), else None.
        units: slots one pass uses, by unit (MXU, or MATMUL and MATPUSH, XLU, VALU, EUP, VLOAD, VSTORE, ...), loops
            inside once; VLOAD:FILL and VSTORE:SPILL are registers that did not fit.
    """

    depth: int
    start: int
    bundles: int
    own: int
    trips: int | None
    units: dict[str, int]


@dataclass(frozen=True)
class Program:
    """One kernel or fusion: libtpu's text of its bundles, and of the units that each of them uses."""

    name: str
    text: str
    usage: str

    @property
    def bundles(self) -> int:
        return len(_units(self.usage))

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """In order of their ends, inner before outer."""
        return tuple(_loops(self.text, _units(self.usage)))

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
        around = [
            loop
            for loop in self.loops
            if 1 < loop.depth < inner.depth and loop.start <= inner.start < loop.start + loop.bundles
        ]
        return inner.bundles * math.prod(loop.trips or 1 for loop in (inner, *around))

    def _first(self, depth: int) -> Loop:
        found = next((loop for loop in self.loops if loop.depth == depth), None)
        if found is None:
            raise ValueError(f"program {self.name} has no loop at depth {depth}")
        return found

    def _cycles(self, outer: Loop) -> int:
        total = outer.own
        for loop in self.loops:
            inside = outer.start <= loop.start and loop.start + loop.bundles <= outer.start + outer.bundles
            if inside and loop.depth == outer.depth + 1:
                if loop.trips is None:
                    raise ValueError(f"program {self.name}: the trips of the loop at bundle {loop.start} are not known")
                total += loop.trips * self._cycles(loop)
        return total


@dataclass(frozen=True)
class Compiled:
    """hlo: the optimised module. memory: bytes (argument, output, temp, ...). xla_cycles: the compiler's estimates
    for its own fusions and copies, loops times their trips; kernels count zero there."""

    generation: str
    hlo: str
    memory: Any
    programs: dict[str, Program]

    def kernel(self, name: str) -> Program:
        """The one program whose name contains that of a `pallas_call`; under a gradient JAX writes more around it.

        Raises:
            ValueError: there is none, or more than one.
        """
        found = [program for key, program in self.programs.items() if name in key]
        if len(found) != 1:
            raise ValueError(f"{name!r} is in the names of {len(found)} programs of {', '.join(self.programs)}")
        return found[0]

    @property
    def kernels(self) -> tuple[Program, ...]:
        """The programs that are Pallas kernels."""
        calls = re.findall(r'%([\w.-]+) = .* custom_call_target="tpu_custom_call"', self.hlo)
        return tuple(self.programs[name] for name in dict.fromkeys(re.sub(r"\.\d+$", "", call) for call in calls))

    @property
    def xla_cycles(self) -> int:
        return _estimate(self.hlo)

    @property
    def copies(self) -> int:
        """Instructions outside kernels that move data: what a layout that does not fit costs."""
        entry = self.hlo[self.hlo.index("\nENTRY") :]
        return len(re.findall(r"^\s+(?:ROOT )?%[\w.-]+ = \S.* (?:copy|transpose|fusion|pad|slice)\(", entry, re.M))


def compile_for(generation: str, function: Callable[..., Any], *shapes: Any, **options: Any) -> Compiled:
    """Compile `function` for one core of a TPU and read its schedule.

    Args:
        generation: "v5e", "v5p" or "v6e".
        shapes: of its positional arguments, arrays or `jax.ShapeDtypeStruct`, in trees.
        options: of `jax.jit`, such as donate_argnums.

    Raises:
        ValueError: an unknown generation.
        RuntimeError: libtpu was loaded before this function could ask it for schedules.
        jax.errors.JaxRuntimeError and Mosaic's own errors: the function does not compile.
    """
    mesh = _mesh(generation)
    dump = _dump_directory()
    shutil.rmtree(dump, ignore_errors=True)
    dump.mkdir()
    # a kernel is refused by the automatic partitioner, which runs even for one device
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False, axis_names=frozenset(("core",))
    )
    compiled = jax.jit(mapped, **options).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    programs = {program.name: program for program in _programs(dump)}
    if not programs:
        raise RuntimeError("libtpu wrote no schedule: it was loaded before `compile_for` could ask for them")
    return Compiled(generation, compiled.as_text() or "", compiled.memory_analysis(), programs)


@cache
def _dump_directory() -> Path:
    """Where libtpu writes; the first call tells it so, through the environment it reads when it is loaded."""
    root = Path(tempfile.mkdtemp(prefix="dimba_tpu_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    flags = f"--xla_jf_dump_to={root / 'llo'} --xla_jf_dump_llo_text=true"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
    # no machine to ask what it is, and no other process to be kept off a chip
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (quiet | {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_STDERR_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(name, value)
    return root / "llo"


@cache
def _mesh(generation: str) -> jax.sharding.Mesh:
    if generation not in GENERATIONS:
        raise ValueError(f"TPU generation {generation!r} is unknown; pass one of {', '.join(GENERATIONS)}")
    _dump_directory()
    topology = topologies.get_topology_desc(GENERATIONS[generation], platform="tpu")
    return jax.sharding.Mesh(np.array(topology.devices[:1]), ("core",))


def _programs(dump: Path) -> Iterator[Program]:
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
    headers: dict[str, tuple[int, int]] = {}  # region: depth, first bundle
    found: list[tuple[int, int, int, int | None]] = []
    header: tuple[int, int] | None = None
    address = 0
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        if bundle:
            address = int(bundle[1], 16)
            header = (len(bundle[3]), address) if bundle[2] == "LB" else None
        if header:
            headers |= {region: header for region in re.findall(r"Start region (\d+)", line)}
        for predicate, region in re.findall(r"sbr\.rel \(!?%(\w+)\) target = \$region(\d+)", line):
            if region in headers:  # backwards: a loop ends
                depth, start = headers[region]
                found.append((depth, start, address + 1 + _DELAY_SLOTS, _trips(text, predicate, address)))
    for depth, start, stop, trips in found:
        inside = [other for other in found if other[0] == depth + 1 and start <= other[1] and other[2] <= stop]
        own = stop - start - sum(other[2] - other[1] for other in inside)
        used: Counter[str] = Counter()
        for bundle_units in units[start:stop]:
            used.update(bundle_units)
        yield Loop(depth, start, stop - start, own, trips, {unit: count for unit, count in used.items() if count})


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


def _estimate(hlo: str) -> int:
    """Sum of the `estimated_cycles` that the compiler wrote behind each instruction, from the entry down."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name and line.startswith("  "):
            bodies[name].append(line)

    def cycles(computation: str) -> int:
        total = 0
        for line in bodies[computation]:
            own = re.search(r'"estimated_cycles":"(\d+)"', line)
            total += int(own[1]) if own else 0
            loop = re.search(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)", line)
            if loop:
                total += trips(line, loop[1]) * cycles(loop[2])
        return total

    def trips(line: str, condition: str) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        bounds = re.findall(r" constant\((\d+)\)", "\n".join(bodies[condition]))
        if known is None and not bounds:
            raise ValueError(f"the trips of the loop with condition {condition} are not known")
        return int(known[1]) if known else max(map(int, bounds))

    return cycles(entry)
