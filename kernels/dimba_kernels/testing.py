"""How an implementation is held against its reference: outputs and every gradient, by relative error in float64.

Used by the tests of every implementation and by benchmarks before they time anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def relative_error(actual: jax.Array, expected: jax.Array | np.ndarray) -> float:
    """||actual - expected|| / ||expected|| in float64; NaN anywhere gives NaN."""
    a, b = (np.asarray(value).astype(np.float64) for value in (actual, expected))
    difference, size = np.linalg.norm(a - b), np.linalg.norm(b)
    return float(difference if size == 0 else difference / size)


def right_padding(b: int, l: int) -> jax.Array:
    """(b, l) bool: rows of other lengths than the first, which is whole."""
    lengths = np.maximum(1, l - (np.arange(b)[:, None] * l) // 3)
    return jnp.asarray(np.arange(l)[None] < lengths)


def gaps(b: int, l: int, seed: int = 1) -> jax.Array:
    """(b, l) bool, True at six in ten places."""
    return jnp.asarray(np.random.default_rng(seed).random((b, l)) < 0.6)


def packed(b: int, l: int, mean: int = 5, seed: int = 1) -> jax.Array:
    """(b, l) int32 segment ids of random lengths around `mean`; ids come again, but not next to themselves."""
    starts = np.random.default_rng(seed).random((b, l)) < 1 / mean
    return jnp.asarray((np.cumsum(starts, axis=1) % 3).astype(np.int32))


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


_known: dict[Any, dict[str, np.ndarray]] = {}  # implementations are held against the same references


def _in_float64(reference: Callable[..., Any], arrays: Mapping[str, jax.Array], seed: int) -> dict[str, np.ndarray]:
    key = _key(reference), _key(dict(arrays)), seed
    if key not in _known or key[0] is None:
        # on the host, whatever runs there: a GPU would take a step of a recurrence as launches of a few microseconds
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            upcast = {name: jnp.asarray(np.asarray(value).astype(np.float64)) for name, value in arrays.items()}
            results = outputs_and_gradients(reference, upcast, seed)
        _known[key] = {name: np.asarray(value) for name, value in results.items()}
    return _known[key]


def _key(value: Any) -> Any:
    """Equal for equal arrays, and for equal functions of a module with equal arguments bound; None if not known."""
    if isinstance(value, functools.partial):
        known = _key(value.func)
        return known and (known, _key(value.args), _key(value.keywords))
    if isinstance(value, dict):
        return tuple((name, _key(value[name])) for name in sorted(value))
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    if isinstance(value, jax.Array):
        host = np.asarray(value)
        return host.shape, host.dtype.name, host.tobytes()
    if callable(value):
        return None if "<locals>" in value.__qualname__ else (value.__module__, value.__qualname__)
    return value


def assert_agreement(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    arrays: Mapping[str, jax.Array],
    tolerance: float,
    looser: Mapping[str, float] | None = None,
    seed: int = 0,
) -> None:
    """Outputs and gradients of `function` are within `tolerance` of those of `reference` on the same values.

    The reference is run in float64, in which the values of every other dtype are exact. `looser` gives single results,
    such as "gradient A", a tolerance of their own.

    Raises:
        AssertionError: naming every output and gradient that is off, with its relative error.
    """
    actual = outputs_and_gradients(function, arrays, seed)
    expected = _in_float64(reference, arrays, seed)
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    off = {name: error for name, error in errors.items() if not error <= (looser or {}).get(name, tolerance)}
    if off:
        listing = ", ".join(f"{name} {error:.1e}" for name, error in off.items())
        raise AssertionError(f"relative error above {tolerance:g}: {listing}")


def assert_same_bits_twice(function: Callable[..., Any], arrays: Mapping[str, jax.Array]) -> None:
    """Outputs and gradients of two runs are equal, bit by bit, and hold no NaN.

    Raises:
        AssertionError: naming the first output or gradient that is not so.
    """
    first, second = (outputs_and_gradients(function, arrays) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(second[name]), err_msg=name)
        assert not np.any(np.isnan(np.asarray(value, np.float32))), f"{name} has NaN"
