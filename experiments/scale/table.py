"""Writes the tables of README.md from results.jsonl and gpus.jsonl.

python experiments/scale/table.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files
from search import identity

HERE = Path(__file__).parent
ON_A_GPU = HERE.parent / "throughput" / "training.jsonl"
CHIPS = {"v5e:16x16": "v5e-256", "v5p:8x8x8": "v5p-512", "v6e:16x16": "v6e-256"}
HEAD = (
    "size", "L", "slice", "mesh", "HBM GiB", "free", "state GiB", "PFLOPs", "HBM GB", "sent GB",
    "roofline ms", "no overlap", "compiler ms", "bound", "utilisation", "commit",
)  # fmt: skip
OF_GPUS = (
    "size", "L", "rows", "GPUs", "layers", "GiB a GPU", "planned there", "free", "state GiB", "TFLOPs", "HBM GB",
    "sent GB", "commit",
)  # fmt: skip

Row = dict[str, Any]


def tables() -> dict[str, str]:
    """A table of the best mesh of each cell and one of the others, of training and of sampling."""
    lines = result_files.read(HERE / "results.jsonl")
    rows = list({identity(row): row for row in lines}.values())  # of several the last
    rows.sort(key=lambda row: (list(CHIPS).index(row["topology"]), row["name"], row["length"]))
    found = {}
    for part in ("train", "sample"):
        of_part = [row for row in rows if row["part"] == part]
        best = {id(chosen) for chosen in _best(of_part)}
        found[f"{part}, best meshes"] = _table([row for row in of_part if id(row) in best])
        others = [row for row in of_part if id(row) not in best]
        if others:
            found[f"{part}, other meshes"] = _table(others)
    rows = list({_gpu_run(row): row for row in result_files.read(HERE / "gpus.jsonl")}.values())
    trained = {_trained(line): line for line in result_files.read(ON_A_GPU)}
    return found | {"GPUs of a host": _gpus(rows, trained)}


def main() -> None:
    documents.put(tables(), documents.of(HERE), "table.py")


def _best(rows: list[Row]) -> list[Row]:
    """Of each cell the mesh of the shortest step by the compiler's estimate, or its links if they take longer."""
    cells: dict[tuple, Row] = {}
    for row in rows:
        cell = row["name"], row["topology"], row["length"]
        if cell not in cells or _seconds(row) < _seconds(cells[cell]):
            cells[cell] = row
    return list(cells.values())


def _seconds(row: Row) -> float:
    return max(row["scheduled_seconds"], row["seconds"]["links"]) if row["fits"] else float("inf")


def _table(rows: list[Row]) -> str:
    head = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join(head + ["| " + " | ".join(_cells(row)) + " |" for row in rows])


def _gpus(rows: list[Row], trained: dict[tuple, Row]) -> str:
    """Training steps compiled for H200s, and what was planned for the same step on one (experiments/throughput)."""
    lines = ["| " + " | ".join(OF_GPUS) + " |", "|" + "---|" * len(OF_GPUS)]
    for row in rows:
        name, length, count, devices, scanned = _gpu_run(row)
        there = trained.get((f"{name} remat={row['remat']}{'' if scanned else ' unroll'}", count, length, devices))
        cells = [
            name, f"{length:,}", count, devices, "scanned" if scanned else "unrolled",
            f"{row['hbm_needed'] / 2**30:.2f}",
            "–" if there is None else f"{there['peak_bytes'] / 2**30:.2f}",
            f"{row['free']:.0%}",
            f"{sum(row['kinds'][kind] for kind in ('parameters', 'average', 'moments')) / 2**30:.2f}",
            f"{row['matmul_flops'] / 1e12:.1f}", f"{row['bytes'] / 1e9:.0f}", f"{row['sent'] / 1e9:.1f}", row["commit"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _gpu_run(row: Row) -> tuple[str, int, int, int, bool]:
    name = row["name"].removeprefix("diffumamba_").replace("_", "-")
    return name, row["length"], row["rows"], int(row["topology"].partition(":")[2]), row["stacks_gathered"] is not None


def _trained(line: Row) -> tuple[str, int, int, int]:
    return line["run"], line["rows"], line["length"], line["devices"]


def _cells(row: Row) -> list[str]:
    mesh = " × ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
    name = row["name"].removeprefix("diffumamba_").replace("_", "-")
    mesh += "" if row["remat"] == "dots" else f", remat {row['remat']}"
    state = sum(size for kind, size in row["kinds"].items() if kind in ("parameters", "average", "moments"))
    head = [name, f"{row['length']:,}", CHIPS[row["topology"]], mesh]
    if not row["fits"]:
        refused = f"{row['hbm_needed'] / 2**30:.2f} of temporaries"
        return [*head, refused, "does not fit", f"{state / 2**30:.2f}", *[""] * (len(HEAD) - 8), row["commit"]]
    utilisation = [f"{100 * row[key]:.0f}" for key in ("utilisation", "utilisation_apart", "utilisation_scheduled")]
    milliseconds = [f"{1e3 * row[key]:.1f}" for key in ("step_seconds", "step_seconds_apart", "scheduled_seconds")]
    return [
        *head,
        f"{row['hbm_needed'] / 2**30:.2f}",
        f"{row['free']:.0%}",
        f"{state / 2**30:.2f}",
        f"{(row['matmul_flops'] + row['kernel_flops']) / 1e15:.4f}",
        f"{row['bytes'] / 1e9:.1f}",
        f"{row['sent'] / 1e9:.2f}",
        *milliseconds,
        row["bound"],
        " / ".join(utilisation) + "%",
        row["commit"],
    ]


if __name__ == "__main__":
    main()
