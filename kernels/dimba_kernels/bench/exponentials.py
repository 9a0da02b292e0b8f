"""A kernel that takes exponentials and does nothing else: the ceiling of the special-function units."""

import jax
import triton
import triton.language as tl

from dimba_kernels.triton_call import triton_call

ROUNDS = 1024


@triton.jit
def _kernel(x, y, SIZE: tl.constexpr, ROUNDS: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + at)
    for _ in range(ROUNDS):
        value = tl.exp2(-value)  # stays between 0 and 2, wherever it starts
    tl.store(y + at, value)


def exponentials(x: jax.Array) -> jax.Array:
    """(programs, size): `ROUNDS` times exp2 of every element."""
    return triton_call(
        _kernel,
        [x],
        [jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(x.shape[0],),
        constants={"SIZE": x.shape[1], "ROUNDS": ROUNDS},
    )[0]
