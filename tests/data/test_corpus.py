from pathlib import Path

import pytest

from dimba_jax.config import DataConfig, TextConfig
from dimba_jax.data import corpus
from dimba_jax.data.corpus import library_files, load_texts
from dimba_jax.data.examples import DataError
from dimba_jax.data.sources import load_split

SPLITS = ("train", "valid", "test")


def config(path="", valid=0.1, test=0.0, **fields) -> DataConfig:
    text = TextConfig(valid_fraction=valid, test_fraction=test)
    return DataConfig(source="text", path=str(path), source_length=0, text=text, **fields)


def test_a_single_file_is_cut_once_and_whole(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100)) + "é"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    parts = [load_texts(config(tmp_path / "a.txt", 0.1, 0.2), split) for split in SPLITS]
    assert all(len(part) == 1 for part in parts)
    assert "".join(part[0] for part in parts) == text
    assert [round(len(part[0]) / len(text), 2) for part in parts] == [0.7, 0.1, 0.2]


def test_a_tenth_is_held_out_as_in_the_usual_split(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghijk" * 3, "utf-8")  # 33 characters: int(.9 * 33) = 29
    assert load_texts(config(tmp_path / "a.txt"), "train") == [("abcdefghijk" * 3)[:29]]
    assert load_texts(config(tmp_path / "a.txt"), "valid") == [("abcdefghijk" * 3)[29:]]


def test_text_is_exact(tmp_path):
    text = "\ta \r\n\n b\u2028c\x0c\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    assert load_texts(config(tmp_path / "a.txt", 0.0), "train") == [text]


def test_a_folder_names_its_splits(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "v.txt"):
        (tmp_path / name).write_text(name, "utf-8")
    found = config(tmp_path, train_files=("c.md", "a.txt", "?.txt"), valid_file="v.txt")
    assert load_texts(found, "train") == ["c.md", "a.txt", "a.txt", "b.txt", "v.txt"]
    assert load_texts(found, "valid") == ["v.txt"]
    with pytest.raises(DataError, match=r"valid\.jsonl: no such file"):
        load_texts(config(tmp_path, train_files=("*.txt",)), "valid")
    with pytest.raises(DataError, match=r"no file matches '\*\.rst'"):
        load_texts(config(tmp_path, train_files=("*.rst",)), "train")
    with pytest.raises(DataError, match="train_files is empty"):
        load_texts(config(tmp_path, train_files=()), "train")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"fine\nalso\nb\xff\xfed\n", r"a\.txt, line 3: not UTF-8 .*byte 1"),
        (b"\xc3", r"a\.txt, line 1: not UTF-8"),
        (b" \n\n", r"a\.txt is empty"),
        (None, r"a\.txt: no such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, raw, message):
    if raw is not None:
        (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        load_texts(config(tmp_path / "a.txt"), "train")


def test_a_split_without_text(tmp_path):
    (tmp_path / "a.txt").write_text("some text", "utf-8")
    with pytest.raises(DataError, match="no text for 'test'; config.data.text.test_fraction"):
        load_texts(config(tmp_path / "a.txt"), "test")
    with pytest.raises(DataError, match="no text for 'valid'; config.data.text.valid_fraction"):
        load_texts(config(valid=0.0), "valid")


def test_pairs_are_no_texts(tmp_path):
    with pytest.raises(DataError, match="holds no pairs"):
        load_split(config(tmp_path), "train")


def test_the_library_is_split_by_file():
    files = {split: library_files(TextConfig("packed", 0.1, 0.05), split) for split in SPLITS}
    every = [path for split in SPLITS for path in files[split]]
    assert len(set(every)) == len(every) > 100
    size = {split: sum(path.stat().st_size for path in files[split]) for split in SPLITS}
    assert 1_000_000 < sum(size.values()) <= corpus.LIBRARY_BYTES
    assert size["valid"] > 0.02 * size["train"] and size["test"] > 0.01 * size["train"]
    # the draw that decides who is taken is not the one that decides who is held out
    assert 0.1 < len(library_files(TextConfig("packed", 0.2), "valid")) / len(every) < 0.3
    for path in every:
        assert not {"test", "tests", "site-packages", "encodings"} & set(path.parts[len(path.parts) - 4 :])
    # by the module's name alone: growing what is held out moves no file from one held-out split to the other
    assert set(library_files(TextConfig("packed", 0.2, 0.05), "test")) == set(files["test"])
    assert set(library_files(TextConfig("packed", 0.2, 0.05), "valid")) > set(files["valid"])


def test_the_library_is_the_same_everywhere(tmp_path, monkeypatch):
    names = [f"m{i}.py" for i in range(40)] + ["pkg/a.py", "test/x.py", "pkg/tests/y.py", "site-packages/z.py"]
    texts = {}
    for folder, order in (("here", names), ("there", names[::-1])):
        for name in order:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"# {name}\n".encode() if folder == "here" else f"# {name}\r\n".encode())
        (tmp_path / folder / "empty.py").touch()
        (tmp_path / folder / "_sysconfigdata_x.py").write_text("machine", "utf-8")
        monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _, folder=folder: str(tmp_path / folder))
        texts[folder] = {split: load_texts(config(valid=0.3, test=0.2), split) for split in SPLITS}
    assert texts["here"] == texts["there"]
    assert sorted(sum(texts["here"].values(), [])) == sorted(f"# {name}\n" for name in names[:41])


def test_the_library_is_capped(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"m{i:02}.py").write_text("x" * 10, "utf-8")
    (tmp_path / "table.py").write_text("x" * 60, "utf-8")
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(corpus, "LIBRARY_BYTES", 85)
    monkeypatch.setattr(corpus, "LIBRARY_FILE_BYTES", 50)
    files = library_files(TextConfig("packed", 0.0), "train")
    assert len(files) == 8 and files == sorted(files)
    assert [path.name for path in files] != [f"m{i:02}.py" for i in range(8)]  # not the alphabet's start
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path / "gone"))
    with pytest.raises(DataError, match="no .py files"):
        library_files(TextConfig(), "train")


@pytest.mark.realdata
def test_real_shakespeare_split(real_data: Path):
    path = real_data / "tinyshakespeare" / "input.txt"
    train, valid = (load_texts(config(path), split)[0] for split in ("train", "valid"))
    assert (len(train), len(valid)) == (1_003_854, 111_540)  # the split that published figures are for
    assert train + valid == path.read_text("utf-8")
