"""Fast-dLLM (arXiv 2505.22618): left-to-right blocks for networks that were trained without them."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

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
from dimba_jax.sampling.discrete.blocks import block_keys, block_size
from dimba_jax.sampling.discrete.ending import may_end, still_to_write, text_ends, words_alone
from dimba_jax.sampling.discrete.guidance import hides_source
from dimba_jax.sampling.discrete.guided_rows import GuidedRows
from dimba_jax.sampling.discrete.loop import TokenNetwork, TokenSample, Unmasked, unmask
from dimba_jax.sampling.discrete.unmasking import Unmasker, make_unmasker
from dimba_jax.sampling.discrete.windows import part, put, record
from dimba_jax.sampling.loop import stage_steps

CacheKind = Literal["none", "prefix", "dual"]


def sample_fast(
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
    """Blocks left to right, each in at most `settings.steps` calls, the blocks behind it masked but seen.

    `settings.cache` says what a call runs. "none": the whole row (LLaDA's semi-autoregressive order, arXiv
    2502.09992). "prefix" and "dual" (Fast-dLLM): the whole row in a block's first call; in the others
    only the block and what stands behind it, or only the block, the rest of the row being as that first call left
    it (keys and values of attention; the states with which the scans enter from both sides). That is an
    approximation: in a bidirectional network what stands around a block changes with the block. In a Mamba it is
    the reverse scan's state from behind the block, and what later layers make of the positions before it.
    `cache_deviation` measures it.

    With sampler "confidence" and a `settings.threshold` a step unmasks every position that is surer, and at least
    one; with as many steps as a block has positions the threshold alone says how many calls there are. Softmax and
    confidence are float32. A network that knows the time is told the one that fits the masks of the whole row.

    Where texts end by EOS, a row ends with the block that holds its EOS: editable positions behind that block are
    PAD. Sampling stops when every row has ended or has nothing left to write.

    Args:
      tokens: the given ones where not `editable`; ignored elsewhere.
      visible: False at source padding.
      keys: one a row.
      settings: `block_size` 0 makes one block of the target.
      config: of the training run.
      stages: rows of the trajectory, from all masked to the end, evenly over all steps; 0 for none.

    Returns:
      The sample. `network_calls` counts passes over the row and over a part of it alike, `window_calls` the latter;
      `positions` is what they ran, for an honest account of the speed.

    Raises:
      ConfigError: a model trained with blocks, or blocks that do not fill the target.
      ValueError: stages out of range.
    """
    size, blocks = fast_blocks(denoiser, tokens.shape[1], settings, config)
    stage_steps(blocks * settings.steps, stages)
    graph, parameters = nnx.split(denoiser)
    return _sample(
        graph, parameters, process, make_unmasker(settings), tokens, editable, visible, keys,
        settings.steps, settings.reuse_logits, settings.guidance, settings.end_bias, hides_source(config),
        settings.cache, blocks, text_ends(config), stages,
    )  # fmt: skip


def fast_blocks(denoiser: TokenDenoiser, length: int, settings: SamplingConfig, config: RunConfig) -> tuple[int, int]:
    """Positions a block, and how many blocks a row of this length has."""
    if config.process.block_size:
        raise ConfigError(
            f"process.block_size={config.process.block_size}: a model trained with blocks sees nothing behind a block; "
            "it is sampled block by block, with an exact cache"
        )
    target = length - denoiser.source_length
    size = block_size(target, settings, config) if settings.block_size else target
    return size, target // size


def rows_of(
    denoiser: TokenDenoiser, editable: Bool[Array, "b l"], visible: Bool[Array, "b l"], guidance: float, hide: bool
) -> GuidedRows:
    """The batch as the network sees it. The prompt of a pair is its source, of running text whatever is given."""
    source = denoiser.source_length
    in_source = jnp.broadcast_to(jnp.arange(editable.shape[1]) < source, editable.shape)
    return GuidedRows(guidance, in_source if source else ~editable, visible, denoiser.mask_id, hide)


def block_network(
    denoiser: TokenDenoiser,
    process: Masked,
    views: GuidedRows,
    row: Int[Array, "b l"],
    start: Int[Array, ""] | int,
    size: int,
    cache: CacheKind,
) -> TokenNetwork:
    """The network for the block at `start`, as `unmask` calls it: its first call is the pass over the row.

    Args:
      row: the whole row, masked where the block and those behind it are to be written.
      start: of the block; "prefix" needs a Python int, since the size of what it runs depends on it.
    """
    length, source = row.shape[1], denoiser.source_length
    begin, seen = part(row, start, size), views.visible(0, length)
    room, room_of_block = (
        jnp.maximum(jnp.sum(x, axis=1), 1) for x in (views.shown[:, source:], part(views.shown, start, size))
    )
    masks = jnp.sum(begin == process.mask_id, axis=1)
    elsewhere = jnp.sum(row == process.mask_id, axis=1) - masks
    first_time = process.network_time(process.time_of(masks / room_of_block))

    def row_time(t: Float[Array, " b"]) -> Float[Array, " rows"]:
        """From the time that fits the block's masks to the one that fits the row's."""
        if size < length - source:
            share = ((1.0 - process.alpha(t)) * room_of_block + elsewhere) / room
            t = process.network_time(process.time_of(share))
        return views.times(t)

    def of_block(logits: Float[Array, "rows m v"]) -> Float[Array, "b k v"]:
        return views.logits(jax.lax.dynamic_slice_in_dim(logits, start - source, size, axis=1))

    def whole(x: Int[Array, "b k"], t: Float[Array, " b"]) -> Float[Array, "b k v"]:
        tokens = views.tokens(put(row, x, start))
        return of_block(denoiser(tokens, row_time(t), visible=seen, first=source))

    if cache == "none":
        return whole
    reach = window_size(length, start, size, cache)
    logits, rest = denoiser.refresh(
        views.tokens(row), row_time(first_time), start, size=reach, visible=seen, first=source
    )
    of_first = of_block(logits)

    def window(x: Int[Array, "b k"], t: Float[Array, " b"]) -> Float[Array, "b k v"]:
        run = x if reach == size else jnp.concatenate([x, row[:, length - reach + size :]], axis=1)
        tokens = views.tokens(run, start)
        return views.logits(denoiser.window(tokens, row_time(t), rest, visible=views.visible(start, reach))[:, :size])

    def network(x: Int[Array, "b k"], t: Float[Array, " b"]) -> Float[Array, "b k v"]:
        at_first = jnp.all(x == begin) & jnp.all(jnp.abs(t - first_time) < 1e-6)
        return jax.lax.cond(at_first, lambda *_: of_first, window, x, t)

    return network


def window_size(length: int, start: Int[Array, ""] | int, size: int, cache: CacheKind) -> int:
    """How many positions a call runs that is not a block's first."""
    if cache == "prefix":
        assert isinstance(start, int)
        return length - start
    return size if cache == "dual" else length


class _Carry(NamedTuple):
    k: Int[Array, ""]  # the block to write
    tokens: Int[Array, "b l"]  # masked where they are to be written
    ended: Bool[Array, " b"]
    network_calls: Int[Array, ""]
    window_calls: Int[Array, ""]
    positions: Int[Array, ""]
    trajectory: Int[Array, "k b l"]


@functools.partial(
    jax.jit,
    static_argnames=(
        "graph",
        "stepper",
        "steps",
        "reuse",
        "guidance",
        "end_bias",
        "hide",
        "cache",
        "blocks",
        "ends",
        "stages",
    ),
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
    hide: bool,
    cache: CacheKind,
    blocks: int,
    ends: bool,
    stages: int,
) -> TokenSample:
    denoiser: TokenDenoiser = merge_prepared(
        graph, parameters, tokens.size if cache == "none" else tokens.size // blocks
    )
    views = rows_of(denoiser, editable, visible, guidance, hide)
    rows, length = tokens.shape
    source = denoiser.source_length
    size = (length - source) // blocks
    last_words = may_end(tokens, editable)
    to_write = still_to_write(editable)
    at_stage = jnp.asarray(stage_steps(blocks * steps, stages))
    states = steps + 1 if stages else 0

    def unfinished(carry: _Carry) -> Array:
        here = part(to_write, jnp.minimum(source + carry.k * size, length - 1), 1)[:, 0]
        return (carry.k < blocks) & jnp.any(~carry.ended & here)

    def write(carry: _Carry, k: Int[Array, ""] | int) -> _Carry:
        start = source + k * size
        given = part(carry.tokens, start, size)
        free = part(editable, start, size) & ~carry.ended[:, None]

        def denoise() -> Unmasked:
            call = block_network(denoiser, process, views, carry.tokens, start, size, cache)
            return unmask(
                lambda x, t: words_alone(call(x, t), part(last_words, start, size), end_bias),
                process, stepper, given, free, block_keys(keys, k, blocks), steps, states,
                cost=views.calls, reuse=reuse, maskable=part(visible, start, size),
            )  # fmt: skip

        def leave() -> Unmasked:
            return Unmasked(given, jnp.int32(0), jnp.broadcast_to(given[None], (states, rows, size)))

        block = jax.lax.cond(jnp.any(free), denoise, leave)
        over = ends & jnp.any((block.tokens == EOS) & part(last_words, start, size), axis=1)
        ended = carry.ended | over
        behind = editable & (jnp.arange(length) >= start + size)
        calls = block.network_calls
        windows = jnp.maximum(calls - views.calls, 0) if cache != "none" else jnp.int32(0)
        return _Carry(
            k=carry.k + 1,
            tokens=jnp.where(behind & ended[:, None], PAD, put(carry.tokens, block.tokens, start)),
            ended=ended,
            network_calls=carry.network_calls + calls,
            window_calls=carry.window_calls + windows,
            positions=carry.positions + (calls - windows) * length + windows * window_size(length, start, size, cache),
            trajectory=record(carry.trajectory, block.trajectory, at_stage - k * steps, start),
        )

    begin = jnp.where(editable, process.mask_id, tokens)
    none = jnp.int32(0)
    shown = jnp.broadcast_to(begin[None], (stages, rows, length))
    carry = _Carry(none, begin, jnp.zeros(rows, bool), none, none, none, shown)
    if cache == "prefix":  # what a call runs is of another size in every block
        for k in range(blocks):
            carry = jax.lax.cond(unfinished(carry), functools.partial(write, k=k), lambda same: same, carry)
    else:
        carry = jax.lax.while_loop(unfinished, lambda carry: write(carry, carry.k), carry)
    left_out = (at_stage > carry.k * steps)[:, None, None]
    return TokenSample(
        tokens=carry.tokens,
        network_calls=carry.network_calls,
        window_calls=carry.window_calls,
        positions=carry.positions,
        trajectory=jnp.where(left_out, carry.tokens, carry.trajectory),
    )
