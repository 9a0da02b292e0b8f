"""How a Pallas TPU kernel is called: compiled for a TPU, or run by the TPU interpreter on any host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# of this thread, and part of the key of JAX's caches: what was traced for a TPU is not found here, nor the reverse
_interpret = jax.make_user_context(None)


@contextlib.contextmanager
def interpreted(parameters: pltpu.InterpretParams | None = None) -> Iterator[None]:
    """Kernels traced inside run in the TPU interpreter, which models memories, semaphores and their races.

    Args:
        parameters: of the interpreter; by default memory starts as NaN and a read outside it raises.
    """
    with _interpret(parameters or pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")):
        yield


def interpreting() -> bool:
    """Are kernels traced now meant for the interpreter?"""
    return _interpret.value is not None


def tpu_call(kernel: Callable[..., None], **arguments: Any) -> Callable[..., Any]:
    """`pl.pallas_call` that is interpreted inside `interpreted`."""
    return pl.pallas_call(kernel, interpret=_interpret.value or False, **arguments)
