"""A network as a program runs it that calls it many times: a sampling loop."""

from __future__ import annotations

from typing import Any

from flax import nnx

from dimba_jax.models.linear import Linear
from dimba_jax.models.stack import Stack


def merge_laid_out(graph: nnx.GraphDef, parameters: Any) -> Any:
    """`nnx.merge`, and what every call would do to the weights first, done once. To be called outside of the loop.

    Kernels are cast to the compute dtype and cut into those of their matmuls, and layers that no scan runs over are
    taken apart: copies that XLA leaves inside of a loop although they never change. Results are the same; the copies
    take as much memory as the kernels in the compute dtype.
    """
    network = nnx.merge(graph, parameters)
    modules = [module for _, module in nnx.iter_modules(network)]
    for linear in (module for module in modules if isinstance(module, Linear)):
        linear.lay_out()
    for stack in (module for module in modules if isinstance(module, Stack)):
        stack.take_apart()  # laid out
    return network
