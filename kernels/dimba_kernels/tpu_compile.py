"""What a function compiles to for a TPU, on a machine without one: memory, and the static schedule of its kernels.

    compiled = compile_for("v5e", function, *shapes)
    compiled.kernel("my_kernel").inner.bundles

libtpu (the `tpu` extra, any Linux machine) holds the real Mosaic and XLA compilers, which refuse here what they would
refuse on the machine: a layout, too much VMEM. It writes the schedule of every program (`tpu_schedule`) into a
directory that it is told of when it is loaded: `compile_for` must come before anything else touches libtpu in a
process.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from dimba_kernels.tpu_schedule import Program, programs_in

GENERATIONS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


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
    def kernel_bytes(self) -> int:
        """Of all arrays that the kernels read and write, each once a kernel."""
        calls = [line for line in self.hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
        operands = (line.split("operand_layout_constraints={")[1].split("}, frontend")[0] for line in calls)
        return sum(_size(line.split(" custom-call(")[0]) for line in calls) + sum(map(_size, operands))

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
    programs = {program.name: program for program in programs_in(dump)}
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
    return root / "llo"


def topology(name: str) -> topologies.TopologyDescription:
    """The devices of a TPU slice such as "v5e:16x16", to compile for and nothing else.

    Raises:
        RuntimeError and jax.errors.JaxRuntimeError: libtpu is not installed, or knows no such slice.
    """
    # no machine to ask what it is, and no other process to be kept off a chip
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for variable, value in (quiet | {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_STDERR_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(variable, value)
    return topologies.get_topology_desc(name, platform="tpu")


@cache
def _mesh(generation: str) -> jax.sharding.Mesh:
    if generation not in GENERATIONS:
        raise ValueError(f"TPU generation {generation!r} is unknown; pass one of {', '.join(GENERATIONS)}")
    _dump_directory()
    return jax.sharding.Mesh(np.array(topology(GENERATIONS[generation]).devices[:1]), ("core",))


def _size(shapes: str) -> int:
    """Bytes of arrays as HLO writes them: bf16[8,2048]{1,0} and the like."""
    found = re.findall(r"\b(?:f|bf|s|u)(8|16|32|64)\[([\d,]*)\]", shapes)
    return sum(int(bits) // 8 * math.prod(int(n) for n in size.split(",") if n) for bits, size in found)


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
