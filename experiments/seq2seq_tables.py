"""Tables of lines of results (`seq2seq_lines`).

A figure of several training seeds is their mean, with half of their range behind it.
"""

from __future__ import annotations

import statistics
from typing import Any

FIGURES = {
    "bleu": ("BLEU", ".4f"),
    "ibleu": ("iBLEU", ".4f"),
    "rouge_l": ("ROUGE-L", ".4f"),
    "bleu_source": ("BLEU-src", ".4f"),
    "sari": ("SARI", ".4f"),
    "dist1": ("dist-1", ".3f"),
    "self_bleu": ("self-BLEU", ".3f"),
    "div4": ("div-4", ".3f"),
    "length": ("length", ".1f"),
    "network_calls": ("calls", ".0f"),
    "sentences_per_s": ("sentences/s", ",.0f"),
}
Line = dict[str, Any]


def grouped(lines: list[Line]) -> dict[tuple[str, int, str], list[Line]]:
    """By system, number of samples and what was chosen by, a line for each seed."""
    groups: dict[tuple[str, int, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["system"], line["mbr"], line.get("gain", "bleu")), []).append(line)
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
    """The table of scores on the test split's rows, or on its unseen ones; figures that no line has are left out."""
    chosen = [line for line in lines if line["subset"] == subset and line["split"] == "test" and not line.get("curve")]
    figures = {name: how for name, how in FIGURES.items() if any(line.get(name) is not None for line in chosen)}
    heads = ["system", "MBR", "seeds", *(head for head, _ in figures.values())]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (system, size, gain), group in grouped(chosen).items():
        cells = [cell(group, name, digits) for name, (_, digits) in figures.items()]
        if len({line["rows"] for line in group}) > 1:
            raise SystemExit(f"{system}: lines of different numbers of rows are no seeds of one figure")
        of = size if gain == "bleu" else f"{size}, by {FIGURES[gain][0]}"
        rows.append(f"| {system} | {of} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def runs(lines: list[Line]) -> str:
    """The table of what was trained for how long; a line with a label's name was trained under another.

    Of two trainings with one seed it is that which the test split was scored with. The commit is that of the program
    that trained, where it is known.
    """
    trained = [line for line in lines if line["system"] != "copy" and "weights" not in line]
    trained.sort(key=lambda line: (line["split"] == "test", "gain" not in line))  # mbr.py ran no program of training
    found = {(line["system"], line["seed"]): line for line in trained}
    heads = "system | objective | backbone | parameters | seed | steps | minutes in all | device | commit"
    rows = [f"| {heads} |", "|" + "---|" * 9]
    for (system, seed), line in sorted(found.items()):
        rows.append(
            f"| {system} | {line['objective']} | {line['backbone']} | {line['params'] / 1e6:.1f}M | {seed} "
            f"| {line['train_steps']:,} | {line['train_minutes']:.1f} | {line['device']} "
            f"| {line.get('commit') or '–'} |"
        )
    return "\n".join(rows)
