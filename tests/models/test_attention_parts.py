"""A few queries behind a cache: attention over the cache and the segment where each lies is that over both in one."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    mask = jnp.asarray([[True] * 4, [True, True, True, False]])

    def segment(rows: slice):
        _, kept = mixer.refresh(row[rows], jnp.asarray(visible[rows]), 5, 4)
        y, state = mixer(x[rows], mask[rows], kept)
        return jnp.where(mask[rows, :, None], y, 0.0), state

    alone = [segment(slice(i, i + 1)) for i in range(B)]
    monkeypatch.setattr(attention, "FEW", 0)
    together, expected = segment(slice(B))
    np.testing.assert_allclose(jnp.concatenate([y for y, _ in alone]), together, atol=1e-6)
    assert np.abs(together).max() > 0.1
    for name in ("keys", "values", "valid"):
        of_each = jnp.concatenate([getattr(state, name) for _, state in alone])
        np.testing.assert_allclose(of_each, getattr(expected, name), atol=1e-6)
    assert all(state.length == expected.length == 9 for _, state in alone)


def test_few_queries_that_overrun_the_cache_are_nan():
    mixer = Attention(CONFIG, causal=False, rngs=nnx.Rngs(0))
    cache = mixer.initial_state(1, 6)
    for size, overrun in ((4, False), (2, False), (2, True)):
        y, cache = mixer(random(1, size, H * P), None, cache)
        assert np.all(np.isnan(y)) if overrun else np.all(np.isfinite(y))


@pytest.mark.parametrize(
    ("few", "rows", "copies"),
    [(attention.FEW, 1, False), (0, 1, True), (attention.FEW, 2, True)],
    ids=["few", "many", "rows"],
)
def test_a_row_s_call_whose_cache_nobody_reads_writes_none(monkeypatch, few, rows, copies):
    """Of several rows a GPU would transpose the whole cache in place of that, and keep it for all layers."""
    monkeypatch.setattr(attention, "FEW", few)
    capacity = 4096
    mixer = Attention(CONFIG, causal=False, rngs=nnx.Rngs(0))
    cache = jax.eval_shape(lambda: mixer.initial_state(rows, capacity))
    program = jax.jit(lambda x, cache: mixer(x, None, cache)[0]).lower(random(rows, 4, H * P), cache).compile()
    made = re.findall(rf"= f32\[{rows},{capacity},{H},{P}\]\S* (?!parameter|bitcast)([\w-]+)\(", program.as_text())
    assert bool(made) == copies, made
