"""The checker of array shapes that stands behind every function of dimba_jax in tests: it refuses, and says what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, PRNGKeyArray, TypeCheckError, jaxtyped
from shape_check import check

from dimba_jax.diffusion.objective import row_means


@jaxtyped(typechecker=check)
def taken(x: Float[Array, "a b"], y: Int[Array, " a"] | None = None, *, pair: tuple[str, Float[Array, " b"]] = None):
    return x.shape


@jaxtyped(typechecker=check)
def returned(x: Float[Array, " a"], out: object) -> Float[Array, " a"]:
    return out


@jaxtyped(typechecker=check)
def returned_alone(out: object) -> Int[Array, "2"]:
    return out


@jaxtyped(typechecker=check)
def both(x: Float[Array, " a"], out: object) -> tuple[Float[Array, " a"], int]:
    return out


FLOATS, INTS = jnp.zeros((2, 3)), jnp.zeros(2, int)


def test_arrays_that_fit():
    assert taken(FLOATS, INTS, pair=("x", jnp.zeros(3))) == taken(np.zeros((2, 3), np.float32)) == (2, 3)
    assert jax.jit(taken)(FLOATS, None) == (2, 3)
    assert returned(FLOATS[0], FLOATS[1]).shape == (3,)
    assert returned_alone(INTS).shape == (2,)
    assert both(FLOATS[0], (FLOATS[1], 1))[1] == 1
    assert row_means(FLOATS, jnp.ones((2, 3), bool)).shape == (2,)


@pytest.mark.parametrize(
    "call",
    [
        lambda: taken(FLOATS[0]),
        lambda: taken(FLOATS.astype(int)),
        lambda: taken(FLOATS, FLOATS[:, 0]),
        lambda: taken(FLOATS, jnp.zeros(3, int)),
        lambda: taken(FLOATS, np.zeros(3, np.int32)),
        lambda: taken(FLOATS, pair=("x", jnp.zeros(2))),
        lambda: returned(FLOATS[0], jnp.zeros(2)),
        lambda: returned(FLOATS[0], None),
        lambda: returned_alone(FLOATS[:, 0]),
        lambda: returned_alone(jnp.zeros(3, int)),
        lambda: both(FLOATS[0], (jnp.zeros(2), 1)),
        lambda: row_means(FLOATS, jnp.ones((2, 4), bool)),
        lambda: row_means(FLOATS, jnp.ones((2, 3))),
    ],
)
def test_arrays_that_do_not(call):
    with pytest.raises(TypeCheckError):
        call()


def test_functions_without_arrays_are_left_as_they_are():
    def plain(text: str, count: int | None, key: PRNGKeyArray, parts: tuple[str, ...]) -> list[str]:
        return []

    def empty(parts: tuple[()], pair: tuple[str, int], any_number: tuple[Float[Array, " a"], ...]) -> None:
        pass

    assert check(plain) is plain and check(empty) is empty
    assert check(taken.__wrapped__) is not taken.__wrapped__
