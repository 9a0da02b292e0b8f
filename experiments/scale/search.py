"""Compiles DiffuMamba's training and sampling steps for whole slices of TPUs, mesh after mesh, and adds what they take
to results.jsonl.

    python experiments/scale/search.py [--only=1b3] [--topology=v5e] [--parts=train] [--workers=2] [--again]

What results.jsonl holds already is not compiled again, so that a search that was stopped goes on; with --again, what it
holds of this commit. Every program is compiled in a process of its own: minutes for each on two cores. `table.py` makes
the tables, of several lines for one program from the last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

ONLY = flags.DEFINE_list("only", None, "variants of configs/diffumamba.py; all unless given")
TOPOLOGY = flags.DEFINE_list("topology", None, "parts of the names of topologies; all unless given")
LENGTH = flags.DEFINE_list("length", None, "lengths of rows; all unless given")
PARTS = flags.DEFINE_list("parts", ["train"], "train, sample or both")
AGAIN = flags.DEFINE_bool("again", False, "compile what was compiled at other commits again")
WORKERS = flags.DEFINE_integer("workers", 2, "compilers at a time")

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
REPOSITORY = HERE.parents[1]
TOKENS = 512 * 1024  # of a batch, as in the paper, whatever the length of its rows
AXES = ("data", "fsdp", "tensor", "sequence")


class Cell(NamedTuple):
    variant: str
    topology: str
    length: int
    mesh: tuple[int, int, int, int]
    remat: str = "dots"

    @property
    def rows(self) -> int:
        return TOKENS // self.length


# (data, fsdp, tensor, sequence); the first is the one tried first
MESHES = {
    ("v5e:16x16", 1024): ((16, 16, 1, 1), (1, 256, 1, 1), (32, 8, 1, 1), (16, 8, 2, 1)),
    ("v5e:16x16", 8192): ((4, 16, 1, 4), (8, 8, 1, 4)),
    ("v5e:16x16", 65536): ((1, 8, 1, 32),),
    ("v6e:16x16", 1024): ((16, 16, 1, 1), (32, 8, 1, 1)),
    ("v6e:16x16", 8192): ((4, 16, 1, 4),),
    ("v6e:16x16", 65536): ((1, 8, 1, 32),),
    ("v5p:8x8x8", 1024): ((32, 16, 1, 1), (64, 8, 1, 1)),
    ("v5p:8x8x8", 8192): ((4, 16, 1, 8),),
    ("v5p:8x8x8", 65536): ((1, 8, 1, 64),),
}
SIZES = ("1b3", "240m", "500m")
TWINS = tuple(f"{size}{twin}" for size in SIZES for twin in ("-h", "-tran"))


def cells() -> Iterator[Cell]:
    """All there are to compile: for every cell of the table its first mesh, then the twins, then the other meshes."""
    for (topology, length), meshes in MESHES.items():
        yield from (Cell(size, topology, length, meshes[0]) for size in SIZES)
    for (topology, length), meshes in MESHES.items():
        if length == 1024:  # what attention keeps of its layers with "dots" is too much for a v5e
            yield from (Cell(twin, topology, length, meshes[0], remat) for twin in TWINS for remat in ("full", "dots"))
    for (topology, length), meshes in MESHES.items():
        yield from (Cell(size, topology, length, mesh) for size in SIZES for mesh in meshes[1:])


def done(commit: str | None) -> set[tuple]:
    """What was compiled, at this commit if one is given."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {identity(row) for row in rows if commit is None or row["commit"] == commit}


def identity(row: dict) -> tuple:
    mesh = tuple(row["mesh"][axis] for axis in AXES)
    return row["name"], row["topology"], row["length"], mesh, row["remat"], row["part"]


def command(cell: Cell, part: str) -> list[str]:
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in zip(AXES, cell.mesh, strict=True)]
    return [
        sys.executable, "-m", "dimba_jax.aot", f"--config={REPOSITORY / 'configs/diffumamba.py'}:{cell.variant}",
        f"--topology={cell.topology}", *mesh, f"--config.training.batch_size={cell.rows}",
        f"--config.sampling.batch_size={cell.rows}", f"--config.data.target_length={cell.length}",
        f"--config.model.remat={cell.remat}", f"--parts={part}", f"--output={RESULTS}",
    ]  # fmt: skip


def compile_one(cell: Cell, part: str) -> None:
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command(cell, part), env=environment, capture_output=True, text=True)
    print(done.stdout or f"{cell} {part}: {done.stderr[-2000:]}", flush=True)


def main(argv: list[str]) -> None:
    del argv
    sys.path.insert(0, str(REPOSITORY))
    from dimba_jax.aot import program

    known = done(program() if AGAIN.value else None)
    todo = [
        (cell, part)
        for cell in cells()
        for part in PARTS.value
        if ONLY.value is None or cell.variant in ONLY.value
        if TOPOLOGY.value is None or any(name in cell.topology for name in TOPOLOGY.value)
        if LENGTH.value is None or str(cell.length) in LENGTH.value
        if (name_of(cell.variant), cell.topology, cell.length, cell.mesh, cell.remat, part) not in known
    ]
    print(f"{len(todo)} programs to compile, {len(known)} are in {RESULTS.name}", flush=True)
    with ThreadPoolExecutor(WORKERS.value) as pool:
        for result in [pool.submit(compile_one, *job) for job in todo]:
            result.result()


def name_of(variant: str) -> str:
    """The name that a recipe's config has."""
    sys.path.insert(0, str(REPOSITORY / "configs"))
    from diffumamba import VARIANTS

    return VARIANTS[variant].name


if __name__ == "__main__":
    app.run(main)
