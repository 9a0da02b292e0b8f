"""Segments, blocks and windows: whatever is kept of a row, the logits are those of the row itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models import TokenDenoiser

V, LS, LT = 11, 3, 6
L = LS + LT
TOLERANCE = 1e-4
CONFIG = ModelConfig(
    d_model=16, layers=2, head_dim=8, state_dim=4, groups=2, mlp_ratio=0.5, chunk=2, self_conditioning=False,
    head="untied",
)  # fmt: skip
KINDS = {
    "attention": dict(pattern=("attention",)),
    "attention causal": dict(pattern=("attention",), direction="causal"),
    "mamba": dict(pattern=("mamba",)),
    "mamba tied": dict(pattern=("mamba",), direction="tied"),
    "mamba causal": dict(pattern=("mamba",), direction="causal"),
    "mamba2": dict(pattern=("mamba2",)),
    "mamba2 tied": dict(pattern=("mamba2",), direction="tied"),
    "mamba2 shared": dict(pattern=("mamba2",), direction="shared"),
    "mamba2 causal": dict(pattern=("mamba2",), direction="causal"),
    "hybrid": dict(pattern=("attention", "mamba2"), layers=3),
    "mamba2 positions": dict(pattern=("mamba2",), positions="learned"),
}
CAUSAL = [name for name in KINDS if "causal" in name]


def build(source_length=LS, **settings):
    config = dataclasses.replace(CONFIG, **settings)
    return TokenDenoiser(
        config, vocab_size=V, source_length=source_length, target_length=L - source_length, rngs=nnx.Rngs(0)
    )


@functools.cache
def make(kind, **settings):
    """A network of random parameters, none of them zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: build(**KINDS[kind] | settings))
    return jax.tree.map(lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape, np.float32)), shapes)


CLEAN, NOISY = np.random.default_rng(0).integers(0, V + 1, (2, 2, L), dtype=np.int32)
TIMES = np.asarray([0.3, 0.8], np.float32)
VISIBLE = np.ones((2, L), bool)  # one row with padding inside its source and its target, one at the source's end
VISIBLE[0, 1] = VISIBLE[0, 5] = VISIBLE[1, LS - 1] = False

run = jax.jit(lambda model, tokens, t, visible: model(tokens, t, visible=visible))
extend = jax.jit(lambda model, tokens, t, cache, visible: model.extend(tokens, t, cache, visible=visible))
window = jax.jit(lambda model, tokens, t, rest, visible: model.window(tokens, t, rest, visible=visible))


@functools.partial(jax.jit, static_argnames=("block_size", "first"))
def two_streams(model, noisy, clean, t, visible, block_size, first):
    return model.two_streams(noisy, clean, t, visible=visible, block_size=block_size, first=first)


@functools.partial(jax.jit, static_argnames="size")
def refresh(model, tokens, t, start, visible, size):
    return model.refresh(tokens, t, start, size=size, visible=visible)


def close(a, b):
    np.testing.assert_allclose(a, b, atol=TOLERANCE)
    assert np.abs(b).max() > 0.1  # the tolerance is one of real values


def by_blocks(model, noisy, clean, t, visible, block, first):
    """Each noisy block behind the cache of the clean ones before it; t (b, blocks)."""
    cache, out = model.empty_cache(len(noisy), noisy.shape[1]), []
    if first:
        _, cache = extend(model, clean[:, :first], 0 * t[:, 0], cache, visible[:, :first])
    for i, at in enumerate(range(first, noisy.shape[1], block)):
        part = slice(at, at + block)
        out.append(extend(model, noisy[:, part], t[:, i], cache, visible[:, part])[0])
        _, cache = extend(model, clean[:, part], 0 * t[:, 0], cache, visible[:, part])
    return jnp.concatenate(out, axis=1)


@pytest.mark.parametrize("kind", CAUSAL)
def test_segments_of_a_causal_model_are_the_row(kind):
    model = make(kind)
    whole = run(model, CLEAN, TIMES, VISIBLE)
    cache, parts = model.empty_cache(2, L + 2), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8), slice(8, 9)):
        logits, cache = extend(model, CLEAN[:, part], TIMES, cache, VISIBLE[:, part])
        parts.append(logits)
    assert int(cache.length) == L
    close(np.concatenate(parts, axis=1)[VISIBLE], np.asarray(whole)[VISIBLE])


@pytest.mark.parametrize(
    ("kind", "block"), [(kind, 3) for kind in KINDS] + [(kind, n) for kind in ("mamba2", "mamba") for n in (1, LT)]
)
def test_all_blocks_at_once_are_each_behind_its_cache(kind, block):
    """Training sees what sampling with a cache sees: noisy block k amid the clean blocks before it."""
    model = make(kind)
    t = np.random.default_rng(3).uniform(0.1, 1.0, (2, LT // block)).astype(np.float32)
    expected = by_blocks(model, NOISY, CLEAN, t, VISIBLE, block, LS)
    close(two_streams(model, NOISY, CLEAN, t, VISIBLE, block, LS), expected)
    per_position = np.concatenate([np.full((2, LS), 0.77, np.float32), np.repeat(t, block, axis=1)], axis=1)
    if (kind, block) == ("attention", 3):
        close(two_streams(model, NOISY, CLEAN, per_position, VISIBLE, block, LS), expected)


@pytest.mark.parametrize("kind", ["attention", "mamba", "mamba2 shared"])
def test_blocks_without_source_and_one_block_of_everything(kind):
    model = make(kind, source_length=0)
    whole = run(model, NOISY, TIMES, None)
    close(two_streams(model, NOISY, CLEAN, TIMES[:, None], None, L, 0), whole)
    t = np.tile(TIMES[:, None], (1, 3))
    everything = np.ones((2, L), bool)
    blocks = two_streams(model, NOISY, CLEAN, t, None, 3, 0)
    close(blocks, by_blocks(model, NOISY, CLEAN, t, everything, 3, 0))
    assert not np.allclose(blocks, whole, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_window_gives_the_row(kind):
    model = make(kind)
    whole = np.asarray(run(model, CLEAN, TIMES, VISIBLE))
    for start in (0, 4, L - 3):
        logits, rest = refresh(model, CLEAN, TIMES, np.int32(start), VISIBLE, 3)
        close(np.asarray(logits)[VISIBLE], whole[VISIBLE])
        part = slice(start, start + 3)
        inside = np.asarray(window(model, CLEAN[:, part], TIMES, rest, VISIBLE[:, part]))
        close(inside[VISIBLE[:, part]], whole[:, part][VISIBLE[:, part]])


@pytest.mark.parametrize("kind", ["attention", "mamba", "mamba2 tied"])
def test_in_one_layer_a_changed_window_is_exact(kind):
    """Nothing a single layer keeps of other positions depends on the window: so all of it is recomputed."""
    model = make(kind, layers=1)
    _, rest = refresh(model, CLEAN, TIMES, np.int32(4), VISIBLE, 3)
    changed = CLEAN.copy()
    changed[:, 4:7] = NOISY[:, 4:7]
    whole = np.asarray(run(model, changed, TIMES, VISIBLE))
    seen = VISIBLE[:, 4:7]
    close(np.asarray(window(model, changed[:, 4:7], TIMES, rest, seen))[seen], whole[:, 4:7][seen])
    # a prefix cache: the window reaches the end of the row
    _, rest = refresh(model, CLEAN, TIMES, 4, VISIBLE, L - 4)
    changed[:, 4:] = NOISY[:, 4:]
    whole = np.asarray(run(model, changed, TIMES, VISIBLE))
    seen = VISIBLE[:, 4:]
    close(np.asarray(window(model, changed[:, 4:], TIMES, rest, seen))[seen], whole[:, 4:][seen])


@pytest.mark.parametrize("kind", ["attention", "mamba", "mamba2 shared"])
def test_blocks_see_no_padding(kind):
    """Junk in invisible positions of the source changes no logit, and every gradient is finite."""
    model = make(kind, layers=1)
    t = np.tile(TIMES[:, None], (1, 2))
    clean = np.where(VISIBLE, CLEAN % (V - 1), V - 1)
    junk = np.where(VISIBLE, clean, V - 2)

    @jax.jit
    def loss(model, clean):
        logits = model.two_streams(NOISY, clean, t, visible=VISIBLE, block_size=3, first=LS)
        return jnp.sum(jnp.sin(logits)), logits

    (_, before), gradients = jax.value_and_grad(loss, has_aux=True)(model, clean)
    (_, after), _ = jax.value_and_grad(loss, has_aux=True)(model, junk)
    np.testing.assert_array_equal(before, after)
    named = jax.tree_util.tree_flatten_with_path(gradients)[0]
    assert all(np.isfinite(g).all() for _, g in named)
    assert not [jax.tree_util.keystr(path) for path, g in named if not np.abs(g).max() > 0]


def test_gradients_of_all_blocks_at_once_are_those_of_each():
    model, t = make("mamba2", remat="full", layers=1), np.tile(TIMES[:, None], (1, 2))

    def loss(blocks):
        return jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(blocks(model, NOISY, CLEAN, t, VISIBLE, 3, LS)))))

    for a, b in zip(*(jax.tree.leaves(loss(blocks)(model)) for blocks in (two_streams, by_blocks)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.abs(b).max()))
        assert np.abs(b).max() > 0


def test_unrolled_layers_keep_the_same():
    scanned, unrolled = make("hybrid"), make("hybrid", scan_layers=False)
    for model in (scanned, unrolled):
        cache = model.empty_cache(2, L)
        _, cache = extend(model, CLEAN[:, :3], TIMES, cache, VISIBLE[:, :3])
        logits, cache = extend(model, CLEAN[:, 3:6], TIMES, cache, VISIBLE[:, 3:6])
        if model is scanned:
            expected = logits, cache
    for a, b in zip(jax.tree.leaves((logits, cache)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hybrid"])
def test_a_cache_keeps_its_shapes_and_dtypes(kind):
    """So that a loop can carry it, in bfloat16 as well."""
    model = jax.eval_shape(lambda: build(**KINDS[kind], dtype="bfloat16", layers=1))
    before = jax.eval_shape(lambda model: model.empty_cache(2, 8), model)
    _, after = jax.eval_shape(lambda m, cache: m.extend(CLEAN[:, :3], TIMES, cache), model, before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_too_much_for_a_cache_is_never_silent():
    model = make("attention", layers=1)
    cache = model.empty_cache(2, 4)
    with pytest.raises(ValueError, match="a segment of 5 positions: the cache holds 4"):
        model.extend(CLEAN[:, :5], TIMES, cache)
    logits, cache = extend(model, CLEAN[:, :3], TIMES, cache, None)
    assert np.isfinite(logits).all()
    assert np.isnan(extend(model, CLEAN[:, 3:6], TIMES, cache, None)[0]).all()


def test_blocks_must_fill_the_row():
    model = make("attention", layers=1)
    with pytest.raises(ValueError, match="block_size=4 does not divide the 6 positions behind first=3"):
        model.two_streams(NOISY, CLEAN, TIMES[:, None], block_size=4, first=LS)
    with pytest.raises(ValueError, match=r"t has shape \(2, 3\): expected \(2, 9\), a position, or \(2, 2\), a block"):
        model.two_streams(NOISY, CLEAN, np.zeros((2, 3), np.float32), block_size=3, first=LS)
