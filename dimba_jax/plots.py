"""Figures of a run: the loss over steps, and a sentence on its way from noise to text.

matplotlib is imported only when a figure is drawn, and drawn without its global state (no window system).
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

INK, MUTED, FAINT, RULE = "#1b2a41", "#6b7686", "#a9b4c2", "#e3e7ec"
ACCENT, SECOND = "#2563a8", "#d9772b"
UNSETTLED = "#d9896a"
MONO = "DejaVu Sans Mono"  # ships with matplotlib


def loss_curve(metrics_jsonl: str | Path, png: str | Path, *, key: str = "loss") -> None:
    """Draws `key` over "step" from a metrics file (a JSON object a line), and "valid_" + key where it is logged.

    Each logged value is a faint line under its running mean. A step logged twice (a resumed run) counts as
    it was logged last; lines without the key are skipped.

    Raises:
      ValueError: a line is no JSON object with a step, or no line holds the key.
      FileNotFoundError: there is no such file.
    """
    training, validation = _series(metrics_jsonl, key), _series(metrics_jsonl, f"valid_{key}")
    if not training:
        raise ValueError(f"{metrics_jsonl} logs no {key!r}: nothing to draw")
    figure, axes = _figure(7.2, 4.0)
    figure.subplots_adjust(left=0.09, right=0.97, top=0.88, bottom=0.14)
    steps, values = list(training), list(training.values())
    smooth = _running_mean(values, max(1, len(values) // 40))
    axes.plot(steps, values, color=ACCENT, alpha=0.28, linewidth=1.0)
    axes.plot(steps, smooth, color=ACCENT, linewidth=2.0, label="training", marker="o" if len(steps) == 1 else None)
    if validation:
        axes.plot(
            list(validation), list(validation.values()), color=SECOND, linewidth=1.4, marker="o", markersize=4,
            label="validation",
        )  # fmt: skip
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    if max(values) > 20 * min(values) > 0:
        axes.set_yscale("log")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.margins(x=0.01)
    axes.set_xlabel("step", color=MUTED, fontsize=9.5)
    axes.set_title(key.replace("_", " "), color=INK, fontsize=12, loc="left", pad=12)
    axes.set_title(f"{smooth[-1]:.4g} at step {steps[-1]:,}", color=MUTED, fontsize=9.5, loc="right", pad=12)
    figure.savefig(png, dpi=160)


def _series(path: str | Path, key: str) -> dict[int, float]:
    series = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                step = values["step"]
            except (json.JSONDecodeError, TypeError, KeyError):
                raise ValueError(f"{path}:{number}: expected a JSON object with a 'step', got {line[:60]!r}") from None
            if key in values:
                series[step] = math.nan if values[key] is None else float(values[key])
    return dict(sorted(series.items()))


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over up to `width` values on either side, fewer at the ends."""
    windows = (values[max(0, i - width) : i + width + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def denoising_strip(stages: Sequence[tuple[str, str]], png: str | Path, *, prompt: str = "") -> None:
    """Draws a sentence at several stages of sampling and writes the same as text beside it (.txt).

    `stages` are (label, text) from noise to the finished text, a label being the noise level ("t = 0.60").
    Words that have reached the finished text for good are dark, those still to change coloured.

    Raises:
      ValueError: there is no stage.
    """
    if not stages:
        raise ValueError("denoising_strip got no stages: give at least the finished text")
    Path(png).with_suffix(".txt").write_text(strip_text(stages, prompt=prompt), encoding="utf-8")

    columns, size = 64, 11.0
    cell = size * 0.602 / 72  # inches: the advance of the monospaced face
    words = _settled([text for _, text in stages])
    rows = [(label, _wrap(line, columns)) for (label, _), line in zip(stages, words, strict=True)]
    margin = max(len(label) for label, _ in stages) * cell + 0.75
    leading, gap, top = size * 1.55 / 72, 0.20, 0.98 if prompt else 0.66
    height = top + sum(len(lines) * leading + 2 * gap for _, lines in rows) + 0.3
    width = margin + columns * cell + 0.45
    figure, axes = _figure(width, height)
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    drawable = _drawable()
    axes.text(0.35, 0.42, "From noise to text", fontsize=13, color=INK, va="baseline", weight="bold")
    for x, color, text in ((width - 1.62, INK, "final"), (width - 0.35, UNSETTLED, "still changing")):
        axes.text(x, 0.42, text, fontsize=9, color=color, va="baseline", ha="right", family=MONO)
    if prompt:
        shown = "".join(map(drawable, textwrap.shorten(prompt, columns + 8, placeholder=" …")))
        axes.text(0.35, 0.72, shown, fontsize=size, color=MUTED, va="baseline", family=MONO, parse_math=False)
    y = top
    for label, lines in rows:
        axes.plot([0.35, width - 0.35], [y, y], color=RULE, linewidth=0.8)
        y += gap
        axes.text(
            0.35, y + leading * 0.72, label, fontsize=size - 1.5, color=MUTED, va="baseline", family=MONO,
            parse_math=False,
        )  # fmt: skip
        for line in lines:
            for column, word, settled in line:
                axes.text(
                    margin + column * cell, y + leading * 0.72, "".join(map(drawable, word)), fontsize=size,
                    color=INK if settled else UNSETTLED, va="baseline", family=MONO, parse_math=False,
                )  # fmt: skip
            y += leading
        y += gap
    axes.plot([0.35, width - 0.35], [y, y], color=RULE, linewidth=0.8)
    figure.savefig(png, dpi=200)


def strip_text(stages: Sequence[tuple[str, str]], *, prompt: str = "") -> str:
    """The stages as aligned lines of text."""
    width = max(len(label) for label, _ in stages)
    lines = [f"prompt: {prompt}", ""] if prompt else []
    lines += [f"{label.ljust(width)}  |  {text}".rstrip() for label, text in stages]
    return "\n".join(lines) + "\n"


def _settled(texts: Sequence[str]) -> list[list[tuple[str, bool]]]:
    """The words of every stage, each with whether it stands in this and all later stages' common part."""
    final = texts[-1].split()
    lasting = set(range(len(final)))
    stages = []
    for text in reversed(texts):
        words = text.split()
        blocks = SequenceMatcher(None, words, final, autojunk=False).get_matching_blocks()
        place = {block.b + i: block.a + i for block in blocks for i in range(block.size)}
        lasting &= place.keys()
        kept = {place[i] for i in lasting}
        stages.append([(word, i in kept) for i, word in enumerate(words)])
    return stages[::-1]


def _wrap(words: Sequence[tuple[str, bool]], columns: int) -> list[list[tuple[int, str, bool]]]:
    """Breaks words into lines of (column, word, settled); an overlong word is cut."""
    lines: list[list[tuple[int, str, bool]]] = [[]]
    column = 0
    for word, settled in words:
        word = word if len(word) <= columns else word[: columns - 1] + "…"
        if column and column + len(word) > columns:
            lines.append([])
            column = 0
        lines[-1].append((column, word, settled))
        column += len(word) + 1
    return lines


def _drawable():
    """Maps characters that the face lacks to an empty box, as noise may hold any piece of the vocabulary."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont(MONO)).get_charmap()
    return lambda character: character if ord(character) in known else "▯"


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
