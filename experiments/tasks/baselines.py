"""Scores what needs no model on the test rows of each task: copying, half of the source, one question for all rows.

Where rows have several references, each of them, too, against the others: what people reach.

    python experiments/tasks/baselines.py --data=DIR

DIR is that of run.py. A system that is no better than the question below has not read its sources.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run import TASKS

from dimba_jax.config import DataConfig
from dimba_jax.data.examples import Example
from dimba_jax.data.sources import load_split
from dimba_jax.errors import UserError
from dimba_jax.evals.report import evaluate_outputs

QUESTION = "what is the name of the ?"
BASELINES: dict[str, Callable[[str], str]] = {
    "copying the source": lambda source: source,
    "its first half": lambda source: " ".join(source.split()[: len(source.split()) // 2]),
    f'"{QUESTION}"': lambda source: QUESTION,
}
FIGURES = ("bleu", "ibleu", "rouge_l", "sari")


def table(data: str) -> str:
    """A row for each test and baseline, on all test rows."""
    rows = ["| test | baseline | BLEU | iBLEU | ROUGE-L | SARI |", "|" + "---|" * 6]
    for task in TASKS.values():
        common = replace(DataConfig(), path=data, **task.data)
        for test, differing in task.tests.items():
            examples = load_split(replace(common, **differing), "test")
            for name, write in BASELINES.items():
                found = figures(examples, [write(example.source) for example in examples])
                rows.append(row(test, name, found))
            if (count := min(len(example.targets) for example in examples)) > 1:
                rows.append(row(test, "a reference, against the others", people(examples, count)))
    return "\n".join(rows)


def row(test: str, name: str, found: dict[str, float]) -> str:
    cells = [f"{found[figure]:.4f}" if figure in found else "–" for figure in FIGURES]
    return f"| {test} | {name} | {' | '.join(cells)} |"


def figures(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
    found = evaluate_outputs(examples, [[text] for text in texts], None, network_calls=0)["systems"]["model"]
    return {name: found[name] for name in FIGURES if name in found}


def people(examples: Sequence[Example], count: int) -> dict[str, float]:
    """The mean over the first `count` references of each row, each scored against all others of its row."""
    each = []
    for place in range(count):
        others = [replace(e, targets=e.targets[:place] + e.targets[place + 1 :]) for e in examples]
        each.append(figures(others, [example.targets[place] for example in examples]))
    return {name: statistics.fmean(found[name] for found in each if name in found) for name in each[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    try:
        print(table(str(options.data)))
    except UserError as error:
        parser.error(f"--data: {error}")


if __name__ == "__main__":
    main()
