"""From the plain values of JSON or a ConfigDict to frozen dataclasses of settings, each checked against its type."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from dimba_jax.errors import ConfigError

LARGEST = (1 << 63) - 1
_SURROGATE = re.compile("[\ud800-\udfff]")


def build(cls: type, values: Any, where: str) -> Any:
    """An instance of a dataclass of settings from a mapping; `where` is its name in messages.

    Raises:
      ConfigError: an unknown key, or a value that its annotation does not admit.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a group of settings, got {_short(values)}")
    hints = _hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    out = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key)[:80], known, n=1, cutoff=0.0)[0]
            shown = key if isinstance(key, str) and key.isidentifier() and len(key) <= 80 else _short(key)
            raise ConfigError(f"{where}.{shown} is no setting; did you mean {where}.{near}?")
        out[key] = _coerce(hints[key], value, f"{where}.{key}")
    return cls(**out)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{where}={_short(value)}: choose one of {', '.join(map(repr, choices))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise ConfigError(f"{where}={_short(value)}: expected a list")
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) != len(value):
            raise ConfigError(f"{where}={_short(value)}: expected {len(args)} values")
        return tuple(_coerce(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    assert not isinstance(origin, types.UnionType)
    number = isinstance(value, int) and not isinstance(value, bool)
    if not (isinstance(value, hint) or (hint is float and number)) or (hint is int and not number):
        raise ConfigError(f"{where}={_short(value)}: expected {hint.__name__}, got {type(value).__name__}")
    return _sound(hint, value, where)


def _sound(hint: type, value: Any, where: str) -> Any:
    """A number or text that everything behind it can hold: JSON and Python know others."""
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"{where}: too large a number; expected one of at most 63 bits")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where}={value}: expected a finite number")
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        raise ConfigError(f"{where}={_short(value)} holds half of a surrogate pair: give text in UTF-8")
    return float(value) if hint is float else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
