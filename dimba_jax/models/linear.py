"""The matmuls of the networks: operands in the compute dtype, parameters float32."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from dimba_kernels.ssd.matmul import matmul
from flax import nnx
from jaxtyping import Array, Float

from dimba_jax.config import ModelConfig


class Linear(nnx.Module):
    """x kernel (+ bias), in the dtype `config.dtype` names.

    Args:
      bias: whether there is one; it starts at 0.
      scale: standard deviation of the initial kernel times sqrt(inputs).
      exact: sums and results are float32 even where the operands are bfloat16.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: ModelConfig,
        *,
        bias: bool = False,
        scale: float = 1.0,
        exact: bool = False,
        rngs: nnx.Rngs,
    ):
        unit = nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs))
        self.kernel = nnx.Param(scale * unit)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.dtype, self.exact = jnp.dtype(config.dtype), exact

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = contract(x, self.kernel[...], self.dtype, exact=self.exact)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def contract(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], dtype: jnp.dtype, *, exact: bool
) -> Float[Array, "*b o"]:
    """x kernel over the last axis of x, both cast to `dtype`; the result is float32 if `exact`.

    Rows are flattened first: the kernel's gradient sums over all leading axes, and XLA's CPU backend
    is five times slower at a sum over two axes than over one.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(dtype)
    kernel = kernel.astype(dtype)
    y = matmul("ri,io->ro", rows, kernel) if exact else jax.lax.dot(rows, kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])
