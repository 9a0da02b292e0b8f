"""Progress of long work: a tqdm bar on a terminal, plain lines to a log, silence beside process 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

LINE_EVERY_S = 10.0


class Progress:
    """Counts finished units of work and shows them with figures, rate and the time left.

    A context manager, made by `progress`. On a terminal it draws a bar; otherwise it writes a line at the
    start, about every ten seconds, and at the end.
    """

    def __init__(
        self, total: int | None, description: str, initial: int, stream: TextIO, *,
        bar: bool, enabled: bool, clock: Callable[[], float],
    ):  # fmt: skip
        self.total, self.description, self.count = total, description, initial
        self._initial, self._stream, self._clock, self._enabled = initial, stream, clock, enabled
        self._figures: dict[str, str] = {}
        self._started = self._last_line = clock()
        self._bar = None
        if enabled and bar:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=description, initial=initial, file=stream, dynamic_ncols=True, mininterval=0.2
            )

    def __enter__(self) -> Progress:
        self._started = self._last_line = self._clock()
        of = "" if self.total is None else f" of {self.total:,}"
        self._line(f"starting, {self.count:,}{of}")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        if self._bar is not None:
            self._bar.close()
        after = _duration(self._clock() - self._started)
        self._line(", ".join([f"{'done' if kind is None else 'stopped'}: {self._counted()}", *self._shown(), after]))

    def update(self, n: int = 1, **figures: float | str) -> None:
        """Adds n finished units; figures (loss=2.31, tokens_per_s=8800.) replace those of the same name."""
        self.count += n
        self._figures |= {_label(name): _figure(value) for name, value in figures.items()}
        if self._bar is not None:
            self._bar.set_postfix(self._figures, refresh=False)
            self._bar.update(n)
        elif self._clock() - self._last_line >= LINE_EVERY_S:
            self._last_line = self._clock()
            self._line(", ".join([self._counted(), *self._shown(), *self._pace()]))

    def write(self, text: str) -> None:
        """Shows a text without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._enabled:
            print(text, file=self._stream, flush=True)

    def _line(self, text: str) -> None:
        if self._enabled and self._bar is None:
            print(f"{self.description}: {text}", file=self._stream, flush=True)

    def _counted(self) -> str:
        if not self.total:
            return f"{self.count:,}"
        return f"{self.count:,}/{self.total:,} ({self.count / self.total:.0%})"

    def _shown(self) -> list[str]:
        return [f"{name} {value}" for name, value in self._figures.items()]

    def _pace(self) -> list[str]:
        elapsed = self._clock() - self._started
        rate = (self.count - self._initial) / elapsed if elapsed > 0 else 0.0
        pace = [f"{_figure(rate)} a second"]
        if self.total is not None and rate > 0:
            pace.append(f"{_duration(max(0, self.total - self.count) / rate)} left")
        return pace


def progress(
    total: int | None,
    description: str,
    initial: int = 0,
    *,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """The progress of `total` units of work (None: unknown), of which `initial` were done in an earlier run.

    Shown on `stream` (standard error); a bar only if both it and standard output are terminals. Of several
    processes only the first shows anything; `enabled=False` shows nothing at all.
    """
    shown_on = sys.stderr if stream is None else stream
    terminal = shown_on.isatty() and sys.stdout.isatty()
    enabled = enabled and _is_first_process()
    return Progress(total, description, initial, shown_on, bar=terminal, enabled=enabled, clock=clock)


def announce(text: str) -> None:
    """A line on standard error, from the first process."""
    if _is_first_process():
        print(text, file=sys.stderr, flush=True)


def _is_first_process() -> bool:
    import jax

    # Asking for the process index starts the backend, after which a distributed run can no longer be set up.
    return jax.process_index() == 0 if jax.distributed.is_initialized() else True


def _label(name: str) -> str:
    return name.replace("_per_s", "/s").replace("_", " ")


def _figure(value: float | str) -> str:
    if isinstance(value, str):
        return value
    value = float(value)
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
