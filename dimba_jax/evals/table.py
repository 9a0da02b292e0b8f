"""The report as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "ibleu": "iBLEU",
    "bleu_source": "BLEU-src",
    "sari": "SARI",
    "dist1": "dist-1",
    "self_bleu": "self-BLEU",
    "div4": "div-4",
    "bertscore": "BERTScore",
    "length": "length",
    "network_calls": "calls",
}
DECIMALS = {"length": 1, "network_calls": 0}


def format_table(report: Mapping[str, Any]) -> str:
    """The systems as aligned lines, on all rows and, where they are known, on the unseen ones."""
    blocks = {f"{report['split']}, {report['rows']:,} rows": report["systems"]}
    if report["unseen"] is not None:
        blocks[f"{report['unseen_rows']:,} of them unseen in training"] = report["unseen"]
    return format_blocks(blocks, COLUMNS, DECIMALS)


def format_blocks(
    systems: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    columns: Mapping[str, str],
    decimals: Mapping[str, int],
) -> str:
    """Blocks of lines under a title each, {title: {system: {metric: figure}}}, in common columns.

    Args:
      columns: metric -> its heading; those that no system of a block has are left out.
      decimals: of a metric; 4 unless given.
    """
    blocks = [_block(title, lines, columns, decimals) for title, lines in systems.items()]
    lines = [line for block in blocks for line in block]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    out = []
    for title, *figures in blocks:
        out += [_aligned(title, widths), rule, *(_aligned(line, widths) for line in figures), ""]
    return "\n".join(out)


def _block(
    title: str,
    systems: Mapping[str, Mapping[str, float | None]],
    columns: Mapping[str, str],
    decimals: Mapping[str, int],
) -> list[list[str]]:
    shown = {key: name for key, name in columns.items() if any(key in metrics for metrics in systems.values())}
    lines = [[title, *shown.values()]]
    for system, metrics in systems.items():
        lines.append([system, *(_figure(metrics.get(key), decimals.get(key, 4)) for key in shown)])
    return lines


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *rest = (
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def _figure(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def print_table(report: Mapping[str, Any]) -> None:
    """Prints `format_table`."""
    print(format_table(report), flush=True)
