"""Block sizes of the TPU kernels of `selective_scan`; the one place to change when a machine is measured."""

from __future__ import annotations

from dataclasses import dataclass

from dimba_kernels.tpu_layout import even_block, up

_STATES_BYTES = 8 << 20  # what the backward pass may keep of a block's states in VMEM


@dataclass(frozen=True)
class Tiles:
    """block: positions that a grid step brings to VMEM; the state at each border is saved for the backward pass.
    states: the state axis with its padding. chunk: states that are walked together through 8 positions; there is an
    even number of chunks. vmem: bytes a kernel may take."""

    block: int
    states: int
    chunk: int
    vmem: int


def tiles(device_kind: str, l: int, n: int) -> Tiles:
    """Chosen by the static schedules for v5e and v6e, n 16: of chunks of 1, 2, 4 and 8 states the last needs fewest
    bundles (fewer registers spilled). One answer for all generations: v5p has 64 MiB of VMEM, the others more."""
    del device_kind
    states = up(n, 2) if n <= 16 else up(n, 16)
    fits = _STATES_BYTES // (states * 4096) // 16 * 16
    return Tiles(even_block(l, max(16, min(128, fits))), states, min(8, states // 2), 48 << 20)
