"""Prints the tables of this study from results.json and draws its curves.

python experiments/qqp/report.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seq2seq_tables import Line, read, runs, scores

HERE = Path(__file__).parent


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
    lines = read(HERE / "results.json")
    print(f"{runs(lines)}\n")
    for subset in ("all", "unseen"):
        print(f"{subset} rows\n\n{scores(lines, subset)}\n")
    draw(lines, HERE / "calls.png")


if __name__ == "__main__":
    main()
