"""What the GPU kernels of `selective_scan` share: how a tile lies in the threads, and the recurrence over its rows.

A tile of elements (t, d, n) is [1, T, NT, DT, W, DL, NL]. Triton gives lanes and warps to the last axes first: the
DL x NL lanes of a warp split channels and states, W warps split channels, and a thread holds T rows of NT states by DT
channels. So the axis of time lies in registers: cutting it into rows (`tl.split`) and joining rows again moves no data,
and a recurrence is straight-line code of one FMA per element.

    n = nl NT + nt          d = (w DT + dt) DL + dl

Arrays of channels are [T, W, channels a warp]: a warp loads and stores what its part of the tile needs, so that what
is exchanged between the threads stays within a warp, and warps wait for each other nowhere but for sums over channels.

Elementwise work can still be dragged into another layout, and be done many times over or twice. `settled` and `apart`
prevent that; neither is any code.
"""

# pyright: reportGeneralTypeIssues=false
# (to a type checker a function under @triton.jit never returns)

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FORGET = tl.constexpr(-1e30)  # added to the exponent of a decay: the state before this position counts as zero


@triton.jit
def settled(x):
    """x. But what is computed elementwise to get it is computed where the loads put it, once an element.

    Triton moves elementwise work across a change of layout, here to the threads of the tile, of which NL would each do
    the same. It moves nothing across a sum, and a sum over an axis of one element is no code.
    """
    return tl.sum(x[None], 0)


@triton.jit
def apart(x):
    """x [1, ...] in Triton's default layout for its shape, the one above, because a cumulative sum insists on it. Along
    an axis of one element that is no code."""
    return tl.cumsum(x, 0)


@triton.jit
def spread(x, V: tl.constexpr):
    """[T, W, channels a warp] -> [V, W, T, channels a warp / V].

    V is how many channels a thread loads side by side. On the first axis they lie in registers, here as where they are
    loaded, so that a settled value and its loads need no exchange between threads.
    """
    return tl.permute(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2] // V, V)), (3, 1, 0, 2))


@triton.jit
def gathered(x):
    """Back to [T, W, channels a warp]."""
    return tl.reshape(tl.permute(x, (2, 1, 3, 0)), (x.shape[2], x.shape[1], x.shape[3] * x.shape[0]))


@triton.jit
def spread_channels(x, T: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, DL: tl.constexpr):
    """[V, W, T, channels a warp / V] -> [1, T, 1, DT, W, DL, 1]."""
    return tl.permute(tl.reshape(gathered(settled(x)), (1, T, 1, W, DT, DL, 1)), (0, 1, 2, 4, 3, 5, 6))


@triton.jit
def three_spread_channels(
    x, y, z, T: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr
):
    """`spread_channels` of three arrays, in one exchange: fewer waits in programs of several warps."""
    z = settled(z)
    four = tl.join(tl.join(settled(x), settled(y)), tl.join(z, z))
    four = tl.reshape(tl.permute(four, (5, 4, 2, 1, 3, 0)), (1, 4, T, W, DT, DL, 1))
    four = tl.broadcast_to(tl.permute(four, (0, 1, 2, 4, 3, 5, 6)), (1, 4, T, DT, W, DL, NL))
    four = tl.reshape(apart(four), (2, 2, T, DT, W, DL, NL))
    xy, zz = tl.split(tl.permute(four, (1, 2, 3, 4, 5, 6, 0)))
    x, y = tl.split(tl.permute(xy, (1, 2, 3, 4, 5, 0)))
    z, _z = tl.split(tl.permute(zz, (1, 2, 3, 4, 5, 0)))
    return x[None, :, None], y[None, :, None], z[None, :, None]


@triton.jit
def narrow_offsets(
    STRIDE: tl.constexpr, T: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr,
    DL: tl.constexpr,
):  # fmt: skip
    """Where a row of states (T, STRIDE) is read from, for every element of a tile: [NL, DL, W, DT, T, NT].

    All channels read the same words, each thread those that it needs and NT at once, which costs no more than shared
    memory would and needs no barrier. Triton gives lanes and warps to the first of these axes first, as to the last of
    a tile: in memory only NT is contiguous, and among the others it goes by their order.
    """
    t = tl.arange(0, T)[None, None, None, None, :, None]
    nl = tl.arange(0, NL)[:, None, None, None, None, None]
    nt = tl.arange(0, NT)[None, None, None, None, None, :]
    return t * STRIDE + nl * NT + nt + tl.zeros((NL, DL, W, DT, T, NT), tl.int32)


@triton.jit
def narrow_tile(pointers):
    """What stands at `narrow_offsets` -> [1, T, NT, DT, W, DL, NL]."""
    return on_tile(tl.load(pointers))


@triton.jit
def on_tile(x):
    """[NL, DL, W, DT, T, NT] -> [1, T, NT, DT, W, DL, NL]."""
    return tl.permute(x, (4, 5, 3, 2, 1, 0))[None]


@triton.jit
def off_tile(x):
    """[1, 1, NT, DT, W, DL, NL] -> [NL, DL, W, DT, 1, NT]."""
    return tl.permute(tl.sum(x, 0), (5, 4, 3, 2, 0, 1))


@triton.jit
def state_offsets_on_tile(
    block, D: tl.constexpr, N: tl.constexpr, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr,
    DL: tl.constexpr,
):  # fmt: skip
    """Of a channel block's states in a (d, n) array, and which of them exist: [NL, DL, W, DT, 1, NT], where a tile has
    them in its threads, so that none need be exchanged."""
    dl = tl.arange(0, DL)[None, :, None, None, None, None]
    w = tl.arange(0, W)[None, None, :, None, None, None]
    dt = tl.arange(0, DT)[None, None, None, :, None, None]
    nl = tl.arange(0, NL)[:, None, None, None, None, None]
    nt = tl.arange(0, NT)[None, None, None, None, None, :]
    d = block * (DT * W * DL) + (w * DT + dt) * DL + dl
    n = nl * NT + nt
    return d * N + n, (d < D) & (n < N)


@triton.jit
def tile(x, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr):
    """[channels, states] -> [1, 1, NT, DT, W, DL, NL]."""
    return apart(tl.permute(tl.reshape(x, (1, 1, W, DT, DL, NL, NT)), (0, 1, 6, 3, 2, 4, 5)))


@triton.jit
def flat(x, NT: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr):
    """[1, 1, NT, DT, W, DL, NL] -> [channels, states]."""
    return tl.reshape(tl.permute(x, (0, 1, 4, 3, 5, 6, 2)), (DT * W * DL, NL * NT))


@triton.jit
def over_states_spread(x, T: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, DL: tl.constexpr, V: tl.constexpr):
    """Sum a tile over its states -> [V, W, T, channels a warp / V].

    A thread's own first. Then the lanes exchange through shared memory, so that a thread gets all addends of one sum:
    fewer instructions than adding across lanes.
    """
    own = tl.permute(tl.sum(x, 2), (0, 5, 1, 3, 2, 4))
    own = tl.reshape(own, (1, own.shape[1], T, W, DT * DL // V, V))
    return tl.sum(tl.sum(apart(tl.permute(own, (0, 1, 5, 3, 2, 4))), 1), 0)


@triton.jit
def two_over_states_spread(x, y, T: tl.constexpr, DT: tl.constexpr, W: tl.constexpr, DL: tl.constexpr, V: tl.constexpr):
    """`over_states_spread` of two tiles, in one exchange."""
    own = tl.permute(tl.join(tl.sum(x, 2), tl.sum(y, 2)), (0, 5, 6, 1, 3, 2, 4))
    own = tl.reshape(own, (1, own.shape[1], 2, T, W, DT * DL // V, V))
    sums = tl.sum(tl.sum(apart(tl.permute(own, (0, 1, 2, 6, 4, 3, 5))), 1), 0)
    return tl.split(tl.permute(sums, (1, 2, 3, 4, 0)))


@triton.jit
def store_sums(p, x, T: tl.constexpr, NT: tl.constexpr, W: tl.constexpr, NL: tl.constexpr, DL: tl.constexpr):
    """Sum a tile over its channels, likewise, and store that as rows of states: p + (T, 2 NL NT)."""
    # how many sums of neighbouring states a thread gets, so that it reads and stores them at once
    U: tl.constexpr = max(1, min(NT, T * NT * NL // (32 * W)))
    own = tl.reshape(tl.sum(x, 3), (1, T, NT // U, U, W * DL, NL))
    sums = tl.sum(tl.sum(apart(tl.permute(own, (0, 3, 4, 1, 5, 2))), 2), 0)
    n = tl.arange(0, NT // U)[:, None, None, None]
    nl = tl.arange(0, NL)[None, :, None, None]
    t = tl.arange(0, T)[None, None, :, None]
    u = tl.arange(0, U)[None, None, None, :]
    to = p + (t * (2 * NL * NT) + nl * NT + n * U + u)
    tl.store(to, tl.permute(sums, (3, 2, 1, 0)).to(p.dtype.element_ty))


@triton.jit
def over_rows(x):
    """Sum a tile over its rows, all in one thread -> [1, 1, NT, DT, W, DL, NL]."""
    return tl.sum(x, 1)[:, None]


@triton.jit
def _halves(x):
    """Rows [0, T / 2) and rows [T / 2, T)."""
    half: tl.constexpr = x.shape[1] // 2
    cut = tl.reshape(x, (2, half, x.shape[2], x.shape[3], x.shape[4], x.shape[5], x.shape[6]))
    first, second = tl.split(tl.permute(cut, (1, 2, 3, 4, 5, 6, 0)))
    return first[None], second[None]


@triton.jit
def _joined(x, y):
    rows = tl.permute(tl.join(x, y), (0, 7, 1, 2, 3, 4, 5, 6))
    return tl.reshape(rows, (1, 2 * x.shape[1], x.shape[2], x.shape[3], x.shape[4], x.shape[5], x.shape[6]))


@triton.jit
def _run(decay, added, state, T: tl.constexpr):
    if T == 1:
        kept = apart(decay * state)
        after = apart(kept + added)
        return kept, after, after
    else:
        decay0, decay1 = _halves(decay)
        added0, added1 = _halves(added)
        kept0, after0, state = _run(decay0, added0, state, T // 2)
        kept1, after1, state = _run(decay1, added1, state, T // 2)
        return _joined(kept0, kept1), _joined(after0, after1), state


@triton.jit
def run_rows(decay, added, state, T: tl.constexpr):
    """state <- decay state + added, row after row: what each row keeps of the state before it, the states after each
    row, and the last one."""
    return _run(decay, apart(added), state, T)


@triton.jit
def _run_back(decay, added, later_decay, later, T: tl.constexpr):
    if T == 1:
        gradient = apart(later_decay * later + added)
        return gradient, decay, gradient
    else:
        decay0, decay1 = _halves(decay)
        added0, added1 = _halves(added)
        gradient1, later_decay, later = _run_back(decay1, added1, later_decay, later, T // 2)
        gradient0, later_decay, later = _run_back(decay0, added0, later_decay, later, T // 2)
        return _joined(gradient0, gradient1), later_decay, later


@triton.jit
def run_rows_back(decay, added, later, T: tl.constexpr):
    """The recurrence of the states' gradients, from the last row to the first.

    Args:
        added: what each row's own output adds to the gradient of the state after it.
        later: the gradient that comes into the state after the last row from behind.

    Returns:
        The gradient of the state after each row, and of the state before the first row.
    """
    one = tl.full(later.shape, 1.0, tl.float32)
    gradient, decay, first = _run_back(decay, apart(added), one, later, T)
    return gradient, decay * first
