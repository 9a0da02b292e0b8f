"""One system's texts beside another's, row by row, among samples that a study has kept. The networks are made up."""

import json
import statistics
import sys

import pytest

from dimba_jax.data.examples import Example
from dimba_jax.evals.records import make_records, record_line

SOURCE, TARGET = "how are you doing now ?", "are you all well today ?"


@pytest.fixture
def write(tmp_path):
    """Keeps samples of a training, those of each row, as run.py does."""

    def call(name, *rows, known=(), target=TARGET):
        examples = [Example(SOURCE if n else "is it ?", (target,), n) for n in range(len(rows))]
        records = make_records(examples, rows, known, 2)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = folder / f"samples_test_{len(rows[0])}.examples.jsonl"
        path.write_text("".join(record_line(record) + "\n" for record in records))

    return call


@pytest.fixture
def compare(tmp_path, study, monkeypatch, capsys):
    """Runs differences.py; the lines of its file, or what it said when it ended with an error."""
    module = study("qqp", "differences")
    output = tmp_path / "differences.jsonl"

    def call(*flags, system="DiffuMamba-H", than="DiffuTran"):
        base = [f"--work={tmp_path}", f"--system={system}", f"--than={than}", f"--output={output}", "--mbr=1"]
        monkeypatch.setattr(sys, "argv", ["differences.py", *base, *flags])
        try:
            module.main()
        except SystemExit as exit:
            return str(exit.code) + capsys.readouterr().err
        return [json.loads(line) for line in output.read_text().splitlines()]

    return call


def test_difference_of_the_means_of_seeds(write, compare, study):
    known = ["is it ?"]  # the first row's source was seen in training
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
    head, _, first, *_, last = study("qqp", "report").differences(lines).splitlines()
    assert head.startswith("| system | than | split | rows | MBR | more BLEU | more iBLEU |")
    assert first.startswith("| DiffuMamba-H, seeds 0, 1 | DiffuTran, seed 2 | test | all 3 | 1 | +0.")
    assert f" | {unseen['bleu_more']:+.4f} ± {unseen['bleu_error']:.4f} | " in last and "unseen 2" in last


def test_a_comparison_made_again_takes_the_place_of_the_line_before(write, compare):
    write("DiffuMamba-H-0", [TARGET], [TARGET])
    write("DiffuTran-0", ["no"], [TARGET])
    first = compare("--seeds=0", "--than_seeds=0")
    write("DiffuTran-0", ["no"], ["no"])
    second = compare("--seeds=0", "--than_seeds=0")
    assert len(second) == len(first) == 2 and second[0]["bleu_more"] > first[0]["bleu_more"]


def test_choices_among_several_samples(write, compare):
    write("DiffuMamba-H-0", (TARGET, TARGET), (TARGET, TARGET))
    write("DiffuTran-0", (TARGET, TARGET), (SOURCE, TARGET))  # the second is chosen where copying counts
    (by_bleu, _) = compare("--seeds=0", "--than_seeds=0", "--mbr=2")
    assert by_bleu["bleu_more"] > 0.2 and by_bleu["gain"] == "bleu"
    (*_, by_ibleu, _) = compare("--seeds=0", "--than_seeds=0", "--mbr=2", "--gain=ibleu")
    assert (by_ibleu["mbr"], by_ibleu["gain"], by_ibleu["rows"], by_ibleu["bleu_more"]) == (2, "ibleu", 2, 0.0)


def test_comparisons_that_are_refused(write, compare):
    write("DiffuMamba-H-0", [TARGET], [TARGET])
    write("DiffuTran-0", ["no"], [TARGET], target="others were wanted")
    write("DiffuTran-1", ["no"])
    for flags, message in (
        (["--seeds=0", "--than_seeds=0"], "DiffuTran, seed 0:1: another row than that of DiffuMamba-H, seed 0"),
        (["--seeds=0", "--than_seeds=1"], "DiffuTran, seed 1 has 1 rows, DiffuMamba-H, seed 0 2"),
        (["--seeds=0", "--than_seeds=2"], "DiffuTran-2/samples_test_1.examples.jsonl: no such file; score it with run"),
        (["--seeds=0,0", "--than_seeds=0"], "--seeds: one is named twice"),
        (["--seeds=0", "--than_seeds=1,1"], "--than_seeds: one is named twice"),
        (["--seeds=0,1", "--than_seeds=0", "--than=DiffuMamba-H"], "would be compared with itself"),
        (["--seeds=0", "--than_seeds=0", "--gain=ibleu"], "expected two samples at least"),
        (["--seeds=0", "--than_seeds=0", "--mbr=0"], "--mbr=0: expected"),
    ):
        found = compare(*flags)
        assert message in found, found
