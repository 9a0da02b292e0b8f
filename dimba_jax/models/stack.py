"""The backbone's layers: parameters of equal layers are stacked, and one scan runs over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from dimba_kernels.sharding import split_rows
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dimba_jax.config import ModelConfig
from dimba_jax.models.block import Block, mlp_ratio
from dimba_jax.models.conditioning import Modulation, NoisyModulation, Stream
from dimba_jax.models.mixers.core import SAVED

Step = Callable[[Block, Any, Any, PRNGKeyArray | None], tuple[Any, Any]]


class Group(nnx.Module):
    """Consecutive blocks, one for every mixer named: the unit that repeats."""

    def __init__(
        self, config: ModelConfig, mixers: tuple[str, ...], *, conditioned: bool, residual_scale: float, rngs: nnx.Rngs
    ):
        self.blocks = nnx.List(
            [Block(config, m, conditioned=conditioned, residual_scale=residual_scale, rngs=rngs) for m in mixers]
        )


class Layers(NamedTuple):
    """One value for every layer, laid out like the parameters: a pytree a block of the pattern."""

    groups: tuple[PyTree, ...] | None  # every leaf with a leading axis over the repeats
    rest: tuple[PyTree, ...] | None


class Stack(nnx.Module):
    """`layers` blocks whose mixers follow `config.pattern`, over and over.

    `groups` holds the parameters of the whole repeats, stacked along a leading axis; `rest` the
    blocks left over where the pattern does not divide the layers. The layout is the same whether
    the layers are scanned or unrolled (`config.scan_layers`).

    Args:
      layers: number of blocks.
      conditioned: whether the blocks are modulated by a condition c.
    """

    def __init__(self, config: ModelConfig, layers: int, *, conditioned: bool = True, rngs: nnx.Rngs):
        self.remat, self.scan_layers = config.remat, config.scan_layers
        self.repeats, left = divmod(layers, len(config.pattern))
        mixers = [config.pattern[i % len(config.pattern)] for i in range(layers)]
        branches = sum(2 if mlp_ratio(config, mixer) > 0 else 1 for mixer in mixers)
        scale = branches**-0.5

        def make(key: PRNGKeyArray, mixers: tuple[str, ...]) -> Group:
            return Group(config, mixers, conditioned=conditioned, residual_scale=scale, rngs=nnx.Rngs(key))

        keys = jax.random.split(rngs.params(), self.repeats + 1)
        self.groups = jax.vmap(lambda key: make(key, config.pattern))(keys[1:]) if self.repeats else None
        self.rest = make(keys[0], config.pattern[:left]) if left else None
        self.unstacked: tuple[Group, ...] | None = None

    def unstack(self) -> None:
        """Unstacks the layers once, for all calls that follow, if they are not scanned."""
        if self.groups is not None and not self.scan_layers:
            self.unstacked = nnx.data(tuple(_unstack(self.groups, self.repeats)))

    def __call__(
        self,
        h: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        c: Modulation | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        return self._run(lambda block, h, _, key: (block(h, mask, c, key), None), Stream(h), None, key)[0].h

    def empty(self, rows: int, capacity: int) -> Layers:
        """The states of all mixers before any position; `capacity` is the most positions they will ever hold."""

        def states(group: Group) -> tuple[PyTree, ...]:
            return tuple(block.mixer.initial_state(rows, capacity) for block in group.blocks)

        def repeat(x: Array) -> Array:
            return jnp.broadcast_to(x, (self.repeats, *x.shape))

        groups = None if self.groups is None else jax.tree.map(repeat, states(self.groups))
        return Layers(groups, None if self.rest is None else states(self.rest))

    def extend(
        self, h: Float[Array, "b k d"], mask: Bool[Array, "b k"] | None, c: Modulation | None, states: Layers
    ) -> tuple[Float[Array, "b k d"], Layers]:
        """A segment that goes on from these states, and the states behind it."""
        stream, states = self._run(lambda block, h, state, _: block.extend(h, mask, c, state), Stream(h), states)
        return stream.h, states

    def refresh(
        self,
        h: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        c: Modulation | None,
        start: Int[Array, ""] | int,
        size: int,
    ) -> tuple[Float[Array, "b l d"], Layers]:
        """A row, and what its positions [start, start + size) need of the others in every layer."""
        stream, sides = self._run(lambda block, h, *_: block.refresh(h, mask, c, start, size), Stream(h))
        return stream.h, sides

    def window(
        self, h: Float[Array, "b k d"], mask: Bool[Array, "b k"] | None, c: Modulation | None, sides: Layers
    ) -> Float[Array, "b k d"]:
        """Those positions anew, amid the rest as it was in every layer."""
        return self._run(lambda block, h, sides, _: (block.window(h, mask, c, sides), None), Stream(h), sides)[0].h

    def two_streams(
        self,
        clean: Float[Array, "b l d"],
        noisy: Float[Array, "r k d"],
        masks: tuple[Bool[Array, "b l"] | None, Bool[Array, "r k"] | None],
        conditions: tuple[Modulation | None, NoisyModulation | None],
        first: int,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "r k d"]:
        """The noisy blocks, layer by layer beside the clean row; see `Mixer.two_streams`."""

        def step(block: Block, streams: tuple[Stream, Stream], _: None, key: PRNGKeyArray | None):
            return block.two_streams(*streams, masks, conditions, first, key), None

        return self._run(step, (Stream(clean), Stream(noisy)), None, key)[0][1].h

    def _run(
        self, step: Step, carry: PyTree, values: Layers | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[PyTree, Layers]:
        """`step(block, carry, value, key) -> (carry, value)` over all layers; the values it returns, stacked.

        The carry is of `Stream`s, which come back whole.
        """

        def run(group: Group, carry: PyTree, values: tuple | None, key: PRNGKeyArray | None) -> tuple[PyTree, tuple]:
            out = []
            for i, block in enumerate(group.blocks):
                block_key = None if key is None else jax.random.fold_in(key, i)
                carry, value = step(block, carry, None if values is None else values[i], block_key)
                carry = jax.tree.map(split_rows, carry)
                out.append(value)
            return carry, tuple(out)

        keys = None if key is None else jax.random.split(key, self.repeats + 1)
        once = _rematerialised(run, self.remat, scanned=False)
        group_values = rest_values = None
        if self.groups is not None:
            xs = (None if values is None else values.groups, None if keys is None else keys[1:])
            if self.scan_layers:

                def run_whole(*arguments: Any) -> tuple[PyTree, tuple]:
                    carry, values = run(*arguments)
                    return _whole(carry), values  # as it went in

                body = _rematerialised(run_whole, self.remat, scanned=True)
                carry, group_values = jax.lax.scan(lambda carry, x: body(x[0], carry, *x[1]), carry, (self.groups, xs))
            else:
                groups = _unstack(self.groups, self.repeats) if self.unstacked is None else self.unstacked
                out = []
                for group, own in zip(groups, _unstack(xs, self.repeats), strict=True):
                    carry, value = once(group, carry, *own)
                    out.append(value)
                group_values = jax.tree.map(lambda *leaves: jnp.stack(leaves), *out)
        if self.rest is not None:
            rest = None if values is None else values.rest
            carry, rest_values = once(self.rest, carry, rest, None if keys is None else keys[0])
        return _whole(carry), Layers(group_values, rest_values)


def _whole(streams: PyTree) -> PyTree:
    return jax.tree.map(lambda one: Stream(one.whole()), streams, is_leaf=lambda one: isinstance(one, Stream))


def _rematerialised(run: Callable[..., Any], remat: str, *, scanned: bool) -> Callable[..., Any]:
    """Runs a group, keeping for the backward pass what `config.remat` says of its activations."""
    if remat == "none":
        return run
    policies = jax.checkpoint_policies
    policy = {
        "full": None,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "kernels": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable,
            policies.save_from_both_policies(policies.save_only_these_names(SAVED), _flash_attention_saveable),
        ),
    }[remat]
    # inside a scan XLA cannot undo the recomputation, so that the guard against it only costs
    return jax.checkpoint(run, policy=policy, prevent_cse=not scanned)


def _flash_attention_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """cuDNN's forward pass, whose result and softmax statistics its backward pass takes."""
    return str(primitive).startswith("dot_product_attention_fwd")


def _unstack(stacked: PyTree, repeats: int) -> list[PyTree]:
    """The layers one by one. The gradient of one split is one concatenation; of indexing, a padded sum."""
    leaves, treedef = jax.tree.flatten(stacked)
    parts = [_split(leaf, repeats) for leaf in leaves]
    layers = zip(*parts, strict=True) if parts else [()] * repeats
    return [jax.tree.unflatten(treedef, layer) for layer in layers]


def _split(leaf: Array, repeats: int) -> list[Array]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return list(leaf)
    return [part.reshape(part.shape[1:]) for part in jax.lax.split(leaf, [1] * repeats)]
