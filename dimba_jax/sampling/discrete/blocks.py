"""Block diffusion (BD3-LM, arXiv 2503.09573): blocks left to right, each denoised behind a cache of the clean ones."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import RunConfig, SamplingConfig
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion.masked import Masked
from dimba_jax.errors import ConfigError
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.sampling.discrete.ending import may_end, still_to_write, text_ends, words_alone
from dimba_jax.sampling.discrete.guided_rows import GuidedRows, check_guidance
from dimba_jax.sampling.discrete.loop import TokenSample, Unmasked, unmask
from dimba_jax.sampling.discrete.unmasking import Unmasker, make_unmasker
from dimba_jax.sampling.discrete.windows import part, put, record
from dimba_jax.sampling.loop import stage_steps


def sample_blocks(
    denoiser: TokenDenoiser,
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
    """Semi-autoregressive sampling from a network whose cache is exact (`exact_cache`).

    The source is read first, in one call. Each block is then masked and denoised by at most `settings.steps` calls
    that see it, the clean blocks before it and the source, but nothing behind it: a gap is filled from its left
    context and from its own block, without EOS or PAD in front of a given word. Once final, the block is read
    again, clean and at t = 0, for the cache (one call; none after the last block). Blocks without an editable
    position are read and nothing else.

    Where texts end by EOS, a row ends with the block that holds its EOS: editable positions behind that block are
    PAD. Sampling stops when every row has ended or has nothing left to write. Rows may be longer than in training.

    Args:
      tokens: the given ones where not `editable`; ignored elsewhere.
      visible: False at source padding.
      keys: one a row.
      settings: `block_size` 0 is the size of training.
      config: of the training run.
      stages: rows of the trajectory, from all masked to the end, evenly over all steps; 0 for none.

    Raises:
      ConfigError: no block size, one that does not divide the target's positions, or a network whose cache is not
        exact.
      ValueError: stages out of range.
    """
    if not exact_cache(config):
        raise ConfigError(
            f"process.block_size=0 and model.direction={config.model.direction!r}: block sampling with an exact cache "
            "needs a model trained with blocks, or a causal one that is told no time; this one takes "
            "sampling.cache='prefix' or 'dual'"
        )
    check_guidance(settings, config)
    size = block_size(tokens.shape[1] - denoiser.source_length, settings, config)
    blocks = (tokens.shape[1] - denoiser.source_length) // size
    stage_steps(blocks * settings.steps, stages)
    graph, parameters = nnx.split(denoiser)
    return _sample(
        graph, parameters, process, make_unmasker(settings), tokens, editable, visible, keys,
        settings.steps, settings.reuse_logits, settings.guidance, settings.end_bias, blocks, text_ends(config), stages,
    )  # fmt: skip


def exact_cache(config: RunConfig) -> bool:
    """Whether caching what stands before a block changes no logit: trained with blocks, or causal and told no time.

    A causal model that is told t read the positions before a block at the row's t in training, not at t = 0.
    """
    blind = config.model.direction == "causal" and not config.process.time_conditioning
    return config.process.block_size > 0 or blind


def block_size(length: int, settings: SamplingConfig, config: RunConfig) -> int:
    """Positions a block: what the settings say, or else the training run's.

    Args:
      length: of the target.

    Raises:
      ConfigError: neither says, or the blocks do not fill the target.
    """
    size = settings.block_size or config.process.block_size
    if not size:
        raise ConfigError("sampling.block_size=0 and the model was trained without blocks: say how many positions")
    if length % size:
        near = max(n for n in range(1, min(size, length) + 1) if length % n == 0)
        raise ConfigError(f"block_size={size} does not divide the target's {length} positions: take {near}")
    return size


class _Carry(NamedTuple):
    k: Int[Array, ""]  # the block to write
    tokens: Int[Array, "b l"]
    ended: Bool[Array, " b"]
    cache: Any
    network_calls: Int[Array, ""]
    positions: Int[Array, ""]
    trajectory: Int[Array, "k b l"]


@functools.partial(
    jax.jit, static_argnames=("graph", "stepper", "steps", "reuse", "guidance", "end_bias", "blocks", "ends", "stages")
)
def _sample(
    graph: Any,
    parameters: Any,
    process: Masked,
    stepper: Unmasker,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    steps: int,
    reuse: bool,
    guidance: float,
    end_bias: float,
    blocks: int,
    ends: bool,
    stages: int,
) -> TokenSample:
    denoiser: TokenDenoiser = merge_prepared(graph, parameters, tokens.size // blocks)
    rows, length = tokens.shape
    source = denoiser.source_length
    in_source = jnp.broadcast_to(jnp.arange(length) < source, tokens.shape)
    views = GuidedRows(guidance, in_source, visible, process.mask_id, hide=True)
    size = (length - source) // blocks
    last_words = may_end(tokens, editable)
    to_write = still_to_write(editable)
    at_stage = jnp.asarray(stage_steps(blocks * steps, stages))
    states = steps + 1 if stages else 0

    def extend(
        x: Int[Array, "b k"], t: Float[Array, " b"], cache: Any, start: Int[Array, ""] | int
    ) -> tuple[Array, Any]:
        return denoiser.extend(views.tokens(x, start), views.times(t), cache, visible=views.visible(start, x.shape[1]))

    def unfinished(carry: _Carry) -> Array:
        here = part(to_write, jnp.minimum(source + carry.k * size, length - 1), 1)[:, 0]
        return (carry.k < blocks) & jnp.any(~carry.ended & here)

    def write(carry: _Carry) -> _Carry:
        k, found, ended, cache, calls, positions, trajectory = carry
        start = source + k * size
        given = part(found, start, size)
        free = part(editable, start, size) & ~ended[:, None]

        def network(x: Int[Array, "b k"], t: Float[Array, " b"]) -> Float[Array, "b k v"]:
            logits = views.logits(extend(x, t, cache, start)[0])
            return words_alone(logits, part(last_words, start, size), end_bias)

        def denoise() -> Unmasked:
            return unmask(
                network, process, stepper, given, free, block_keys(keys, k, blocks), steps, states,
                cost=views.calls, reuse=reuse, maskable=part(visible, start, size),
            )  # fmt: skip

        def leave() -> Unmasked:
            return Unmasked(given, jnp.int32(0), jnp.broadcast_to(given[None], (states, rows, size)))

        block = jax.lax.cond(jnp.any(free), denoise, leave)
        after = _Carry(
            k=k + 1,
            tokens=put(found, block.tokens, start),
            ended=ended | (ends & jnp.any((block.tokens == EOS) & part(last_words, start, size), axis=1)),
            cache=cache,
            network_calls=calls + block.network_calls,
            positions=positions + block.network_calls * size,
            trajectory=record(trajectory, block.trajectory, at_stage - k * steps, start),
        )

        def commit() -> _Carry:
            _, cache = extend(block.tokens, jnp.zeros(rows), after.cache, start)
            return after._replace(
                cache=cache,
                network_calls=after.network_calls + views.calls,
                positions=after.positions + views.calls * size,
            )

        return jax.lax.cond(unfinished(after), commit, lambda: after)

    cache = denoiser.empty_cache(rows * views.calls, length)
    if source:
        _, cache = extend(tokens[:, :source], jnp.zeros(rows), cache, 0)
    shown = jnp.where(editable, process.mask_id, tokens)
    begin = _Carry(
        k=jnp.int32(0),
        tokens=jnp.where(editable, PAD, tokens),
        ended=jnp.zeros(rows, bool),
        cache=cache,
        network_calls=jnp.int32(views.calls if source else 0),
        positions=jnp.int32(views.calls * source),
        trajectory=jnp.broadcast_to(shown[None], (stages, rows, length)),
    )
    end = jax.lax.while_loop(unfinished, write, begin)
    left_out = (at_stage > end.k * steps)[:, None, None]
    return TokenSample(
        tokens=end.tokens,
        network_calls=end.network_calls,
        positions=end.positions,
        trajectory=jnp.where(left_out, end.tokens, end.trajectory),
    )


def block_keys(keys: PRNGKeyArray, k: Int[Array, ""] | int, blocks: int) -> PRNGKeyArray:
    """The rows' keys for block k; a row of one block keeps its own, as a whole row does."""
    return keys if blocks == 1 else jax.vmap(jax.random.fold_in, (0, None))(keys, k)
