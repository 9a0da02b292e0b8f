"""Gathers the runs of this study, writes the tables of README.md and draws its curves.

python experiments/masked_lm/report.py --runs=runs/masked_lm    # reads the runs first, all of a text
python experiments/masked_lm/report.py                          # of what stands in results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
TEXTS = {"wikitext2": "WikiText-2", "shakespeare": "tinyshakespeare, bytes"}
SYSTEMS = {"": "DiffuMamba", "h": "DiffuMamba-H", "tran": "DiffuTran", "ar": "AR Transformer", "ar-mamba": "AR Mamba-2"}


def gather(runs: Path) -> list[dict]:
    """What each workdir says of its run: curve, speed, and the likelihood of the validation text."""
    found = []
    for recipe in TEXTS:
        for variant in SYSTEMS:
            workdir = runs / f"{recipe}-{variant}".removesuffix("-")
            if not (workdir / "metrics.jsonl").exists():
                continue
            config = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["config"]
            lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            trained = [line for line in lines if "loss" in line]
            row = {
                "recipe": recipe,
                "variant": variant,
                "steps": trained[-1]["step"],
                "steps_of_schedule": config["training"]["steps"],
                "tokens_a_step": config["training"]["batch_size"] * config["data"]["target_length"],
                "tokens_per_s": sorted(line["tokens_per_s"] for line in trained if "tokens_per_s" in line)[
                    len(trained) // 2
                ],
                "valid": [[line["step"], line["valid_loss"]] for line in lines if "valid_loss" in line],
                "train": [[line["step"], line["loss"]] for line in trained],
            }
            report = workdir / "likelihood.json"
            if report.exists():
                scored = json.loads(report.read_text(encoding="utf-8"))
                (text,) = scored["texts"]
                row["steps"] = scored["metadata"]["step"]
                row["likelihood"] = text["model"][0]
                row["baselines"] = text["baselines"]
            found.append(row)
    if not found:
        raise SystemExit(f"{runs} has no run of this study: run.sh makes them")
    return found


def table(rows: list[dict], recipe: str) -> str:
    """The systems on one text, as Markdown: the last checkpoint's figures, and the least of the curve."""
    lines = [
        "| system | steps | million tokens | last: nats/token | PPL | bits/byte | least of the curve, at step |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["recipe"] != recipe:
            continue
        final = row["likelihood"]
        step, least = min(row["valid"], key=lambda point: point[1])
        cut = "" if row["steps"] == row["steps_of_schedule"] else f" of {row['steps_of_schedule']:,}"
        error = f" ± {final['nats_per_token_se']:.3f}" if final["nats_per_token_se"] else ""
        lines.append(
            f"| {SYSTEMS[row['variant']]} | {row['steps']:,}{cut} "
            f"| {row['steps'] * row['tokens_a_step'] / 1e6:.0f} | {final['nats_per_token']:.3f}{error} "
            f"| {final['ppl']:.2f} | {final['bits_per_byte']:.3f} | {least:.3f}, {step:,} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], png: Path) -> None:
    """Validation loss over training tokens, one panel a text."""
    recipes = [recipe for recipe in TEXTS if any(row["recipe"] == recipe for row in rows)]
    figure, panels = plt.subplots(1, len(recipes), figsize=(5.2 * len(recipes), 4.0), layout="constrained")
    for axes, recipe in zip(panels if len(recipes) > 1 else [panels], recipes, strict=True):
        for row in rows:
            if row["recipe"] == recipe:
                tokens = [step * row["tokens_a_step"] / 1e6 for step, _ in row["valid"]]
                axes.plot(tokens, [loss for _, loss in row["valid"]], "o-", markersize=3, label=SYSTEMS[row["variant"]])
        axes.set(title=TEXTS[recipe], xlabel="million training tokens", ylabel="validation, nats a token")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(png, dpi=130)


def tables() -> dict[str, str]:
    """A table for each text, which names its place."""
    rows = result_files.read(RESULTS)
    return {name: table(rows, recipe) for recipe, name in TEXTS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder that run.sh wrote into")
    runs = parser.parse_args().runs
    if runs is not None:
        found = gather(runs)
        anew = {row["recipe"] for row in found}
        kept = [row for row in result_files.read(RESULTS) if row["recipe"] not in anew] if RESULTS.exists() else []
        rows = sorted([*kept, *found], key=lambda row: list(TEXTS).index(row["recipe"]))
        RESULTS.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    documents.put(tables(), documents.of(HERE))
    draw(result_files.read(RESULTS), HERE / "curves.png")


if __name__ == "__main__":
    main()
