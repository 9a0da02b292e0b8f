"""Scores what needs no model on the test rows of each task: copying, half of the source, one question for all rows.

    python experiments/tasks/baselines.py --data=DIR

DIR is that of run.py. A system that is no better than the question below has not read its sources.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run import TASKS

from dimba_jax.config import DataConfig
from dimba_jax.data.sources import load_split
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
        common = dataclasses.replace(DataConfig(), path=data, **task.data)
        for test, differing in task.tests.items():
            examples = load_split(dataclasses.replace(common, **differing), "test")
            for name, write in BASELINES.items():
                texts = [[write(example.source)] for example in examples]
                found = evaluate_outputs(examples, texts, None, network_calls=0)["systems"]["model"]
                cells = [f"{found[figure]:.4f}" if figure in found else "–" for figure in FIGURES]
                rows.append(f"| {test} | {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data={options.data}: no such folder")
    print(table(str(options.data)))


if __name__ == "__main__":
    main()
