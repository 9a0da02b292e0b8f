"""Weights and checkpoints: nothing in them is executed, and no name in them leads out of their folder."""

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
from dimba_jax.config import from_config_dict, to_dict
from dimba_jax.data.examples import DataError
from dimba_jax.data.tokenizers import ByteTokenizer, tokenizer_from_dict
from dimba_jax.diffusion import make_process
from dimba_jax.errors import ConfigError
from dimba_jax.interop.weight_files import read_weights
from dimba_jax.models.build import make_denoiser
from dimba_jax.sampling.load import load


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
