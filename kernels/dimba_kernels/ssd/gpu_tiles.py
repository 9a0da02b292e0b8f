"""How the GPU kernels of `ssd` cut their work: the one table that a benchmark re-tunes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched: warps a program, and stages of its loop's pipeline."""

    warps: int
    stages: int


@dataclass(frozen=True)
class Walk:
    """How the states are walked: the block of a state (n, p) that one program carries, warps and stages."""

    n: int
    p: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """Positions a chunk, heads a program, and launches."""

    chunk: int  # of the outputs; the states between its chunks are all that is stored of the states
    states: Walk
    heads: int  # a divisor of the heads of a group: that one program of the outputs takes through its chunk
    outputs: Launch
    gradient_chunk: int
    gradient_parts: int  # of the heads, which follow one another: the states of one part alone are kept
    gradient_states: Walk  # the states again, and their gradients
    gradient_heads: int
    gradient_warps: int
    x_stages: int  # of the loops of the three programs that share the gradients of a chunk
    b_stages: int
    c_stages: int


_FULL = 5 * 132  # programs: more than two at a time for each multiprocessor


def tiles(
    device_kind: str, *, b: int, l: int, h: int, g: int, p: int, n: int, ways: int, both: bool, wide: bool
) -> Tiles:
    """The tiles for a shape, as in `ssd`. ways: directions in the launch; both: one program sums two of them; wide:
    float32 inputs."""
    del device_kind  # one table so far, for Hopper
    longest = max(16, _power(l))
    large = wide or n > 128  # what one chunk takes of the registers
    chunk, gradient_chunk = 64 if large else 128, 64
    # where there are few sequences, programs that load further ahead
    few = b * h * ways < 256 and not wide
    walk = Walk(min(_power(n), 64 if few or n > 128 else 128), min(_power(p), 64), 8 if wide else 4, 3 if few else 2)
    heads = _divisor(h // g, 16)
    # bytes of the states and their gradients: from 200 MB on half of them at a time, if the heads can be halved
    states = 2 * ways * b * -(-l // gradient_chunk) * h * n * p * (4 if wide else 2)
    halves = [size for size in range(min(5, h // g), 33) if h // g % size == h // size % 2 == 0]
    parts = 2 if states > 200e6 and halves else 1
    sizes = halves if parts == 2 else [size for size in range(1, 33) if h // g % size == 0]
    # a program leaves one share of B's and C's gradients: more heads make fewer of them, while programs fill the GPU
    programs = 3 * h // parts * b * -(-l // gradient_chunk) * (1 if both else ways)
    gradient_heads = max((size for size in sizes if size <= 16 or programs // size >= _FULL), default=sizes[0])
    return Tiles(
        chunk=min(chunk, longest),
        states=walk,
        heads=heads,
        outputs=Launch(warps=8, stages=1 if wide else 2 if large else 3),
        gradient_chunk=min(gradient_chunk, longest),
        gradient_parts=parts,
        gradient_states=replace(walk, p=min(walk.p, 32)) if few and parts > 1 else walk,
        gradient_heads=gradient_heads,
        gradient_warps=8 if n > 128 else 4,
        x_stages=1 if large or both else 2,
        b_stages=1 if large else 2,
        c_stages=1 if large else 2,
    )


def block(size: int) -> int:
    """A power of two, 16 at least, as tensor cores want it."""
    return max(16, _power(size))


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _divisor(number: int, most: int) -> int:
    return max(size for size in range(1, min(number, most) + 1) if number % size == 0)
