"""Prints the tables of this study from results.json.

python experiments/tasks/report.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seq2seq_tables import Line, read, runs, scores


def tables(lines: list[Line]) -> str:
    """What was trained for each task, and its scores on each of its tests."""
    parts = []
    for task in dict.fromkeys(line["task"] for line in lines):
        of_task = [line for line in lines if line["task"] == task]
        parts.append(f"{task}\n\n{runs(of_task)}")
        for test in dict.fromkeys(line["test"] for line in of_task if line["split"] == "test"):
            of_test = [line for line in of_task if line["test"] == test]
            parts.append(f"{task}, {test}\n\n{scores(of_test, 'all')}")
    return "\n\n".join(parts)


def main() -> None:
    print(tables(read(Path(__file__).parent / "results.json")))


if __name__ == "__main__":
    main()
