"""Sampling of token models: one function, and what it does with which model and settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, PRNGKeyArray

from dimba_jax.config import ConfigError, RunConfig, SamplingConfig
from dimba_jax.diffusion.autoregressive import Autoregressive
from dimba_jax.diffusion.masked import Masked
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.sampling.discrete.blocks import exact_cache, sample_blocks
from dimba_jax.sampling.discrete.fast import sample_fast
from dimba_jax.sampling.discrete.full import sample_full
from dimba_jax.sampling.discrete.left_to_right import sample_left_to_right
from dimba_jax.sampling.discrete.loop import TokenSample


class Way(Protocol):
    """How rows are written; all ways have this signature."""

    def __call__(
        self,
        denoiser: TokenDenoiser,
        process: Masked | Autoregressive,
        tokens: Int[Array, "b l"],
        editable: Bool[Array, "b l"],
        visible: Bool[Array, "b l"],
        keys: PRNGKeyArray,
        settings: SamplingConfig,
        *,
        config: RunConfig,
        stages: int = 0,
    ) -> TokenSample: ...


def _left_to_right(config: RunConfig, settings: SamplingConfig) -> bool:
    return config.process.kind == "autoregressive"


def _exact_blocks(config: RunConfig, settings: SamplingConfig) -> bool:
    """A model whose logits do not change if what stands before a block is cached (`exact_cache`)."""
    return config.process.block_size > 0 or (settings.block_size > 0 and exact_cache(config))


def _windows(config: RunConfig, settings: SamplingConfig) -> bool:
    """Blocks of a model trained without them, with an approximate cache or none."""
    return settings.block_size > 0 or settings.cache != "none"


def _whole_row(config: RunConfig, settings: SamplingConfig) -> bool:
    return True


# the first that applies
WAYS: tuple[tuple[Callable[[RunConfig, SamplingConfig], bool], Way], ...] = (
    (_left_to_right, sample_left_to_right),
    (_exact_blocks, sample_blocks),
    (_windows, sample_fast),
    (_whole_row, sample_full),
)  # type: ignore[assignment]


def way_of(config: RunConfig, settings: SamplingConfig) -> Way:
    """How a model of this config samples with these settings."""
    return next(way for applies, way in WAYS if applies(config, settings))


def total_steps(config: RunConfig, settings: SamplingConfig, target: int) -> int:
    """Steps over the `target` positions of a row, at most: what a trajectory's stages are spread over."""
    way = way_of(config, settings)
    if way is sample_left_to_right:
        return target
    size = 0 if way is sample_full else settings.block_size or config.process.block_size
    return settings.steps * (-(-target // size) if size else 1)


def sample_tokens(
    denoiser: TokenDenoiser | Ensemble,
    process: Masked | Autoregressive,
    tokens: Int[Array, "b l"],
    editable: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    keys: PRNGKeyArray,
    settings: SamplingConfig,
    *,
    config: RunConfig,
    stages: int = 0,
) -> TokenSample:
    """Writes the editable positions of a batch of rows; given tokens stay as they are.

    A row's tokens depend on its own key and content alone (but for rounding, see `generate`). `network_calls` are those
    of the batch, so they may depend on its other rows: some ways end when all rows are done.

    Args:
      tokens: the given ones where not `editable`; ignored elsewhere. (b, l)
      editable: anywhere behind the source. (b, l)
      visible: False at source padding, and at positions behind a short row's end. (b, l)
      keys: one a row.
      config: of the training run.
      stages: rows of the trajectory, whose unwritten positions show the mask's id; 0 for none.

    Raises:
      ConfigError: settings that do not fit the model or each other.
      ValueError: stages out of range.
    """
    check_settings(config, settings)
    if settings.length == "first" and not bool(jnp.all(editable[:, denoiser.source_length :])):
        raise ConfigError("length='first' writes whole targets, and here some tokens of them are given: use 'model'")
    way = way_of(config, settings)
    if not isinstance(denoiser, Ensemble):
        return way(denoiser, process, tokens, editable, visible, keys, settings, config=config, stages=stages)
    if way is not sample_full or not isinstance(process, Masked):
        raise ConfigError("an ensemble writes the whole row at once: set block_size=0 and cache='none'")
    # `check_settings` knows the first network's config alone
    if settings.reuse_logits and any(network.time_conditioned for network in denoiser.networks):
        raise ConfigError("reuse_logits needs networks that are all trained with process.time_conditioning=False")
    return sample_full(denoiser, process, tokens, editable, visible, keys, settings, config=config, stages=stages)


def check_settings(config: RunConfig, settings: SamplingConfig) -> None:
    """Refuses settings that this model cannot follow.

    Raises:
      ConfigError: the first one found.
    """
    kind, s = config.process.kind, settings
    way = way_of(config, settings)
    for wrong, message in (
        (
            s.length == "first" and (way is not sample_full or config.data.source_length == 0),
            "length='first' is for masked models of pairs that write the whole row at once: use length='model'",
        ),
        (
            s.length == "first" and s.end_bias != 0.0,
            f"end_bias={s.end_bias}: with length='first' the length is chosen before; set end_bias=0 and, if need be, "
            "length_bias",
        ),
        (
            s.anchors or s.mean_temperature != 1.0,
            f"anchors={s.anchors} and mean_temperature={s.mean_temperature} are for Gaussian diffusion: "
            "set False and 1",
        ),
        (
            s.reuse_logits and config.process.time_conditioning and kind == "masked",
            "reuse_logits needs a model trained with process.time_conditioning=False: logits change with t otherwise",
        ),
        (
            s.reuse_logits and s.sampler not in ("ancestral", "remdm"),
            f"reuse_logits: sampler={s.sampler!r} changes a token every step; it is for 'ancestral' and 'remdm'",
        ),
        (
            s.guidance != 1.0
            and config.process.condition_dropout == 0.0
            and (kind == "autoregressive" or config.data.source_length > 0),
            f"guidance={s.guidance} needs a model trained with process.condition_dropout > 0, or a masked one of text",
        ),
        (
            s.cache != "none" and way is not sample_fast,
            f"cache={s.cache!r} is for masked models trained without blocks, whose own cache is not exact: set 'none'",
        ),
        (
            s.cache != "none" and way is sample_fast and s.block_size == 0,
            f"cache={s.cache!r} keeps what stands around a block, and there are no blocks: set block_size too",
        ),
        (
            s.block_size > 0 and kind == "autoregressive",
            f"block_size={s.block_size}: an autoregressive model writes token by token; set 0",
        ),
        (
            s.early_exit > 0,
            f"early_exit={s.early_exit} is for Gaussian diffusion; here sampling ends when nothing is masked: set 0",
        ),
    ):
        if wrong:
            raise ConfigError(message)
