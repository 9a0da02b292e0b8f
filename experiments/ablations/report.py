"""Writes the tables of results.jsonl into README.md and draws them.

    python experiments/ablations/report.py --base=generated

Of several seeds the mean is shown, and half of their range.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files
from axes import BASES, RUNS
from seq2seq_tables import cell

HERE = Path(__file__).resolve().parent
Line = dict[str, Any]
COLUMNS = {"bleu": "BLEU", "ibleu": "iBLEU", "bleu_source": "BLEU-src", "rouge_l": "ROUGE-L", "length": "length"}
STEPS = "steps"


def chosen(lines: list[Line], axis: str, run: str) -> dict[str, list[Line]]:
    """A run's lines by how it was sampled; those of its seeds together."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if (line["axis"], line["run"]) == (axis, run):
            found.setdefault(label(line["sampling"]), []).append(line)
    return found


def label(sampling: Line) -> str:
    return ", ".join(f"{name} {value}" for name, value in sampling.items())


def figure(lines: list[Line], name: str, digits: int) -> str:
    if len({(line["rows"], line["step"]) for line in lines}) > 1:
        raise SystemExit(f"{lines[0]['run']}: lines of other rows or steps are no seeds of one figure")
    return cell(lines, name, f".{digits}f")


def table(lines: list[Line]) -> str:
    """Every run beside the base, sampled as its recipe does or as named."""
    heads = ["what differs from the base", "sampling", "seeds", *COLUMNS.values(), "seconds"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    axis = ""
    for run in RUNS:
        if run.axis == "sampler":  # has a table of its own
            continue
        for sampling, group in chosen(lines, run.axis, run.name).items():
            if run.axis != axis:
                axis = run.axis
                rows.append(f"| *{axis}* |" + " |" * (len(heads) - 1))
            cells = [figure(group, name, 1 if name == "length" else 3) for name in COLUMNS]
            rows.append(
                f"| {run.name} | {sampling or 'the recipe’s'} | {len(group)} | {' | '.join(cells)} "
                f"| {figure(group, 'seconds', 0)} |"
            )
    return "\n".join(rows)


def curves(lines: list[Line]) -> dict[str, dict[int, list[Line]]]:
    """The base under each sampler, by its number of steps."""
    found: dict[str, dict[int, list[Line]]] = {}
    for line in lines:
        if line["axis"] == "sampler":
            sampler = {name: value for name, value in line["sampling"].items() if name != STEPS}
            found.setdefault(label(sampler), {}).setdefault(line["sampling"][STEPS], []).append(line)
    return found


def samplers(lines: list[Line]) -> str:
    found = curves(lines)
    steps = sorted({step for curve in found.values() for step in curve})
    rows = [f"| BLEU after steps | {' | '.join(map(str, steps))} |", "|" + "---|" * (len(steps) + 1)]
    for sampler, curve in found.items():
        rows.append(f"| {sampler} | {' | '.join(figure(curve[step], 'bleu', 3) for step in steps)} |")
    return "\n".join(rows)


def draw(lines: list[Line], png: Path) -> None:
    """BLEU of every run beside the base's, and of the base under each sampler if it was sampled so."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{run.axis}: {run.name}" + (f" ({sampling})" if sampling else ""), [line["bleu"] for line in group])
        for run in RUNS
        for sampling, group in chosen(lines, run.axis, run.name).items()
        if run.axis != "sampler"
    ]
    by_sampler = curves(lines)
    picture, plots = plt.subplots(
        1, 2 if by_sampler else 1, figsize=(12 if by_sampler else 8, 0.24 * len(bars) + 1.2), layout="constrained",
        width_ratios=[3, 2] if by_sampler else [1], squeeze=False,
    )  # fmt: skip
    left = plots[0][0]
    for place, (_, values) in enumerate(bars):
        left.plot(values, [-place] * len(values), "o", color="tab:blue", markersize=4)
    left.set_yticks([-place for place in range(len(bars))], [name for name, _ in bars], fontsize=8)
    base = [line["bleu"] for line in lines if line["axis"] == "base"]
    if base:
        left.axvspan(min(base), max(base), color="tab:orange", alpha=0.3, linewidth=1)
    left.set(xlabel="BLEU, validation (orange: the base's seeds)")
    for sampler, curve in by_sampler.items():
        plots[0][1].plot(
            sorted(curve), [statistics.fmean(line["bleu"] for line in curve[step]) for step in sorted(curve)], "o-",
            markersize=4, label=sampler,
        )  # fmt: skip
    if by_sampler:
        plots[0][1].set(xscale="log", xlabel="sampling steps of the base", ylabel="BLEU, validation")
        plots[0][1].legend(frameon=False, fontsize=8)
    for plot in plots[0]:
        plot.spines[["top", "right"]].set_visible(False)
    picture.savefig(png, dpi=130)
    plt.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, required=True)
    options = parser.parse_args()
    found = result_files.read(HERE / "results.jsonl")
    lines = [line for line in found if line["base"] == options.base]
    if not lines:
        parser.error(f"results.jsonl has no lines of --base={options.base}: run.py makes them")
    others = [f"tables of {base}" for base in BASES]
    documents.put(tables(options.base, lines), documents.of(HERE), others=others)
    draw(lines, HERE / f"{options.base}.png")


def tables(base: str, lines: list[Line]) -> dict[str, str]:
    """The tables of a base's lines by the name of their place."""
    both = [table(lines), *([samplers(lines)] if curves(lines) else [])]
    return {f"tables of {base}": "\n\n".join(both)}


if __name__ == "__main__":
    main()
