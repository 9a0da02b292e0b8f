"""The type checker that tests put behind jaxtyping: array shapes and dtypes, and nothing else.

Everything but arrays is pyright's business. NumPy's arrays pass for JAX's, as JAX takes them too. Dataclasses
are left out, because a pytree may hold anything while JAX takes it apart (placeholders, axes added by vmap).
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, PRNGKeyArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function whose annotations are evaluated; a wrong array raises TypeError.

    One that neither takes nor returns arrays is left as it is: those of single texts are called a million times.
    """
    if function.__name__ == "__init__":
        return function
    signature = inspect.signature(function)
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    expected = {name: hint for name, hint in hints.items() if _demands(hint)}
    if not expected and not _demands(signature.return_annotation):
        return function

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in expected:
                _demand(value, expected[name], name)
        out = function(*args, **kwargs)
        _demand(out, signature.return_annotation, "the return value")
        return out

    return checked


def _demand(value: Any, hint: Any, name: str) -> None:
    if not _fits(value, hint):
        raise TypeError(f"{name}: {getattr(value, 'dtype', '')}{getattr(value, 'shape', value)} is not {hint}")


def _fits(value: Any, hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        stands_in = isinstance(value, np.ndarray) and hint.array_type is jax.Array
        return isinstance(jnp.asarray(value) if stands_in else value, hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if hint == PRNGKeyArray:
            return True  # one key, or one a row
        arrays = [arg for arg in args if _holds_arrays(arg)]
        return not arrays or not hasattr(value, "shape") or any(_fits(value, arg) for arg in arrays)
    if origin is tuple and isinstance(value, tuple) and len(args) == len(value) and Ellipsis not in args:
        return all(_fits(part, arg) for part, arg in zip(value, args, strict=True))
    return True


def _demands(hint: Any) -> bool:
    """Whether there is a value that does not fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return hint != PRNGKeyArray and any(map(_holds_arrays, args))
    if origin is tuple and Ellipsis not in args:
        return any(map(_demands, args))
    return _holds_arrays(hint)


def _holds_arrays(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)
