"""A network for a program that calls it many times: a sampling loop."""

from __future__ import annotations

from typing import Any

from flax import nnx

from dimba_jax.models.linear import Linear
from dimba_jax.models.stack import Stack


def merge_prepared(graph: nnx.GraphDef, parameters: Any, positions: int) -> Any:
    """`nnx.merge`, and what every call would do to the kernels of its projections first, done once.

    To be called inside the jitted program that holds the loop, and before the loop. Kernels are cast to the compute
    dtype and cut into those of their matmuls, and layers that no scan runs over are unstacked: copies that XLA leaves
    inside of a loop although they never change. (A scan over the layers may still copy each's slice in every call.)
    Results are the same. The copies take the memory of the kernels in the compute dtype while the program runs, beside
    the parameters: 2.8 GiB for DiffuMamba's 1.3B size in bfloat16.

    Args:
      positions: about how many most of the calls have, in all rows. On a GPU few of them go through one matmul where
        many go through several; calls of other sizes are right, too.
    """
    network = nnx.merge(graph, parameters)
    modules = [module for _, module in nnx.iter_modules(network)]
    for linear in (module for module in modules if isinstance(module, Linear)):
        linear.prepare(positions)
    for stack in (module for module in modules if isinstance(module, Stack)):
        stack.unstack()  # what is prepared by now
    return network
