"""Prints the tables of this study from results.json and sampling.jsonl and draws its curves.

    python experiments/qqp/report.py

sampling.jsonl holds lines of experiments/sweep.py with the system and its seed: what was tried on the validation split.
"""

from __future__ import annotations

import json
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
    from matplotlib.ticker import ScalarFormatter

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
        plot.set(xlabel="network calls, one sample", ylabel=f"{name}, QQP test")
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter(ScalarFormatter())
        plot.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def sampling(lines: list[Line]) -> str:
    """What sampling settings gave on the validation split, a table of the settings that differ."""
    names = ("score", "end_bias", "temperature", "score_noise", "num_samples")
    figures = ("model.bleu", "model.ibleu", "model.length", "model_mbr10.bleu", "model_mbr10.ibleu")
    heads = ("system", *names, "BLEU", "iBLEU", "length", "BLEU, MBR 10", "iBLEU, MBR 10")
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for line in lines:
        settings = (str(line[name]) for name in names)
        found = (format(line[name], ".1f" if "length" in name else ".4f") if name in line else "–" for name in figures)
        rows.append(f"| {' | '.join((line['system'], *settings, *found))} |")
    return "\n".join(rows)


def _calls(line: Line) -> float:
    return line["network_calls"]


def main() -> None:
    lines = read(HERE / "results.json")
    print(f"{runs(lines)}\n")
    for subset in ("all", "unseen"):
        print(f"{subset} rows\n\n{scores(lines, subset)}\n")
    tried = (HERE / "sampling.jsonl").read_text(encoding="utf-8").splitlines()
    print(f"{sampling([json.loads(line) for line in tried])}\n")
    draw(lines, HERE / "calls.png")


if __name__ == "__main__":
    main()
