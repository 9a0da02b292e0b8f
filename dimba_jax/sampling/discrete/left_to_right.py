"""Autoregressive sampling: one token a network call, from a cache of what stands to its left."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Int, PRNGKeyArray

from dimba_jax.config import RunConfig, SamplingConfig
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion.autoregressive import Autoregressive
from dimba_jax.errors import ConfigError
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.sampling.discrete.distribution import TokenChoice, token_choice
from dimba_jax.sampling.discrete.ending import may_end, still_to_write, text_ends, words_alone
from dimba_jax.sampling.discrete.guided_rows import GuidedRows, check_guidance
from dimba_jax.sampling.discrete.loop import TokenSample
from dimba_jax.sampling.discrete.windows import part
from dimba_jax.sampling.loop import stage_steps


def sample_left_to_right(
    denoiser: TokenDenoiser,
    process: Autoregressive,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    *,
    config: RunConfig,
    stages: int = 0,
) -> TokenSample:
    """Draws every editable token given all that stands to its left, with temperature, top-k and top-p.

    `settings.steps` and the sampler's name say nothing here: each position takes one network call. Given tokens
    may stand anywhere and are kept, so prompts of several lengths fit in one batch; but a token is drawn without
    a look at given ones to its right: a gap is filled from its left context alone, if never with EOS or PAD.

    The source is read in one call. So are given tokens with which all rows begin, as many as the greatest power
    of two among them (so that few lengths are compiled); then follows a call a position, up to where each row
    has ended (EOS, behind which its editable positions are PAD) or has nothing left to write.

    Args:
      tokens: the given ones where not `editable`; ignored elsewhere.
      visible: False at source padding.
      keys: one a row. The token i positions into the target draws from fold_in(key, i).
      config: of the training run; says whether EOS ends a row.
      stages: rows of the trajectory, the unwritten positions showing the mask's id; 0 for none.

    Raises:
      ConfigError: a process other than the autoregressive one; guidance without condition dropout in training.
      ValueError: stages out of range.
    """
    if process.kind != "autoregressive":
        raise ConfigError(
            f"process.kind={process.kind!r}: sampling token by token needs a model trained with 'autoregressive'"
        )
    check_guidance(settings, config)
    source = denoiser.source_length
    stage_steps(tokens.shape[1] - source, stages)
    graph, parameters = nnx.split(denoiser)
    first = source + _known(np.asarray(editable)[:, source:])
    return _sample(
        graph, parameters, process, tokens, editable, visible, keys,
        token_choice(settings), settings.guidance, settings.end_bias, first, text_ends(config), stages,
    )  # fmt: skip


def _known(editable: Bool[np.ndarray, "b l"]) -> int:
    """How many given tokens all rows begin with, rounded down to a power of two."""
    known = int(np.logical_and.accumulate(~editable, axis=1).sum(axis=1).min())
    return 1 << (known.bit_length() - 1) if known else 0


class _Carry(NamedTuple):
    i: Int[Array, ""]  # the position to write
    tokens: Int[Array, "b l"]
    ended: Bool[Array, " b"]
    cache: Any


@functools.partial(jax.jit, static_argnames=("graph", "choice", "guidance", "end_bias", "first", "ends", "stages"))
def _sample(
    graph: Any,
    parameters: Any,
    process: Autoregressive,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    choice: TokenChoice,
    guidance: float,
    end_bias: float,
    first: int,
    ends: bool,
    stages: int,
) -> TokenSample:
    denoiser: TokenDenoiser = merge_prepared(graph, parameters, len(tokens))
    rows, length = tokens.shape
    source = denoiser.source_length
    target = jnp.broadcast_to(jnp.arange(length) >= source, (rows, length))
    views = GuidedRows(guidance, ~target, visible, process.mask_id, hide=True)
    no_time = jnp.zeros(rows * views.calls)
    found = jnp.where(editable, PAD, tokens)
    last_words = may_end(tokens, editable)
    to_write = still_to_write(editable)

    cache = denoiser.empty_cache(rows * views.calls, length)
    if first:
        prefix = process.inputs(tokens, target)[:, :first]
        _, cache = denoiser.extend(views.tokens(prefix), no_time, cache, visible=views.visible(0, first))
    over = (found == EOS) & last_words & target & ends
    ended = jnp.any(over & (jnp.arange(length) < first), axis=1)

    def unfinished(carry: _Carry) -> Array:
        return (carry.i < length) & jnp.any(~carry.ended & part(to_write, jnp.minimum(carry.i, length - 1), 1)[:, 0])

    def write(carry: _Carry) -> _Carry:
        i, found, ended, cache = carry
        before = jnp.where(i == source, process.mask_id, part(found, jnp.maximum(i - 1, 0), 1))
        logits, cache = denoiser.extend(views.tokens(before, i), no_time, cache, visible=views.visible(i, 1))
        position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i - source)
        logits = words_alone(views.logits(logits), part(last_words, i, 1), end_bias)
        drawn = choice.draw(position_keys, logits)[:, 0]
        token = jnp.where(part(editable, i, 1)[:, 0] & ~ended, drawn, part(found, i, 1)[:, 0])
        ended |= (token == EOS) & part(last_words, i, 1)[:, 0] & ends
        return _Carry(i + 1, found.at[:, i].set(token), ended, cache)

    end = jax.lax.while_loop(unfinished, write, _Carry(jnp.int32(first), found, ended, cache))
    written = end.i - first
    return TokenSample(
        tokens=end.tokens,
        network_calls=(written + (first > 0)) * views.calls,
        positions=end.i * views.calls,
        trajectory=_stages(end.tokens, editable, source, process.mask_id, stages),
    )


def _stages(
    tokens: Int[Array, "b l"], editable: Bool[Array, "b l"], source: int, mask_id: int, stages: int
) -> Int[Array, "k b l"]:
    """The rows when each stage's share of the target had been passed."""
    passed = source + jnp.asarray(stage_steps(tokens.shape[1] - source, stages))
    unwritten = editable & (jnp.arange(tokens.shape[1]) >= passed[:, None, None])
    return jnp.where(unwritten, mask_id, tokens)
