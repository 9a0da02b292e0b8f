"""Mamba-2 checkpoints of transformers and mamba_ssm: their files are read, and give the same logits here.

The golden checkpoint is committed; where torch and transformers are installed, fresh ones are compared too.
"""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from golden_mamba2 import GOLDEN, MAKE, TOLERANCE, VOCABULARY, logits, network, ours, run_config, started
from safetensors.numpy import load_file

from dimba_jax.config import ConfigError
from dimba_jax.interop.pretrained_mamba2 import as_flags, main, model_settings


def test_golden_logits(expected):
    found = ours(GOLDEN, expected["tokens"])
    assert np.abs(found - expected["logits"]).max() < TOLERANCE
    assert np.abs(expected["logits"]).max() > 1.0  # the tolerance is one of real values


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"n_groups": 1, "state_size": 5, "conv_kernel": 4, "num_hidden_layers": 1, "hidden_size": 24, "num_heads": 6},
    ],
    ids=["tied", "other sizes"],
)
def test_transformers_itself(tmp_path, settings):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = MAKE["make_model"](7, **settings)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(8).integers(0, VOCABULARY, (2, 9)).astype(np.int32)
    assert np.abs(ours(tmp_path, tokens) - MAKE["logits_of"](model, tokens)).max() < TOLERANCE


def test_names_and_padding_of_state_spaces(expected, state_spaces):
    """37 tokens in a table of 40 rows: the rows that only pad are left out."""
    config = run_config(model_settings(state_spaces))
    graphdef, params = started(config, state_spaces, vocab_size=37)
    tokens = expected["tokens"] % 37
    found = np.asarray(logits(network(graphdef, params), jnp.asarray(tokens), jnp.zeros(2)))
    whole = ours(GOLDEN, tokens)
    np.testing.assert_allclose(found, whole[..., :37], atol=1e-5)
    assert model_settings(state_spaces) == model_settings(GOLDEN) | {"vocab_size": 37}


def test_settings_are_read():
    assert model_settings(GOLDEN) == {
        "d_model": 16, "layers": 3, "state_dim": 4, "head_dim": 8, "groups": 2, "expand": 2, "conv_width": 3,
        "head": "untied", "vocab_size": 40, "pattern": ("mamba2",), "mlp_ratio": 0.0,
    }  # fmt: skip
    assert (
        as_flags({"d_model": 16, "pattern": ("mamba2",)})
        == "--config.model.d_model=16 --config.model.pattern=\"('mamba2',)\""
    )


def test_torch_files_parts_and_bfloat16(copied, tmp_path, expected):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in load_file(GOLDEN / "model.safetensors").items()}
    folder = copied()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    np.testing.assert_array_equal(ours(folder, expected["tokens"]), ours(GOLDEN, expected["tokens"]))

    from safetensors.torch import save_file as save_torch

    (folder / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, held in parts.items():
        save_torch({name: tensors[name].bfloat16() for name in held}, folder / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = ours(folder, expected["tokens"])
    assert 0 < np.abs(found - expected["logits"]).max() < 0.2  # three digits are left of every weight
    (folder / "two.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lists two\.safetensors, which the folder lacks"):
        ours(folder, expected["tokens"])


def test_torch_files_need_torch(copied, expected, monkeypatch):
    folder = copied()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"was saved by torch, which is not here .*safetensors"):
        ours(folder, expected["tokens"])


def test_command_prints_what_to_set(capsys):
    assert main(["", str(GOLDEN)]) == 0
    out = capsys.readouterr().out
    assert "40 tokens" in out and "--config.model.layers=3" in out and "--config.model.conv_width=3" in out
    assert main(["", str(GOLDEN / "nowhere")]) == 1 and "cannot be read" in capsys.readouterr().err
    assert main([""]) == 2 and "give one folder" in capsys.readouterr().err
