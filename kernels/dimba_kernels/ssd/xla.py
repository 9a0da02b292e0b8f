"""`ssd` in chunks (Mamba-2, section 6): matmuls inside a chunk, and a short recurrence of states between chunks.

Axes inside this file: b batch, c chunk, i and j positions of a chunk, g group, r head within its group, p, n.
The group axis stays apart from r, so B and C are never repeated for the heads of a group.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dimba_kernels.dispatch import runs, unmasked
from dimba_kernels.ssd.matmul import matmul
from dimba_kernels.ssd.prefix import entering_states

DEFAULT_CHUNK = 64


class _Chunks(NamedTuple):
    """The inputs cut into chunks; masked and padded positions add nothing and do not decay (dt = 0)."""

    x: jax.Array  # b c i g r p, times dt
    B: jax.Array  # b c i g n
    C: jax.Array  # b c i g n
    log_decay: jax.Array  # b c g r i, float32, dt * A
    runs: jax.Array | None  # b c i, numbers of the runs of equal segment ids; None: one run


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd`."""
    # The matrices of a chunk are quadratic in its length: they are computed again for the backward pass, not stored.
    run = jax.checkpoint(partial(_ssd, reverse=reverse, chunk=chunk or DEFAULT_CHUNK))
    return run(x, dt, A, B, C, D, h0, mask, segments)


def ssd_bidirectional(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    chunk: int | None,
) -> jax.Array:
    """See `dimba_kernels.ssd_bidirectional`."""
    run = jax.checkpoint(partial(_ssd_bidirectional, chunk=chunk or DEFAULT_CHUNK))
    return run(x, dt, A, B, C, D, mask, segments)


def ssd_pair(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """See `dimba_kernels.ssd_pair`: one after the other."""
    rest: dict[str, Any] = dict(mask=mask, segments=segments, chunk=chunk)
    (y, h_last), (y_back, h_first) = (
        ssd(
            x[way], dt[way], A[way], B[way], C[way],
            D=None if D is None else D[way], h0=None if h0 is None else h0[way], reverse=bool(way), **rest,
        )
        for way in (0, 1)
    )  # fmt: skip
    return jnp.stack([y, y_back]), jnp.stack([h_last, h_first])


def _ssd(x, dt, A, B, C, D, h0, mask, segments, *, reverse: bool, chunk: int) -> tuple[jax.Array, jax.Array]:
    x, dt, B, C = unmasked(mask, x, dt, B, C)
    chunks = _split(x, dt, A, B, C, mask, segments, chunk)
    sums = _sums(chunks.log_decay, reverse)
    before = _within_run(chunks, _before(chunks.log_decay.shape[-1], reverse))
    # -inf before the exponential: nothing overflows, and no gradient is a product of zero and infinity. On the
    # diagonal the difference is zero whatever the sums are: a constant there keeps its gradient out of them.
    decays = jnp.exp(jnp.where(before, _differences(sums), -jnp.inf))
    y = _within_chunks(chunks, jnp.where(_diagonal(decays), 1, decays))
    between, h_last = _between_chunks(chunks, sums, h0, reverse)
    y = y if between is None else y + between
    return _join(y, x, D, mask), h_last


def _ssd_bidirectional(x, dt, A, B, C, D, mask, segments, *, chunk: int) -> jax.Array:
    x, dt, B, C = unmasked(mask, x, dt, B, C)
    chunks = _split(x, dt, A, B, C, mask, segments, chunk)
    forward, backward = (_sums(chunks.log_decay, reverse) for reverse in (False, True))
    before = _before(chunks.log_decay.shape[-1], False)
    differences = jnp.where(before, _differences(forward), _differences(backward))
    if chunks.runs is not None:
        differences = jnp.where(_within_run(chunks, jnp.ones_like(before)), differences, -jnp.inf)
    # the diagonal belongs to both directions
    y = _within_chunks(chunks, jnp.where(_diagonal(before), 2, jnp.exp(differences)))
    for sums, reverse in ((forward, False), (backward, True)):
        between, _ = _between_chunks(chunks, sums, None, reverse)
        y = y if between is None else y + between
    return _join(y, x, D, mask)


def _split(x, dt, A, B, C, mask, segments, chunk: int) -> _Chunks:
    """Cut the sequence into equal chunks, padding it on the right; a sequence within one chunk is not padded."""
    b, l, h, _ = x.shape
    g = B.shape[2]
    size = min(chunk, l)
    c = -(-l // size)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dt = dt.astype(wide)
    if mask is not None:
        dt = jnp.where(mask[..., None], dt, 0)

    # On x, dt costs one pass over (l, p); as a column scale of the chunk matrices it and its gradient cost three.
    scaled = (x.astype(wide) * dt[..., None]).astype(x.dtype)
    # A decay below eps**2.5 is nothing in any sum. Cut there, the cumulative sum, whose differences are what
    # counts, keeps its digits next to one extreme step.
    floor = 2.5 * math.log(jnp.finfo(wide).eps)
    log_decay = jnp.maximum(dt * A.astype(wide)[None, None], floor)

    def cut(value: jax.Array) -> jax.Array:
        if c * size != l:
            value = jnp.pad(value, [(0, 0), (0, c * size - l)] + [(0, 0)] * (value.ndim - 2))
        return value.reshape(b, c, size, *value.shape[2:])

    return _Chunks(
        x=cut(scaled).reshape(b, c, size, g, h // g, -1),
        B=cut(B.astype(x.dtype)),
        C=cut(C.astype(x.dtype)),
        log_decay=cut(log_decay).reshape(b, c, size, g, h // g).transpose(0, 1, 3, 4, 2),
        runs=None if segments is None else _cut_runs(segments, c, size),
    )


def _cut_runs(segments: jax.Array, c: int, size: int) -> jax.Array:
    """(b, l) -> (b, c, size); padded positions belong to the last run, and so let the state pass."""
    b, l = segments.shape
    return jnp.pad(runs(segments), [(0, 0), (0, c * size - l)], mode="edge").reshape(b, c, size)


def _sums(log_decay: jax.Array, reverse: bool) -> jax.Array:
    """Inclusive sums in the direction of the scan: position j reaches i decayed by exp(sums_i - sums_j)."""
    return jax.lax.cumsum(log_decay, axis=log_decay.ndim - 1, reverse=reverse)


def _differences(sums: jax.Array) -> jax.Array:
    return sums[..., :, None] - sums[..., None, :]


def _before(size: int, reverse: bool) -> jax.Array:
    """(1 1 1 1 i j): does the scan meet position j before i?"""
    every = jnp.ones((1, 1, 1, 1, size, size), bool)
    return jnp.triu(every, 1) if reverse else jnp.tril(every, -1)


def _within_run(chunks: _Chunks, pairs: jax.Array) -> jax.Array:
    """(1 1 1 1 i j), or with segments (b c 1 1 i j): the pairs of positions that belong to one run."""
    if chunks.runs is None:
        return pairs
    return pairs & (chunks.runs[..., :, None] == chunks.runs[..., None, :])[:, :, None, None]


def _diagonal(square: jax.Array) -> jax.Array:
    return jnp.eye(square.shape[-1], dtype=bool)[None, None, None, None]


def _within_chunks(chunks: _Chunks, weights: jax.Array) -> jax.Array:
    """y = (C B^T * weights) x in each chunk: (b c i g r p)."""
    b, c, g, r, size, _ = jnp.broadcast_shapes(weights.shape, (*chunks.log_decay.shape, 1))
    if g == 1:  # batch axes of length 1 double the time of these products on CPUs
        C, B = (a.reshape(b * c, size, -1) for a in (chunks.C, chunks.B))
        mixing = matmul("min,mjn->mij", C, B)[:, None] * weights.reshape(b * c, r, size, size)
        y = matmul("mrij,mjrp->mirp", mixing.astype(C.dtype), chunks.x.reshape(b * c, size, r, -1))
        return y.reshape(b, c, size, g, r, -1)
    scores = matmul("bcign,bcjgn->bcgij", chunks.C, chunks.B)
    mixing = scores[:, :, :, None] * weights
    return matmul("bcgrij,bcjgrp->bcigrp", mixing.astype(chunks.x.dtype), chunks.x)


def _between_chunks(
    chunks: _Chunks, sums: jax.Array, h0: jax.Array | None, reverse: bool
) -> tuple[jax.Array | None, jax.Array]:
    """What the state entering each chunk adds to its y (None if it is zero), and the final state (b h p n)."""
    b, c, g, r, _ = sums.shape
    p, n = chunks.x.shape[-1], chunks.B.shape[-1]
    end = 0 if reverse else -1
    total = sums[..., end]  # b c g r
    before, after = sums, _sums_after(chunks.log_decay, reverse)
    if chunks.runs is not None:
        # a state comes into the run that the chunk before ends with, and leaves from the run that this one ends with
        last = chunks.runs[..., end]
        if reverse:
            first = jnp.concatenate([last[:, 1:], chunks.runs[:, -1:, -1]], axis=1)
        else:
            first = jnp.concatenate([chunks.runs[:, :1, 0], last[:, :-1]], axis=1)
        before = jnp.where((chunks.runs == first[..., None])[:, :, None, None], before, -jnp.inf)
        after = jnp.where((chunks.runs == last[..., None])[:, :, None, None], after, -jnp.inf)
        total = jnp.where((first == last)[..., None, None], total, -jnp.inf)
    reach = _by_position(jnp.exp(after))
    added = matmul("bcjgrp,bcjgn->bcgrpn", (chunks.x * reach).astype(chunks.x.dtype), chunks.B)
    if c == 1 and h0 is None:
        return None, added[:, 0].reshape(b, g * r, p, n)
    start = jnp.zeros((b, g, r, p, n), added.dtype) if h0 is None else h0.astype(added.dtype).reshape(b, g, r, p, n)
    entering = entering_states(added, total, start, reverse)
    y = matmul("bcign,bcgrpn->bcigrp", chunks.C, entering.astype(chunks.C.dtype))
    h_last = jnp.exp(total[:, end, ..., None, None]) * entering[:, end] + added[:, end]
    return y * _by_position(jnp.exp(before)), h_last.reshape(b, g * r, p, n)


def _sums_after(log_decay: jax.Array, reverse: bool) -> jax.Array:
    """The decay from each position to the end of its chunk, summed on its own: total - sums would lose digits."""
    zero = jnp.zeros_like(log_decay[..., :1])
    if reverse:
        return jax.lax.cumsum(jnp.concatenate([zero, log_decay[..., :-1]], axis=-1), axis=log_decay.ndim - 1)
    shifted = jnp.concatenate([log_decay[..., 1:], zero], axis=-1)
    return jax.lax.cumsum(shifted, axis=log_decay.ndim - 1, reverse=True)


def _by_position(value: jax.Array) -> jax.Array:
    """(b c g r i) -> (b c i g r 1), beside x."""
    return value.transpose(0, 1, 4, 2, 3)[..., None]


def _join(y: jax.Array, x: jax.Array, D: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    """(b c i g r p) back to the shape and dtype of x, with D x added and masked positions zero."""
    b, l, h, p = x.shape
    y = y.reshape(b, -1, h, p)[:, :l]
    if D is not None:
        y = y + D.astype(y.dtype)[None, None, :, None] * x.astype(y.dtype)
    if mask is not None:
        y = jnp.where(mask[..., None, None], y, 0)
    return y.astype(x.dtype)
