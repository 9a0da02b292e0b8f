"""One system's texts beside another's, row by row, among samples that a study has kept. The networks are made up."""

import json
import statistics
import sys

import pytest

from dimba_jax.data.examples import Example
from dimba_jax.evals.records import make_records, read_records, record_line
from dimba_jax.evals.report import make_report, score_rows

SOURCE, TARGET = "how are you doing now ?", "are you all well today ?"


@pytest.fixture
def write(tmp_path):
    """Keeps samples of a training, those of each row, as run.py does; the source of the first row is "is it ?"."""

    def call(name, *rows, known=(), target=TARGET, split="test"):
        examples = [Example(SOURCE if n else "is it ?", (target,), n) for n in range(len(rows))]
        records = make_records(examples, rows, known, 2)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = folder / f"samples_{split}_{len(rows[0])}.examples.jsonl"
        path.write_text("".join(record_line(record) + "\n" for record in records))
        return path

    return call


@pytest.fixture
def compare(tmp_path, study, monkeypatch, capsys):
    """Runs differences.py; the lines of its file, or what it said when it ended with an error."""
    module = study("qqp", "differences")
    output = tmp_path / "differences.jsonl"

    def call(*flags, system="DiffuMamba-H", than="DiffuTran"):
        base = [f"--work={tmp_path}", f"--system={system}", f"--than={than}", "--mbr=1"]
        base += [f"--results={tmp_path / 'results.json'}", f"--output={output}"]
        monkeypatch.setattr(sys, "argv", ["differences.py", *base, *flags])
        try:
            module.main()
        except SystemExit as exit:
            return str(exit.code) + capsys.readouterr().err
        return [json.loads(line) for line in output.read_text().splitlines()]

    return call


def test_difference_of_the_means_of_seeds(write, compare):
    known = ["is it ?"]
    write("DiffuMamba-H-0", [TARGET], [TARGET], ["no"], known=known)
    write("DiffuMamba-H-1", [TARGET], ["no"], ["no"], known=known)
    write("DiffuTran-2", ["no"], ["no"], [TARGET], known=known)
    lines = compare("--seeds=1,0", "--than_seeds=2")
    assert [(line["subset"], line["rows"]) for line in lines] == [("all", 3), ("unseen", 2)]
    (every, unseen) = lines
    assert (every["seeds"], every["than_seeds"], every["mbr"], every["gain"]) == ([0, 1], [2], 1, "bleu")
    for line, bleu in ((every, [1.0, 0.5, -1.0]), (unseen, [0.5, -1.0])):  # "no" scores next to nothing
        assert line["bleu_more"] == pytest.approx(statistics.fmean(bleu), abs=0.03)
        assert line["bleu_error"] == pytest.approx(statistics.stdev(bleu) / len(bleu) ** 0.5, abs=0.03)
    back = compare("--seeds=2", "--than_seeds=0,1", system="DiffuTran", than="DiffuMamba-H")
    assert back[:2] == lines  # another comparison: a line of its own
    for name in ("bleu", "ibleu", "bleu_source"):
        assert back[2][f"{name}_more"] == -every[f"{name}_more"] != 0
        assert back[2][f"{name}_error"] == every[f"{name}_error"] > 0
    expected = 0.8 * every["bleu_more"] - 0.2 * every["bleu_source_more"]
    assert every["ibleu_more"] == pytest.approx(expected, abs=2e-6)


def test_each_comparison_has_lines_of_its_own(write, compare, study):
    for seed in (0, 1):
        for split in ("test", "valid"):
            for row in ([TARGET], [TARGET, TARGET]):
                write(f"DiffuMamba-H-{seed}", row, row, split=split)
    for split, texts in (("test", (SOURCE, TARGET)), ("valid", (TARGET, TARGET))):
        write("DiffuTran-0", ["no"], [TARGET], split=split)
        write("DiffuTran-0", [TARGET, TARGET], texts, split=split)  # the second is chosen where copying counts
        write("DiffuTran-1", [TARGET], [TARGET], split=split)
    seen = 0
    for flags in (
        ("--seeds=0", "--than_seeds=0"),
        ("--seeds=0", "--than_seeds=1"),
        ("--seeds=1", "--than_seeds=0"),
        ("--seeds=0", "--than_seeds=0", "--split=valid"),
        ("--seeds=0", "--than_seeds=0", "--mbr=2"),
        ("--seeds=0", "--than_seeds=0", "--mbr=2", "--gain=ibleu"),
        ("--seeds=0", "--than_seeds=0", "--mbr=2", "--split=valid"),
    ):
        seen += 2
        lines = compare(*flags)
        assert len(lines) == seen, flags
        assert [(line["subset"], line["rows"]) for line in lines[-2:]] == [("all", 2), ("unseen", 2)]
    by_seed, other, *_, by_bleu, by_ibleu, valid = lines[::2]
    assert by_seed["bleu_more"] > 0.4 and other["bleu_more"] == 0.0
    assert by_bleu["bleu_more"] > 0.2 and by_bleu["gain"] == "bleu"
    assert (by_ibleu["mbr"], by_ibleu["gain"], by_ibleu["bleu_more"]) == (2, "ibleu", 0.0)
    assert (valid["split"], valid["bleu_more"]) == ("valid", 0.0)

    write("DiffuTran-0", ["no"], ["no"])
    again = compare("--seeds=0", "--than_seeds=0")
    assert len(again) == seen and again[2:] == lines[2:] and again[0]["bleu_more"] > lines[0]["bleu_more"]

    head, _, *rows = study("qqp", "report").differences(again).splitlines()
    assert head.startswith("| system | than | split | rows | MBR | more BLEU | more iBLEU |")
    assert len(rows) == seen and {row.count("|") for row in rows} == {head.count("|")}
    first = "| DiffuMamba-H, seed 0 | DiffuTran, seed 0 |"
    assert [row.startswith(first) for row in rows] == [True] * 10 + [False] * 4  # together, however they were made
    assert rows[0].startswith(
        f"{first} test | all 2 | 1 | {again[0]['bleu_more']:+.4f} ± {again[0]['bleu_error']:.4f} |"
    )
    assert rows[6].startswith(f"{first} test | all 2 | 2, by iBLEU | +0.0000 ± 0.0000 |")
    assert rows[9].startswith(f"{first} valid | unseen 2 | 2 |")
    assert rows[-1].startswith("| DiffuMamba-H, seed 1 | DiffuTran, seed 0 | test | unseen 2 | 1 |")


def test_rows_that_one_of_the_trainings_has_seen_are_not_unseen(write, compare):
    write("DiffuMamba-H-0", [TARGET], [TARGET], [TARGET])
    write("DiffuTran-0", ["no"], ["no"], ["no"], known=["is it ?"])
    assert [line["rows"] for line in compare("--seeds=0", "--than_seeds=0")] == [3, 2]
    write("DiffuTran-0", ["no"], ["no"], ["no"], known=["is it ?", SOURCE])
    (line,) = compare("--seeds=0", "--than_seeds=0")  # of a single unseen row there is no line, nor an old one
    assert (line["subset"], line["rows"]) == ("all", 3)


def test_samples_that_results_have_other_figures_of(write, compare, tmp_path):
    write("DiffuTran-0", ["no"], [TARGET])
    path = write("DiffuMamba-H-0", [TARGET], ["no"])
    figures = make_report(score_rows(read_records(path), [1]), "test")["systems"]["model"]
    line = {"system": "DiffuMamba-H", "seed": 0, "split": "test", "subset": "all", "mbr": 1, "curve": False, "rows": 2}
    results = tmp_path / "results.json"
    others = [line | other | {"bleu": 0.0} for other in ({"seed": 1}, {"curve": True}, {"mbr": 10}, {"gain": "ibleu"})]
    results.write_text(json.dumps([*others, line | {"bleu": figures["bleu"]}]))
    assert len(compare("--seeds=0", "--than_seeds=0")) == 2
    results.write_text(json.dumps([line | {"bleu": 0.25}]))
    assert f"of the line in {results} 0.25; score it with run.py --system=" in compare("--seeds=0", "--than_seeds=0")


def test_comparisons_that_are_refused(write, compare, tmp_path):
    write("DiffuMamba-H-0", [TARGET], [TARGET])
    write("DiffuMamba-H-0", [TARGET] * 3, [TARGET] * 3).rename(
        tmp_path / "DiffuMamba-H-0" / "samples_test_4.examples.jsonl"
    )
    write("DiffuTran-0", ["no"], [TARGET], target="others were wanted")
    write("DiffuTran-1", ["no"])
    write("DiffuTran-3", ["no"])
    other = tmp_path / "other.jsonl"
    other.write_text('{"system": "DIMBA"}\n')
    for flags, message in (
        (["--seeds=0", "--than_seeds=0"], "DiffuTran, seed 0:1: another row than that of DiffuMamba-H, seed 0"),
        (["--seeds=0", "--than_seeds=1"], "DiffuTran, seed 1 has 1 rows, DiffuMamba-H, seed 0 2"),
        (["--seeds=0", "--than_seeds=2"], "DiffuTran-2/samples_test_1.examples.jsonl: no such file; score it with run"),
        (["--seeds=0", "--than_seeds=0", "--mbr=4"], "has 3 samples a row; score it with run.py --system="),
        (["--seeds=1", "--than_seeds=3", "--system=DiffuTran"], "one row has no standard error"),
        (["--seeds=0,0", "--than_seeds=0"], "--seeds: one is named twice"),
        (["--seeds=0", "--than_seeds=1,1"], "--than_seeds: one is named twice"),
        (["--seeds=0,1", "--than_seeds=0", "--than=DiffuMamba-H"], "would be compared with itself"),
        (["--seeds=0", "--than_seeds=0", "--gain=ibleu"], "expected two samples at least"),
        (["--seeds=0", "--than_seeds=0", "--mbr=0"], "--mbr=0: expected"),
        (["--seeds=0", "--than_seeds=0", f"--output={tmp_path}"], "is a folder: name a file"),
        (["--seeds=0", "--than_seeds=0", f"--output={tmp_path}/none/x.jsonl"], "there is no folder"),
        (["--seeds=0", "--than_seeds=0", f"--output={other}"], f"{other}:1: no comparison of two systems"),
    ):
        found = compare(*flags)
        assert message in found, found
    assert other.read_text() == '{"system": "DIMBA"}\n'
