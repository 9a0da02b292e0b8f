"""Nothing that is read is executed, and no name in it leads out of its folder."""

import ast
import base64
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import DataConfig, from_config_dict, to_dict
from dimba_jax.data import hub
from dimba_jax.data.corpus import load_texts
from dimba_jax.data.examples import DataError
from dimba_jax.data.sources import load_split
from dimba_jax.data.tokenizers import ByteTokenizer, tokenizer_from_dict
from dimba_jax.diffusion import make_process
from dimba_jax.errors import ConfigError
from dimba_jax.interop.weight_files import read_weights
from dimba_jax.models.build import make_denoiser
from dimba_jax.sampling.load import load

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code"}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {"system", "popen", "extractall", "unpack_archive", "unsafe_load", "full_load"}
# what a call must say beside its name, since its default once was or still is another
SAFELY = {
    ("torch", "load"): ("weights_only", True),
    ("np", "load"): ("allow_pickle", False),
    ("numpy", "load"): ("allow_pickle", False),
    (None, "from_pretrained"): ("trust_remote_code", False),
}


def dangers(source: str) -> list[str]:
    """Calls and imports by which data could become a program."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [name for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        said = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        found += [name for name in ("shell", "trust_remote_code", "allow_pickle") if said.get(name) is True]
        if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            found.append(node.func.id)
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, getattr(node.func.value, "id", None)
            must = SAFELY.get((owner, name)) or SAFELY.get((None, name))
            if must and said.get(must[0]) is not must[1]:
                found.append(f"{owner}.{name}")
            if name in METHODS or (owner, name) in (("yaml", "load"), ("pickle", "loads")):
                found.append(f"{owner}.{name}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import joblib.memory", "eval(text)", "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)",
        "AutoModel.from_pretrained(name)", "f(trust_remote_code=True)", "archive.extractall(place)", "os.system(text)",
        "subprocess.run(text, shell=True)", "__import__(name)",
    ],
)  # fmt: skip
def test_the_search_finds(source):
    assert dangers(source)


@pytest.mark.parametrize("folder", ["dimba_jax", "kernels", "configs", "experiments"])
def test_no_source_runs_what_it_reads(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    assert not [(str(path), danger) for path in paths for danger in dangers(path.read_text(encoding="utf-8"))]


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.fixture
def bomb(tmp_path) -> bytes:
    content = pickle.dumps(Bomb(tmp_path / "gone_off"))
    pickle.loads(content)
    assert (tmp_path / "gone_off").exists()
    (tmp_path / "gone_off").unlink()
    return content


# weights


@pytest.fixture
def weights(tmp_path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"a": np.ones(2, np.float32)}, folder / "part.safetensors")
    save_file({"secret": np.ones(2, np.float32)}, tmp_path / "outside.safetensors")
    return folder


def index(folder: Path, content: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_an_index_names_parts_beside_it(weights):
    index(weights, {"weight_map": {"a": "part.safetensors"}})
    assert list(read_weights(weights)) == ["a"]


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{}/outside.safetensors", "x/../../outside.safetensors", ""]
)
def test_an_index_names_nothing_elsewhere(weights, name):
    index(weights, {"weight_map": {"a": name.format(weights.parent)}})
    with pytest.raises(ConfigError, match="is no name of a file in this folder"):
        read_weights(weights)


@pytest.mark.parametrize("content", [[], {}, {"weight_map": [1]}, {"weight_map": {"a": {}}}, 3, "a"])
def test_an_index_that_is_none(weights, content):
    index(weights, content)
    with pytest.raises(ConfigError):
        read_weights(weights)


def test_links_out_of_the_folder_are_refused(weights, tmp_path):
    (weights / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    index(weights, {"weight_map": {"secret": "link.safetensors"}})
    with pytest.raises(ConfigError, match="is a link to .* outside of the folder"):
        read_weights(weights)
    (weights / "model.safetensors").symlink_to("../outside.safetensors")
    with pytest.raises(ConfigError, match="is a link to .* outside of the folder"):
        read_weights(weights)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    save_file({"a": np.ones(2, np.float32)}, blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert list(read_weights(snapshot)) == ["a"]


def test_a_pickle_under_another_name_is_not_read(weights, bomb, tmp_path):
    (weights / "model.safetensors").write_bytes(bomb)
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        read_weights(weights)
    assert not (tmp_path / "gone_off").exists()


def test_of_a_file_of_torch_tensors_alone_are_read(weights, bomb, tmp_path, monkeypatch):
    (weights / "pytorch_model.bin").write_bytes(bomb)

    def refuse(path, *, map_location, weights_only):
        assert weights_only is True
        raise pickle.UnpicklingError("Weights only load failed\nand more")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=refuse))
    with pytest.raises(ConfigError, match=r"cannot be read as tensors alone \(UnpicklingError\)"):
        read_weights(weights)
    monkeypatch.undo()
    pytest.importorskip("torch", reason="the rest needs torch itself")
    with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
        read_weights(weights)
    assert not (tmp_path / "gone_off").exists()


# checkpoints


def test_a_checkpoint_is_read_without_a_pickle_and_opens_no_path_it_names(tmp_path, bomb):
    config = from_config_dict(
        {
            "data": {"source_length": 4, "target_length": 4, "path": str(tmp_path / "nowhere")},
            "tokenizer": {"model": str(tmp_path / "bomb")},
            "model": {"embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8},
        }
    )
    (tmp_path / "bomb").write_bytes(bomb)
    params = nnx.to_pure_dict(nnx.state(make_denoiser(config, ByteTokenizer.vocab_size, nnx.Rngs(0)), nnx.Param))
    process = make_process(config.process, ByteTokenizer.vocab_size)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            1, {"params": params, "ema": params, "process": process},
            data_state=None, config=to_dict(config), tokenizer=ByteTokenizer().to_dict(),
        )  # fmt: skip
    assert not [path for path in (tmp_path / "checkpoints").rglob("*") if path.suffix in (".pkl", ".pickle", ".npy")]
    seen: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple) -> None:  # stays for the process, and so must cost nothing later
        if watching and (event == "pickle.find_class" or (event == "open" and str(arguments[0]).endswith("bomb"))):
            seen.append(event)

    sys.addaudithook(watch)
    pickle.loads(pickle.dumps(Path("x")))
    assert seen == ["pickle.find_class"] * len(seen) and seen
    seen.clear()
    assert load(tmp_path).step == 1
    watching = False
    assert not seen


@pytest.mark.parametrize("name", ["../../tokenizer.model", "/etc/passwd", "file:///etc/passwd"])
def test_a_stored_tokenizer_is_content_and_no_name(name):
    for stored in (name, base64.b64encode(name.encode()).decode()):
        with pytest.raises(DataError, match="holds no model in base64|is no sentencepiece model"):
            tokenizer_from_dict({"kind": "sentencepiece", "model": stored})


# data

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
