"""How likely a model finds texts: exactly for an autoregressive one, by draws of the NELBO for a masked one."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dimba_jax.config import ConfigError, RunConfig
from dimba_jax.diffusion.passes import PASSES, Batch, Pass, draw
from dimba_jax.diffusion.process import Process
from dimba_jax.diffusion.timesteps import Continuous


def token_nll(
    graphdef: nnx.GraphDef, params: PyTree, process: Process, batch: Batch, key: PRNGKeyArray, config: RunConfig
) -> tuple[Float[Array, "b k"], Pass]:
    """-log p of each counted target token in nats, 0 elsewhere, and the pass it comes from.

    For a masked model this is one draw, unbiased for a bound on the sum over a row; times are
    stratified over rows and blocks and come from the full range, whatever training draws. A function of
    arrays, to be jitted with `config` fixed. `config.process.block_size` says how the text is cut, and
    `loss_on_padding` whether the padding behind the end token counts.

    Raises:
      ConfigError: a Gaussian process, whose loss bounds no likelihood of tokens.
    """
    if process.kind == "gaussian":
        raise ConfigError(
            "this model diffuses embeddings, and its loss is no likelihood of a text: "
            "take a model with process.kind 'masked' or 'autoregressive'"
        )
    process = process.at_rest()
    draws = draw(key, Continuous(), process, batch["tokens"].shape[0], config)
    draws = draws._replace(rows=draws.rows._replace(keep=None), dropout=None)
    found = PASSES[process.kind](graphdef, params, process, batch, draws, config)
    (nll,) = found.terms.values()
    return jnp.where(found.positions, nll, 0.0), found


def nll(
    graphdef: nnx.GraphDef, params: PyTree, process: Process, batch: Batch, key: PRNGKeyArray, config: RunConfig
) -> Float[Array, " b"]:
    """`token_nll` added up over each row.

    Raises:
      ConfigError: as `token_nll`.
    """
    return jnp.sum(token_nll(graphdef, params, process, batch, key, config)[0], axis=1)
