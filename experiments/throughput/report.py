"""Writes the tables of README.md and draws its plot, from training.jsonl and decoding.jsonl.

    PYTHONPATH=.:kernels python experiments/throughput/report.py

Tokens a second of a whole sequence follow from one call: L tokens take L / p calls over all L positions, so p a call.
Of blocks of 32 tokens: 32 / p calls and one that commits the block; with Fast-dLLM's cache one that looks at the whole
row and 32 / p - 1 over the block. No whole sample was drawn: all are extrapolations.
The latency of a full call is fitted as a L^2 + b L + c with a, b, c >= 0, by relative errors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import documents
import result_files

HERE = Path(__file__).parent
# PyTorch on one H200 (mamba_ssm 2.3.2, torch 2.11, CUDA graph), the same architecture: ms of a forward pass, no head
PEERS = {
    "diffutran": {1024: 5.45, 4096: 24.8, 16384: 177, 65536: 1963},
    "diffumamba": {1024: 13.8, 4096: 47.6, 16384: 186, 65536: 748, 131072: 1503},
    "diffumamba-h": {1024: 11.8, 4096: 41.7, 16384: 179, 65536: 985, 131072: 2685},
}
NAMES = {"diffutran": "DiffuTran", "diffumamba": "DiffuMamba", "diffumamba-h": "DiffuMamba-H", "ar": "autoregressive"}
TOKENS_A_CALL = (8, 16)
BLOCK = 32
Line = dict[str, Any]


def read(name: str) -> list[Line]:
    return [line for line in result_files.read(HERE / name) if "error" not in line]


def named(system: str) -> str:
    name, *changes = system.split()
    return NAMES[name] + (", unrolled" if changes else "")


def fit(latency: dict[int, float]) -> np.ndarray:
    """a, b, c of a L^2 + b L + c, none negative, with the least sum of squared relative errors."""
    lengths, ms = np.array(list(latency), float), np.array(list(latency.values()))
    terms = np.stack([lengths**2, lengths, np.ones_like(lengths)], axis=1) / ms[:, None]
    scale = terms.max(axis=0)
    best, least = np.zeros(3), np.inf
    for kept in range(1, 8):  # every set of terms, so that none is negative
        columns = [i for i in range(3) if kept >> i & 1]
        found, *_ = np.linalg.lstsq(terms[:, columns] / scale[columns], np.ones_like(ms), rcond=None)
        values = np.zeros(3)
        values[columns] = found / scale[columns]
        error = float(np.sum((terms @ values - 1) ** 2))
        if (values >= 0).all() and error < least:
            best, least = values, error
    return best


def training(lines: list[Line]) -> str:
    heads = "parameters | batch | ms a step (least-most) | tokens/s | utilisation | GiB a device | compile s | commit"
    rows = [f"| run | {heads} |", "|" + "---|" * 9]
    for line in lines:
        devices = f" on {line['devices']} GPUs" if line["devices"] > 1 else ""
        cells = (
            f"{line['run']}{devices}",
            f"{line['parameters'] / 1e6:.0f}M",
            f"{line['rows']} x {line['length']}",
            f"{line['ms']:.1f} ({line['least']:.1f}-{line['most']:.1f})",
            f"{line['tokens_per_second']:,.0f}",
            f"{100 * line['utilisation']:.1f}%",
            f"{line['peak_bytes'] / 2**30:.1f}",
            f"{line['compile_seconds']:.0f}",
            line["commit"],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def latencies(lines: list[Line]) -> dict[tuple[str, str], dict[int, float]]:
    """Milliseconds of a call of one row by system and kind of call, then by length."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for line in lines:
        if line["rows"] > 1:
            continue
        found.setdefault((line["system"], line["kind"]), {})[line["length"]] = line["ms"]
    return {call: dict(sorted(ms.items())) for call, ms in found.items()}


Lines = dict[tuple[str, str, int], Line]


def by_call(lines: list[Line]) -> Lines:
    """Those of one row by system, kind of call and length."""
    return {(line["system"], line["kind"], line["length"]): line for line in lines if line["rows"] == 1}


def spread(line: Line, digits: int) -> str:
    """The median of its samples, and the least and the most of them."""
    ms, least, most = (f"{line[name]:.{digits}f}" for name in ("ms", "least", "most"))
    return f"{ms} ({least}-{most})"


def whole(full: dict[str, dict[int, float]], lines: Lines) -> str:
    """Calls over the whole sequence, beside PyTorch and beside DiffuTran."""
    heads = "ms a call (least-most) | PyTorch | ratio | tokens/s, L/8 calls | L/16 calls | against DiffuTran | commit"
    rows = [f"| system | L | {heads} |", "|" + "---|" * 9]
    for system, values in full.items():
        for length, ms in values.items():
            line = lines[system, "full", length]
            peer = PEERS[system.split()[0]].get(length)
            compared = f"{peer:g} | {ms / peer:.2f}" if peer else "| "
            speeds = " | ".join(f"{p / ms * 1e3:,.1f}" for p in TOKENS_A_CALL)
            other = full.get(" ".join(["diffutran", *system.split()[1:]]), {}).get(length)
            gain = f"{other / ms:.2f}" if other and not system.startswith("diffutran") else ""
            cells = f"{spread(line, 1)} | {compared} | {speeds} | {gain} | {line['commit']}"
            rows.append(f"| {named(system)} | {length:,} | {cells} |")
    return "\n".join(rows)


def fitted(full: dict[str, dict[int, float]]) -> dict[str, np.ndarray]:
    """a, b, c of the systems that have more points than unknowns."""
    return {system: fit(values) for system, values in full.items() if len(values) > 3}


def fits(full: dict[str, dict[int, float]]) -> str:
    rows = ["| system | a, ms | b, ms | c, ms | largest error of the fit |", "|---|---|---|---|---|"]
    for system, (a, b, c) in fitted(full).items():
        worst = max(abs((a * l**2 + b * l + c) / ms - 1) for l, ms in full[system].items())
        rows.append(f"| {named(system)} | {a:.3g} L^2 | {b:.3g} L | {c:.2f} | {100 * worst:.0f}% |")
    return "\n".join(rows)


def several_rows(lines: list[Line]) -> str:
    """A block of each of several rows behind a cache, beside that of one row."""
    alone = by_call(lines)
    rows = ["| system | rows | L | ms (least-most) | against one row | commit |", "|" + "---|" * 6]
    for line in (line for line in lines if line["rows"] > 1 and line["kind"] == "block"):
        system, length = line["system"], line["length"]
        one = alone[system, "block", length]
        ratio = f"{line['ms'] / one['ms']:.2f} ({one['commit']})"
        cells = f"{line['rows']} | {length:,} | {spread(line, 2)} | {ratio} | {line['commit']}"
        rows.append(f"| {named(system)} | {cells} |")
    return "\n".join(rows)


def cached(latency: dict[tuple[str, str], dict[int, float]], lines: Lines) -> str:
    """Calls behind a cache: blocks, single tokens, Fast-dLLM's."""
    rows = ["| system | call | L | ms (least-most) | tokens/s, 32/8 calls a block | 32/16 calls | commit |"]
    rows.append("|" + "---|" * 7)
    for (system, kind), values in latency.items():
        if kind not in ("block", "token"):
            continue
        for length, ms in values.items():
            per_block = [BLOCK / p + 1 for p in TOKENS_A_CALL]
            speeds = [BLOCK / (calls * ms) * 1e3 for calls in per_block] if kind == "block" else [1e3 / ms] * 2
            line = lines[system, kind, length]
            cells = f"{spread(line, 2)} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {line['commit']}"
            rows.append(f"| {named(system)} | {kind} | {length:,} | {cells} |")
    for length, refresh in latency.get(("diffutran", "refresh"), {}).items():
        window = latency["diffutran", "window"][length]
        speeds = [BLOCK / (refresh + (BLOCK / p - 1) * window) * 1e3 for p in TOKENS_A_CALL]
        calls = f"| DiffuTran, Fast-dLLM | row, window | {length:,} | {refresh:.1f}, {window:.2f} "
        commit = lines["diffutran", "window", length]["commit"]
        rows.append(f"{calls}| {speeds[0]:,.1f} | {speeds[1]:,.1f} | {commit} |")
    return "\n".join(rows)


def tables() -> dict[str, str]:
    """The tables of this study by the names of their places."""
    measured = read("decoding.jsonl")
    latency, lines = latencies(measured), by_call(measured)
    full = {system: ms for (system, kind), ms in latency.items() if kind == "full"}
    trained = read("training.jsonl")
    several = [line for line in trained if line["devices"] > 1]
    memory = [line for line in trained if line not in several and "remat=kernels" not in line["run"]]
    return {
        "training": training([line for line in trained if line not in several and line not in memory]),
        "training on two GPUs": training(several),
        "memory against time": training(memory),
        "whole sequences": whole(full, lines),
        "fits": fits(full),
        "calls behind a cache": cached(latency, lines),
        "blocks of several rows": several_rows(measured),
    }


def draw(full: dict[str, dict[int, float]], png: Path) -> None:
    """Tokens a second over the length, points and what was fitted to them, of unrolled layers."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for system, (a, b, c) in fitted(full).items():
        if "unroll" not in system.split():
            continue
        values, name = full[system], NAMES[system.split()[0]]
        (line,) = axes.plot(list(values), [8 / ms * 1e3 for ms in values.values()], "o", label=name)
        dense = np.geomspace(min(values), max(values), 60)
        axes.plot(dense, 8e3 / (a * dense**2 + b * dense + c), "-", color=line.get_color(), linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="length L", ylabel="tokens/s, L/8 calls over the whole sequence")
    axes.set_title("1.3B size, batch 1, bfloat16, one H200, layers unrolled", fontsize=10)
    axes.legend()
    figure.savefig(png, dpi=150)


def main() -> None:
    documents.put(tables(), documents.of(HERE))
    latency = latencies(read("decoding.jsonl"))
    draw({system: ms for (system, kind), ms in latency.items() if kind == "full"}, HERE / "throughput.png")


if __name__ == "__main__":
    main()
