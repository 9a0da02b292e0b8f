"""Writes the tables of README.md from results.json and draws the curves of curves.json.

python experiments/qqp_gaussian/report.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files

HERE = Path(__file__).parent
COLUMNS = ("bleu", "rouge_l", "ibleu", "bleu_source", "dist1", "self_bleu", "div4", "length", "network_calls")


def table(rows: list[dict], subset: str) -> str:
    """A Markdown table of the rows of a subset."""
    lines = [
        "| system | MBR | BLEU | ROUGE-L | iBLEU | BLEU-src | dist-1 | self-BLEU | div-4 | length | calls |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["subset"] != subset:
            continue
        cells = [format(row["mbr"], "d")]
        for name in COLUMNS:
            value = row[name]
            digits = {"length": ".1f", "network_calls": ".0f"}.get(name, ".4f")
            cells.append("–" if value is None else format(value, digits))
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(curves: dict[str, dict[str, list[float]]], png: Path) -> None:
    """Training loss, and validation loss as dots, over steps."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for name, curve in curves.items():
        (line,) = axes.plot(curve["step"], curve["loss"], label=name, linewidth=1.4)
        axes.plot(curve["valid_step"], curve["valid_loss"], "o", color=line.get_color(), markersize=3.5)
    axes.set(xlabel="step", ylabel="cross-entropy, nats a position", ylim=(0.5, 2.2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="line: training, dots: validation")
    figure.savefig(png, dpi=130)


def tables() -> dict[str, str]:
    """The tables of this study by the names of their places."""
    rows = result_files.read(HERE / "results.json")
    return {f"{subset} test rows": table(rows, subset) for subset in ("all", "unseen")}


def main() -> None:
    documents.put(tables(), documents.of(HERE))
    draw(result_files.read(HERE / "curves.json"), HERE / "loss.png")


if __name__ == "__main__":
    main()
