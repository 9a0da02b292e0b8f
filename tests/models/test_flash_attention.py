"""cuDNN's flash attention beside XLA's, on a GPU: JAX_PLATFORMS=cuda,cpu pytest -m gpu tests/models."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels.testing import relative_error
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.mixers.attention import Attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX_PLATFORMS=cuda,cpu on a machine with a GPU"),
]

ROWS, LENGTH, SIZE = 2, 256, 32
CONFIG = ModelConfig(d_model=128, head_dim=64, dtype="bfloat16")
ALL = np.ones((ROWS, LENGTH), bool)
PADDED = ALL.copy()  # in the middle and at the end, as between source and target
PADDED[:, 40:50] = PADDED[1, 200:] = False


def attention(implementation, *, causal):
    config = dataclasses.replace(CONFIG, implementation=implementation)
    return jax.jit(lambda: Attention(config, causal=causal, rngs=nnx.Rngs(0)))()


def inputs(length=LENGTH, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((ROWS, length, CONFIG.d_model), np.float32))


def both(run, *, causal, flash=True):
    """What `run` of a module and x gives and its gradients, by cuDNN and by XLA in bfloat16, and by XLA in float32."""
    results = []
    exact = dataclasses.replace(CONFIG, implementation="xla", dtype="float32")
    for mixer in (
        attention("gpu", causal=causal),
        attention("xla", causal=causal),
        jax.jit(lambda: Attention(exact, causal=causal, rngs=nnx.Rngs(0)))(),
    ):
        graphdef, params = nnx.split(mixer)

        def loss(params, x, graphdef=graphdef):
            y = run(nnx.merge(graphdef, params), x).astype(jnp.float32)
            weight = jax.random.normal(jax.random.key(3), y.shape)
            return jnp.sum(y * weight), y

        program = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True)).lower(params, inputs()).compile()
        results.append((("__cudnn$fmha" in program.as_text()), program(params, inputs())))
    assert [found for found, _ in results] == [flash, False, False]
    return [jax.tree.leaves(result) for _, result in results]


def assert_as_good(run, **options):
    """cuDNN's distance from float32 is that of XLA in the same precision."""
    ours, xla, exact = both(run, **options)
    for one, other, true in zip(ours, xla, exact, strict=True):
        assert np.isfinite(np.asarray(one, np.float32)).all()
        assert relative_error(one, true) < max(2 * relative_error(other, true), 1e-2)


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize("mask", [None, ALL, PADDED], ids=["none", "all", "padded"])
def test_rows(mask, causal):
    def run(mixer, x):
        y = mixer(x, None if mask is None else jnp.asarray(mask))[0]
        return y if mask is None else jnp.where(mask[..., None], y, 0.0)

    assert_as_good(run, causal=causal)


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
def test_a_segment_behind_a_cache(causal):
    def run(mixer, x):
        state = mixer.initial_state(ROWS, LENGTH)
        before, state = mixer(x[:, : LENGTH - SIZE], jnp.asarray(PADDED[:, : LENGTH - SIZE]), state)
        after, _ = mixer(x[:, LENGTH - SIZE :], None, state)
        return jnp.concatenate([jnp.where(PADDED[:, : LENGTH - SIZE, None], before, 0.0), after], axis=1)

    assert_as_good(run, causal=causal)


def test_clean_and_noisy_streams():
    def run(mixer, x):
        noisy = inputs(seed=2).reshape(ROWS * LENGTH // SIZE, SIZE, -1)
        clean, other = mixer.two_streams(x, noisy, jnp.asarray(PADDED), None, 0)
        clean = jnp.where(PADDED[..., None], clean, 0.0)
        return jnp.concatenate([clean.ravel(), other.ravel()])

    assert_as_good(run, causal=False)


def test_odd_lengths_of_masked_rows_are_left_to_xla():
    mask = jnp.ones((ROWS, LENGTH - 1), bool)
    assert_as_good(lambda mixer, x: mixer(x[:, 1:], mask)[0], causal=False, flash=False)
