"""Prints the tables of this study from results.json and draws its curves.

python experiments/qqp/report.py

A figure of several training seeds is their mean, with half of their range behind it.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = {
    "bleu": ("BLEU", ".4f"),
    "ibleu": ("iBLEU", ".4f"),
    "rouge_l": ("ROUGE-L", ".4f"),
    "bleu_source": ("BLEU-src", ".4f"),
    "dist1": ("dist-1", ".3f"),
    "self_bleu": ("self-BLEU", ".3f"),
    "div4": ("div-4", ".3f"),
    "length": ("length", ".1f"),
    "network_calls": ("calls", ".0f"),
    "sentences_per_s": ("sentences/s", ",.0f"),
}
Line = dict[str, Any]


def grouped(lines: list[Line]) -> dict[tuple[str, int], list[Line]]:
    """By system and number of samples, a line for each seed."""
    groups: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["system"], line["mbr"]), []).append(line)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0] == "copy", item[0])))


def cell(lines: list[Line], name: str, digits: str) -> str:
    """Mean over training seeds, half of the range behind it if there are several."""
    values = [line.get(name) for line in lines]
    if any(value is None for value in values):
        return "–"
    mean = format(statistics.fmean(values), digits)
    spread = (max(values) - min(values)) / 2
    return mean if len(values) == 1 or name == "network_calls" else f"{mean} ± {format(spread, digits)}"


def scores(lines: list[Line], subset: str) -> str:
    """The table of scores on the test split's rows, or on its unseen ones."""
    chosen = [line for line in lines if line["subset"] == subset and line["split"] == "test" and not line.get("curve")]
    heads = ["system", "MBR", "seeds", *(head for head, _ in FIGURES.values())]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (system, size), group in grouped(chosen).items():
        cells = [cell(group, name, digits) for name, (_, digits) in FIGURES.items()]
        if len({line["rows"] for line in group}) > 1:
            raise SystemExit(f"{system}: lines of different numbers of rows are no seeds of one figure")
        rows.append(f"| {system} | {size} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def runs(lines: list[Line]) -> str:
    """The table of what was trained for how long."""
    found = {(line["system"], line["seed"]): line for line in lines if line["system"] != "copy"}
    rows = ["| system | objective | backbone | parameters | seed | steps | minutes in all | device |", "|" + "---|" * 8]
    for (system, seed), line in sorted(found.items()):
        rows.append(
            f"| {system} | {line['objective']} | {line['backbone']} | {line['params'] / 1e6:.1f}M | {seed} "
            f"| {line['train_steps']:,} | {line['train_minutes']:.1f} | {line['device']} |"
        )
    return "\n".join(rows)


def draw(lines: list[Line], png: Path) -> None:
    """Quality against network calls, one sample, and copying as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [line for line in lines if line["subset"] == "all" and line["split"] == "test" and line["mbr"] == 1]
    copies = {line["bleu"]: line["ibleu"] for line in chosen if line["system"] == "copy"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for system in sorted({line["system"] for line in chosen if line.get("curve")}):
        curve = sorted((line for line in chosen if line["system"] == system and line.get("curve")), key=_calls)
        for name, plot in zip(("bleu", "ibleu"), axes, strict=True):
            plot.plot(
                [_calls(line) for line in curve], [line[name] for line in curve], "o-", markersize=4, label=system
            )
    for bleu, ibleu in copies.items():
        for value, plot in zip((bleu, ibleu), axes, strict=True):
            plot.axhline(value, color="grey", linestyle=":", label="copying the source")
    for name, plot in zip(("BLEU", "iBLEU"), axes, strict=True):
        plot.set(xscale="log", xlabel="network calls, one sample", ylabel=f"{name}, QQP test")
        plot.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def _calls(line: Line) -> float:
    return line["network_calls"]


def main() -> None:
    lines = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    print(f"{runs(lines)}\n")
    for subset in ("all", "unseen"):
        print(f"{subset} rows\n\n{scores(lines, subset)}\n")
    draw(lines, HERE / "calls.png")


if __name__ == "__main__":
    main()
