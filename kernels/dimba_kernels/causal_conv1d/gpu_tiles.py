"""How the GPU kernels of `causal_conv1d` cut their work: the one table that a benchmark re-tunes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_MULTIPROCESSORS = 132  # of an H200


@dataclass(frozen=True)
class Walk:
    """threads: of one program, a multiple of 32, side by side across its channels; channels: a thread; positions: at
    most this many in a row of the sequence, by one program; unroll: positions whose loads are in flight together."""

    threads: int
    channels: int
    positions: int
    unroll: int


@dataclass(frozen=True)
class Tiles:
    forward: Walk
    backward: Walk


# What a benchmark tries, where it is not half and twice
OPTIONS = {f"{walk}.threads": (32, 64, 128) for walk in ("forward", "backward")}


# few channels a thread leave registers for more warps: at b8 l2048 d4096 in bfloat16, 8 channels and 4 positions
# forward took .097 ms and these take .087; 4 channels backward .233 with the forward pass, these .227
_FORWARD, _BACKWARD = Walk(64, 4, 64, 8), Walk(32, 2, 256, 4)
_WARP = 32


def tiles(device_kind: str, b: int, l: int, d: int, sizes: tuple[int, ...] = ()) -> Tiles:
    """Tile sizes for a device, such as "NVIDIA H200", and the shape of x; alike on every kind, measured on an H200.

    With the sizes of the parts that the channels are cut into, blocks of channels divide all of them, if `can_cut`.
    Long walks read little twice and leave small partial sums; but every multiprocessor wants 8 programs or more.
    """
    del device_kind
    return Tiles(*(_enough(_narrow(walk, sizes), b, l, d) for walk in (_FORWARD, _BACKWARD)))


def can_cut(sizes: tuple[int, ...]) -> bool:
    """Are there blocks of channels, of a whole warp, that divide all sizes?"""
    return all(math.gcd(*sizes) % (_WARP * walk.channels) == 0 for walk in (_FORWARD, _BACKWARD))


def _narrow(walk: Walk, sizes: tuple[int, ...]) -> Walk:
    while walk.threads > _WARP and math.gcd(*sizes) % (walk.threads * walk.channels):
        walk = replace(walk, threads=walk.threads // 2)
    return walk


def _enough(walk: Walk, b: int, l: int, d: int) -> Walk:
    columns = math.ceil(d / (walk.threads * walk.channels))
    while walk.positions > 32 and columns * math.ceil(b * l / walk.positions) < 8 * _MULTIPROCESSORS:
        walk = replace(walk, positions=walk.positions // 2)
    return walk


def blocks(length: int, walk: Walk) -> tuple[int, int]:
    """(blocks, positions a block) that cover `length`: about alike, each a multiple of what is unrolled."""
    even = math.ceil(length / math.ceil(length / walk.positions))
    span = math.ceil(even / walk.unroll) * walk.unroll
    return math.ceil(length / span), span
