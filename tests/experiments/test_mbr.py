"""Choices among samples that a study has kept: lines of results, what is refused. The networks are made up."""

import dataclasses
import json
import sys

import pytest

from dimba_jax.data.examples import Example
from dimba_jax.evals.records import make_records, read_records, record_line
from dimba_jax.evals.report import make_report, score_rows


@pytest.fixture
def kept(tmp_path):
    """A folder of three trainings' samples, and results.json with their lines, as run.py leaves them."""
    source, unlike = "how are you ?", ("is it cold today ?", "where do we go ?", "what is that ?")
    examples = [Example(source, ("are you well now ?",), row) for row in range(2)]
    common = {
        "system": "DiffuTran", "split": "test", "curve": False, "objective": "masked", "backbone": "Transformer",
        "device": "cpu", "params": 10, "train_minutes": 1.5, "train_steps": 3, "steps": 2, "sampling": {},
    }  # fmt: skip
    lines = []
    for seed, own in enumerate(("are you well now ?", "are you well again ?", source)):
        folder = tmp_path / f"DiffuTran-{seed}"
        folder.mkdir()
        (folder / "wall.json").write_text("[60.0, 30.0]")
        records = make_records(examples, [(unlike[seed], own, own, source)] * 2, [], 2)
        (folder / "samples_test_4.examples.jsonl").write_text("".join(record_line(r) + "\n" for r in records))
        figures = make_report(score_rows(records, [4]), "test")["systems"]["model_mbr4"]
        for subset in ("all", "unseen"):
            line = common | {"seed": seed, "subset": subset, "mbr": 4, "rows": 2}
            line |= {name: figures[name] for name in ("bleu", "ibleu", "bleu_source", "network_calls")}
            decoys = ({"mbr": 1}, {"curve": True}, {"split": "valid"}, {"gain": "ibleu"})
            lines += [*(line | decoy | {"params": 99, "bleu": 0.0} for decoy in decoys), line]
    (tmp_path / "results.json").write_text(json.dumps(lines))
    return tmp_path


@pytest.fixture
def choose(kept, study, monkeypatch, capsys):
    """Runs mbr.py; 0, or its exit status and what it said."""
    module = study("qqp", "mbr")

    def call(*flags):
        base = [f"--work={kept}", "--system=DiffuTran", f"--results={kept / 'results.json'}", "--mbr=4"]
        monkeypatch.setattr(sys, "argv", ["mbr.py", *base, *flags])
        try:
            module.main()
        except SystemExit as exit:
            return str(exit.code) + capsys.readouterr().err
        return 0

    return call


def test_other_choices_among_kept_samples(kept, study, choose):
    results = kept / "results.json"
    before = json.loads(results.read_text())
    assert choose("--seeds=0,1", "--label=two") == 0
    assert choose("--seeds=1", "--gain=ibleu") == 0
    lines = json.loads(results.read_text())
    new = [line for line in lines if line not in before]
    assert {line["system"] for line in new} == {"two", "DiffuTran"} and len(lines) == len(before) + 2  # by iBLEU: again
    two = {line["subset"]: line for line in lines if line["system"] == "two"}
    assert set(two) == {"all", "unseen"} and two["unseen"]["rows"] == 2
    found = two["all"]  # of two samples of each: the first ones agree, the second ones are like no other
    assert (found["params"], found["train_minutes"], found["network_calls"], found["rows"]) == (20, 3.0, 8, 2)
    assert (found["seed"], found["weights"], found["mbr"], found["bleu"]) == ("0+1", "DiffuTran", 4, 1.0)
    by_ibleu = next(line for line in new if line.get("gain") == "ibleu" and line["subset"] == "all")
    assert (by_ibleu["system"], by_ibleu["seed"], by_ibleu["params"]) == ("DiffuTran", 1, 10)
    tables = study("qqp", "seq2seq_tables")
    assert "| two | 4 | 1 | 1.0000 |" in tables.scores([found], "all")
    assert "| DiffuTran | 4, by iBLEU | 1 |" in tables.scores([found, by_ibleu], "all")
    assert "two" not in tables.runs(lines)

    for flags, message in (
        (["--seeds=0,0", "--label=two"], "one is named twice"),
        (["--seeds=0"], "run.py's line"),
        (["--seeds=0", "--gain=ibleu", "--label=one"], "--label is for several seeds"),
        (["--seeds=0,1"], "add --label=NAME"),
        (["--seeds=0,1", "--label=DIMBA"], "several seeds need a name"),
        (["--seeds=0,1", "--label=copy"], "several seeds need a name"),
        (["--seeds=0,1", "--label=new", "--mbr=1"], "a sample of each network"),
        (["--seeds=0,3", "--label=new"], "samples_test_4.examples.jsonl: no such file; score it with run.py --system="),
        (["--seeds=0", "--gain=ibleu", "--split=valid"], "--seed=0 --split=valid --score_only --mbr=4 and the flags"),
        (["--seeds=0,1,2", "--label=two"], "other lines of this name"),
        (["--seeds=1,2", "--label=two"], "has a line of the networks 0+1, and 1 cannot"),
    ):
        assert message in choose(*flags)
    assert json.loads(results.read_text()) == lines
    assert choose("--seeds=1,0", "--label=two") == 0  # the same pool again, beside a line by iBLEU
    assert json.loads(results.read_text()) == lines


def test_choices_that_are_refused(kept, choose):
    results = kept / "results.json"
    before = json.loads(results.read_text())

    def refused(message, change, lines=(), **of):
        changed = [line | (change if of.items() <= line.items() else {}) for line in before]
        results.write_text(json.dumps([*changed, *lines]))
        found = choose("--seeds=0,1", "--label=two")
        assert message in found, found

    for name, value in (("params", 11), ("sampling", {"steps": 4}), ("steps", 3), ("train_steps", 4)):
        refused(f"{name} is {before[4][name]} and {value}: pool networks", {name: value}, seed=1, mbr=4, split="test")
    refused("seed 0: bleu of the kept samples is 1.0, of the line", {"bleu": 0.5}, seed=0)
    refused("--split=test --score_only --mbr=4 and the flags of its sampling", {"bleu": 0.5}, seed=0)
    refused("seed 0: rows of the kept samples is 2, of the line", {"rows": 3}, seed=0)
    refused("has no line of DiffuTran, seed 1, test split, MBR over 4", {"system": "other"}, seed=1)
    pool = before[4] | {"system": "two", "weights": "DiffuTran", "seed": "2+3", "together": "samples"}
    refused("other lines of this name", {}, [pool | {"weights": "DIMBA"}])
    refused("other lines of this name", {}, [pool | {"seed": 2}])
    refused("other lines of this name", {}, [pool | {"together": "distributions"}])
    refused("has a pool with train_steps 9", {}, [pool | {"train_steps": 9}])
    results.write_text(json.dumps(before))
    wall = kept / "DiffuTran-0" / "wall.json"
    wall.rename(kept / "away")
    assert "DiffuTran-0 has no wall.json" in choose("--seeds=0,1", "--label=two")
    (kept / "away").rename(wall)
    path = kept / "DiffuTran-1" / "samples_test_4.examples.jsonl"
    drawn = read_records(path)
    for change, message in (
        ({"unseen": None}, "does not tell which rows are unseen"),
        ({"source": "who are you ?"}, "the file of seed 1:1: another row"),
        ({"samples": ("one", "two", "three")}, "has 3 samples a row"),
    ):
        path.write_text("".join(record_line(dataclasses.replace(record, **change)) + "\n" for record in drawn))
        assert message in choose("--seeds=0,1", "--label=two")
    assert json.loads(results.read_text()) == before


def test_choices_side_by_side(kept, study, monkeypatch, capsys):
    """Of two files and their pool; what a choice is worth is beside the files' own choices by BLEU, row by row."""
    choices = study("qqp", "choices")
    files = [f"{name}={kept}/DiffuTran-{seed}/samples_test_4.examples.jsonl" for seed, name in enumerate("ab")]
    output = kept / "choices.jsonl"

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["choices.py", f"--output={output}", "--mbr=4", *flags])
        try:
            choices.main()
        except SystemExit as exit:
            return str(exit.code) + capsys.readouterr().err
        return 0

    assert call("--samples", *files) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["samples_of"], line["gain"]) for line in lines] == [
        (names, gain) for names in (["a"], ["b"], ["a", "b"]) for gain in ("bleu", "ibleu")
    ]
    one, _, other, _, pool, _ = lines
    assert (one["bleu_more"], one["ibleu_more"], one["bleu_error"], one["rows"]) == (0, 0, 0, 2)
    assert pool["bleu"] == 1.0 and pool["bleu_more"] == pytest.approx(1 - (one["bleu"] + other["bleu"]) / 2, abs=2e-6)
    records = read_records(files[0].partition("=")[2])
    by_ibleu = make_report(score_rows(records, [4], gain="ibleu"), "test")["systems"]["model_mbr4_ibleu"]
    assert lines[1]["ibleu"] == by_ibleu["ibleu"]
    assert lines[1]["ibleu_more"] == pytest.approx(by_ibleu["ibleu"] - one["ibleu"], abs=2e-6)
    table = study("qqp", "report").choices([one, pool | {"bleu_error": 0.01}]).splitlines()
    assert table[2].startswith("| a | BLEU | 1.0000 |") and table[2].endswith("| – | – |")
    assert table[3].startswith("| a + b | BLEU | 1.0000 |") and f"{pool['bleu_more']:+.4f} ± 0.0100" in table[3]
    for flags, message in (
        (["--samples", files[0], files[0]], "each name once"),
        (["--samples", "a"], "expected NAME=FILE"),
        (["--samples", *files, "--mbr=1"], "a sample of each file"),
        (["--samples", *files, "--mbr=5"], "has 4 samples a row: expected 5"),
        (["--samples", "a=none.jsonl"], "none.jsonl: no such file"),
        (["--samples", *files, f"--output={kept}/none/x.jsonl"], "create it first"),
        (["--samples", f"a={output}"], "would replace"),
    ):
        assert message in call(*flags)


def test_a_label_stands_for_one_thing(tmp_path, study):
    lines, path = study("qqp", "seq2seq_lines"), tmp_path / "results.json"
    line = {"weights": "DIMBA", "seed": "0+1", "together": "samples"}
    lines.check_label(path, "two", line)  # no results yet
    path.write_text(json.dumps([line | {"system": "two"}]))
    lines.check_label(path, "two", line)
    lines.check_label(path, "two", line | {"seed": "2+3"})
    lines.check_label(path, None, line | {"weights": "MambaDiff"})
    for other in ({"seed": 0}, {"seed": "0+1+2"}, {"weights": "MambaDiff"}, {"together": "distributions"}):
        with pytest.raises(SystemExit, match="--label=two: .* has other lines"):
            lines.check_label(path, "two", line | other)
    with pytest.raises(SystemExit, match=r"line of the networks 0\+1, and 1 cannot be in another"):
        lines.check_label(path, "two", line | {"seed": "1+2"})
