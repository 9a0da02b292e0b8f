"""Tables in documents: where they stand, and that they are those of the data beside them."""

import json
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

TEXT = "before\n<!-- a, b: report.py -->\n<!-- end of a, b -->\nbehind\n<!-- c: table.py -->\nold\n<!-- end of c -->\n"


@pytest.fixture
def documents(study):
    return study(".", "documents")


def test_a_table_takes_the_place_that_has_its_name_and_nothing_else_changes(documents, tmp_path):
    readme, other = tmp_path / "README.md", tmp_path / "more" / "other.md"
    other.parent.mkdir()
    readme.write_text(TEXT)
    other.write_text("<!-- d: report.py -->\n<!-- end of d -->")  # the file ends with the mark
    assert documents.of(tmp_path) == [readme, other]
    for table in ("| \\1 |\n|---|", "| 2 |\n|---|"):
        documents.put({"a, b": table, "d": "| D |"}, documents.of(tmp_path))
        assert readme.read_text() == TEXT.replace("report.py -->\n", f"report.py -->\n\n{table}\n\n")
        assert other.read_text() == "<!-- d: report.py -->\n\n| D |\n\n<!-- end of d -->"
        assert documents.written(documents.of(tmp_path)) == {"a, b": table, "d": "| D |"}
    assert documents.written([readme], "table.py") == {"c": "old"}
    documents.put({"c": "new"}, [readme], "table.py")
    assert documents.written([readme], "table.py") == {"c": "new"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace("a, b", "a"),
            "'a, b' has no place in .*README.md or .*: it needs these two lines, once\n<!-- a, b: report.py -->\n",
        ),
        (lambda text: text.replace("end of a, b", "end of b"), "'a, b' has no place"),
        (lambda text: text.replace("report.py", "other.py"), "'a, b' has no place"),
        (lambda text: text + text, "'a, b' has several places in .*README.md"),
    ],
)
def test_a_table_without_a_place_of_its_own_is_refused_and_nothing_written(documents, tmp_path, change, said):
    readme, other = tmp_path / "README.md", tmp_path / "other.md"
    readme.write_text(change(TEXT))
    other.write_text("<!-- d: report.py -->\n<!-- end of d -->\n")
    before = readme.read_text()
    with pytest.raises(SystemExit, match=said):
        documents.put({"d": "new", "a, b": "new"}, documents.of(tmp_path))
    assert readme.read_text() == before and "new" not in other.read_text()


def test_a_name_in_two_documents_is_refused(documents, tmp_path):
    for name in ("README.md", "other.md"):
        (tmp_path / name).write_text(TEXT)
    with pytest.raises(SystemExit, match="several places in .*README.md, .*other.md"):
        documents.put({"a, b": "new"}, documents.of(tmp_path))


def of_results(report):
    return report.tables(json.loads((report.HERE / "results.json").read_text()))


def of_both_bases(report):
    lines = [json.loads(line) for line in (report.HERE / "results.jsonl").read_text().splitlines()]
    found = [report.tables(base, [line for line in lines if line["base"] == base]) for base in report.BASES]
    return {name: table for tables in found for name, table in tables.items()}


@pytest.mark.parametrize(
    ("folder", "script", "tables"),
    [
        ("qqp", "report", lambda report: report.tables()),
        ("qqp_gaussian", "report", lambda report: report.tables()),
        ("qqp_masked", "report", lambda report: report.tables()),
        ("masked_lm", "report", lambda report: report.tables()),
        ("throughput", "report", lambda report: report.tables()),
        ("scale", "table", lambda report: report.tables()),
        ("tasks", "report", of_results),
        ("diffumamba_parameters", "report", of_results),
        ("ablations", "report", of_both_bases),
    ],
)
def test_the_tables_that_stand_there_are_those_of_the_results_beside_them(study, folder, script, tables):
    report = study(folder, script)
    there = report.documents.written(report.documents.of(report.HERE), f"{script}.py")
    assert there == tables(report)


def test_the_table_of_the_front_page_is_that_of_the_results(study):
    front_page = study("qqp", "front_page")
    lines = json.loads((EXPERIMENTS / "qqp" / "results.json").read_text())
    there = study("qqp", "documents").written([front_page.README], front_page.SCRIPT)
    assert there == {front_page.NAME: front_page.table(lines)}


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
    lines += [line | {"system": "DiffuMamba long", "curve": True, "steps": steps, "bleu": 0.1} for steps in (2, 4)]
    lines += [line | {"system": "copy", "bleu": 0.262}]
    rows = table(lines).splitlines()
    assert len(rows) == 2 + len(names) + 1 + 2  # heads, systems, one of fewer calls, published and copying
    assert rows[2].endswith(
        "| 66M | 2, MBR 1 | 6.6 to 8.0 minutes | 16 | .295 ± .005 | .130 ± .000 | .310 | .130 | .200 ± .000 |"
    )
    (of_long,) = (row for row in rows if "long-tran" in row)
    assert of_long.endswith("| 66M | 1 | 6.6 minutes, theirs counted | 16 | – | – | .290 | .130 | – |")
    (fewer,) = (row for row in rows if "fewer" in row)
    assert fewer == "| the same, fewer calls | | 1 | | 16 | .100 | .130 | – | – | – |"
    assert rows[-1] == "| copying the source | | | none | 0 | .262 | .130 | – | – | – |"
    with pytest.raises(SystemExit, match="no test line of DIMBA, which"):
        table([line for line in lines if line["system"] != "DIMBA"])
