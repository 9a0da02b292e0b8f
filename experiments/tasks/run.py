"""Trains systems on question generation and simplification and scores them, a line of results.json each.

    python experiments/tasks/run.py --data=DIR --work=runs --task=simplification --system=DIMBA

DIR holds folders: qg_squad with nqg_dev.jsonl and nqg_test.jsonl (SQuAD's sentences and questions as Du et al. 2017 cut
them), quasar_t with DiffuSeq's valid.jsonl, simplification with asset_valid.jsonl (ASSET's 2,000 sentences, ten
references each). The flags, and what is kept in a workdir, are those of experiments/qqp/run.py. Settings of sampling
are to be chosen on the validation rows named below, by experiments/sweep.py or with --split=valid, and the test rows
scored once with them, as --config.sampling flags.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipe_files import recipe
from seq2seq import System, parse, parser, score, train


class Task(NamedTuple):
    systems: dict[str, System]
    folder: str  # of DIR, with the recipe's files
    tests: dict[str, dict[str, Any]]  # by name, what differs from `data`

    @property
    def data(self) -> dict[str, Any]:
        """Settings of config.data: the recipe's files, as they lie in DIR."""
        name, _, variant = self.systems["DIMBA"].recipe.partition(":")
        files = recipe(name).get_config(variant).data
        data = {key: f"{self.folder}/{files[key]}" for key in ("valid_file", "test_file")}
        return data | {"train_files": tuple(f"{self.folder}/{file}" for file in files.train_files)}


def systems(recipe: str) -> dict[str, System]:
    return {
        "DIMBA": System(recipe, "gaussian", "Mamba-2"),
        "DiffuMamba": System(f"{recipe}-masked", "masked", "Mamba-2"),
        "DiffuMamba-H": System(f"{recipe}-h", "masked", "Mamba-2 and attention"),
    }


TASKS = {
    "question generation": Task(
        systems("qg:squad"),
        "qg_squad",
        {"SQuAD": {}, "Quasar-T": {"test_file": "quasar_t/valid.jsonl"}},  # the latter is of another kind of text
    ),
    "simplification": Task(
        systems("simplification:asset"),
        "simplification",
        {"ASSET": {}},
    ),
}


def workdir_of(task: str, system: str, work: Path, seed: int) -> Path:
    return work / f"{task}-{system}-{seed}".replace(" ", "_")


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--task", choices=TASKS, required=True)
    flags.add_argument("--system", required=True, choices=systems(""))
    options = parse(flags, Path(__file__).parent / "results.json", systems(""))
    task = TASKS[options.task]
    system = task.systems[options.system]
    workdir = workdir_of(options.task, options.system, options.work, options.seed)
    train(system, workdir, options, [f"--config.data.{name}={value}" for name, value in task.data.items()])
    tests = task.tests if options.split == "test" else {"validation": {}}
    for name, data in tests.items():
        named = {"task": options.task, "test": name, "system": options.system}
        score(system, workdir, options, named, data)


if __name__ == "__main__":
    main()
