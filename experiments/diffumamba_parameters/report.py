"""Counts the parameters of configs/diffumamba.py beside the paper's, and tries the readings of its hybrid's layout.

    PYTHONPATH=.:kernels JAX_PLATFORMS=cpu python experiments/diffumamba_parameters/report.py

Nothing is trained and no weight is made: shapes suffice. Writes results.json and the tables of README.md.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from dimba_jax.config import RunConfig
from dimba_jax.models.build import abstract_denoiser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import documents  # noqa: E402
from recipe_files import recipe  # noqa: E402

HERE = Path(__file__).parent
Results = dict[str, Any]
SIZES = ("240m", "500m", "1b3")
TWINS = {"tran": "DiffuTran", "": "DiffuMamba", "h": "DiffuMamba-H"}
VOCABULARY = 50_304  # GPT-2's, padded: what the paper's tables count with
# Billions, as the paper prints them: the names of its sizes, and at the smallest one the two Mamba models
PAPER = {"tran": {"240m": 0.24, "500m": 0.5, "1b3": 1.3}, "": {"240m": 0.29}, "h": {"240m": 0.26}}
LAYOUTS = {
    "every 5th layer": ("attention",) + ("mamba2",) * 4,
    "one per five Mamba blocks": ("attention",) + ("mamba2",) * 5,
}


def parts(config: RunConfig) -> dict[str, int]:
    """Parameters by what they belong to, and their sum."""
    _, state = abstract_denoiser(config, VOCABULARY)
    found = dict.fromkeys(("embeddings", "mixers", "mlps", "modulation", "norms"), 0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        size = math.prod(leaf.shape)
        if {"modulation", "time"} & set(names):
            found["modulation"] += size
        elif "mixer" in names:
            found["mixers"] += size
        elif "mlp" in names:
            found["mlps"] += size
        elif {"table", "head"} & set(names):
            found["embeddings"] += size
        else:
            found["norms"] += size
    return found | {"total": sum(found.values())}


def counted() -> Results:
    """Counts of every size, and what the smallest one would have under each reading of the hybrid's layout."""
    variants = recipe("diffumamba").VARIANTS
    counts = {}
    for size in SIZES:
        for twin in TWINS:
            name = f"{size}-{twin}".removesuffix("-")
            counts[name] = parts(variants[name])
    readings = []
    for layers in (24, 12):
        small = {twin: _resized(variants[f"240m-{twin}".removesuffix("-")], layers) for twin in TWINS}
        tran, mamba = (parts(small[twin])["total"] for twin in ("tran", ""))
        for layout, pattern in LAYOUTS.items():
            for ratio in (2.0, 4.0):
                model = replace(small["h"].model, pattern=pattern, attention_mlp_ratio=ratio)
                hybrid = parts(replace(small["h"], model=model))["total"]
                reading = {"layers": layers, "attention": layout, "mlp_ratio": ratio}
                readings.append(reading | {"tran": tran, "mamba": mamba, "h": hybrid})
    return {"vocabulary": VOCABULARY, "counts": counts, "readings_of_240m": readings}


def tables(results: Results) -> dict[str, str]:
    """The tables of this study by the names of their places."""
    counts = ["| size | system | embeddings | mixers | MLPs | modulation | all | paper |", "|" + "---|" * 8]
    for size in SIZES:
        for twin in TWINS:
            found = results["counts"][f"{size}-{twin}".removesuffix("-")]
            cells = [_millions(found[key]) for key in ("embeddings", "mixers", "mlps", "modulation", "total")]
            paper = PAPER[twin].get(size)
            counts.append(f"| {size} | {TWINS[twin]} | {' | '.join(cells)} | {f'{paper:g}B' if paper else '–'} |")
    readings = ["| layers | attention | MLP ratio beside it | Tran | Mamba | H | prints as .24 / .29 / .26 |"]
    readings.append("|" + "---|" * 7)
    for found in results["readings_of_240m"]:
        numbers = [found[key] for key in ("tran", "mamba", "h")]
        cells = [str(found["layers"]), found["attention"], f"{found['mlp_ratio']:g}", *map(_millions, numbers)]
        fits = [_prints_as(number, paper) for number, paper in zip(numbers, (0.24, 0.29, 0.26), strict=True)]
        readings.append(f"| {' | '.join(cells)} | {' / '.join('yes' if fit else 'no' for fit in fits)} |")
    return {"parameters": "\n".join(counts), "readings of the hybrid": "\n".join(readings)}


def main() -> None:
    results = counted()
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    documents.put(tables(results), documents.of(HERE))


def _resized(config: RunConfig, layers: int) -> RunConfig:
    return replace(config, model=replace(config.model, layers=layers))


def _prints_as(count: int, billions: float) -> bool:
    """Whether a count, rounded to hundredths of a billion, is the paper's figure."""
    return round(count / 1e9, 2) == billions


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


if __name__ == "__main__":
    main()
