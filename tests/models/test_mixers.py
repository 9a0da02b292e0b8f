"""Mixers: what sees what, how directions combine, and what a fresh one holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.mixers import Mamba2Core, MambaCore, Untied, make_mixer
from dimba_jax.models.mixers.attention import rotate

D, L = 16, 9
SMALL = dict(d_model=D, head_dim=8, state_dim=4, groups=2, chunk=4)
KINDS = [
    ("attention", "causal"),
    ("attention", "untied"),
    ("mamba", "causal"),
    ("mamba", "untied"),
    ("mamba", "tied"),
    ("mamba2", "causal"),
    ("mamba2", "untied"),
    ("mamba2", "tied"),
    ("mamba2", "shared"),
]


@functools.cache
def make(name, direction, **settings):
    config = ModelConfig(**SMALL | dict(direction=direction) | settings)
    return jax.jit(lambda: make_mixer(config, name, rngs=nnx.Rngs(0)))()


ALL = np.ones((2, L), bool)
HOLES = ALL.copy()  # padding in the middle and at the end, as between source and target
HOLES[:, 3:5] = HOLES[1, 7:] = False


@jax.jit
def _run(mixer, x, mask):
    return mixer(x, mask)[0]


@jax.jit
def _run_reversed(mixer, x, mask):
    return mixer(x, mask, reverse=True)[0]


def run(mixer, x, mask=ALL, reverse=False):
    return np.asarray((_run_reversed if reverse else _run)(mixer, x, mask))


def inputs(seed=1):
    return np.random.default_rng(seed).standard_normal((2, L, D), np.float32)


@pytest.mark.parametrize(("name", "direction"), KINDS)
def test_invisible_positions_reach_nothing(name, direction):
    mixer, x = make(name, direction), inputs()
    before = run(mixer, x, HOLES)
    after = run(mixer, np.where(HOLES[..., None], x, 100 * inputs(2)), HOLES)
    assert np.array_equal(before[HOLES], after[HOLES])
    assert not np.array_equal(before[HOLES], run(mixer, x)[HOLES])  # the mask does something


@pytest.mark.parametrize(("name", "direction"), KINDS)
def test_what_a_position_sees(name, direction):
    mixer, x = make(name, direction), inputs()
    changed = x.copy()
    changed[:, 4] += 1
    moved = np.abs(run(mixer, changed) - run(mixer, x)).max(axis=(0, 2)) > 1e-6
    assert moved[4:].all()
    assert moved[:4].all() if direction != "causal" else not moved[:4].any()
    if direction == "causal":
        difference = run(mixer, changed, reverse=True) - run(mixer, x, reverse=True)
        moved = np.abs(difference).max(axis=(0, 2)) > 1e-6
        assert moved[:5].all() and not moved[5:].any()


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("direction", ["untied", "tied"])
def test_two_directions_are_two_mixers_added(name, direction):
    mixer, x = make(name, direction), inputs()
    ahead, back = (jax.tree.map(jnp.asarray, make(name, "causal")) for _ in range(2))
    w, v = np.asarray(mixer.in_proj.kernel[...]), np.asarray(mixer.out_proj.kernel[...])
    halves = [(w, v), (w, v)]
    if direction == "untied":
        halves = list(zip(np.split(w, 2, axis=1), np.split(v, 2, axis=0), strict=True))
    for one, core, (w, v) in zip((ahead, back), (mixer.forward, mixer.backward), halves, strict=True):
        one.core = core
        one.in_proj.kernel[...], one.out_proj.kernel[...] = jnp.asarray(w), jnp.asarray(v)
    expected = run(ahead, x, HOLES) + run(back, x, HOLES, reverse=True)
    np.testing.assert_allclose(run(mixer, x, HOLES), expected, atol=1e-5)


def test_shared_treats_both_directions_alike():
    """Without a convolution, which is causal, the flipped row gives the flipped output."""
    mixer, x = make("mamba2", "shared", conv_width=1), inputs()
    flipped = run(mixer, x[:, ::-1], HOLES[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(flipped, run(mixer, x, HOLES), atol=1e-5)


def test_attention_is_softmax_over_visible_keys():
    mixer, x = make("attention", "untied"), inputs()
    q, k, v = np.split(x @ np.asarray(mixer.in_proj.kernel[...]), 3, axis=-1)
    q, k, v = (a.reshape(2, L, 2, 8) for a in (q, k, v))
    q, k = np.asarray(rotate(q)), np.asarray(rotate(k))
    scores = np.exp(np.einsum("bihp,bjhp->bhij", q, k) / np.sqrt(8)) * HOLES[:, None, None]
    y = np.einsum("bhij,bjhp->bihp", scores / scores.sum(-1, keepdims=True), v).reshape(2, L, D)
    np.testing.assert_allclose(run(mixer, x, HOLES), y @ np.asarray(mixer.out_proj.kernel[...]), atol=1e-5)


def test_rotation_depends_on_the_distance_alone():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8), np.float32)
    q, k = (np.asarray(rotate(np.tile(a, (1, L, 1, 1))))[0, :, 0] for a in (q, k))
    scores = q @ k.T
    for offset in range(-L + 1, L):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.ptp(scores) > 0.1


@pytest.mark.parametrize("core", [MambaCore, Mamba2Core])
def test_initial_values(core):
    config = ModelConfig(d_model=64, head_dim=2, state_dim=4)
    fresh = jax.jit(lambda: core(config, rngs=nnx.Rngs(0)))()
    dt = np.asarray(jax.nn.softplus(fresh.dt_bias[...]))
    assert 0.9e-3 < dt.min() < 2e-3 and 5e-2 < dt.max() < 1.1e-1
    assert np.abs(np.median(np.log(dt)) - np.log(1e-2)) < 0.7  # the middle of the logarithms
    A = np.exp(np.asarray(fresh.A_log[...]))
    if core is MambaCore:
        np.testing.assert_allclose(A, np.tile([1, 2, 3, 4], (128, 1)), rtol=1e-6)
    else:
        assert 1 <= A.min() < 3 and 14 < A.max() <= 16
    assert np.all(np.asarray(fresh.D[...]) == 1)


def test_output_projection_is_scaled_by_the_residual_branches():
    config = ModelConfig(**SMALL)
    whole, part = (
        jax.jit(lambda s=s: Untied(Mamba2Core, config, residual_scale=s, rngs=nnx.Rngs(0)))() for s in (1, 0.25)
    )
    np.testing.assert_allclose(part.out_proj.kernel[...], 0.25 * whole.out_proj.kernel[...], rtol=1e-6)
    np.testing.assert_array_equal(part.in_proj.kernel[...], whole.in_proj.kernel[...])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mamba2", dict(head_dim=5), "head_dim=5 does not divide expand"),
        ("mamba2", dict(groups=3), "groups=3 does not divide the 4 heads"),
        ("attention", dict(head_dim=6), "head_dim=6: attention needs an even divisor"),
        ("mamba", dict(direction="shared"), "direction='shared' needs mamba2"),
    ],
)
def test_impossible_shapes_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_mixer(ModelConfig(**SMALL | settings), name, rngs=nnx.Rngs(0))


def test_reverse_is_for_causal_mixers():
    x = inputs()
    with pytest.raises(ValueError, match="has no reverse"):
        make("mamba2", "untied")(x, None, reverse=True)
    attention = make("attention", "causal")
    with pytest.raises(ValueError, match="to the right only"):
        attention(x, None, attention.initial_state(2, L), reverse=True)
