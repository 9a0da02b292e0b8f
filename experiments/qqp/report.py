"""Writes the tables of this study's documents, and that of the project's front page, and draws its curves.

    python experiments/qqp/report.py

results.json holds the lines of run.py and mbr.py; sampling.jsonl and padding_apart.jsonl those of experiments/sweep.py
(or the figures of `evaluate` or of run.py in their form), with the system's name (and in sampling.jsonl its seed) in
place of the checkpoint's: what was tried on the validation split, of the systems scored, of a shorter training and of a
small one. choices.jsonl holds the lines of choices.py, differences.jsonl those of differences.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import front_page
import result_files
from sampling_settings import DEFAULTS
from seq2seq_tables import FIGURES, Line, runs, scores

HERE = Path(__file__).parent
TRIED = {
    "model.bleu": "BLEU",
    "model.ibleu": "iBLEU",
    "model.length": "length",
    "model_mbr10.bleu": "BLEU, MBR 10",
    "model_mbr10.ibleu": "iBLEU, MBR 10",
}

TOGETHER = {  # systems whose settings of sampling stand in one table
    f"DiffuMamba-H, {change}": "variants of DiffuMamba-H"
    for change in ("d 768", "6,000 steps, dropout .05", "dropout .2")
} | {"DiffuTran equal time": "DiffuTran"}


def curves(lines: list[Line]) -> dict[tuple[str, int], list[Line]]:
    """Lines of one sample by system and seed, ordered by steps; those with a single number of steps are left out."""
    found: dict[tuple[str, int], list[Line]] = {}
    for line in sorted((line for line in lines if line.get("curve")), key=lambda line: line["steps"]):
        found.setdefault((line["system"], line["seed"]), []).append(line)
    return {name: curve for name, curve in sorted(found.items()) if len(curve) > 1}


def draw(lines: list[Line], png: Path) -> None:
    """Quality against network calls, one sample, and copying as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    chosen = [line for line in lines if line["subset"] == "all" and line["split"] == "test" and line["mbr"] == 1]
    copies = {line["bleu"]: line["ibleu"] for line in chosen if line["system"] == "copy"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (system, seed), curve in curves(chosen).items():
        for name, plot in zip(("bleu", "ibleu"), axes, strict=True):
            values = [line[name] for line in curve]
            plot.plot([_calls(line) for line in curve], values, "o-", markersize=4, label=f"{system}, seed {seed}")
    for bleu, ibleu in copies.items():
        for value, plot in zip((bleu, ibleu), axes, strict=True):
            plot.axhline(value, color="black", linestyle=":", label="copying the source")
    for name, plot in zip(("BLEU", "iBLEU"), axes, strict=True):
        plot.set(xlabel="network calls, one sample", ylabel=f"{name}, QQP test")
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter(ScalarFormatter())
        plot.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def seeds(lines: list[Line]) -> str:
    """Of systems with several training seeds each seed's BLEU and iBLEU on the test rows, one sample and MBR."""
    test = [line for line in lines if line["split"] == "test" and not line.get("curve") and "gain" not in line]
    figures = {(line["system"], line["seed"], line["mbr"], line["subset"]): line for line in test if "seed" in line}
    trained = sorted({name[:2] for name in figures}, key=lambda name: (name[0], str(name[1])))
    several = [name for name in trained if [other for other, _ in trained].count(name[0]) > 1]
    shown = [(mbr, subset) for subset in ("all", "unseen") for mbr in (1, 10)]
    heads = [
        f"{head}{', MBR 10' * (k > 1)}{', unseen' * (s == 'unseen')}" for k, s in shown for head in ("BLEU", "iBLEU")
    ]
    rows = [f"| system | seed | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    for system, seed in several:
        found = [figures.get((system, seed, *which)) for which in shown]
        cells = [f"{line[name]:.4f}" if line else "–" for line in found for name in ("bleu", "ibleu")]
        rows.append(f"| {system} | {seed} | {' | '.join(cells)} |")
    return "\n".join(rows)


def calls(lines: list[Line]) -> str:
    """Quality and speed of one sample against network calls, on all test rows."""
    chosen = [line for line in lines if line.get("curve") and line["split"] == "test"]
    unseen = {(line["system"], line["seed"], line["steps"]): line for line in chosen if line["subset"] == "unseen"}
    heads = (
        "system | seed | steps | calls | BLEU | iBLEU | BLEU-src | dist-1 | length | sentences/s | BLEU, unseen rows"
    )
    rows = [f"| {heads} |", "|" + "---|" * 11]
    figures = {
        name: FIGURES[name][1] for name in ("bleu", "ibleu", "bleu_source", "dist1", "length", "sentences_per_s")
    }
    every = [line for line in chosen if line["subset"] == "all"]
    for line in sorted(every, key=lambda one: (one["system"], one["seed"], one["steps"])):
        other = unseen[line["system"], line["seed"], line["steps"]]
        cells = ["–" if line[name] is None else format(line[name], how) for name, how in figures.items()]
        names = f"{line['system']} | {line['seed']} | {line['steps']} | {_calls(line):.0f}"
        rows.append(f"| {names} | {' | '.join(cells)} | {other['bleu']:.4f} |")
    return "\n".join(rows)


def sampling(lines: list[Line]) -> str:
    """What sampling settings gave on the validation split: a column for each setting that a line names.

    And one for the seed of training, where there are several.
    """
    settings = [name for name in DEFAULTS if any(name in line for line in lines) and name != "batch_size"]
    if len({line.get("seed") for line in lines}) > 1:
        settings.insert(0, "seed")
    figures = {name: head for name, head in TRIED.items() if any(name in line for line in lines)}
    rows = [
        f"| {' | '.join(('system', *settings, *figures.values()))} |",
        "|" + "---|" * (1 + len(settings) + len(figures)),
    ]
    for line in lines:
        cells = [str(line.get(name, "–")) for name in settings]
        for name in figures:
            cells.append(format(line[name], ".1f" if "length" in name else ".4f") if name in line else "–")
        rows.append(f"| {' | '.join((line.get('system', line.get('checkpoint')), *cells))} |")
    return "\n".join(rows)


def choices(lines: list[Line]) -> str:
    """What was chosen by BLEU and by iBLEU among the same samples, and what that is worth beside choosing by BLEU."""
    figures = {name: FIGURES[name] for name in ("bleu", "ibleu", "bleu_source", "self_bleu")}
    heads = ["samples of", "chosen by", *(head for head, _ in figures.values()), "more BLEU", "more iBLEU"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for line in lines:
        cells = [" + ".join(line["samples_of"]), FIGURES[line["gain"]][0]]
        cells += [format(line[name], how) for name, (_, how) in figures.items()]
        for name in ("bleu", "ibleu"):
            more, error = line[f"{name}_more"], line[f"{name}_error"]
            cells.append("–" if more == error == 0 else f"{more:+.4f} ± {error:.4f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def differences(lines: list[Line]) -> str:
    """How much more one system's texts have than another's, row by row; lines of the same two stand together."""
    pairs = list(dict.fromkeys(_pair(line) for line in lines))
    figures = {name: FIGURES[name][0] for name in ("bleu", "ibleu", "bleu_source")}
    heads = ["system", "than", "split", "rows", "MBR", *(f"more {head}" for head in figures.values())]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for line in sorted(lines, key=lambda one: pairs.index(_pair(one))):
        mbr = str(line["mbr"]) if line["gain"] == "bleu" else f"{line['mbr']}, by {FIGURES[line['gain']][0]}"
        cells = [f"{line[f'{name}_more']:+.4f} ± {line[f'{name}_error']:.4f}" for name in figures]
        where = [line["split"], f"{line['subset']} {line['rows']:,}", mbr]
        rows.append(f"| {' | '.join([*_pair(line), *where, *cells])} |")
    return "\n".join(rows)


def _pair(line: Line) -> tuple[str, ...]:
    both = (("system", "seeds"), ("than", "than_seeds"))
    seeds = {name: ", ".join(map(str, line[of])) for name, of in both}
    return tuple(f"{line[name]}, seed{'s' * (len(line[of]) > 1)} {seeds[name]}" for name, of in both)


def _calls(line: Line) -> float:
    return line["network_calls"]


def tables() -> dict[str, str]:
    """Every table of this study by the name of its place."""
    lines = result_files.read(HERE / "results.json")
    found = {
        "trainings": runs(lines),
        "all test rows": scores(lines, "all"),
        "unseen test rows": scores(lines, "unseen"),
        "seeds": seeds(lines),
        "network calls": calls(lines),
        "choices": choices(result_files.read(HERE / "choices.jsonl")),
        "differences": differences(result_files.read(HERE / "differences.jsonl")),
    }
    for name in ("sampling.jsonl", "padding_apart.jsonl"):
        tried = result_files.read(HERE / name)
        for system in dict.fromkeys(TOGETHER.get(line["system"], line["system"]) for line in tried):
            found[f"tried: {system}"] = sampling(
                [one for one in tried if system in (one["system"], TOGETHER.get(one["system"]))]
            )
    return found


def main() -> None:
    lines = result_files.read(HERE / "results.json")
    of_front_page = {front_page.NAME: front_page.table(lines)}  # before anything is written: it may be refused
    documents.put(tables(), documents.of(HERE))
    documents.put(of_front_page, [front_page.README], front_page.SCRIPT)
    draw(lines, HERE / "calls.png")


if __name__ == "__main__":
    main()
