"""How an implementation is held against its reference: outputs and every gradient, by relative error.

Used by the tests of every implementation and by benchmarks before they time anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def relative_error(actual: jax.Array, expected: jax.Array) -> float:
    """||actual - expected|| / ||expected|| in float64; NaN anywhere gives NaN."""
    a, b = (np.asarray(value).astype(np.float64) for value in (actual, expected))
    difference, size = np.linalg.norm(a - b), np.linalg.norm(b)
    return float(difference if size == 0 else difference / size)


def _upcast(value: jax.Array) -> jax.Array:
    return jnp.asarray(np.asarray(value).astype(jnp.promote_types(value.dtype, jnp.float32)))


def outputs_and_gradients(
    function: Callable[..., Any], arrays: Mapping[str, jax.Array], seed: int = 0
) -> dict[str, jax.Array]:
    """Call `function(**arrays)` and pull random cotangents of all its outputs back to all its arrays.

    Returns: "output 0", "output 1", ... and "gradient <name>" for each name.
    """

    def outputs_of(arrays: Mapping[str, jax.Array]) -> list[jax.Array]:
        return jax.tree.leaves(function(**arrays))

    arrays = dict(arrays)
    rng = np.random.default_rng(seed)
    # exact in bfloat16, so that both dtypes are pulled back from the same cotangents
    cotangents = [
        jnp.asarray(rng.normal(size=output.shape).astype(jnp.bfloat16).astype(output.dtype))
        for output in jax.eval_shape(outputs_of, arrays)
    ]
    run = _run_on_cpu if jax.default_backend() == "cpu" else _run
    outputs, gradients = run(function, arrays, cotangents)
    named = {f"output {i}": output for i, output in enumerate(outputs)}
    return named | {f"gradient {name}": gradient for name, gradient in gradients.items()}


def _outputs_and_gradients(
    function: Callable[..., Any], arrays: dict[str, jax.Array], cotangents: list[jax.Array]
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    outputs, pull = jax.vjp(lambda arrays: jax.tree.leaves(function(**arrays)), arrays)
    return outputs, pull(cotangents)[0]


_run = jax.jit(_outputs_and_gradients, static_argnums=0)
# on a CPU a test spends its time compiling: do it at half the price
_run_on_cpu = jax.jit(_outputs_and_gradients, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def assert_agreement(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    arrays: Mapping[str, jax.Array],
    tolerance: float,
    looser: Mapping[str, float] | None = None,
    seed: int = 0,
) -> None:
    """Outputs and gradients of `function` are within `tolerance` of those of `reference` on the same values.

    The reference is given the arrays in float32 (bfloat16 values are exact in it). `looser` gives single results, such
    as "gradient A", a tolerance of their own.

    Raises:
        AssertionError: naming every output and gradient that is off, with its relative error.
    """
    upcast = {name: _upcast(value) for name, value in arrays.items()}
    actual = outputs_and_gradients(function, arrays, seed)
    expected = outputs_and_gradients(reference, upcast, seed)
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    off = {name: error for name, error in errors.items() if not error <= (looser or {}).get(name, tolerance)}
    if off:
        listing = ", ".join(f"{name} {error:.1e}" for name, error in off.items())
        raise AssertionError(f"relative error above {tolerance:g}: {listing}")
