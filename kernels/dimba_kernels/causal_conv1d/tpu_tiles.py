"""Block sizes of the TPU kernels of `causal_conv1d`; the one place to change when a machine is measured."""

from __future__ import annotations

from dataclasses import dataclass

from dimba_kernels.tpu_layout import even_block


@dataclass(frozen=True)
class Tiles:
    """block: positions that a grid step brings to VMEM, by 1,024 channels. vmem: bytes a kernel may take."""

    block: int
    vmem: int


def tiles(device_kind: str, l: int) -> Tiles:
    """The kernels wait for memory, not for the schedule: a block of 1 MiB of float32 is long enough to hide a grid
    step's overhead behind its copies."""
    del device_kind
    return Tiles(even_block(l, 256), 48 << 20)
