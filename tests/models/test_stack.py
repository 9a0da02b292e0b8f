"""Blocks and the stack: scanned, unrolled and rematerialised layers agree; modulation starts where it should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.conditioning import Stream, sinusoidal
from dimba_jax.models.mixers.core import SAVED
from dimba_jax.models.stack import Stack

CONFIG = ModelConfig(
    d_model=16, layers=5, pattern=("mamba2", "attention"), direction="causal", head_dim=8, state_dim=4, mlp_ratio=1.0
)
LIGHT = dataclasses.replace(CONFIG, pattern=("attention",), layers=2)
MASK = np.ones((2, 7), bool)
MASK[0, 5:] = False


def build(config):
    return Stack(config, config.layers, rngs=nnx.Rngs(0))


def drawn(config):
    """A stack of random parameters, none of them zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: build(config))
    return jax.tree.map(lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape, np.float32)), shapes)


def inputs():
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, 7, 16), np.float32), rng.standard_normal((2, 16), np.float32)


@jax.jit
def run(stack, h, c, key=None):
    return stack(h, MASK, c, key)


@jax.jit
def run_with_gradients(stack, h, c, key):
    def loss(stack, h, c):
        y = stack(h, MASK, c, key)
        return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(stack, h, c)
    return [y, *jax.tree.leaves(gradients)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_scanned_unrolled_and_rematerialised_layers_agree(dropout):
    """The same parameters, values, gradients and dropout, whichever way the layers run."""
    config = dataclasses.replace(CONFIG, dropout=dropout, mlp_ratio=0.0)
    key = jax.random.key(7)
    stack = drawn(config)
    expected = run_with_gradients(stack, *inputs(), key)
    for change in (dict(scan_layers=False, remat="dots"), dict(remat="full"), dict(remat="kernels")):
        other = drawn(dataclasses.replace(config, **change))
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (stack, other)), strict=True))
        for a, b in zip(run_with_gradients(other, *inputs(), key), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(
    ("mixer", "remat", "kept"),
    [
        ("mamba2", "full", 0),
        ("mamba2", "dots", 0),
        ("mamba2", "kernels", 4),  # of each of two directions: what its convolution gave, and what its scan did
        ("attention", "dots", 0),
        ("attention", "kernels", 2),  # rotated queries and keys
    ],
)
def test_what_mixers_read_and_returned_is_kept_if_asked_for(mixer, remat, kept, capsys):
    config = dataclasses.replace(CONFIG, pattern=(mixer,), direction="untied", scan_layers=False, remat=remat)
    stack = jax.jit(lambda: Stack(config, 1, rngs=nnx.Rngs(0)))()
    h, c = inputs()
    jax.ad_checkpoint.print_saved_residuals(lambda stack, h: jnp.sum(stack(h, MASK, c)), stack, h)
    assert capsys.readouterr().out.count(f"named '{SAVED}'") == kept


@pytest.mark.parametrize("mlp_ratio", [0.0, 1.0])
@pytest.mark.parametrize("modulation", ["film", "adaln_zero"])
def test_a_block_leaves_its_last_branch_to_the_next_norm(modulation, mlp_ratio):
    """The same as if it had been added, gates and gradients too; after dropout it has been."""
    config = dataclasses.replace(LIGHT, modulation=modulation, mlp_ratio=mlp_ratio, dropout=0.2, scan_layers=False)
    group = jax.tree.map(lambda p: p[0], drawn(config).groups)
    block, (h, c) = group.blocks[0], inputs()

    def twice(whole, h, c):
        between = block(Stream(h), MASK, c)
        assert between.branch is not None
        assert (between.branch.gate is not None) == (modulation == "adaln_zero")
        return block(Stream(between.whole()) if whole else between, MASK, c).whole()

    for h_or_c in (0, 1):
        found, expected = (
            jax.value_and_grad(lambda *x, whole=whole: jnp.sum(jnp.sin(twice(whole, *x))), argnums=h_or_c)(h, c)
            for whole in (False, True)
        )
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), found, expected)
    assert block(Stream(h), MASK, c, jax.random.key(0)).branch is None


def test_layers_are_stacked_and_the_pattern_repeats():
    stack = jax.eval_shape(lambda: build(CONFIG))
    assert stack.groups.blocks[0].mixer.in_proj.kernel.shape[0] == 2
    assert [type(block.mixer).__name__ for block in stack.groups.blocks] == ["Causal", "Attention"]
    assert [type(block.mixer).__name__ for block in stack.rest.blocks] == ["Causal"]
    first, second = np.asarray(jax.jit(lambda: build(LIGHT))().groups.blocks[0].mixer.in_proj.kernel[...])
    assert not np.array_equal(first, second)  # each layer has its own draw


def test_dropout_needs_a_key():
    stack = drawn(dataclasses.replace(LIGHT, dropout=0.5))
    h, c = inputs()
    assert np.array_equal(run(stack, h, c), run(stack, h, c))
    first, second = (run(stack, h, c, jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, run(stack, h, c))


@pytest.mark.parametrize("modulation", ["film", "additive", "adaln_zero"])
def test_modulation_starts_as_nothing_and_then_matters(modulation):
    config = dataclasses.replace(LIGHT, modulation=modulation)
    h, c = inputs()
    fresh = jax.jit(lambda: build(config))()
    np.testing.assert_array_equal(run(fresh, h, c), run(fresh, h, 3 * c))
    if modulation == "adaln_zero":
        np.testing.assert_array_equal(run(fresh, h, c), h)
    else:
        assert not np.allclose(run(fresh, h, c), h)
    shaken = drawn(config)
    assert not np.allclose(run(shaken, h, c), run(shaken, h, 3 * c), atol=1e-3)


def test_sinusoids():
    embedded = np.asarray(sinusoidal(jnp.asarray([0.0, 2.0]), 6))
    np.testing.assert_allclose(embedded[0], [1, 1, 1, 0, 0, 0])
    angles = 2 * 10_000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(embedded[1], np.concatenate([np.cos(angles), np.sin(angles)]), rtol=1e-5)
