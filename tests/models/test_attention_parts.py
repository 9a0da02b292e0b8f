"""A few queries behind a cache: attention over the cache and the segment where each lies is that over both in one."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import target
from dimba_kernels.testing import relative_error
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.mixers import attention
from dimba_jax.models.mixers.attention import Attention, attend_parts

B, L, M, H, P = 2, 5, 7, 3, 8
CONFIG = ModelConfig(d_model=H * P, head_dim=P)


def random(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def some_parts(dtype):
    rng = np.random.default_rng(5)

    def part(m):
        keys, values = random(2, B, m, H, P, seed=m, dtype=dtype)
        return keys, values, rng.random((B, L, m)) < 0.6

    parts = [part(M), part(L)]
    parts[1][2][:] |= np.eye(L, dtype=bool)  # every query sees something
    return parts


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 8e-3)])
def test_parts_are_the_whole(dtype, tolerance):
    """Also where a part's scores are far above the other's, and one part is not seen at all."""
    q = random(B, L, H, P, seed=9, dtype=dtype)
    (k, v, seen), own = some_parts(dtype)
    for scale, unseen in ((1.0, False), (30.0, False), (1.0, True)):
        parts = [(scale * k, v, seen & (not unseen)), own]
        keys, values = (jnp.concatenate([part[i] for part in parts], axis=1) for i in range(2))
        masks = jnp.concatenate([part[2] for part in parts], axis=2)
        wide = (array.astype(jnp.float32) for array in (q, keys, values))
        expected = jax.nn.dot_product_attention(*wide, mask=masks[:, None])
        found = attend_parts(q, parts)
        assert found.dtype == q.dtype
        assert relative_error(found, expected) < tolerance


def test_a_query_that_sees_nothing_is_finite():
    q = random(B, L, H, P, seed=9)
    parts = [(k, v, np.zeros_like(seen)) for k, v, seen in some_parts("float32")]
    mean = jnp.mean(jnp.concatenate([v for _, v, _ in parts], axis=1), axis=1, keepdims=True)
    np.testing.assert_allclose(attend_parts(q, parts), jnp.broadcast_to(mean, q.shape), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
def test_few_queries_find_what_many_would(monkeypatch, causal):
    """A segment amid a row that was there before, as a window's, behind a cache with holes, and its padding."""
    mixer = Attention(CONFIG, causal=causal, rngs=nnx.Rngs(0))
    row, x = random(B, 12, H * P, seed=1), random(B, 4, H * P, seed=2)
    visible = np.ones((B, 12), bool)
    visible[0, 2:4] = visible[1, 9:] = False
    _, kept = mixer.refresh(row, jnp.asarray(visible), 5, 4)
    mask = jnp.asarray([[True] * 4, [True, True, True, False]])

    def segment():
        y, state = mixer(x, mask, kept)
        return jnp.where(mask[..., None], y, 0.0), state

    few, state = segment()
    monkeypatch.setattr(attention, "FEW", 0)
    many, expected = segment()
    np.testing.assert_allclose(few, many, atol=1e-6)
    assert np.abs(many).max() > 0.1
    for a, b in zip(state, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_few_queries_that_overrun_the_cache_are_nan():
    mixer = Attention(CONFIG, causal=False, rngs=nnx.Rngs(0))
    cache = mixer.initial_state(1, 6)
    for size, overrun in ((4, False), (2, False), (2, True)):
        y, cache = mixer(random(1, size, H * P), None, cache)
        assert np.all(np.isnan(y)) if overrun else np.all(np.isfinite(y))


def call(rows: int, capacity: int = 128):
    """A call whose cache nobody reads, and the cache."""
    mixer = Attention(CONFIG, causal=False, rngs=nnx.Rngs(0))
    return lambda x, cache: mixer(x, None, cache)[0], jax.eval_shape(lambda: mixer.initial_state(rows, capacity))


@pytest.mark.parametrize(
    ("size", "rows", "platform", "apart"),
    [(1, 1, "cpu", False), (2, 1, "cpu", True), (64, 3, "cpu", True), (65, 1, "cpu", False), (4, 3, "tpu", True),
     (2, 1, "gpu", True), (64, 1, "gpu", True), (65, 1, "gpu", False), (4, 2, "gpu", False)],
)  # fmt: skip
def test_which_segments_are_attended_apart_from_the_cache(monkeypatch, size, rows, platform, apart):
    """On a GPU those of a single row."""
    given = []
    monkeypatch.setattr(attention, "attend_parts", lambda q, parts: given.append(len(parts)) or q)
    run, cache = call(rows)
    with target(platform):
        jax.eval_shape(run, random(rows, size, H * P), cache)
    assert given == ([2] if apart else [])


@pytest.mark.parametrize(("few", "copies"), [(attention.FEW, False), (0, True)])
@pytest.mark.parametrize("rows", [1, 2])
def test_they_leave_a_cache_that_nobody_reads(monkeypatch, few, copies, rows):
    monkeypatch.setattr(attention, "FEW", few)
    run, cache = call(rows, capacity=4096)
    program = jax.jit(run).lower(random(rows, 4, H * P), cache).compile()
    made = re.findall(rf"= f32\[{rows},4096,{H},{P}\]\S* (?!parameter|bitcast)([\w-]+)\(", program.as_text())
    assert bool(made) == copies, made
