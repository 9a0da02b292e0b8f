"""Our mixers against those of Hugging Face `transformers`, with the same weights.

The golden files are committed; where torch and transformers are installed, fresh draws are compared too.
"""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.interop.transformers_mixers import load_mixer
from dimba_jax.models.mixers import Causal, Mamba2Core, MambaCore

HERE = Path(__file__).parent
MAKE = runpy.run_path(str(HERE / "make_golden.py"))
TOLERANCE = 1e-4


@jax.jit
def run(mixer, x, mask=None, state=None):
    return mixer(x, mask, state)


def make(core, **settings):
    return jax.jit(lambda: Causal(core, ModelConfig(**settings), rngs=nnx.Rngs(0)))()


def ours(case, weights, x):
    mixer = make({"mamba": MambaCore, "mamba2": Mamba2Core}[case.kind], **case.settings)
    load_mixer(mixer, weights)
    return np.asarray(run(mixer, x)[0])


@pytest.mark.parametrize("case", MAKE["CASES"], ids=lambda c: c.name)
def test_golden(case):
    with np.load(HERE / "golden" / f"{case.name}.npz") as file:
        arrays = dict(file)
    weights = {name.removeprefix("weights/"): a for name, a in arrays.items() if name.startswith("weights/")}
    y = ours(case, weights, arrays["x"])
    assert np.abs(y - arrays["y"]).max() < TOLERANCE
    assert np.abs(arrays["y"]).max() > 0.5  # the tolerance is one of real values


@pytest.mark.parametrize("case", MAKE["CASES"], ids=lambda c: c.name)
def test_transformers_itself(case):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    weights, x, y = MAKE["torch_output"](case, seed=100)
    assert np.abs(ours(case, weights, x) - y).max() < TOLERANCE


def test_loading_names_what_does_not_fit():
    mixer = make(Mamba2Core, d_model=8, head_dim=4, state_dim=4)
    with np.load(HERE / "golden" / "mamba2_g1.npz") as file:
        weights = {name.removeprefix("weights/"): file[name] for name in file.files if name.startswith("weights/")}
    with pytest.raises(ValueError, match=r"in_proj.weight: .* the mixer expects \(8, 44\)"):
        load_mixer(mixer, weights)
    with pytest.raises(ValueError, match=r"missing \['D'\], unknown \['in_proj.bias'\]"):
        load_mixer(mixer, {k: v for k, v in weights.items() if k != "D"} | {"in_proj.bias": np.zeros(3)})


@pytest.mark.parametrize("core", [MambaCore, Mamba2Core])
def test_masked_positions_pass_the_state_on(core):
    """Where the convolution is one position wide, a row with a hole equals the row without it."""
    mixer = make(core, d_model=8, head_dim=4, state_dim=4, conv_width=1)
    x = np.random.default_rng(1).standard_normal((1, 9, 8), np.float32)
    mask = np.ones((1, 9), bool)
    mask[0, 3:5] = False
    y, state = run(mixer, x, mask)
    short, short_state = run(mixer, x[:, mask[0]])
    np.testing.assert_allclose(np.asarray(y)[:, mask[0]], short, atol=1e-5)
    np.testing.assert_allclose(state.h, short_state.h, atol=1e-5)


@pytest.mark.parametrize("core", [MambaCore, Mamba2Core])
def test_state_continues_a_cut_row(core):
    mixer = make(core, d_model=8, head_dim=4, state_dim=4)
    x = np.random.default_rng(1).standard_normal((2, 11, 8), np.float32)
    whole, end = run(mixer, x)
    head, state = run(mixer, x[:, :6])
    rest, last = run(mixer, x[:, 6:], None, state)
    np.testing.assert_allclose(np.concatenate([head, rest], 1), whole, atol=1e-5)
    np.testing.assert_allclose(last.h, end.h, atol=1e-5)
    np.testing.assert_allclose(last.tail, end.tail, atol=1e-5)
