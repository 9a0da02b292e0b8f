"""Lines of a study's results.json, and what tells one from another.

A line is one system's figures on all rows of a split, or on those unseen in training, with one number of samples. One
that is measured again takes the place of the line before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = ("bleu", "rouge_l", "ibleu", "bleu_source", "dist1", "div4", "self_bleu", "length")
# of a line; not all studies have all
IDENTITY = ("task", "test", "system", "split", "subset", "mbr", "gain", "seed", "curve")
Line = dict[str, Any]


def lines_of(
    report: Line, sizes: Sequence[int], common: Line, a_second: float | None, gain: str = "bleu"
) -> list[Line]:
    """A line for each subset of rows and number of samples, and those of copying the source.

    Args:
      gain: what was chosen by among several samples; lines name it unless it is BLEU.
    """
    from dimba_jax.evals.report import system_name

    lines = []
    for subset, systems in (("all", report["systems"]), ("unseen", report["unseen"])):
        count = report["rows"] if subset == "all" else report["unseen_rows"]
        if not count:  # of the validation split, which models were chosen on, none is unseen
            continue
        for size in sizes:
            figures = systems[system_name(size, gain)]
            line = common | {"subset": subset, "rows": count, "mbr": size, "network_calls": figures["network_calls"]}
            line |= scores(figures) | {"sentences_per_s": a_second if size == 1 else None}
            line |= {} if gain == "bleu" else {"gain": gain}
            lines.append(line)
        copied = {name: common[name] for name in ("task", "test", "split") if name in common}
        copied |= {"system": "copy", "subset": subset, "rows": count, "mbr": 1, "network_calls": 0}
        lines.append(copied | scores(systems["copy"]))
    return lines


def scores(figures: Line) -> Line:
    return {name: figures[name] for name in (*FIGURES, "sari") if name in figures}


def check_label(results: Path, label: str | None, line: Line) -> None:
    """All lines of a label are of one system, of equally many networks that write together in the same way.

    Args:
      line: `weights`, the system; `seed`, with a + between those of several networks; and then `together`, which is
        "distributions" (their mean) or "samples" (of each in turn).

    Raises:
      SystemExit: the file of results has other lines of this name, or a line of one of these networks beside others.
    """
    for known in json.loads(results.read_text(encoding="utf-8")) if label and results.exists() else []:
        if known["system"] != label:
            continue
        if _shape(known) != _shape(line):
            raise SystemExit(f"--label={label}: {results} has other lines of this name; take another")
        shared = sorted(_networks(known) & _networks(line))
        if shared and _networks(known) != _networks(line):
            raise SystemExit(
                f"--label={label} has a line of the networks {known['seed']}, and {' and '.join(shared)} cannot be in "
                "another: lines of a label are seeds of one figure; take seeds beside those"
            )


def _networks(line: Line) -> set[str]:
    return set(str(line["seed"]).split("+"))


def _shape(line: Line) -> tuple[Any, ...]:
    return line.get("weights"), line.get("together"), len(_networks(line))


def key(line: Line) -> tuple[Any, ...]:
    """What a line is the figure of: one set of sampling settings, "sampling" where they are not the recipe's."""
    steps = line.get("steps") if line.get("curve") else None  # a curve has a line for each number of them
    return steps, *(line.get(name) for name in IDENTITY)


def keep(path: Path, lines: Sequence[Line]) -> None:
    """Puts lines into a file of results."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {key(line): line for line in known} | {key(line): line for line in lines}
    rows = sorted(found.values(), key=lambda line: json.dumps(key(line), default=str))
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
