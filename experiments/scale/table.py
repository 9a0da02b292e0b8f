"""Prints the tables of README.md from results.jsonl.

python experiments/scale/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
CHIPS = {"v5e:16x16": "v5e-256", "v5p:8x8x8": "v5p-512", "v6e:16x16": "v6e-256"}
HEAD = (
    "size", "L", "slice", "mesh", "HBM GiB", "free", "state GiB", "PFLOPs", "HBM GB", "sent GB",
    "roofline ms", "no overlap", "compiler ms", "bound", "utilisation",
)  # fmt: skip

Row = dict[str, Any]


def main() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: (row["part"] == "sample", list(CHIPS).index(row["topology"]), row["name"], row["length"]))
    for part, title in (("train", "Training step"), ("sample", "One step of denoising")):
        of_part = [row for row in rows if row["part"] == part]
        best = {id(found) for found in _best(of_part)}
        print(f"{title}, the best mesh of each cell:\n")
        _print([row for row in of_part if id(row) in best])
        others = [row for row in of_part if id(row) not in best]
        if others:
            print(f"\n{title}, other meshes:\n")
            _print(others)
        print()


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


def _print(rows: list[Row]) -> None:
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for row in rows:
        print("| " + " | ".join(_cells(row)) + " |")


def _cells(row: Row) -> list[str]:
    mesh = " × ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
    name = row["name"].removeprefix("diffumamba_").replace("_", "-")
    state = sum(size for kind, size in row["kinds"].items() if kind in ("parameters", "average", "moments"))
    head = [name, f"{row['length']:,}", CHIPS[row["topology"]], mesh]
    if not row["fits"]:
        return [*head, "does not fit", "", f"{state / 2**30:.2f}", *[""] * (len(HEAD) - 7)]
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
    ]


if __name__ == "__main__":
    main()
