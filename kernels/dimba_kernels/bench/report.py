"""Results as lines of JSON, and as the Markdown table of kernels/README.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Line = dict[str, Any]
_HEADER = (
    "| operation | shape | dtype | direction | ms (least-most) | of copy | of matmul | of exp | peak GiB "
    "| peer | peer ms | peer GiB | ratio |"
)


def table(ours: Iterable[Line], peers: Iterable[Line], ceilings: dict[str, float | None]) -> str:
    """A line for each of our measurements and each peer of it; ratio = the peer's time over ours.

    The columns "of ..." say which share of the measured ceiling the least bytes, the operations or the exponentials
    over our time come to.
    """
    peers = list(peers)
    rows = [_HEADER, "|" + "---|" * (_HEADER.count("|") - 1)]
    for line in ours:
        shares = [
            _share(line["least_bytes"], line["ms"], ceilings["copy"]),
            _share(line["flops"], line["ms"], ceilings["matmul"]),
            _share(line["exps"], line["ms"], ceilings["exps"]),
        ]
        time = f"{line['ms']:.3f} ({line['least']:.3f}-{line['most']:.3f})"
        name = f"{line['operation']} ({line['implementation']})"
        start = [name, line["shape"], line["dtype"], line["direction"], time, *shares, _gib(line["peak_bytes"])]
        found = [peer for peer in peers if _same(line, peer)] or [None]
        rows += ["| " + " | ".join(start + _peer(line, peer)) + " |" for peer in found]
    return "\n".join(rows)


def _same(line: Line, peer: Line) -> bool:
    keys = ("operation", "shape", "dtype") + (("direction",) if "direction" in peer else ())
    return all(line[key] == peer[key] for key in keys) and not (
        line["implementation"] == peer["peer"]  # an implementation of ours beside itself
    )


def _peer(line: Line, peer: Line | None) -> list[str]:
    if peer is None:
        return ["–", "", "", ""]
    if "error" in peer:
        return [peer["peer"], peer["error"], "", ""]
    variant = f" ({peer['variant']})" if peer.get("variant") else ""
    memory = "" if line["peak_bytes"] is None else _gib(peer["peak_bytes"])
    return [peer["peer"] + variant, f"{peer['ms']:.3f}", memory, f"{peer['ms'] / line['ms']:.2f}"]


def instead(ours: Iterable[Line], relations: dict[str, tuple[str, int]]) -> str:
    """A sentence for each measurement of an operation that takes the place of several runs of another."""
    ours = list(ours)
    sentences = []
    for line in ours:
        if line["operation"] not in relations:
            continue
        other, times = relations[line["operation"]]
        for single in ours:
            if single["operation"] == other and all(
                line[key] == single[key] for key in ("shape", "dtype", "direction", "implementation")
            ):
                where = f"{line['shape']}, {line['dtype']}, {line['direction']}, {line['implementation']}"
                sentences.append(
                    f"{line['operation']} takes {line['ms'] / single['ms']:.2f} times one `{other}`, "
                    f"whose place it takes {times} times over ({where})."
                )
    return "\n".join(sentences)


def _share(amount: float, ms: float, ceiling: float | None) -> str:
    return "–" if not ceiling or not amount else f"{amount / (ms * 1e-3) / ceiling:.0%}"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"
