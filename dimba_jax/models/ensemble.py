"""Several networks on tokens as one: the mean of their distributions. It knows no schedule, no process and no loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dimba_jax.models.token_denoiser import TokenDenoiser


class Ensemble(nnx.Module):
    """The arithmetic mean of the networks' probabilities at every position, as for ensembles in machine translation.

    A call is one of each network, and counts as so many. It writes whole rows: there are no caches, and so no blocks.

    Args:
      networks: of one vocabulary and one length of sources; they may differ in everything else.

    Raises:
      ValueError: no network, or networks that do not read the same rows.
    """

    def __init__(self, networks: Sequence[TokenDenoiser]):
        if not networks:
            raise ValueError("an ensemble needs a network")
        read = {(network.vocab_size, network.source_length) for network in networks}
        if len(read) > 1:
            raise ValueError(f"networks of different (vocab_size, source_length): {sorted(read)}")
        (self.vocab_size, self.source_length) = read.pop()
        self.mask_id = self.vocab_size
        self.calls = len(networks)  # of networks, in one of this
        self.networks = nnx.List(networks)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        t: Float[Array, " b"] | Float[Array, "b l"],
        *,
        visible: Bool[Array, "b l"] | None = None,
        first: int = 0,
        key: None = None,
    ) -> Float[Array, "b l_minus_first v"]:
        """Log-probabilities (float32) at the positions from `first` on; arguments are `TokenDenoiser`'s.

        Raises:
          ValueError: a key for dropout: an ensemble is not trained.
        """
        if key is not None:
            raise ValueError("a key for dropout: an ensemble is not trained, and drops nothing")
        found = (network(tokens, t, visible=visible, first=first) for network in self.networks)
        logs = (jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) for logits in found)
        return functools.reduce(jnp.logaddexp, logs) - math.log(self.calls)
