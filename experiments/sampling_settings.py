"""Settings of sampling as text: those of a grid, and those among the flags of a command."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from dimba_jax.config import SamplingConfig

DEFAULTS = dataclasses.asdict(SamplingConfig())
FLAG = "--config.sampling."


def value(name: str, text: str) -> Any:
    """The value of a setting, of its default's type.

    Raises:
      ValueError: there is no such setting, or its value is of another type.
    """
    if name not in DEFAULTS:
        raise ValueError(f"{name!r} is no setting of sampling; they are {', '.join(DEFAULTS)}")
    kind = type(DEFAULTS[name])
    if kind is bool and text in ("True", "False"):
        return text == "True"
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{name}={text}: expected {'True or False' if kind is bool else f'a value as {DEFAULTS[name]!r}'}")


def grid(text: str) -> list[dict[str, Any]]:
    """Every combination of 'steps=20,50;eta=0,1'; of an empty text the one that changes nothing.

    Raises:
      ValueError: as `value`, or a setting is named twice.
    """
    axes: dict[str, list[Any]] = {}
    for axis in filter(None, text.split(";")):
        name, _, values = axis.partition("=")
        if name in axes:
            raise ValueError(f"{name} is named twice: put all its values into one list")
        axes[name] = [value(name, one) for one in values.split(",")]
    return [dict(zip(axes, choice, strict=True)) for choice in itertools.product(*axes.values())]


def among(flags: Sequence[str]) -> dict[str, Any]:
    """What flags as --config.sampling.steps=20 set.

    Raises:
      ValueError: as `value`.
    """
    pairs = [flag.removeprefix(FLAG).partition("=") for flag in flags if flag.startswith(FLAG)]
    return {name: value(name, text) for name, _, text in pairs}
