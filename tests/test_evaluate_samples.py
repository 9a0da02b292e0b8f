"""evaluate --samples: samples that are there are chosen among anew, by another gain or of several files."""

import json
from pathlib import Path

import pytest

from dimba_jax import evaluate
from dimba_jax.data.examples import Example
from dimba_jax.evals.records import make_records, record_line

ROWS = [Example("how do i cook rice ?", ("how is rice cooked ?",), 0), Example("why sleep ?", ("is there sleep ?",), 1)]


def run(*arguments: object) -> int:
    return evaluate.main(["evaluate", *map(str, arguments)])


def write(path: Path, samples, calls: int | None = 16, known: tuple[str, ...] | None = ()) -> Path:
    records = make_records(ROWS[: len(samples)], samples, known, calls)
    path.write_text("".join(record_line(record) + "\n" for record in records))
    return path


def read(path: Path):
    return json.loads(path.read_text())


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_choice_by_ibleu(tmp_path, capsys):
    copy, other = ROWS[0].source, "which way is rice cooked ?"
    drawn = write(tmp_path / "drawn.jsonl", [[copy, copy, other, other]])
    for gain, chosen in (("bleu", 0), ("ibleu", 2)):
        assert run(f"--samples={drawn}", "--mbr=4", f"--mbr_gain={gain}", f"--output={tmp_path}/{gain}.json") == 0
        assert lines(tmp_path / f"{gain}.examples.jsonl")[0]["chosen"] == {"1": 0, "4": chosen}
    assert list(read(tmp_path / "ibleu.json")["systems"]) == ["model", "model_mbr4_ibleu", "copy"]
    assert lines(tmp_path / "ibleu.examples.jsonl")[0]["gain"] == "ibleu"
    assert "gain" not in lines(tmp_path / "bleu.examples.jsonl")[0]
    capsys.readouterr()
    for source in (f"--samples={drawn}", "--checkpoint=none"):
        assert run(source, "--mbr_gain=ibleu", f"--output={tmp_path}/x.json") == 2
        assert "--mbr_gain=ibleu chooses among several samples: add --mbr=10" in capsys.readouterr().err


def test_samples_of_two_files_are_pooled(tmp_path):
    a = write(tmp_path / "a.jsonl", [["a0", "a1"], ["c0", "c1"]], 16, (ROWS[1].source,))
    b = write(tmp_path / "b.jsonl", [["b0", "b1"], ["d0", "d1"]], 7, (ROWS[1].source,))
    reports = []
    for files in ([f"--samples={a},{b}"], [f"--samples={a}", b], [f"--samples={a}", f"--samples={b}"]):
        assert run(*files, "--mbr=4", f"--output={tmp_path}/both.json") == 0
        reports.append(read(tmp_path / "both.json"))
        reports[-1]["metadata"].pop("environment")
    report = reports[0]
    assert report == reports[1] == reports[2] and report["metadata"]["samples"] == [str(a), str(b)]
    assert list(report["systems"]) == ["model", "model_mbr4", "copy"] and report["unseen_rows"] == 1
    assert report["systems"]["model_mbr4"]["network_calls"] is None  # not the same for all
    assert [line["samples"] for line in lines(tmp_path / "both.examples.jsonl")] == [
        ["a0", "b0", "a1", "b1"], ["c0", "d0", "c1", "d1"]
    ]  # fmt: skip


def test_files_that_cannot_be_pooled(tmp_path, capsys):
    a = write(tmp_path / "a.examples.jsonl", [["a0", "a1"], ["c0", "c1"]])
    b = write(tmp_path / "b.jsonl", [["b0", "b1"], ["d0", "d1"]])
    short = write(tmp_path / "short.jsonl", [["b0", "b1"]])
    untold = write(tmp_path / "untold.jsonl", [["b0", "b1"], ["d0", "d1"]], known=None)
    assert run(f"--samples={a},{short}", "--limit=1", f"--output={tmp_path}/c.json") == 0
    capsys.readouterr()
    for files, more, message in (
        ([a, b], ["--mbr=5"], f"{a} and {b} together have 4"),
        ([a, b], [f"--output={tmp_path}/a.json"], "would replace"),  # whose examples it reads
        ([a, a], [], "one file is named twice; name each once"),
        ([a, short], [], f"{short} has 1 rows, {a} 2"),
        ([a, untold], [], f"{untold} does not tell unseen rows, {a} does"),
        ([","], [], "--samples names no file"),
    ):
        assert run(f"--samples={','.join(map(str, files))}", f"--output={tmp_path}/d.json", *more) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
    assert not (tmp_path / "d.json").exists()


@pytest.mark.parametrize("bare", ["c.txt", "a,b.txt"])
def test_bare_names_are_of_the_files_flag_that_is_given(bare):
    from dimba_jax import commandline

    def parse(*arguments):
        define = commandline.Flags()
        define.files("input", "texts")
        define.files("samples", "samples")
        values = define.parse(["evaluate", *arguments])
        return values.input, values.samples

    assert parse("--samples=a,b", bare) == (None, ["a", "b", bare])
    assert parse("--input=a", bare, "--samples=b") == (["a"], ["b", bare])  # those of the flag that was defined last
