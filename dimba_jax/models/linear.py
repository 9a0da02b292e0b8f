"""The matmuls of the networks: operands in the compute dtype, parameters float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dimba_kernels.dispatch import target_platform
from dimba_kernels.sharding import splits_heads
from dimba_kernels.ssd.matmul import matmul
from flax import nnx
from jaxtyping import Array, Float

from dimba_jax.config import ModelConfig

# bytes of a part, over all devices, from which on its matmul is kept apart. A training step with parts of 30 MiB and
# more was .3 and 1.3% faster so (experiments/throughput); of smaller ones XLA may make one matmul
APART = 24 << 20
ALIGNED = 8  # columns: rows of 16 bytes in bfloat16, without which a GPU's matmuls take a third of their speed


class Part(NamedTuple):
    """Columns of a projection that something reads together."""

    width: int
    shared: str | None = None  # parts that share a name share a matmul, and are cut out of its result. None: a kernel
    # reads it, which wants an array of its own
    along: bool = False  # who reads it wants a feature's positions side by side: a GPU's matmul writes them so. Parts
    # that share a matmul agree in it


class Linear(nnx.Module):
    """x kernel (+ bias), in the dtype `config.dtype` names.

    Args:
      parts: what the output's columns are cut into by `cut`; None: they stay together.
      together: once prepared, parts with small results come out of one matmul: who reads them cuts them out on the way,
        and none of them is `along`.
      bias: whether there is one; it starts at 0.
      scale: standard deviation of the initial kernel times sqrt(inputs).
      exact: sums and results are float32 even where the operands are bfloat16.

    Raises:
      ValueError: `together` with parts that share a matmul or are `along`; parts of one matmul that differ in `along`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: ModelConfig,
        *,
        parts: Sequence[Part] | None = None,
        together: bool = False,
        bias: bool = False,
        scale: float = 1.0,
        exact: bool = False,
        rngs: nnx.Rngs,
    ):
        unit = nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs))
        self.kernel = nnx.Param(scale * unit)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.dtype, self.exact = jnp.dtype(config.dtype), exact
        self.parts = None if parts is None else tuple(parts)
        if together and any(part.shared is not None for part in self.parts or ()):
            raise ValueError("parts that share a matmul are not all of one: together needs parts that name none")
        if together and any(part.along for part in self.parts or ()):
            raise ValueError("parts of one matmul are all written alike: together needs parts that are not `along`")
        for name in dict.fromkeys(part.shared for part in self.parts or () if part.shared is not None):
            if len({part.along for part in self.parts or () if part.shared == name}) > 1:
                raise ValueError(f"parts that share the matmul {name!r} differ in `along`")
        self.together = together
        self.prepared: tuple[Array, ...] | None = None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        if self.parts is not None:
            raise ValueError("this projection is cut into parts: call its cut()")
        (kernel,) = self._kernels()
        y = contract(x, kernel, self.dtype, exact=self.exact)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def cut(self, x: Float[Array, "*b i"]) -> list[Float[Array, "*b _"]]:
        """The output's columns, a part each; for a projection whose outputs are not wanted side by side.

        Cutting up the whole output would copy it, forward and backward; its width need suit no matmul; and the layout
        that one part's reader asks for would be that of all.
        """
        if self.parts is None:
            raise ValueError("this projection has no parts to be cut into: call it")
        parts, out = self.parts, {}
        x = x.astype(self.dtype)
        matmuls, kernels = self._matmuls(), self._kernels()
        # XLA's GPU backend makes one matmul of several that read the same array, if one is below 32 MiB. It puts their
        # kernels together in every call and cuts up the result. That suits small results of a training step, whose
        # kernels are cast in every step anyway. A barrier around input and kernel prevents it; around the input alone
        # it does not (equal barriers are made one)
        apart = target_platform() == "gpu" and (self.prepared is not None or self._large(math.prod(x.shape[:-1])))
        if len(kernels) < len(matmuls):  # prepared as one, which XLA reads where it stands in a stack of layers: a
            matmuls, apart = [list(range(len(parts)))], False  # barrier would have it copied
        for members, kernel in zip(matmuls, kernels, strict=True):
            pair = x, kernel.astype(self.dtype)
            own, kernel = jax.lax.optimization_barrier(pair) if apart else pair  # noqa: PLW2901
            widths = [parts[i].width for i in members]
            along = target_platform() == "gpu" and parts[members[0]].along
            y = contract(own, kernel, self.dtype, exact=self.exact, along=along)[..., : sum(widths)]
            out |= dict(zip(members, jnp.split(y, np.cumsum(widths)[:-1], axis=-1), strict=True))
        return [out[i] for i in range(len(parts))]

    def prepare(self, positions: int) -> None:
        """Casts and cuts the kernel once, for all calls that follow; layers may be stacked in front of its axes.

        What is written to the kernel afterwards is not seen.

        Args:
          positions: of a call, in all its rows. The results are those of other numbers, too.
        """
        one = self.together and target_platform() == "gpu" and not (self._large(positions) or splits_heads())
        kernels = [_aligned(self.kernel[...])] if one else self._kernels()
        self.prepared = nnx.data(tuple(kernel.astype(self.dtype) for kernel in kernels))

    def _large(self, positions: int) -> bool:
        """Whether the least result that a kernel reads is."""
        alone = [part.width for part in self.parts or () if part.shared is None]
        return positions * min(alone, default=0) * self.dtype.itemsize >= APART

    def _matmuls(self) -> list[list[int]]:
        """The parts of each matmul."""
        groups: dict[str | int, list[int]] = {}
        for i, part in enumerate(self.parts or ()):
            groups.setdefault(i if part.shared is None else part.shared, []).append(i)
        return list(groups.values())

    def _kernels(self) -> list[Float[Array, "*layers i _"]]:
        """The kernel of each matmul, parts' columns padded to a width that suits one."""
        if self.prepared is not None:
            return list(self.prepared)
        if self.parts is None:
            return [self.kernel[...]]
        whole = self.kernel[...]
        cut = jax.lax.split(whole, [part.width for part in self.parts], axis=whole.ndim - 1)
        kernels = []
        for members in self._matmuls():
            kernel = jnp.concatenate([cut[i] for i in members], axis=-1) if len(members) > 1 else cut[members[0]]
            kernels.append(_aligned(kernel))
        return kernels


def _aligned(kernel: Float[Array, "*layers i o"]) -> Float[Array, "*layers i _"]:
    return jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, -kernel.shape[-1] % ALIGNED)])


def contract(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], dtype: jnp.dtype, *, exact: bool, along: bool = False
) -> Float[Array, "*b o"]:
    """x kernel over the last axis of x, both cast to `dtype`; the result is float32 if `exact`.

    It lies in memory feature by feature if `along`: for a reader that XLA would transpose it for, in a pass of its own.

    Rows are flattened first: the kernel's gradient sums over all leading axes, and XLA's CPU backend
    is five times slower at a sum over two axes than over one.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(dtype)
    kernel = kernel.astype(dtype)
    if along:
        flipped = (((0,), (1,)), ((), ()))
        y = matmul("io,ri->or", kernel, rows) if exact else jax.lax.dot_general(kernel, rows, flipped)
        return jnp.moveaxis(y.reshape(kernel.shape[1], *x.shape[:-1]), 0, -1)
    if exact and len(rows) == 1 and target_platform() == "gpu":
        # XLA would write the kernel out in float32 for a single row, three times what reading it takes
        y = matmul("ri,io->ro", jnp.pad(rows, ((0, 1), (0, 0))), kernel)[:1]
    else:
        y = matmul("ri,io->ro", rows, kernel) if exact else jax.lax.dot(rows, kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])
