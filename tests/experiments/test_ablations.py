"""Ablations: which runs there are, and that each is made once."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest


def test_every_ablation_is_a_valid_config_and_another_one(study):
    """Over either base; one of the directions is the base's own."""
    from dimba_jax.config import from_config_dict

    axes = study("ablations", "axes")
    for base in axes.BASES.values():
        others = [run for run in axes.RUNS if run.axis not in ("base", "sampler")]
        configs = [from_config_dict(axes.with_settings(base.values, run.over(base))) for run in others]
        same = [run.name for run in others if not axes.differing(base, run)]
        assert len(same) == 1 and same[0].startswith("both, "), same
        assert len({str(config) for config in configs}) == len(others)


class Commands:
    """Stands for the training and sampling that ablations start; notes what is asked of them."""

    def __init__(self, module, monkeypatch):
        self.trained, self.at_once, self.breaks, self.step = [], [], (), 500
        self.lock = threading.Lock()
        monkeypatch.setattr(module, "run_training", self.train)
        monkeypatch.setattr(module, "spent", lambda workdir: [1.0, 2.0])
        monkeypatch.setattr(module.subprocess, "run", self.sweep)

    def train(self, config, workdir, flags, **rest):
        with self.lock:
            assert workdir not in self.at_once, "two trainings at once in one folder"
            self.at_once.append(workdir)
            self.trained.append((workdir.name, flags))
        time.sleep(0.01)
        with self.lock:
            self.at_once.remove(workdir)
        return 2 if any(name in workdir.name for name in self.breaks) else 0

    def sweep(self, command, **rest):
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in command[2:])
        names = [axis.partition("=")[0] for axis in flags["grid"].split(";") if axis]
        line = {"step": self.step, "of_steps": 500, "rows": int(flags["limit"]), "copy.bleu": 0.1, "seconds": 1.0}
        line |= {f"model.{name}": 0.5 for name in ("bleu", "ibleu", "bleu_source", "rouge_l", "dist1", "length")}
        Path(flags["output"]).write_text(json.dumps(line | dict.fromkeys(names, 1)) + "\n")
        return type("Done", (), {"returncode": 0, "stderr": ""})


@pytest.fixture
def ablations(study, monkeypatch, tmp_path, capsys):
    module = study("ablations", "run")
    commands = Commands(module, monkeypatch)

    def call(*flags, results=tmp_path / "results.jsonl"):
        argv = [
            "run.py",
            "--base=generated",
            f"--work={tmp_path}",
            *([f"--results={results}"] if results else []),
            *flags,
        ]
        monkeypatch.setattr(sys, "argv", argv)
        try:
            module.main()
        except SystemExit as exit:
            return exit.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return call, commands, tmp_path / "results.jsonl"


def test_ablations_run_once_each_and_never_two_in_a_folder(ablations, study):
    call, commands, results = ablations
    assert call("--jobs=4")[0] == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {(line["axis"], line["run"]) for line in lines} == {
        (run.axis, run.name) for run in study("ablations", "axes").RUNS
    }
    assert {line["seconds"] for line in lines} == {3.0}
    folders = [name for name, _ in commands.trained]
    assert folders.count("base-0") == 3  # the base, its samplers, and the direction that it has
    assert len(set(folders)) == len(folders) - 2
    assert call()[1].out.startswith("0 runs to do")
    call("--axis=loss", "--seed=1")
    assert len(commands.trained) == len(folders) + 2
    assert all("--seed=1" in flags for _, flags in commands.trained[-2:])
    table = study("ablations", "report").table([json.loads(line) for line in results.read_text().splitlines()])
    assert "| on the prompt, too | the recipe’s | 2 | 0.500 ± 0.000 |" in table


def test_what_failed_or_is_unfinished_is_no_result_and_stops_no_other(ablations):
    call, commands, results = ablations
    commands.breaks = ("loss_on=all",)
    status, said = call("--axis=loss")
    assert "1 of 2 runs failed: on the prompt, too" in status
    assert "training ended with status 2" in said.out
    assert [json.loads(line)["run"] for line in results.read_text().splitlines()] == ["not on padding"]
    commands.breaks, commands.step = (), 300
    status, said = call("--axis=loss")
    assert "1 of 1 runs failed" in status and "is at step 300 of 500: run this again" in said.out
    assert len(results.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.training.steps=20",), "name another file with --results"),
        (("--rows=10",), "name another file with --results"),
        (("--base=qqp",), "--base=qqp needs --data"),
        (("--jobs=0",), "--jobs: expected a number from 1 on"),
        (("--steps=3",), "unknown: --steps=3"),
    ],
)
def test_ablations_refuse(ablations, flags, said):
    call, commands, _ = ablations
    status, output = call(*flags, results=None)
    assert status == 2 and said in output.err and not commands.trained


def test_a_report_of_some_runs_has_no_table_of_those_that_are_missing(study, monkeypatch, tmp_path):
    report = study("ablations", "report")
    line = {"base": "qqp", "axis": "base", "run": "base", "sampling": {}, "rows": 600, "step": 500, "seed": 0}
    line |= {"seconds": 1.0} | dict.fromkeys(report.COLUMNS, 0.5)
    of_samplers = [line | {"axis": "sampler", "sampling": {"steps": steps, "sampler": "ddim"}} for steps in (5, 10)]
    readme = tmp_path / "README.md"
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--base=qqp"])
    for lines, there in (([line], False), ([line, *of_samplers], True)):
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        readme.write_text("before\n<!-- tables of qqp: report.py -->\n<!-- end of tables of qqp -->\nbehind\n")
        report.main()
        text = readme.read_text()
        assert "| base | the recipe’s | 1 | 0.500 |" in text and ("BLEU after steps" in text) == there
        assert (tmp_path / "qqp.png").read_bytes()[:4] == b"\x89PNG"


def test_a_report_refuses_lines_that_are_no_seeds_of_one_another(study):
    report = study("ablations", "report")
    line = {"axis": "base", "run": "base", "sampling": {}, "rows": 600, "step": 500, "seed": 0, "seconds": 1.0}
    line |= dict.fromkeys(report.COLUMNS, 0.5)
    for other in ({"rows": 10}, {"step": 20}):
        with pytest.raises(SystemExit, match="no seeds of one figure"):
            report.table([line, line | {"seed": 1} | other])
