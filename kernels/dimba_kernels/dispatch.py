"""What the operations share: the choice of an implementation and the check of their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp

Implementation = Literal["reference", "xla", "gpu", "tpu"]
Operation = TypeVar("Operation", bound=Callable[..., Any])


def choose(operation: str, implementation: str | None, available: Mapping[str, Operation]) -> Operation:
    """The function behind a name; None takes the last entry of `available`, which is ordered worst to best.

    Raises:
        NotImplementedError: a known name that this operation does not have.
        ValueError: an unknown name.
    """
    names = ", ".join(repr(name) for name in available)
    if implementation is None:
        return available[list(available)[-1]]
    if implementation in available:
        return available[implementation]
    if implementation in get_args(Implementation):
        raise NotImplementedError(
            f"{operation} has no {implementation!r} implementation; pass one of {names}, or None for the best of them"
        )
    raise ValueError(
        f"{operation}: implementation={implementation!r} is unknown; pass one of {names}, or None for the best of them"
    )


def check_shapes(operation: str, **arrays: tuple[jax.Array | None, tuple[int, ...]]) -> None:
    """Compare each named array (None passes) with the shape it must have.

    Raises:
        ValueError: naming the operation, the argument, its shape and the expected one.
    """
    for name, (array, expected) in arrays.items():
        if array is not None and array.shape != expected:
            raise ValueError(f"{operation}: {name} has shape {array.shape}, expected {expected}")


def check_rank(operation: str, name: str, array: jax.Array, letters: str) -> tuple[int, ...]:
    """The shape of an array whose axes are named by `letters`, such as "b l d".

    Raises:
        ValueError: the number of axes differs.
    """
    if array.ndim != len(letters.split()):
        raise ValueError(f"{operation}: {name} has shape {array.shape}, expected axes ({letters})")
    return array.shape


def unmasked(mask: jax.Array | None, *values: jax.Array) -> tuple[jax.Array, ...]:
    """The values (b, l, ...) with zeros where the mask (b, l) is False, so that nothing there counts: dt = 0 alone
    would let NaN through, since NaN times zero is NaN."""
    if mask is None:
        return values
    return tuple(jnp.where(mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), value, 0) for value in values)
