"""Is it right? Before anything is timed: against float64 on a reduced shape, and against "xla" on the real one."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dimba_kernels.bench.cases import Arrays, Kind, forward, forward_backward
from dimba_kernels.testing import TOLERANCE, outputs_and_gradients, relative_error

_LOOSER = {"gradient A": {"bfloat16": 3e-2}}  # a sum over all positions of products that cancel


def tolerance(name: str, dtype: str) -> float:
    return _LOOSER.get(name, {}).get(dtype, TOLERANCE[dtype])


def against_float64(kind: Kind, dtype: str, implementation: str | None) -> dict[str, float]:
    """Relative errors of all outputs and gradients on `kind.reduced`."""
    arrays = kind.draw(kind.reduced, jnp.dtype(dtype), jax.random.key(7))

    def run(implementation: str | None) -> Any:
        return lambda **arrays: kind.function(**arrays, **kind.statics, implementation=implementation)

    actual = outputs_and_gradients(run(implementation), arrays)
    wide = {name: np.asarray(array).astype(np.float64) for name, array in arrays.items()}
    with jax.enable_x64(True), _on_cpu():
        expected = outputs_and_gradients(run("reference"), {name: jnp.asarray(array) for name, array in wide.items()})
    return {name: relative_error(actual[name], expected[name]) for name in expected}


def _on_cpu() -> Any:
    """Where float64 is fast; where JAX_PLATFORMS names no CPU, the accelerator has to do."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def save_for_peer(path: str, kind: Kind, dtype: str, implementation: str | None) -> None:
    """Inputs on `kind.reduced`, and our y and gradients, as an .npz of float32 that another program can read."""
    arrays = kind.draw(kind.reduced, jnp.dtype(dtype), jax.random.key(7))
    y = jax.eval_shape(forward(kind, implementation), arrays, None)
    dy = jax.random.normal(jax.random.key(8), y.shape).astype(y.dtype)
    results = _named(jax.jit(forward_backward(kind, implementation))(arrays, dy))
    results |= {f"input {name}": array for name, array in arrays.items()} | {"dy": dy}
    named: dict[str, Any] = {name: np.asarray(array, np.float32) for name, array in results.items()}
    np.savez(path, **named)


def against_xla(kind: Kind, arrays: Arrays, dy: jax.Array, actual: Any) -> dict[str, float]:
    """Relative differences of `actual`, the result of a `forward_backward`, to that of "xla"."""
    exact = contextlib.nullcontext() if dy.dtype == jnp.bfloat16 else jax.default_matmul_precision("highest")
    with exact:
        return differences(actual, jax.jit(forward_backward(kind, "xla"))(arrays, dy))


def differences(actual: Any, expected: Any) -> dict[str, float]:
    """Relative differences of the results of two `forward` or two `forward_backward`."""
    found = jax.jit(lambda a, b: jax.tree.map(_difference, a, b))(actual, expected)
    return {name: float(value) for name, value in _named(found).items()}


def _named(results: Any) -> dict[str, Any]:
    y, gradients = results if isinstance(results, tuple) else (results, {})
    return {"output 0": y} | {f"gradient {name}": value for name, value in gradients.items()}


def _difference(actual: jax.Array, expected: jax.Array) -> jax.Array:
    """||a - b|| / ||b||, summed along the last axis first: float32 sums of a billion terms would drift."""

    def size(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.sum(jnp.square(x), axis=-1)))

    a, b = actual.astype(jnp.float32), expected.astype(jnp.float32)
    return size(a - b) / size(b)


def failures(errors: dict[str, float], dtype: str, slack: float = 1.0) -> list[str]:
    """Those above tolerance, or NaN. slack: how many tolerances."""
    return [
        f"{name} {error:.1e}" for name, error in errors.items() if not error <= slack * tolerance(name, dtype)
    ]  # fmt: skip
