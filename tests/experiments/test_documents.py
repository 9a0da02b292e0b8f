"""Tables in documents: where they stand, and that they are those of the data beside them."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

TEXT = (
    "before\n<!-- a (b): report.py -->\n<!-- end of a (b) -->\nbehind\n<!-- c: table.py -->\nold\n<!-- end of c -->\n"
)
TABLE = "| A |\n|---|\n| {} |"


@pytest.fixture
def documents(study):
    return study(".", "documents")


def test_a_table_takes_the_place_that_has_its_name_and_nothing_else_changes(documents, tmp_path, capsys):
    readme, other = tmp_path / "README.md", tmp_path / "more" / "other.md"
    for folder in ("more", "odd.md", ".hidden"):
        (tmp_path / folder).mkdir()
    readme.write_text(TEXT)
    (tmp_path / ".hidden" / "copy.md").write_text(TEXT)
    other.write_bytes(b"one\r\n<!-- d: report.py -->\n<!-- end of d -->")  # the file ends with the mark
    assert documents.of(tmp_path) == [readme, other]
    for value in (r"\1 \g<0>", "2"):
        documents.put({"a (b)": TABLE.format(value), "d": TABLE.format("D")}, documents.of(tmp_path))
        assert readme.read_text() == TEXT.replace("report.py -->\n", f"report.py -->\n\n{TABLE.format(value)}\n\n")
        there = f"one\r\n<!-- d: report.py -->\n\n{TABLE.format('D')}\n\n<!-- end of d -->"
        assert other.read_bytes() == there.encode()
        assert documents.written(documents.of(tmp_path)) == {"a (b)": TABLE.format(value), "d": TABLE.format("D")}
    assert capsys.readouterr().out.splitlines() == [
        f"wrote tables of {path}"
        for path in (readme, other, readme)  # the other one is as it was
    ]
    assert documents.written([readme], "table.py") == {"c": "old"}
    documents.put({"c": TABLE.format("new")}, [readme], "table.py")
    assert documents.written([readme], "table.py") == {"c": TABLE.format("new")}
    assert documents.written([readme], "t.ble.py") == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace("a (b)", "a"),
            "'a .b.' has no place: it needs.*\n<!-- a .b.: report.py -->\n<!-- end of",
        ),
        (lambda text: text.replace("report.py", "other.py"), "'a .b.' has no place"),
        (lambda text: text.replace("<!-- a", "see <!-- a"), "README.md: the mark <!-- end of a .b. --> ends no table"),
        (lambda text: text + text, "'a .b.' has several places in .*README.md"),
        (lambda text: text.replace("end of a (b)", "end of b"), "README.md: the mark <!-- end of b --> ends no table"),
        (lambda text: text.replace("<!-- end of a (b) -->", ""), "README.md: the table 'a .b.' has no end"),
        (lambda text: text + "<!-- end of c -->\n", "README.md: the mark <!-- end of c --> ends no table"),
        (lambda text: text + "<!-- e: report.py -->\n", "README.md: the table 'e' has no end.*\n<!-- end of e -->"),
        (
            lambda text: text + "<!-- e: report.py -->\n<!-- end of e -->\n",
            "README.md has marks of 'e', which report.py",
        ),
    ],
)
def test_a_table_without_a_place_of_its_own_is_refused_and_nothing_written(documents, tmp_path, change, said):
    readme, other = tmp_path / "README.md", tmp_path / "other.md"
    readme.write_text(change(TEXT))
    other.write_text("<!-- d: report.py -->\n<!-- end of d -->\n")
    before = readme.read_text()
    with pytest.raises(SystemExit, match=said):
        documents.put({"d": TABLE.format("new"), "a (b)": TABLE.format("new")}, documents.of(tmp_path))
    assert readme.read_text() == before and "new" not in other.read_text()


def test_what_is_no_table_and_a_name_in_two_documents_are_refused(documents, tmp_path):
    (tmp_path / "README.md").write_text(TEXT)
    for table in ("| A |\n|---|", TABLE.format("<!-- x -->")):
        with pytest.raises(SystemExit, match="'a .b.' has no rows, or a mark in them"):
            documents.put({"a (b)": table}, documents.of(tmp_path))
    with pytest.raises(SystemExit, match="'x' has no place(.*\n)+the table 'y' has no place"):  # all at once
        documents.put(dict.fromkeys(("x", "a (b)", "y"), TABLE), documents.of(tmp_path))
    with pytest.raises(SystemExit, match="marks of 'a .b.'"):
        documents.put({}, documents.of(tmp_path))
    documents.put({}, documents.of(tmp_path), others=["a (b)"])  # made another time
    (tmp_path / "other.md").write_text(TEXT)
    with pytest.raises(SystemExit, match="several places in .*README.md, .*other.md"):
        documents.put({"a (b)": TABLE}, documents.of(tmp_path))
    with pytest.raises(SystemExit, match="other.md: there is another table 'a .b.'"):
        documents.written(documents.of(tmp_path))
    assert (tmp_path / "README.md").read_text() == TEXT


def test_results_that_are_not_there_are_asked_for(study, tmp_path):
    read = study(".", "result_files").read
    (tmp_path / "a.jsonl").write_text('{"b": 1}\n[2]\n')
    (tmp_path / "a.json").write_text('{"b":\n1}')
    assert read(tmp_path / "a.jsonl") == [{"b": 1}, [2]]
    assert read(tmp_path / "a.json") == {"b": 1}
    with pytest.raises(SystemExit, match="none.jsonl is not there yet: the scripts"):
        read(tmp_path / "none.jsonl")


def of_results(report):
    return report.tables(json.loads((report.HERE / "results.json").read_text()))


def of_both_bases(report):
    lines = [json.loads(line) for line in (report.HERE / "results.jsonl").read_text().splitlines()]
    found = [report.tables(base, [line for line in lines if line["base"] == base]) for base in report.BASES]
    return {name: table for tables in found for name, table in tables.items()}


STUDIES = [
    ("qqp", "report", lambda report: report.tables()),
    ("qqp_gaussian", "report", lambda report: report.tables()),
    ("qqp_masked", "report", lambda report: report.tables()),
    ("masked_lm", "report", lambda report: report.tables()),
    ("throughput", "report", lambda report: report.tables()),
    ("scale", "table", lambda report: report.tables()),
    ("tasks", "report", of_results),
    ("diffumamba_parameters", "report", of_results),
    ("ablations", "report", of_both_bases),
]


@pytest.mark.parametrize(("folder", "script", "tables"), STUDIES)
def test_the_tables_that_stand_there_are_those_of_the_results_beside_them(study, folder, script, tables):
    report = study(folder, script)
    there = report.documents.written(report.documents.of(report.HERE), f"{script}.py")
    assert there == tables(report)


def test_every_document_with_marks_is_of_a_study_that_is_compared():
    marked = {
        path.relative_to(EXPERIMENTS).parts[0]
        for path in EXPERIMENTS.rglob("*.md")
        if "<!-- end of " in path.read_text()
    }
    assert marked == {folder for folder, _, _ in STUDIES}
    (made,) = re.findall(r"^tables: .*\n((?:\t.*\n)+)", (EXPERIMENTS.parent / "Makefile").read_text(), re.MULTILINE)
    (several,) = re.findall(r"for study in ([\w ]+);", made)
    assert sorted([*several.split(), *re.findall(r"experiments/(\w+)/", made)]) == sorted(marked)


@pytest.mark.parametrize(("folder", "script", "tables"), STUDIES)
def test_a_script_writes_its_tables_where_the_last_ones_stood(study, monkeypatch, tmp_path, folder, script, tables):
    copy = tmp_path / folder
    shutil.copytree(EXPERIMENTS / folder, copy)
    front = tmp_path / "README.md"
    shutil.copy(EXPERIMENTS.parent / "README.md", front)
    report = study(folder, script)
    monkeypatch.setattr(report, "HERE", copy)
    if hasattr(report, "RESULTS"):
        monkeypatch.setattr(report, "RESULTS", copy / report.RESULTS.name)
    if hasattr(report, "front_page"):
        monkeypatch.setattr(report.front_page, "README", front)
    if hasattr(report, "counted"):  # takes ten seconds
        monkeypatch.setattr(report, "counted", lambda: json.loads((EXPERIMENTS / folder / "results.json").read_text()))
    documents = [*report.documents.of(copy), *([front] if folder == "qqp" else [])]
    before = {path: path.read_text() for path in documents}
    for path, text in before.items():
        path.write_text(re.sub(r"(<!-- .*\.py -->\n)\n(\|[^\n]*\n)+\n", r"\1", text))
    changed = {path for path, text in before.items() if path.read_text() != text}
    assert copy / "README.md" in changed
    pictures = sorted(copy.glob("*.png"))
    for picture in pictures:
        picture.unlink()
    for flags in [[f"--base={base}"] for base in report.BASES] if folder == "ablations" else [[]]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
        report.main()
    assert {path: path.read_text() for path in before} == before
    assert [picture.read_bytes()[:4] for picture in pictures] == [b"\x89PNG"] * len(pictures)


def test_counts_of_the_parameters_are_those_of_the_recipes(study):
    report = study("diffumamba_parameters", "report")
    found = report.parts(report.recipe("diffumamba").VARIANTS["240m-h"])
    assert found == json.loads((report.HERE / "results.json").read_text())["counts"]["240m-h"]


def test_runs_of_one_text_leave_those_of_the_other(study, monkeypatch, tmp_path):
    report = study("masked_lm", "report")
    copy = tmp_path / "masked_lm"
    shutil.copytree(report.HERE, copy)
    monkeypatch.setattr(report, "HERE", copy)
    monkeypatch.setattr(report, "RESULTS", copy / "results.json")
    before = json.loads((copy / "results.json").read_text())
    found = [row | {"steps": 7} for row in before if row["recipe"] == "wikitext2"]
    monkeypatch.setattr(report, "gather", lambda runs: found)
    monkeypatch.setattr(sys, "argv", ["report.py", "--runs=runs"])
    report.main()
    kept = [row for row in before if row["recipe"] == "shakespeare"]
    assert json.loads((copy / "results.json").read_text()) == [*found, *kept] and len(kept) == 5
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="has no run of this study"):
        report.gather(tmp_path / "nothing")


def test_the_table_of_the_front_page_is_that_of_the_results(study):
    front_page = study("qqp", "front_page")
    lines = json.loads((EXPERIMENTS / "qqp" / "results.json").read_text())
    there = study("qqp", "documents").written([front_page.README], front_page.SCRIPT)
    assert there == {front_page.NAME: front_page.table(lines)}


def test_seeds_stand_apart_where_a_system_has_several(study):
    line = {"split": "test", "subset": "all", "mbr": 1, "curve": False, "system": "B", "ibleu": 0.1}
    lines = [line | {"seed": seed, "bleu": bleu} for seed, bleu in ((1, 0.3), (0, 0.2))]
    lines += [line | {"seed": 1, "subset": "unseen", "bleu": 0.4}, line | {"system": "A", "seed": 0, "bleu": 0.9}]
    lines += [
        line | {"seed": 1, "bleu": 0.9} | other for other in ({"gain": "ibleu"}, {"curve": True}, {"split": "valid"})
    ]
    lines += [{name: value for name, value in line.items() if name != "curve"} | {"system": "copy", "bleu": 0.9}]
    head, _, *rows = study("qqp", "report").seeds(lines).splitlines()
    assert head.startswith(
        "| system | seed | BLEU | iBLEU | BLEU, MBR 10 | iBLEU, MBR 10 | BLEU, unseen | iBLEU, unseen |"
    )
    assert rows == [
        "| B | 0 | 0.2000 | 0.1000 | – | – | – | – | – | – |",
        "| B | 1 | 0.3000 | 0.1000 | – | – | 0.4000 | 0.1000 | – | – |",
    ]


def test_the_front_page_has_every_system_in_its_words(study):
    table = study("qqp", "front_page").table
    line = {"split": "test", "subset": "all", "mbr": 1, "curve": False, "params": 66_104_896, "train_minutes": 6.64}
    line |= {"network_calls": 16.0, "steps": 16, "bleu": 0.29, "ibleu": 0.13, "seed": 0}
    names = study("qqp", "front_page").SYSTEMS
    lines = [line | {"system": name} for name in names]
    lines += [line | {"system": "MambaDiff", "seed": 1, "bleu": 0.3, "train_minutes": 8.0}]
    lines += [line | {"system": "MambaDiff", "seed": seed, "subset": "unseen", "bleu": 0.2} for seed in (0, 1)]
    lines += [line | {"system": "MambaDiff", "mbr": 10, "network_calls": 160.0, "bleu": 0.31}]
    lines += [line | {"system": "MambaDiff", "mbr": 10, "gain": "ibleu", "bleu": 0.9}]  # not shown
    lines += [line | {"system": "MambaDiff", "split": "valid", "bleu": 0.9}]  # nor this
    long = {"system": "DiffuTran long", "mbr": 10, "network_calls": 160.0, "teachers": ["a", "b"]}
    lines = [line | long if line["system"] == "DiffuTran long" else line for line in lines]
    few = study("qqp", "front_page").FEW_CALLS
    curves = [line | {"system": name, "curve": True, "steps": steps, "bleu": 0.1} for name in few for steps in (2, 4)]
    lines += [line | {"network_calls": float(line["steps"])} for line in curves]
    lines += [line | {"system": "copy", "bleu": 0.262}]
    rows = table(lines).splitlines()
    assert len(rows) == 2 + len(names) + len(few) + 2  # heads, systems, those of fewer calls, published and copying
    assert rows[2].endswith(
        "| 66M | 2 (1 with MBR) | 6.6 to 8.0 minutes | 16 | .295 ± .005 | .130 ± .000 | .310 | .130 | .200 ± .000 |"
    )
    (of_long,) = (row for row in rows if "long-tran" in row)
    assert of_long.endswith("| 66M | 1 | 6.6 minutes, theirs counted | 16 | – | – | .290 | .130 | – |")
    fewer = [row for row in rows if "fewer" in row]
    assert fewer == ["| the same, fewer calls | | 1 | | 4 | .100 | .130 | – | – | – |"] * len(few)
    assert rows[-1] == "| copying the source | | | none | 0 | .262 | .130 | – | – | – |"
    for missing, said in (("DIMBA", "test line of DIMBA"), ("copy", "test line of copying")):
        with pytest.raises(SystemExit, match=f"no {said}, which"):
            table([line for line in lines if line["system"] != missing])
    with pytest.raises(SystemExit, match="no line of DiffuMamba-H distilled with 4 steps"):
        table([line for line in lines if not line["curve"]])
