"""The search for tile sizes: from those in an operation's `gpu_tiles.py`, one field at a time, halved and doubled.

Where halves and doubles make no sense, `gpu_tiles.OPTIONS` says what else to try: {"outputs.warps": (4, 8), ...}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from dimba_kernels.bench.cases import KINDS


@dataclass(frozen=True)
class Trial:
    """Tiles, the milliseconds they take, or why they do not run."""

    tiles: Any
    change: str
    ms: float | None
    why: str = ""


def package(operation: str) -> str:
    """Where the operation's files are."""
    return KINDS[operation].function.__module__.removesuffix(".api")


@contextlib.contextmanager
def tiles(operation: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Inside, the operation takes its tiles from `replacement`, called like `gpu_tiles.tiles`."""
    modules = [importlib.import_module(f"{package(operation)}.{name}") for name in ("gpu_tiles", "gpu")]
    before = [(module, module.tiles) for module in modules if hasattr(module, "tiles")]
    jax.clear_caches()
    try:
        for module, _ in before:
            setattr(module, "tiles", replacement)  # noqa: B010  (a module's, which no type checker knows)
        yield
    finally:
        for module, function in before:
            setattr(module, "tiles", function)  # noqa: B010
        jax.clear_caches()


def chosen(operation: str, trace: Callable[[], Any]) -> Any:
    """The tiles that `gpu_tiles.tiles` gives for what `trace()` traces."""
    original = importlib.import_module(f"{package(operation)}.gpu_tiles").tiles
    seen = []

    def note(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    with tiles(operation, note):
        trace()
    if not seen:
        raise RuntimeError(f"{operation}: no tiles were asked for; tuning is for implementation='gpu'")
    return seen[0]


def neighbours(
    value: Any, fields: set[str] | None = None, options: Mapping[str, tuple[int, ...]] | None = None, path: str = ""
) -> Iterator[tuple[str, Any]]:
    """Every tiles in which one whole number is half or twice what it is, with the name of the change.

    options: other numbers to try for a field, by its name.
    """
    options = options or {}
    for field in dataclasses.fields(value):
        name, current = path + field.name, getattr(value, field.name)
        if dataclasses.is_dataclass(current):
            for change, inner in neighbours(current, fields, options, f"{name}."):
                yield change, dataclasses.replace(value, **{field.name: inner})
        elif type(current) is int and (fields is None or name in fields):
            # stages count one by one, all else in powers of two
            near = (current - 1, current + 1) if field.name.endswith("stages") else (current // 2, current * 2)
            for number in options.get(name, near):
                if number >= 1 and number != current:
                    yield f"{name}={number}", dataclasses.replace(value, **{field.name: number})


def search(
    operation: str,
    start: Any,
    measure: Callable[[], float],
    report: Callable[[Trial], None],
    fields: set[str] | None = None,
    rounds: int = 2,
) -> Trial:
    """Descend from `start`, field by field, as long as something gets faster by more than 1%, at most `rounds` times.

    Args:
        measure: milliseconds with the tiles in force; raises where they do not compile or give wrong results.
        fields: names such as "backward.unroll"; None is all.
    """
    tried: dict[Any, Trial] = {}
    options = getattr(importlib.import_module(f"{package(operation)}.gpu_tiles"), "OPTIONS", {})

    def attempt(candidate: Any, change: str) -> Trial:
        if candidate not in tried:
            try:
                with tiles(operation, lambda *args, **kwargs: candidate):
                    tried[candidate] = Trial(candidate, change, measure())
            except Exception as error:  # Triton, XLA and the kernels' own checks each have their own
                lines = str(error).splitlines()
                why = f"{type(error).__name__}: {lines[0] if lines else ''}"
                tried[candidate] = Trial(candidate, change, None, why[:100])
            report(tried[candidate])
        return tried[candidate]

    best = attempt(start, "as in the table")
    for _ in range(rounds):
        before = best
        names = [change.split("=")[0] for change, _ in neighbours(best.tiles, fields, options)]
        for name in dict.fromkeys(names):
            for change, candidate in list(neighbours(best.tiles, {name}, options)):
                trial = attempt(candidate, change)
                if trial.ms is not None and (best.ms is None or trial.ms < 0.99 * best.ms):
                    best = trial
        if best is before:
            break
    return best
