"""Classifier-free guidance of token models: two calls of the network a step, with and without the prompt."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from dimba_jax.config import RunConfig
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.models.token_denoiser import TokenDenoiser
from dimba_jax.sampling.discrete.loop import TokenNetwork


class Unprompted(NamedTuple):
    """A batch as the network sees it without its prompt."""

    tokens: Int[Array, "b l"]
    visible: Bool[Array, "b l"]


class TokenCall(NamedTuple):
    """`call(window, t)` gives logits at the window's positions and costs `calls` network calls."""

    call: TokenNetwork
    calls: int


def guided(
    conditional: Float[Array, "b l v"], unconditional: Float[Array, "b l v"], scale: float
) -> Float[Array, "b l v"]:
    """Log-probabilities, up to a constant a position: u + scale (c - u), of log p with the prompt c and without u.

    Scale 1 is the conditional distribution. LLaDA (arXiv 2502.09992) writes scale = w + 1.
    """
    c = jax.nn.log_softmax(conditional.astype(jnp.float32), axis=-1)
    u = jax.nn.log_softmax(unconditional.astype(jnp.float32), axis=-1)
    return u + scale * (c - u)


def hides_source(config: RunConfig) -> bool:
    """Whether the model was trained without a source at times, so that leaving it out is something it knows."""
    return config.data.source_length > 0 and config.process.condition_dropout > 0.0


def without_prompt(
    tokens: Int[Array, "b l"],
    prompt: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    mask_id: int,
    *,
    hide: bool,
) -> Unprompted:
    """Either the prompt is invisible (`hide`, see `hides_source`), or its tokens are masks.

    Masks in place of the prompt need no training of their own where any position may be masked in training, as in
    running text: an unknown prompt is one that is yet to be written (unsupervised guidance, Nie et al., arXiv
    2410.18514). A source of pairs never is, so `check_settings` asks those models for condition dropout.
    """
    if hide:
        return Unprompted(tokens, visible & ~prompt)
    return Unprompted(jnp.where(prompt, mask_id, tokens), visible)


def token_call(
    denoiser: TokenDenoiser | Ensemble,
    tokens: Int[Array, "b l"],
    prompt: Bool[Array, "b l"],
    visible: Bool[Array, "b l"],
    *,
    first: int,
    scale: float,
    hide: bool,
    whole: bool = False,
) -> TokenCall:
    """The network over whole rows of which a window, the positions from `first` on, is being written.

    Args:
      whole: all positions are known to be visible.
    """
    shown = None if whole else visible

    def call(window: Array, t: Array) -> Array:
        row = jnp.concatenate([tokens[:, :first], window], axis=1)
        logits = denoiser(row, t, visible=shown, first=first)
        if scale == 1.0:
            return logits
        bare = without_prompt(row, prompt, visible, denoiser.mask_id, hide=hide)
        seen = bare.visible if hide else shown
        return guided(logits, denoiser(bare.tokens, t, visible=seen, first=first), scale)

    return TokenCall(call, (1 if scale == 1.0 else 2) * denoiser.calls)
