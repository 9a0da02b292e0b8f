"""Studies of sequence-to-sequence tasks, on networks too small to mean anything: lines of results, and tables."""

import dataclasses
import json
import os
import sys
from types import SimpleNamespace

import pytest
from flax import nnx

from dimba_jax.config import DataConfig, RunConfig, TrainingConfig
from dimba_jax.data.examples import DataError, Example
from dimba_jax.evals.records import read_records
from dimba_jax.evals.report import evaluate_outputs

TINY = (
    "--config.tokenizer.kind=bytes", "--config.data.source_length=24", "--config.data.target_length=24",
    "--config.model.d_model=32", "--config.model.layers=1", "--config.model.head_dim=32", "--config.model.state_dim=8",
    "--config.model.embedding_dim=8", "--config.training.batch_size=8", "--config.training.steps=3",
    "--config.training.valid_every=0", "--config.training.valid_batches=1", "--config.training.log_every=1",
    "--config.sampling.steps=2", "--config.model.dtype=float32", "--config.model.dropout=0",
)  # fmt: skip


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
    status, said = run("qqp", *flags, "--mbr=1,2", "--config.sampling.temperature=1")
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
    start = json.loads((tmp_path / "runs" / "DiffuTran-0" / "run.json").read_text())["starts"][0]
    assert one.get("commit") == (start["git_commit"] and start["git_commit"][:7])  # of what trained
    assert one["sentences_per_s"] > 0 and two["sentences_per_s"] is None and one["train_minutes"] > 0
    assert len(json.loads((tmp_path / "runs" / "DiffuTran-0" / "first_rows_test.json").read_text())) == 6

    drawn = read_records(tmp_path / "runs" / "DiffuTran-0" / "samples_test_2.examples.jsonl")
    assert [len(record.samples) for record in drawn] == [2] * 6 and {record.network_calls for record in drawn} == {2}
    assert sum(record.unseen for record in drawn) == 2

    before = (tmp_path / "runs" / "DiffuTran-0" / "wall.json").read_text()
    status, said = run("qqp", *flags, "--calls=1,3")
    assert status == 0, said
    again = json.loads(results.read_text())
    assert [line for line in again if not line.get("curve")] == lines  # scored beside them, trained no more
    assert {line["network_calls"] for line in again if line.get("curve")} == {1, 3}
    assert (tmp_path / "runs" / "DiffuTran-0" / "wall.json").read_text() == before

    samples = tmp_path / "runs" / "DiffuTran-0" / "samples_test_2.examples.jsonl"
    written = samples.read_bytes()
    labelled_flags = ("--calls=2", "--label=DiffuTran, by chance", "--nospeed", "--config.sampling.temperature=1")
    status, said = run("qqp", *flags, *labelled_flags)
    assert status == 0, said
    labelled = json.loads(results.read_text())
    assert [line for line in labelled if "weights" not in line] == again
    for label in ("", "copy", "DIMBA"):
        status, said = run("qqp", *flags, "--calls=2", f"--label={label}")
        assert status == 2 and "a name that no system's lines have" in said
    status, said = run("qqp", *flags, "--label=other")
    assert status == 2 and "--score_only or --calls" in said
    assert json.loads(results.read_text()) == labelled
    apart = (f"--results={tmp_path / 'apart.json'}", "--score_only", "--mbr=2", "--config.sampling.temperature=2")
    for other in ("--limit=3", "--label=other"):
        status, said = run("qqp", *flags, *apart, other, "--nospeed")
        assert status == 0, said
    assert samples.read_bytes() == written and len(list(samples.parent.glob("samples_*"))) == 1
    line = next(line for line in labelled if "weights" in line)
    assert (line["system"], line["weights"], line["sentences_per_s"]) == ("DiffuTran, by chance", "DiffuTran", None)

    # what the recipe draws is the same every time; samples of other settings do not take its rows' place
    first = tmp_path / "runs" / "DiffuTran-0" / "first_rows_test.json"
    first.unlink()
    other = (f"--results={tmp_path / 'other.json'}", "--score_only", "--mbr=2", "--config.sampling.temperature=0")
    status, said = run("qqp", *flags, *other)
    assert "all samples of a row are the same" in str(status) and "score_noise" in str(status)
    status, said = run("qqp", *flags, *other, "--config.sampling.score_noise=1")
    assert status == 0 and not first.exists()
    assert {line["mbr"] for line in json.loads((tmp_path / "other.json").read_text()) if line["system"] != "copy"} == {
        2
    }
    assert (tmp_path / "runs" / "DiffuTran-0" / "wall.json").read_text() == before

    report = study("qqp", "report")
    assert report.calls(again).splitlines()[-1].startswith("| DiffuTran | 0 | 3 | 3 |")
    table = report.scores(again, "all")
    assert f"| DiffuTran | 1 | 1 | {one['bleu']:.4f} |" in table and "| copy |" in table
    assert "| DiffuTran | masked | Transformer |" in report.runs(again)
    assert report.runs(labelled) == report.runs(again)  # one training
    of_program = [one | {"commit": "abc1234"}, one | {"gain": "ibleu"}]  # the other line is mbr.py's
    for lines in (of_program, of_program[::-1]):
        assert report.runs(lines).splitlines()[-1].endswith(" | abc1234 |")
    earlier = one | {"split": "valid", "train_minutes": 99.0}
    assert report.runs([*again, earlier]) == report.runs(again)  # the training that was scored on the test split
    assert report.calls(labelled).splitlines()[-1].startswith("| DiffuTran, by chance | 0 | 2 | 2 |")
    assert " | – | " in report.calls(labelled).splitlines()[-1]
    report.draw(again, tmp_path / "calls.png")
    points = [
        {"curve": True, "system": name, "seed": 0, "steps": steps} for name, steps in (("A", 8), ("B", 2), ("A", 4))
    ]
    assert report.curves([*points, points[0] | {"curve": False}]) == {("A", 0): [points[2], points[0]]}
    tried = [{"checkpoint": "A", "steps": 4, "model.bleu": 0.25}, {"system": "A", "end_bias": -1.0, "model.bleu": 0.5}]
    assert report.sampling(tried).splitlines() == [
        "| system | steps | end_bias | BLEU |", "|---|---|---|---|", "| A | 4 | – | 0.2500 |",
        "| A | – | -1.0 | 0.5000 |",
    ]  # fmt: skip
    seeds = [{"system": "A", "seed": seed, "steps": 4, "model.bleu": 0.25} for seed in (0, 2)]
    assert report.sampling(seeds).splitlines()[::3] == ["| system | seed | steps | BLEU |", "| A | 2 | 4 | 0.2500 |"]
    assert report.sampling(seeds[1:]).splitlines()[-1] == "| A | 4 | 0.2500 |"
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
    lines, path = study("qqp", "seq2seq_lines"), tmp_path / "results.json"
    line = {"system": "DIMBA", "split": "test", "subset": "all", "mbr": 1, "seed": 0, "curve": False, "steps": 20}
    lines.keep(path, [line | {"bleu": 0.1}, line | {"seed": 1, "bleu": 0.2}])
    lines.keep(path, [line | {"bleu": 0.3, "steps": 16}, line | {"curve": True, "bleu": 0.4}])
    lines.keep(path, [line | {"curve": True, "bleu": 0.5, "steps": 2}, line | {"task": "qg", "bleu": 0.6}])
    assert sorted(row["bleu"] for row in json.loads(path.read_text())) == [0.2, 0.3, 0.4, 0.5, 0.6]


def test_a_split_without_unseen_rows_has_no_line_of_them(study):
    """Models are chosen on the validation split: a line of its unseen rows would hold nothing."""
    lines = study("qqp", "seq2seq_lines")
    figures = dict.fromkeys(lines.FIGURES, 0.5) | {"network_calls": 16}
    report = {"rows": 3, "systems": {"model": figures, "copy": figures}, "unseen": {"model": figures, "copy": figures}}
    for unseen, subsets in ((0, ["all"] * 2), (2, ["all"] * 2 + ["unseen"] * 2)):
        found = lines.lines_of(report | {"unseen_rows": unseen}, [1], {"system": "DIMBA", "split": "valid"}, None)
        assert [line["subset"] for line in found] == subsets


def test_a_task_is_scored_on_its_own_rows(tmp_path, study, monkeypatch):
    """Each test of a task on its file, whatever the checkpoint's data names; SARI if rows have several references."""
    pairs(tmp_path / "qg_squad" / "nqg_dev.jsonl", 520)
    pairs(tmp_path / "qg_squad" / "nqg_test.jsonl", 4, first=600)
    pairs(tmp_path / "quasar_t" / "valid.jsonl", 3, first=700)
    pairs(tmp_path / "simplification" / "asset_valid.jsonl", 2000, refs=2)
    prompts = []

    def generate(model, texts, settings, **rest):
        prompts.append((list(texts), settings.steps))
        return [SimpleNamespace(texts=[text] * settings.num_samples, network_calls=settings.steps) for text in texts]

    monkeypatch.setattr("dimba_jax.sampling.generate.generate", generate)
    for task, system in (("question generation", "DIMBA"), ("simplification", "DiffuMamba")):
        module = study("tasks", "run")
        settings = module.TASKS[task].data
        data = dataclasses.replace(DataConfig(), **settings)
        config = RunConfig(data=data, training=TrainingConfig(steps=7))
        model = SimpleNamespace(config=config, step=7, denoiser=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
        monkeypatch.setattr("dimba_jax.sampling.load.load", lambda workdir, model=model: model)
        monkeypatch.setattr(module, "train", lambda *rest: None)
        flags = [f"--data={tmp_path}", f"--task={task}", f"--system={system}", f"--results={tmp_path / 'results.json'}"]
        monkeypatch.setattr(
            sys, "argv", ["run.py", *flags, f"--work={tmp_path}", "--mbr=1", "--config.sampling.steps=9"]
        )
        module.workdir_of(task, system, tmp_path, 0).mkdir()
        module.main()
    rows = [(len(texts), texts[0], steps) for texts, steps in prompts[::3]]  # each is timed twice more
    assert rows == [(4, "what is 600 and 601", 9), (3, "what is 700 and 701", 9), (200, "what is 1800 and 1801", 9)]
    lines = json.loads((tmp_path / "results.json").read_text())
    found = {
        (line["task"], line["test"]): line for line in lines if line["subset"] == "all" and line["system"] != "copy"
    }
    assert {key: (line["rows"], "sari" in line) for key, line in found.items()} == {
        ("question generation", "SQuAD"): (4, False),
        ("question generation", "Quasar-T"): (3, False),
        ("simplification", "ASSET"): (200, True),
    }
    assert all(line["sampling"] == {"steps": 9} and line["steps"] == 9 for line in found.values())
    assert (tmp_path / "question_generation-DIMBA-0" / "first_rows_Quasar-T_test.json").exists()
    tables = study("tasks", "report").tables(lines)
    assert "simplification, ASSET" in tables and sum("| SARI |" in table for table in tables.values()) == 1


def test_baselines_of_the_tasks_need_no_model(tmp_path, study):
    """Every figure is that of the same texts written out by hand."""
    pairs(tmp_path / "qg_squad" / "nqg_dev.jsonl", 520)
    pairs(tmp_path / "qg_squad" / "nqg_test.jsonl", 4, first=600)
    pairs(tmp_path / "quasar_t" / "valid.jsonl", 3, first=700)
    pairs(tmp_path / "simplification" / "asset_valid.jsonl", 2000, refs=2)
    lines = study("tasks", "baselines").table(str(tmp_path)).splitlines()[2:]
    rows = {
        (test, name): found for test, name, *found in ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
    }
    assert [test for test, _ in rows] == ["SQuAD"] * 3 + ["Quasar-T"] * 3 + ["ASSET"] * 4
    for test, numbers in (("SQuAD", range(600, 604)), ("Quasar-T", range(700, 703)), ("ASSET", range(1800, 2000))):
        targets = [(f"say what {i} is",) * (2 if test == "ASSET" else 1) for i in numbers]
        examples = [Example(f"what is {i} and {i + 1}", targets[place], place) for place, i in enumerate(numbers)]
        for name, texts in (
            ("copying the source", [f"what is {i} and {i + 1}" for i in numbers]),
            ("its first half", ["what is" for _ in numbers]),  # of five words
            ('"what is the name of the ?"', ["what is the name of the ?" for _ in numbers]),
        ):
            found = evaluate_outputs(examples, [[text] for text in texts], None, network_calls=0)["systems"]["model"]
            sari = f"{found['sari']:.4f}" if test == "ASSET" else "–"
            assert rows[test, name] == [*(f"{found[figure]:.4f}" for figure in ("bleu", "ibleu", "rouge_l")), sari], (
                name
            )
    assert rows["ASSET", "a reference, against the others"][0] == "1.0000"  # the two are alike
    other = [Example("source", ("one two three four", "five six seven eight"), 0)]  # none is scored against itself
    assert study("tasks", "baselines").people(other, 2)["bleu"] < 0.1
    with pytest.raises(DataError, match="no such file"):
        study("tasks", "baselines").table(str(tmp_path / "qg_squad"))


def test_sampling_settings_from_text(study):
    settings = study("qqp", "sampling_settings")
    assert settings.grid("") == [{}]
    assert settings.grid("steps=5,10;anchors=False;eta=0.5") == [
        {"steps": 5, "anchors": False, "eta": 0.5},
        {"steps": 10, "anchors": False, "eta": 0.5},
    ]
    assert settings.among(["--config.training.steps=3", "--config.sampling.temperature=0"]) == {"temperature": 0.0}
    for wrong in ("step=5", "steps=a", "anchors=1", "steps=5;steps=6", "remask_window=0.1"):
        with pytest.raises(ValueError, match="step|anchors|remask_window"):
            settings.grid(wrong)


def test_what_a_system_sets_is_handed_to_training_before_the_flags(tmp_path, study, monkeypatch):
    seq2seq, systems = study("qqp", "seq2seq"), study("qqp", "run").SYSTEMS
    handed = []
    monkeypatch.setattr(seq2seq, "run_training", lambda config, workdir, flags, minutes: handed.append(flags) or 0)
    given = {"calls": [], "score_only": False, "minutes": None, "settings": ["--config.a=1"]}
    options = SimpleNamespace(data=tmp_path, seed=3, **given)
    seq2seq.train(systems["DiffuTran equal time"], tmp_path, options, ["--config.b=2"])
    seq2seq.train(systems["DiffuTran"], tmp_path, options)
    both = [f"--config.data.path={tmp_path}", "--seed=3"]
    assert handed == [[*both, "--config.training.steps=10000", "--config.b=2", "--config.a=1"], [*both, "--config.a=1"]]
