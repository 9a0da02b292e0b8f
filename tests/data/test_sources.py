import csv
import json

import pytest

from dimba_jax.config import DataConfig
from dimba_jax.data import hub
from dimba_jax.data.examples import DataError, Example
from dimba_jax.data.quora import HEADER
from dimba_jax.data.sources import load_split


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train.jsonl", [{"src": "a b", "trg": "c"}, {"src": "d", "trg": ["e", "f"]}])
    write(tmp_path / "more.jsonl", [{"src": "g", "trg": "h", "refs": ["h", "i", "j"]}])
    return tmp_path


def test_jsonl(folder):
    config = DataConfig(path=str(folder), train_files=("train.jsonl", "more.jsonl"))
    assert load_split(config, "train") == [
        Example("a b", ("c",), 0),
        Example("d", ("e", "f"), 1),
        Example("g", ("h", "i", "j"), 2),
    ]


def test_jsonl_line_ends_and_byte_order_mark(tmp_path):
    text = '\ufeff{"src": "é\u2028x", "trg": "b"}\r\n{"src": "c", "trg": "d"}'
    (tmp_path / "test.jsonl").write_bytes(text.encode("utf-8"))
    found = load_split(DataConfig(path=str(tmp_path)), "test")
    assert [(e.source, e.targets) for e in found] == [("é\u2028x", ("b",)), ("c", ("d",))]


def test_jsonl_columns(tmp_path):
    write(tmp_path / "valid.jsonl", [{"q": "a", "p": "b"}])
    config = DataConfig(path=str(tmp_path), columns=("q", "p"))
    assert load_split(config, "valid") == [Example("a", ("b",), 0)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("ten.jsonl[:3]",), [0, 1, 2]),
        (("ten.jsonl[8:]", "ten.jsonl[2:4]"), [8, 9, 2, 3]),
        (("ten.jsonl[-2:]",), [8, 9]),
        (("ten.jsonl[:]",), list(range(10))),
    ],
)
def test_row_ranges(tmp_path, files, expected):
    write(tmp_path / "ten.jsonl", [{"src": str(i), "trg": "x"} for i in range(10)])
    found = load_split(DataConfig(path=str(tmp_path), train_files=files), "train")
    assert [int(e.source) for e in found] == expected
    assert [e.row for e in found] == list(range(len(expected)))


@pytest.mark.parametrize("spec", ["ten.jsonl[:11]", "ten.jsonl[5:5]", "ten.jsonl[12:]"])
def test_row_ranges_that_do_not_fit(tmp_path, spec):
    write(tmp_path / "ten.jsonl", [{"src": str(i), "trg": "x"} for i in range(10)])
    with pytest.raises(DataError, match="10 rows"):
        load_split(DataConfig(path=str(tmp_path), valid_file=spec), "valid")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"src": "a", "trg": "b"', "not JSON"),
        (b"[1, 2]", "expected an object"),
        (b'{"src": "a", "target": "b"}', "no key 'trg' among"),
        (b'{"trg": "b"}', "no key 'src' among"),
        (b'{"src": "a", "trg": 3}', "'trg' must be a text or a list of texts, got 3"),
        (b'{"src": "a", "trg": []}', "'trg' must be a text or a list of texts"),
        (b'{"src": "a", "trg": ["b", null]}', "'trg' must be a text, got None"),
        (b'{"src": null, "trg": "b"}', "'src' must be a text, got None"),
        (b'{"src": "  ", "trg": "b"}', "'src' is blank"),
        (b'{"src": "\xff", "trg": "b"}', "not UTF-8"),
        (b"", "not JSON"),
    ],
)
def test_malformed_rows_name_file_and_line(tmp_path, line, message):
    good = b'{"src": "a", "trg": "b"}\n'
    (tmp_path / "train.jsonl").write_bytes(good * 2 + line + b"\n" + good)
    with pytest.raises(DataError) as error:
        load_split(DataConfig(path=str(tmp_path)), "train")
    assert message in str(error.value)
    assert f"{tmp_path / 'train.jsonl'}, line 3" in str(error.value)


def test_missing_and_empty_files(tmp_path):
    config = DataConfig(path=str(tmp_path))
    with pytest.raises(DataError, match=r"valid\.jsonl: no such file"):
        load_split(config, "valid")
    (tmp_path / "test.jsonl").write_bytes(b" \n")
    with pytest.raises(DataError, match=r"test\.jsonl is empty"):
        load_split(config, "test")
    with pytest.raises(DataError, match="no such folder"):
        load_split(DataConfig(path=str(tmp_path / "none")), "test")
    with pytest.raises(DataError, match="split='dev'"):
        load_split(config, "dev")  # type: ignore[arg-type]


def test_no_path_names_every_way_to_get_data():
    with pytest.raises(DataError) as error:
        load_split(DataConfig(), "train")
    message = str(error.value)
    for way in ("Shark-NLP/DiffuSeq", "--config.data.source=quora_tsv", "--config.data.source=hub", "quickstart.py"):
        assert way in message


def write_quora(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)


def test_quora_tsv(tmp_path):
    path = tmp_path / "quora_duplicate_questions.tsv"
    rows = []
    for i in range(4600):  # every third row is no pair
        rows += [[3 * i + k, 1, 2, f'what "is" {i}?', f"is it\n{i}?", int(k != 1)] for k in range(2)]
    write_quora(path, rows)
    config = DataConfig(source="quora_tsv", path=str(path))
    splits = {split: load_split(config, split) for split in ("train", "valid", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"test": 2500, "valid": 2048, "train": 52}
    assert splits["test"][0] == Example('what "is" 0?', ("is it\n0?",), 0)
    assert splits["valid"][0] == Example('what "is" 2500?', ("is it\n2500?",), 0)
    assert splits["train"][0] == Example('what "is" 4548?', ("is it\n4548?",), 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9\t1\t2\ta\tb", "expected 6 tab-separated fields, got 5"),
        ("9\t1\t2\ta\tb\tyes", "is_duplicate must be 0 or 1, got 'yes'"),
        ("9\t1\t2\t\tb\t1", "blank question"),
        ('9\t1\t2\t"a\tb\t1', "expected 6 tab-separated fields"),
    ],
)
def test_malformed_quora_rows(tmp_path, row, message):
    path = tmp_path / "q.tsv"
    # the first question takes two lines: the bad row stands on line 4
    path.write_text("\t".join(HEADER) + '\n1\t1\t2\t"a\nb"\tc\t1\n' + row + "\n", "utf-8")
    with pytest.raises(DataError) as error:
        load_split(DataConfig(source="quora_tsv", path=str(path)), "train")
    assert message in str(error.value) and "line 4" in str(error.value)


def test_quora_file_that_is_none(tmp_path):
    path = tmp_path / "q.tsv"
    path.write_text("question1,question2\na,b\n", "utf-8")
    with pytest.raises(DataError, match="line 1: expected the header id qid1"):
        load_split(DataConfig(source="quora_tsv", path=str(path)), "train")
    write_quora(path, [[1, 1, 2, "a", "b", 1]])
    with pytest.raises(DataError, match="1 positive pairs, expected more than 4548"):
        load_split(DataConfig(source="quora_tsv", path=str(path)), "train")


def test_hub_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"src": ["a", "b"], "trg": ["c", "d"]}
    dataset = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(rows),
        validation=datasets.Dataset.from_dict({"src": ["x"], "trg": [["y", "z"]]}),
    )
    dataset.save_to_disk(str(tmp_path / "pairs"))
    config = DataConfig(source="hub", path=str(tmp_path / "pairs"))
    assert load_split(config, "train") == [Example("a", ("c",), 0), Example("b", ("d",), 1)]
    assert load_split(config, "valid") == [Example("x", ("y", "z"), 0)]
    with pytest.raises(DataError, match="no split 'test'"):
        load_split(config, "test")
    with pytest.raises(DataError, match="train row 0: no key 'question'"):
        load_split(DataConfig(source="hub", path=config.path, columns=("question", "trg")), "train")


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -e .*\[hub\]"):
        hub.load_hub("owner/name", "train", ("src", "trg"))


def test_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError, match="could not load dataset 'owner/name'.*no network"):
        hub.load_hub("owner/name", "train", ("src", "trg"))


@pytest.mark.realdata
def test_real_qqp(real_data):
    config = DataConfig(path=str(real_data / "qqp"), train_files=("train.jsonl", "train.gap_lowercase.jsonl"))
    assert len(load_split(config, "train")) == 136_433
    assert len(load_split(config, "valid")) == 2048
    assert len(load_split(config, "test")) == 2500


@pytest.mark.realdata
def test_real_asset_and_ranges(real_data):
    config = DataConfig(
        path=str(real_data / "simplification"),
        train_files=("asset_valid.jsonl[:1800]",),
        valid_file="asset_valid.jsonl[1800:]",
        test_file="asset_valid.jsonl",
    )
    assert {len(e.targets) for e in load_split(config, "test")} == {10}
    train, valid = load_split(config, "train"), load_split(config, "valid")
    assert (len(train), len(valid)) == (1800, 200)
    assert not {e.source for e in train} & {e.source for e in valid}
