"""The backbone's layers: parameters of equal layers are stacked, and one scan runs over them."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dimba_jax.config import ModelConfig
from dimba_jax.models.block import Block


class Group(nnx.Module):
    """Consecutive blocks, one for every mixer named: the unit that repeats."""

    def __init__(
        self, config: ModelConfig, mixers: tuple[str, ...], *, conditioned: bool, residual_scale: float, rngs: nnx.Rngs
    ):
        self.blocks = nnx.List(
            [Block(config, m, conditioned=conditioned, residual_scale=residual_scale, rngs=rngs) for m in mixers]
        )

    def __call__(
        self,
        h: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        c: Float[Array, "b c"] | None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        for i, block in enumerate(self.blocks):
            h = block(h, mask, c, None if key is None else jax.random.fold_in(key, i))
        return h


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
        branches = layers * (2 if config.mlp_ratio > 0 else 1)
        scale = branches**-0.5

        def make(key: PRNGKeyArray, mixers: tuple[str, ...]) -> Group:
            return Group(config, mixers, conditioned=conditioned, residual_scale=scale, rngs=nnx.Rngs(key))

        keys = jax.random.split(rngs.params(), self.repeats + 1)
        self.groups = jax.vmap(lambda key: make(key, config.pattern))(keys[1:]) if self.repeats else None
        self.rest = make(keys[0], config.pattern[:left]) if left else None

    def __call__(
        self,
        h: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        c: Float[Array, "b c"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        keys = None if key is None else jax.random.split(key, self.repeats + 1)
        if self.groups is not None:
            layer_keys = None if keys is None else keys[1:]
            if self.scan_layers:
                run = _rematerialised(self.remat, scanned=True)
                h, _ = jax.lax.scan(lambda h, xs: (run(xs[0], h, mask, c, xs[1]), None), h, (self.groups, layer_keys))
            else:
                run = _rematerialised(self.remat, scanned=False)
                for i, group in enumerate(_unstack(self.groups, self.repeats)):
                    h = run(group, h, mask, c, None if layer_keys is None else layer_keys[i])
        if self.rest is not None:
            h = _rematerialised(self.remat, scanned=False)(self.rest, h, mask, c, None if keys is None else keys[0])
        return h


def _rematerialised(remat: str, *, scanned: bool) -> Callable[..., Array]:
    """Runs a group, keeping all, none, or the weight matmuls of its activations for the backward pass."""
    if remat == "none":
        return Group.__call__
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # inside a scan XLA cannot undo the recomputation, so that the guard against it only costs
    return jax.checkpoint(Group.__call__, policy=policy, prevent_cse=not scanned)


def _unstack(groups: Group, repeats: int) -> list[Group]:
    """The groups one by one. The gradient of one split is one concatenation; of indexing, a padded sum."""
    leaves, treedef = jax.tree.flatten(groups)
    parts = [[p.reshape(p.shape[1:]) for p in jax.lax.split(leaf, [1] * repeats)] for leaf in leaves]
    return [jax.tree.unflatten(treedef, group) for group in zip(*parts, strict=True)]
