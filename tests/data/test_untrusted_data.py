"""Data: no name in a config, a card or a saved dataset leads out of its folder, and no script of it is run."""

import json
from pathlib import Path

import pytest

from dimba_jax.config import DataConfig
from dimba_jax.data import hub
from dimba_jax.data.corpus import load_texts
from dimba_jax.data.examples import DataError
from dimba_jax.data.sources import load_split

ROW = '{"src": "a", "trg": "b"}\n'


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name in ("data/train.jsonl", "data/sub/train.jsonl", "secret.jsonl"):
        (tmp_path / name).write_text(ROW)
    return folder


ELSEWHERE = [
    "../secret.jsonl",
    "../*.jsonl",
    "sub/../../secret.jsonl",
    "{}/secret.jsonl",
    "../secret.jsonl[:1]",
    "",
    "..",
]


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("source", ["jsonl", "text"])
def test_data_files_lie_in_the_folder(data, name, source):
    names = (name.format(data.parent),)
    config = DataConfig(source=source, path=str(data), train_files=names, valid_file=names[0])
    read = load_texts if source == "text" else load_split
    for split in ("train", "valid"):
        with pytest.raises(DataError, match="is no name of a file in this folder"):
            read(config, split)


def test_data_files_may_lie_deeper(data):
    for names, count in {("sub/train.jsonl",): 1, ("sub/*.jsonl",): 1, ("**/*.jsonl",): 2}.items():
        assert len(load_split(DataConfig(path=str(data), train_files=names), "train")) == count
    with pytest.raises(DataError, match="is no pattern of files|no file matches"):
        load_split(DataConfig(path=str(data), train_files=("train**.json",)), "train")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(module.config, "HF_HUB_OFFLINE", True)
    return module


@pytest.mark.parametrize(
    "name", ["../secret", "owner/../secret", "/etc/passwd.d", "a/b/c", "~/x", "https://host/x", "a b"]
)
def test_names_that_are_no_dataset(datasets, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is neither a folder that is there nor a dataset id"):
        hub.load_hub(name, "train", ("src", "trg"))


def test_the_card_of_a_dataset_names_its_own_files_alone(datasets, data):
    card = '---\nconfigs:\n- config_name: default\n  data_files: "{}"\n---\n'
    (data / "README.md").write_text(card.format("train.jsonl"))
    assert len(hub.load_hub(str(data), "train", ("src", "trg"))) == 1
    for name in ("../secret.jsonl", data.parent / "secret.jsonl"):
        (data / "README.md").write_text(card.format(name))
        with pytest.raises(DataError, match="secret.jsonl', which is not in it"):
            hub.load_hub(str(data), "train", ("src", "trg"))
    for name in ("/etc/passwd", "hf://datasets/owner/other@1/x", "hf://datasets/owner/name@1/../x", "https://host/x"):
        with pytest.raises(DataError, match="which is not in it"):
            hub.check_files(["hf://datasets/owner/name@1/x", name], "hf://datasets/owner/name@")


def test_a_saved_dataset_names_its_own_files_alone(datasets, tmp_path):
    folder = tmp_path / "saved"
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"src": ["a"], "trg": ["b"]})).save_to_disk(str(folder))
    assert len(hub.load_hub(str(folder), "train", ("src", "trg"))) == 1
    state = folder / "train" / "state.json"
    values = json.loads(state.read_text())
    (folder / "train" / values["_data_files"][0]["filename"]).rename(tmp_path / "x.arrow")
    state.write_text(json.dumps(values | {"_data_files": [{"filename": "../../x.arrow"}]}))
    with pytest.raises(DataError, match="is no name of a file in this folder"):
        hub.load_hub(str(folder), "train", ("src", "trg"))
    (folder / "dataset_dict.json").write_text('{"splits": ["../elsewhere"]}')
    with pytest.raises(DataError, match="is no name of a file in this folder"):
        hub.load_hub(str(folder), "train", ("src", "trg"))
    (folder / "dataset_dict.json").write_text("[]")
    with pytest.raises(DataError, match="is no folder that save_to_disk wrote"):
        hub.load_hub(str(folder), "train", ("src", "trg"))


def test_the_script_of_a_dataset_is_not_run(datasets, tmp_path):
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="could not load dataset"):
        hub.load_hub(str(folder), "train", ("src", "trg"))
    assert not (tmp_path / "ran").exists()
