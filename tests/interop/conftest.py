"""The networks under test are tiny: most of their time is compilation, which a lighter XLA pipeline halves."""

import json
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from golden_mamba2 import GOLDEN
from safetensors.numpy import load_file, save_file


@pytest.fixture(autouse=True, scope="package")
def quick_compilation() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def copied(tmp_path):
    """copied(weights={}, drop=(), **config): the golden folder with other files."""

    def make(change=lambda weights: weights, name="copy", **values):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((GOLDEN / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        save_file(change(load_file(GOLDEN / "model.safetensors")), folder / "model.safetensors")
        return folder

    return make


STATE_SPACES = {
    "d_model": 16, "d_intermediate": 0, "n_layer": 3, "vocab_size": 37, "attn_layer_idx": [], "attn_cfg": {},
    "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "headdim": 8, "ngroups": 2, "d_conv": 3}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": False,
}  # fmt: skip


def as_state_spaces(weights):
    return {name.replace("embeddings", "embedding"): value for name, value in weights.items()}


@pytest.fixture
def state_spaces(tmp_path):
    folder = tmp_path / "state_spaces"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(STATE_SPACES))
    save_file(as_state_spaces(load_file(GOLDEN / "model.safetensors")), folder / "model.safetensors")
    return folder
