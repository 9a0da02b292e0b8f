"""How the TPU kernels of `ssd` cut their work. `tiles` is the table; `python -m dimba_kernels.tpu_cost` costs it."""

from __future__ import annotations

import math
from dataclasses import dataclass

LANES = 128


@dataclass(frozen=True)
class Tiles:
    """How one generation cuts the work.

    Attributes:
        chunk: positions of one chunk, a multiple of 128.
        lanes: at most this many (heads times head dim) in one block of heads; a quarter of it for float32. The passes
            over a block are unrolled, so that this is also the length of the program.
        backward_lanes: the same for the backward pass, whose program is three times as long.
        unroll: at most this many heads (8 or fewer) in one pass over a block.
        vmem: bytes of VMEM that a kernel may use.
    """

    chunk: int = 128
    lanes: int = 4096
    backward_lanes: int = 4096
    unroll: int = 8
    vmem: int = 56 << 20


_BY_KIND = {
    "TPU v5": Tiles(lanes=2048, backward_lanes=2048),  # v5p: its two cores share out the blocks
}


def tiles(device_kind: str) -> Tiles:
    """Generations as `jax.Device.device_kind` names them; all but those in the table are alike."""
    return _BY_KIND.get(device_kind, Tiles())


def padded_heads(heads: int, head_dim: int) -> tuple[int, int]:
    """(heads, head dim) of a group with which heads fill tiles of 128 lanes, at least padding.

    A head is 16, 32, 64 or a multiple of 128 lanes wide, and a group is a whole number of tiles.
    """
    widths = [width for width in (16, 32, 64) if width >= head_dim] + [LANES * math.ceil(head_dim / LANES)]
    per_tile = {width: max(1, LANES // width) for width in widths}
    choices = [(per_tile[width] * math.ceil(heads / per_tile[width]), width) for width in widths]
    return min(choices, key=lambda choice: choice[0] * choice[1])


def unrolled(heads: int, head_dim: int, most: int) -> int:
    """How many heads one pass takes: the most that fill tiles and divide the heads of the group."""
    per_tile = max(1, LANES // head_dim)
    fitting = [count for count in range(per_tile, most + 1, per_tile) if heads % count == 0]
    return max(fitting, default=per_tile)


def passes_per_block(passes: int, lanes: int, most_lanes: int, rows: int) -> int:
    """How many passes make one block of heads: a divisor of `passes`, within most_lanes, and two blocks where there
    is one row only, for chips of two cores."""
    fitting = [count for count in range(1, passes + 1) if passes % count == 0 and count * lanes <= most_lanes]
    if rows == 1:
        fitting = [count for count in fitting if count < passes] or fitting
    return max(fitting, default=1)
