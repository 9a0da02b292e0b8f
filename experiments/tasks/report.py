"""Writes the tables of README.md from results.json.

python experiments/tasks/report.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files
from seq2seq_tables import Line, runs, scores

HERE = Path(__file__).parent


def tables(lines: list[Line]) -> dict[str, str]:
    """What was trained for each task, and its scores on each of its tests, by the name of the table's place."""
    found = {}
    for task in dict.fromkeys(line["task"] for line in lines):
        of_task = [line for line in lines if line["task"] == task]
        found[f"trainings for {task}"] = runs(of_task)
        for test in dict.fromkeys(line["test"] for line in of_task if line["split"] == "test"):
            of_test = [line for line in of_task if line["test"] == test]
            found[f"{task}, {test}"] = scores(of_test, "all")
    return found


def main() -> None:
    documents.put(tables(result_files.read(HERE / "results.json")), documents.of(HERE))


if __name__ == "__main__":
    main()
