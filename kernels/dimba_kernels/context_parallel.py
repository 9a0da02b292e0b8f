"""Operations over a sequence that is split over devices, one part each: long contexts.

To be called inside a `jax.shard_map` over the mesh axis `axis_name` (`check_vma=False`, since kernels run inside);
`dimba_kernels.sharding(mesh, sequence=...)` does so by itself. Arguments are those of the operation, of which every
device has its part of the sequence; A, D, h0 and the like are the same on all of them.

A scan runs on every part from a zero state. The final states and total decays are exchanged, from which each device
finds the state that enters its part; what it adds to y is one correction, linear in it. The gradient is JAX's own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.causal_conv1d import api as convolution
from dimba_kernels.dispatch import runs, unmasked
from dimba_kernels.selective_scan import api as s6
from dimba_kernels.ssd import api as duality
from dimba_kernels.ssd.matmul import matmul


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    axis_name: str,
    D: jax.Array | None = None,
    h0: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    reverse: bool = False,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """`dimba_kernels.ssd` over all parts; the same h0 enters, and the same h_last leaves, on every device.

    Args: as there; `options` are its chunk and implementation. Raises: as there.
    """
    rest: dict[str, Any] = dict(mask=mask, segments=segments, reverse=reverse)
    y, added = duality.ssd(x, dt, A, B, C, D=D, **rest, **options)
    return _corrected_ssd(y, added, dt, A, C, h0=h0, axis_name=axis_name, **rest)


def ssd_bidirectional(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *, D: jax.Array | None = None, **rest: Any
) -> jax.Array:
    """`dimba_kernels.ssd_bidirectional` over all parts, as two scans: the fused form does not return its states."""
    forward, _ = ssd(x, dt, A, B, C, D=D, **rest)
    backward, _ = ssd(x, dt, A, B, C, reverse=True, **rest)
    return forward + backward


def ssd_pair(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    axis_name: str,
    D: jax.Array | None = None,
    h0: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """`dimba_kernels.ssd_pair` over all parts, in the same launches as there. See `ssd`."""
    rest: dict[str, Any] = dict(mask=mask, segments=segments)
    y, added = duality.ssd_pair(x, dt, A, B, C, D=D, **rest, **options)
    ways = [
        _corrected_ssd(
            y[way], added[way], dt[way], A[way], C[way], h0=None if h0 is None else h0[way], axis_name=axis_name,
            reverse=bool(way), **rest,
        )
        for way in (0, 1)
    ]  # fmt: skip
    (forward, h_last), (backward, h_first) = ways
    return jnp.stack([forward, backward]), jnp.stack([h_last, h_first])


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    axis_name: str,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    h0: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = False,
    reverse: bool = False,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """`dimba_kernels.selective_scan` over all parts; the same h0 enters, and the same h_last leaves, on every device.

    The correction is the scan itself with u = 0 and the entering state, so nothing of size l d n is ever made.

    Args: as there; `options` are its chunk and implementation. Raises: as there.
    """
    rest: dict[str, Any] = dict(
        mask=mask, segments=segments, dt_bias=dt_bias, dt_softplus=dt_softplus, reverse=reverse, **options
    )
    y, added = s6.selective_scan(u, dt, A, B, C, D=D, z=z, **rest)

    wide = added.dtype
    steps = unmasked(mask, dt)[0].astype(wide)
    if dt_bias is not None:
        steps = steps + dt_bias.astype(wide)[None, None]
    steps = jax.nn.softplus(steps) if dt_softplus else steps
    total = jnp.sum(*unmasked(mask, steps), axis=1)  # b d
    decay = jnp.exp(total[..., None] * A.astype(wide)[None])
    if segments is not None:
        decay = jnp.where(_one_run(segments)[:, None, None], decay, 0)

    entering, h_last = _exchange(added, decay, h0, segments, axis_name, reverse)
    correction, _ = s6.selective_scan(jnp.zeros_like(u), dt, A, B, C, z=z, h0=entering, **rest)
    return y + correction, h_last


def causal_conv1d(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    axis_name: str,
    tail: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    reverse: bool = False,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """`dimba_kernels.causal_conv1d` over all parts: each gets the last k-1 inputs of the one before it.

    Raises:
        ValueError: a part is shorter than that, or as there.
    """
    (b, l, d), k = x.shape, w.shape[1]
    if l < k - 1:
        raise ValueError(f"causal_conv1d: parts of {l} positions, expected at least {k - 1} for a window of {k}")
    start = jnp.zeros((b, k - 1, d), x.dtype) if tail is None else tail.astype(x.dtype)
    edge = slice(k - 1) if reverse else slice(l - (k - 1), None)
    cut = [None if value is None else value[:, edge] for value in (mask, segments)]
    passed = start
    if k > 1:
        _, passed = convolution.causal_conv1d(
            x[:, edge], w, mask=cut[0], segments=cut[1], reverse=reverse, implementation="xla"
        )
    first, last = _ends(axis_name, reverse)
    entering = _from_the_one_before(passed, axis_name, reverse)
    if segments is not None:
        entering = jnp.where(_border(segments, axis_name, reverse)[:, None, None], 0, entering)
    entering = jnp.where(first, start, entering)
    y, tail = convolution.causal_conv1d(
        x, w, bias, tail=entering, mask=mask, segments=segments, reverse=reverse, **options
    )
    return y, jax.lax.psum(jnp.where(last, tail, 0), axis_name)


def _corrected_ssd(
    y: jax.Array,
    added: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    C: jax.Array,
    *,
    h0: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    reverse: bool,
    axis_name: str,
) -> tuple[jax.Array, jax.Array]:
    """y and the final state of this part from zero -> y and the final state of all parts."""
    wide = added.dtype
    b, _, h, p = y.shape
    g, n = C.shape[2:]
    dt, C = unmasked(mask, dt, C)
    log_decay = dt.astype(wide) * A.astype(wide)[None, None]
    reach = jax.lax.cumsum(log_decay, axis=1, reverse=reverse)  # b l h
    total = reach[:, 0 if reverse else -1]
    if segments is not None:
        numbers = runs(segments)
        first = numbers[:, -1:] if reverse else numbers[:, :1]
        reach = jnp.where((numbers == first)[..., None], reach, -jnp.inf)
        total = jnp.where(_one_run(segments)[:, None], total, -jnp.inf)
    decay = jnp.exp(total)[..., None, None]
    entering, h_last = _exchange(added, decay, h0, segments, axis_name, reverse)
    entering = entering.reshape(b, g, h // g, p, n).astype(y.dtype)
    correction = matmul("bign,bgrpn->bigrp", C.astype(y.dtype), entering).reshape(y.shape)
    correction = correction * jnp.exp(reach)[..., None]
    (correction,) = unmasked(mask, correction)
    return (y + correction).astype(y.dtype), h_last


def _exchange(
    added: jax.Array,
    decay: jax.Array,
    start: jax.Array | None,
    segments: jax.Array | None,
    axis_name: str,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """The state that enters this device's part, and the one behind all parts.

    Args:
        added: (b, ...), the state with which this part's scan ends when it starts from zero.
        decay: broadcasts against it, how much of a state that enters is left at the end.
        start: the state that enters the first part, None for zeros.
    """
    border = jnp.zeros(added.shape[0], bool) if segments is None else _border(segments, axis_name, reverse)
    border = border.reshape(-1, *[1] * (added.ndim - 1))
    here = jax.lax.axis_index(axis_name)
    parts = jax.lax.all_gather((added, decay, border), axis_name)
    start = jnp.zeros_like(added) if start is None else start.astype(added.dtype)

    def step(
        carry: tuple[jax.Array, jax.Array], part: tuple[jax.Array, Any]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        state, mine = carry
        place, (added, decay, border) = part
        state = jnp.where(border, 0, state)
        return (decay * state + added, jnp.where(place == here, state, mine)), None

    places = jnp.arange(jax.lax.axis_size(axis_name))
    (last, mine), _ = jax.lax.scan(step, (start, jnp.zeros_like(added)), (places, parts), reverse=reverse)
    return mine, last


def _border(segments: jax.Array, axis_name: str, reverse: bool) -> jax.Array:
    """(b,) bool: does another segment begin where this part is entered?"""
    first, _ = _ends(axis_name, reverse)
    entered, left = (segments[:, -1], segments[:, 0]) if reverse else (segments[:, 0], segments[:, -1])
    return ~first & (entered != _from_the_one_before(left, axis_name, reverse))


def _one_run(segments: jax.Array) -> jax.Array:
    """(b,) bool: is this part all of one segment?"""
    return jnp.all(segments[:, 1:] == segments[:, :-1], axis=1)


def _ends(axis_name: str, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """Does the scan over all parts begin, and does it end, on this device?"""
    place, count = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    first, last = place == 0, place == count - 1
    return (last, first) if reverse else (first, last)


def _from_the_one_before(value: jax.Array, axis_name: str, reverse: bool) -> jax.Array:
    """That value of the device whose part the scan passes before this one's; zeros where it begins."""
    count = jax.lax.axis_size(axis_name)
    pairs = [(i, i - 1) if reverse else (i - 1, i) for i in range(1, count)]
    return jax.lax.ppermute(value, axis_name, pairs)
