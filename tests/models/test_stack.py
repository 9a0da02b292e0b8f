"""Blocks and the stack: scanned, unrolled and rematerialised layers agree; modulation starts where it should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.conditioning import sinusoidal
from dimba_jax.models.stack import Stack

CONFIG = ModelConfig(
    d_model=16, layers=5, pattern=("mamba2", "attention"), head_dim=8, state_dim=4, mlp_ratio=1.0, chunk=4
)
MASK = np.ones((2, 7), bool)
MASK[0, 5:] = False


def make(config, seed=0, noise=0.1):
    def build():
        stack = Stack(config, config.layers, rngs=nnx.Rngs(seed))
        leaves, treedef = jax.tree.flatten(stack)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        shaken = [p + noise * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(treedef, shaken)

    return jax.jit(build)()


def inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 7, 16), np.float32), rng.standard_normal((2, 16), np.float32)


@jax.jit
def run(stack, h, c, key=None):
    return stack(h, MASK, c, key)


@jax.jit
def gradients(stack, h, c, key=None):
    loss = lambda stack, h, c: jnp.sum(jnp.sin(stack(h, MASK, c, key)) ** 2)  # noqa: E731
    return jax.tree.leaves(jax.grad(loss, argnums=(0, 1, 2))(stack, h, c))


def close(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_scanned_unrolled_and_rematerialised_layers_agree():
    """The same parameters, values, gradients and dropout, whichever way the layers run."""
    config = dataclasses.replace(CONFIG, dropout=0.2)
    key = jax.random.key(7)
    h, c = inputs()
    scanned = make(config)
    leaves = jax.tree.leaves(scanned)
    expected, expected_gradients = run(scanned, h, c, key), gradients(scanned, h, c, key)
    for change in (dict(scan_layers=False), dict(remat="full"), dict(remat="dots", scan_layers=False)):
        other = make(dataclasses.replace(config, **change))
        assert all(np.array_equal(a, b) for a, b in zip(leaves, jax.tree.leaves(other), strict=True))
        np.testing.assert_allclose(run(other, h, c, key), expected, atol=1e-5)
        close(gradients(other, h, c, key), expected_gradients)


def test_layers_are_stacked_and_the_pattern_repeats():
    stack = make(CONFIG)
    assert stack.groups.blocks[0].mixer.in_proj.kernel.shape[0] == 2
    assert [type(block.mixer).__name__ for block in stack.groups.blocks] == ["Untied", "Attention"]
    assert [type(block.mixer).__name__ for block in stack.rest.blocks] == ["Untied"]
    kernels = np.asarray(stack.groups.blocks[0].mixer.in_proj.kernel[...])
    assert not np.array_equal(kernels[0], kernels[1])


def test_dropout_needs_a_key():
    stack = make(dataclasses.replace(CONFIG, dropout=0.5, layers=2))
    h, c = inputs()
    assert np.array_equal(run(stack, h, c), run(stack, h, c))
    first, second = (run(stack, h, c, jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, run(stack, h, c))


@pytest.mark.parametrize("modulation", ["film", "additive", "adaln_zero"])
def test_modulation_starts_as_nothing_and_then_matters(modulation):
    config = dataclasses.replace(CONFIG, modulation=modulation, layers=2)
    h, c = inputs()
    fresh = make(config, noise=0.0)
    np.testing.assert_array_equal(run(fresh, h, c), run(fresh, h, 3 * c))
    if modulation == "adaln_zero":
        np.testing.assert_array_equal(run(fresh, h, c), h)
    else:
        assert not np.allclose(run(fresh, h, c), h)
    shaken = make(config)
    assert not np.allclose(run(shaken, h, c), run(shaken, h, 3 * c), atol=1e-3)


def test_sinusoids():
    embedded = np.asarray(sinusoidal(jnp.asarray([0.0, 2.0]), 6))
    np.testing.assert_allclose(embedded[0], [1, 1, 1, 0, 0, 0])
    angles = 2 * 10_000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(embedded[1], np.concatenate([np.cos(angles), np.sin(angles)]), rtol=1e-5)
