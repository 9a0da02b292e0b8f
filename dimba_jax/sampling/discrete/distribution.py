"""The distribution of a token at each position: temperature and filters, draws from it, and how sure it is.

None of this decides whether a position is unmasked: that is another draw (`unmasking.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import SamplingConfig

Score = Literal["probability", "margin", "entropy"]


def filtered_log_probs(
    logits: Float[Array, "b l v"], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "b l v"]:
    """Log-probabilities in float32 after temperature, then top-k, then top-p; what is filtered out has -inf.

    `top_k` keeps the k most probable tokens (0: all); `top_p` the fewest that hold at least this
    probability among those (Holtzman et al. 2020), the most probable one always. Of equally probable
    tokens the first come first. At temperature 0 the most probable token has all the probability.
    """
    logits = logits.astype(jnp.float32)
    if temperature == 0.0:
        best = jnp.argmax(logits, axis=-1)[..., None]
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    logp = jax.nn.log_softmax(logits / temperature, axis=-1)
    k = logits.shape[-1] if top_k == 0 else min(top_k, logits.shape[-1])
    if k == logits.shape[-1] and top_p >= 1.0:
        return logp
    order = jnp.argsort(-logp, axis=-1, stable=True)
    probability = jnp.exp(jnp.take_along_axis(logp, order, axis=-1)) * (jnp.arange(logits.shape[-1]) < k)
    before = jnp.cumsum(probability, axis=-1) - probability  # held by the more probable ones
    kept = (before < top_p * jnp.sum(probability, axis=-1, keepdims=True)) & (probability > 0.0)
    kept = kept.at[..., 0].set(True)
    place = jnp.argsort(order, axis=-1)
    return jax.nn.log_softmax(jnp.where(jnp.take_along_axis(kept, place, axis=-1), logp, -jnp.inf), axis=-1)


def draw_tokens(keys: PRNGKeyArray, logp: Float[Array, "b l v"]) -> Int[Array, "b l"]:
    """A token for each position; row i draws from keys[i] alone.

    Gumbel noise in its full range: the default one of float32 ends near 16, which never draws the rare
    tokens of a large vocabulary and so lowers the temperature.
    """
    draw = jax.vmap(lambda key, row: jax.random.categorical(key, row, mode="high"))
    return draw(keys, logp).astype(jnp.int32)


def sureness(
    logp: Float[Array, "b l v"], score: Score = "probability", tokens: Int[Array, "b l"] | None = None
) -> Float[Array, "b l"]:
    """The logarithm of how sure each position is, in (0, 1]: 0 is certainty.

    probability: that of the most probable token, or of `tokens`; margin: between the two most probable
    ones; entropy: exp(-H), one over the effective number of tokens, whatever the tokens.
    Take it from logits without noise and temperature: a score that depends on the draw prefers likely draws.
    """
    if score == "entropy":
        return jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(logp) * logp, 0.0), axis=-1)
    if score == "margin":
        best, second = jnp.moveaxis(jax.lax.top_k(logp, 2)[0], -1, 0)
        return jnp.log(jnp.exp(best) - jnp.exp(second))
    if tokens is None:
        return jnp.max(logp, axis=-1)
    return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


def surest(sure: Float[Array, "b k"], among: Bool[Array, "b k"], count: Int[Array, " b"]) -> Bool[Array, "b k"]:
    """The `count` surest of these positions; of equals the leftmost."""
    order = jnp.lexsort((-sure, ~among), axis=1)
    return among & (jnp.argsort(order, axis=1) < count[:, None])


def surest_apart(
    sure: Float[Array, "b k"], among: Bool[Array, "b k"], padding: Bool[Array, "b k"], share: Float[Array, ""]
) -> Bool[Array, "b k"]:
    """The surest `share` of these positions, of padding and of the others each: rounded, and at least one."""
    chosen = jnp.zeros_like(among)
    for group in (among & padding, among & ~padding):
        left = jnp.sum(group, axis=1, dtype=jnp.int32)
        count = jnp.clip(jnp.round(left * share).astype(jnp.int32), jnp.minimum(left, 1), left)
        chosen |= surest(sure, group, count)
    return chosen


@dataclass(frozen=True)
class TokenChoice:
    """How tokens are drawn from logits: see `filtered_log_probs`. Hashable."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def draw(self, keys: PRNGKeyArray, logits: Float[Array, "b l v"]) -> Int[Array, "b l"]:
        """A token for each position; the most probable ones at temperature 0, without a draw."""
        if self.temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return draw_tokens(keys, filtered_log_probs(logits, self.temperature, self.top_k, self.top_p))


def token_choice(settings: SamplingConfig) -> TokenChoice:
    """The choice that the settings describe."""
    return TokenChoice(settings.temperature, settings.top_k, settings.top_p)
