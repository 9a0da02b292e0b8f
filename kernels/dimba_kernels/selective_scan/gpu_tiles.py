"""Tile sizes of the GPU kernels of `selective_scan`. Results do not depend on them, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a kernel's tile lies in the threads (see gpu_rows.py).

    rows: of time a tile, a power of two; states, channels: a thread, powers of two; warps: a program.
    """

    rows: int
    states: int
    channels: int
    warps: int

    def of(self, n: int) -> dict[str, int]:
        """The kernels' constants for n states."""
        lanes = min(32, max(1, _power_of_two(n) // self.states))
        nt = max(self.states, _power_of_two(n) // lanes)
        return dict(T=self.rows, NT=nt, DT=self.channels, W=self.warps, NL=lanes, DL=32 // lanes)

    def block(self, n: int) -> int:
        """Channels a program."""
        constants = self.of(n)
        return constants["DT"] * constants["W"] * constants["DL"]

    def padded(self, n: int) -> int:
        """States with those that only fill up the threads."""
        constants = self.of(n)
        return constants["NT"] * constants["NL"]

    def side_by_side(self, n: int) -> int:
        """Channels that a thread loads at once: its share of a tile, 16 bytes of bfloat16 at most."""
        return min(8, max(1, self.rows * self.block(n) // (32 * self.warps)))


@dataclass(frozen=True)
class Tiles:
    """forward, segments, backward: of the three kernels. save: steps between saved states, a multiple of forward's
    rows, and two or four times backward's: one or three of those tiles are run through again.
    forward_segment, backward_segment: steps a program, multiples of `save` and of all rows. backward_parts: of the
    channels, which follow one another, and only the shares of one part in B's and C's gradients are kept."""

    forward: Layout
    segments: Layout
    backward: Layout
    save: int
    forward_segment: int
    backward_segment: int
    backward_parts: int

    def check(self) -> None:
        """Raises ValueError if they do not fit together; a search makes such, and finds out when it tries them."""
        segments = self.forward_segment, self.backward_segment
        fits = self.save in (2 * self.backward.rows, 4 * self.backward.rows) and self.save % self.forward.rows == 0
        if not fits or any(segment % self.save or segment % self.segments.rows for segment in segments):
            raise ValueError(
                "selective_scan: tiles do not fit together: save must be two or four times backward.rows and a "
                f"multiple of forward.rows, and both segments multiples of save and of segments.rows, in {self}"
            )


# What a benchmark tries, where it is not half and twice.
OPTIONS = {f"{kernel}.rows": (8, 16) for kernel in ("forward", "segments", "backward")}
OPTIONS |= {f"{kernel}.states": (1, 2, 4) for kernel in ("forward", "segments", "backward")}
OPTIONS |= {f"{kernel}.warps": (1, 2, 4) for kernel in ("forward", "segments", "backward")}


def tiles(device_kind: str, b: int, l: int, d: int, n: int) -> Tiles:
    """Tile sizes for a device, such as "NVIDIA H200", and a shape.

    Chosen by what the kernels compile to (`python -m dimba_kernels.gpu_cost`): no registers spilled up to 32 states,
    few instructions an element, and by measurement on an H200. The forward kernels' programs are single warps, which
    wait for no other. Where they are few, a long sequence is cut into segments, which costs a third more work and
    still takes less time; in a short one a thread takes fewer states, so that there are more of them.
    """
    del device_kind
    wide = _layout(rows=8, states=4, d=d, n=n)
    parts, backward_segment = _backward_cuts(wide, b, l, d, n)
    forward = _walk(rows=8, states=4, n=n)
    few = _programs(forward, b, d, n) < 1.5 * _SCHEDULERS
    if n <= 32 and few and l < 8192:
        forward = _walk(rows=16, states=2, n=n)
    return Tiles(
        forward,
        segments=_walk(rows=8, states=4, n=n),
        backward=wide,
        save=4 * wide.rows,
        forward_segment=_segment(forward, b, l, d, n, (12 if few and l >= 8192 else 1) * _SCHEDULERS),
        backward_segment=backward_segment,
        backward_parts=parts,
    )


_MULTIPROCESSORS = 132
_SCHEDULERS = 4 * _MULTIPROCESSORS


def _walk(rows: int, states: int, n: int) -> Layout:
    """One warp a program, more only where it would have fewer than 8 channels: 16 bytes of a row."""
    return Layout(rows=rows, states=states, channels=1, warps=max(1, _power_of_two(n) // 16))


def _layout(rows: int, states: int, d: int, n: int) -> Layout:
    """Enough warps a program that its share of B's and C's gradients is small, and no more than the channels need."""
    lanes = min(32, max(1, _power_of_two(n) // states))
    warps = min(max(4, _power_of_two(n) // 4), 16, _power_of_two(-(-d * lanes // 32)))
    # 16 warps leave 128 registers a thread
    return Layout(rows=rows if warps < 16 else rows // 2, states=states, channels=1, warps=warps)


def _programs(layout: Layout, b: int, d: int, n: int) -> int:
    return b * -(-d // layout.block(n))


def _segment(layout: Layout, b: int, l: int, d: int, n: int, programs: int) -> int:
    """Steps a segment, at least 128 and a power of two, that make at least so many programs, if any do."""
    segment = max(128, _power_of_two(l))
    while segment > 128 and _programs(layout, b, d, n) * -(-l // segment) < programs:
        segment //= 2
    return segment


def _backward_cuts(layout: Layout, b: int, l: int, d: int, n: int) -> tuple[int, int]:
    """Parts of the channels, and steps a segment.

    In one part, unless its shares of B's and C's gradients are large; then in so many that they take some .7 bytes (of
    bfloat16; twice that of float32) for every element of u, or in one more, four at the most. Of these the cuts with
    which a multiprocessor that is never idle has the fewest steps to take, 64 of them for the begin of each program.
    """
    blocks = -(-d // layout.block(n))
    share = 4 * b * l * layout.padded(n)
    least = 1 if blocks * share < 32e6 else min(3, -(-blocks * share // int(0.7 * b * l * d)))
    at_once = _MULTIPROCESSORS * max(1, 8 // layout.warps)  # a multiprocessor has registers for eight such warps
    segments = [segment for segment in (128 << i for i in range(25)) if segment < 2 * max(l, 128)]

    def steps(parts: int, segment: int) -> int:
        programs = -(-blocks // parts) * b * -(-l // segment)
        return parts * -(-programs // at_once) * (segment + 64)

    # so many parts as there are with equal numbers of blocks
    possible = {-(-blocks // -(-blocks // parts)) for parts in ((1,) if least == 1 else (least, least + 1))}
    choices = [(parts, segment) for parts in sorted(possible) for segment in reversed(segments)]
    return min(choices, key=lambda choice: steps(*choice))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
