"""The studies' scripts, on networks too small to mean anything: lines of results, tables, and what is trained once."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
TINY = (
    "--config.tokenizer.kind=bytes", "--config.data.source_length=24", "--config.data.target_length=24",
    "--config.model.d_model=32", "--config.model.layers=1", "--config.model.head_dim=32", "--config.model.state_dim=8",
    "--config.model.embedding_dim=8", "--config.training.batch_size=8", "--config.training.steps=3",
    "--config.training.valid_every=0", "--config.training.valid_batches=1", "--config.training.log_every=1",
    "--config.sampling.steps=2",
)  # fmt: skip


@pytest.fixture
def study(monkeypatch):
    """The modules of a study's folder, by name."""

    def load(folder, name):
        for path in (EXPERIMENTS, EXPERIMENTS / folder):
            monkeypatch.syspath_prepend(str(path))
        for module in ("axes", "run", "report", "seq2seq", "seq2seq_tables"):  # every study has its own
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    return load


def pairs(path, count, refs=0, first=0):
    rows = [{"src": f"what is {i} and {i + 1}", "trg": f"say what {i} is"} for i in range(first, first + count)]
    for row in rows:
        row |= {"refs": [row["trg"]] * refs} if refs else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(study, monkeypatch, capfd):
    """Runs a study's script; its exit status and what it said."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    monkeypatch.setenv("XLA_FLAGS", flags)  # of the training that it starts

    def call(folder, *flags):
        module = study(folder, "run")
        monkeypatch.setattr(sys, "argv", ["run.py", *flags, *TINY])
        try:
            module.main()
        except SystemExit as exit:
            return exit.code, capfd.readouterr().err
        return 0, capfd.readouterr().err

    return call


def test_a_system_is_trained_scored_and_scored_again(tmp_path, study, run):
    for name, first, count in (("train", 0, 24), ("valid", 0, 8), ("test", 20, 6)):  # two rows are unseen
        pairs(tmp_path / "data" / f"{name}.jsonl", count, first=first)
    results = tmp_path / "results.json"
    flags = (f"--data={tmp_path / 'data'}", f"--work={tmp_path / 'runs'}", f"--results={results}")
    flags = (*flags, "--system=DiffuTran")
    status, said = run("qqp", *flags, "--mbr=1,2")
    assert status == 0, said
    lines = json.loads(results.read_text())
    assert {(line["system"], line["subset"], line["mbr"]) for line in lines} == {
        (system, subset, mbr)
        for subset in ("all", "unseen")
        for system, mbr in (("DiffuTran", 1), ("DiffuTran", 2), ("copy", 1))
    }
    one, two = (next(line for line in lines if (line["subset"], line["mbr"]) == ("all", k)) for k in (1, 2))
    assert {line["rows"] for line in lines if line["subset"] == "unseen"} == {2}
    assert (one["rows"], one["train_steps"], one["network_calls"], two["network_calls"]) == (6, 3, 2, 4)
    assert one["sentences_per_s"] > 0 and two["sentences_per_s"] is None and one["train_minutes"] > 0
    assert len(json.loads((tmp_path / "runs" / "DiffuTran-0" / "first_rows.json").read_text())) == 6

    before = (tmp_path / "runs" / "DiffuTran-0" / "wall.json").read_text()
    status, said = run("qqp", *flags, "--calls=1,3")
    assert status == 0, said
    again = json.loads(results.read_text())
    assert [line for line in again if not line.get("curve")] == lines  # scored beside them, trained no more
    assert {line["network_calls"] for line in again if line.get("curve")} == {1, 3}
    assert (tmp_path / "runs" / "DiffuTran-0" / "wall.json").read_text() == before

    report = study("qqp", "report")
    table = report.scores(again, "all")
    assert f"| DiffuTran | 1 | 1 | {one['bleu']:.4f} |" in table and "| copy |" in table
    assert "| DiffuTran | masked | Transformer |" in report.runs(again)
    report.draw(again, tmp_path / "calls.png")
    assert (tmp_path / "calls.png").stat().st_size > 1000


def test_a_run_that_is_out_of_time_is_not_scored(tmp_path, run):
    for name in ("train", "valid", "test"):
        pairs(tmp_path / "data" / f"{name}.jsonl", 8)
    results = tmp_path / "results.json"
    flags = (f"--data={tmp_path / 'data'}", f"--work={tmp_path / 'runs'}", f"--results={results}", "--system=DiffuTran")
    status, said = run("qqp", *flags, "--minutes=0.0001")
    assert status == 3, said
    assert not results.exists()
    assert len(json.loads((tmp_path / "runs" / "DiffuTran-0" / "wall.json").read_text())) == 1


def test_lines_measured_again_take_the_place_of_the_ones_before(tmp_path, study):
    seq2seq, path = study("qqp", "seq2seq"), tmp_path / "results.json"
    line = {"system": "DIMBA", "split": "test", "subset": "all", "mbr": 1, "seed": 0, "curve": False, "steps": 20}
    seq2seq.keep(path, [line | {"bleu": 0.1}, line | {"seed": 1, "bleu": 0.2}])
    seq2seq.keep(path, [line | {"bleu": 0.3, "steps": 16}, line | {"curve": True, "bleu": 0.4}])
    seq2seq.keep(path, [line | {"curve": True, "bleu": 0.5, "steps": 2}, line | {"task": "qg", "bleu": 0.6}])
    assert sorted(row["bleu"] for row in json.loads(path.read_text())) == [0.2, 0.3, 0.4, 0.5, 0.6]


def test_a_task_with_several_references_is_scored_with_sari(tmp_path, study):
    pairs(tmp_path / "data" / "simplification" / "asset_valid.jsonl", 24, refs=2)
    tasks = study("tasks", "run")
    assert list(tasks.TASKS) == ["question generation", "simplification"]
    report = study("tasks", "seq2seq")
    figures = {name: 0.5 for name in (*report.FIGURES, "network_calls", "sari")}
    systems = {"model": figures, "copy": figures | {"sari": 0.25}}
    scored = {"systems": systems, "unseen": systems, "rows": 3, "unseen_rows": 1}
    lines = report.lines_of(
        scored, [1], {"task": "simplification", "test": "ASSET", "split": "test", "system": "x"}, 7.0
    )
    assert [(line["system"], line["subset"], line["sari"], line["task"]) for line in lines] == [
        ("x", "all", 0.5, "simplification"),
        ("copy", "all", 0.25, "simplification"),
        ("x", "unseen", 0.5, "simplification"),
        ("copy", "unseen", 0.25, "simplification"),
    ]
    for line in lines:
        line |= {"params": 1e6, "seed": 0, "train_steps": 5, "train_minutes": 1.0, "device": "x", "curve": False}
        line |= {"objective": "masked", "backbone": "Mamba-2"}
    tables = study("tasks", "report").tables(lines)
    assert "simplification, ASSET" in tables and "| SARI |" in tables and "| 0.2500 |" in tables
    assert "SARI" not in study("tasks", "seq2seq_tables").scores([{**line, "sari": None} for line in lines], "all")


def test_every_ablation_is_a_valid_config_and_another_one(study):
    """Over either base; and none but the base's own setting is the base again."""
    from dimba_jax.config import from_config_dict

    axes = study("ablations", "axes")
    for base in axes.BASES.values():
        recipe = importlib.util.spec_from_file_location("recipe", EXPERIMENTS.parent / "configs" / f"{base.recipe}.py")
        module = importlib.util.module_from_spec(recipe)
        recipe.loader.exec_module(module)
        seen = []
        for run in axes.RUNS:
            values = module.get_config("").to_dict()
            for name, value in run.over(base).items():
                group, setting = name.split(".")
                assert setting in values[group], name
                values[group][setting] = value
            seen.append(from_config_dict(values))
        others = [
            (run, config) for run, config in zip(axes.RUNS, seen, strict=True) if run.axis not in ("base", "sampler")
        ]
        same = [run.name for run, config in others if config == seen[0]]
        assert len(same) == 1 and same[0].startswith("both, "), same  # the base's own direction
        assert len({str(config) for _, config in others}) == len(others)
