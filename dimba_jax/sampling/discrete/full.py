"""Masked diffusion over the whole row at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import RunConfig, SamplingConfig
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion.masked import Masked
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.sampling.discrete.ending import may_end, words_alone
from dimba_jax.sampling.discrete.guidance import hides_source, token_call
from dimba_jax.sampling.discrete.loop import TokenSample, unmask
from dimba_jax.sampling.discrete.unmasking import make_unmasker

SHORTEST = 2  # positions of a target whose length is chosen: one word and its end token


def sample_full(
    denoiser: TokenDenoiser | Ensemble,
    process: Masked,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    *,
    config: RunConfig,
    stages: int = 0,
) -> TokenSample:
    """Fills in the editable positions, every network call seeing the whole row on both sides of them.

    They may lie anywhere behind the source. In front of a given word neither EOS nor PAD is drawn. With
    `settings.length="first"` one call on the wholly masked target chooses its length (`chosen_length`), EOS
    and PAD are put where that says, and only the words are drawn; the call counts with the others.

    Args:
      tokens: the given ones where not `editable`; ignored elsewhere.
      visible: False at source padding, and at positions behind a short row's end.
      keys: one a row; a row's result depends on its own key and content alone.
      config: of the training run; says where the source ends and how guidance leaves the prompt out.
      stages: rows of the trajectory, the unwritten positions showing the mask's id; 0 for none.

    Raises:
      ConfigError: settings of the sampler that contradict each other.
      ValueError: stages out of range.
    """
    make_unmasker(settings)
    graph, parameters = nnx.split(denoiser)
    # what does not bear on the compiled loop must not compile it anew
    unused = SamplingConfig(num_samples=1, batch_size=1)
    settings = dataclasses.replace(
        settings, **{name: getattr(unused, name) for name in ("num_samples", "batch_size", "ema", "eta", "clamp_from")}
    )
    first, hide = config.data.source_length, hides_source(config)
    # without a mask attention and scans do less, and need no memory for it
    whole = not isinstance(visible, Tracer) and bool(np.all(visible))
    return _sample(graph, parameters, process, tokens, editable, visible, keys, settings, first, hide, whole, stages)


@functools.partial(jax.jit, static_argnames=("graph", "settings", "first", "hide", "whole", "stages"))
def _sample(
    graph: Any,
    parameters: Any,
    process: Masked,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    first: int,
    hide: bool,
    whole: bool,
    stages: int,
) -> TokenSample:
    denoiser: TokenDenoiser | Ensemble = merge_prepared(graph, parameters, tokens.size)
    rows, length = tokens.shape
    # the prompt of a pair is its source, of running text whatever is given
    prompt = jnp.broadcast_to(jnp.arange(length) < first, (rows, length)) if first else ~editable
    network = token_call(
        denoiser, tokens, prompt, visible, first=first, scale=settings.guidance, hide=hide, whole=whole
    )
    window, free = tokens[:, first:], editable[:, first:]
    calls = jnp.int32(0)
    if settings.length == "first":
        masks = jnp.full_like(window, process.mask_id)
        logits = network.call(masks, process.network_time(jnp.ones(rows)))
        window, free = with_length(window, chosen_length(logits, settings.length_bias))
        calls += network.calls
    at_end = may_end(window, free)

    def call(at: Array, t: Array) -> Array:
        return words_alone(network.call(at, t), at_end, settings.end_bias)

    found = unmask(
        call, process, make_unmasker(settings), window, free, keys, settings.steps, stages,
        cost=network.calls, reuse=settings.reuse_logits, maskable=visible[:, first:],
    )  # fmt: skip
    source = tokens[:, :first]
    calls += found.network_calls
    return TokenSample(
        tokens=jnp.concatenate([source, found.tokens], axis=1),
        network_calls=calls,
        trajectory=jnp.concatenate(
            [jnp.broadcast_to(source, (*found.trajectory.shape[:2], first)), found.trajectory], axis=2
        ),
        positions=calls * length,
    )


def chosen_length(logits: Float[Array, "b k v"], bias: float) -> Int[Array, " b"]:
    """Positions of the target up to its EOS: those expected not to be PAD, rounded, plus `bias`; in 2..k.

    `logits` are those of a wholly masked target, whose padding the network has learned to predict.
    """
    padding = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., PAD]
    used = jnp.round(jnp.sum(1.0 - padding, axis=1) + bias)
    return jnp.clip(used, SHORTEST, logits.shape[1]).astype(jnp.int32)


def with_length(tokens: Int[Array, "b k"], length: Int[Array, " b"]) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
    """Targets that end at their length with EOS, PAD behind it, and the positions that are left to write."""
    position, last = jnp.arange(tokens.shape[1]), length[:, None] - 1
    ended = jnp.where(position == last, EOS, jnp.where(position > last, PAD, tokens))
    return ended, jnp.broadcast_to(position, tokens.shape) < last
