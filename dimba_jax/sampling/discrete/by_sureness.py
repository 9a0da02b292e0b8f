"""Steps that unmask the positions the network is surest of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.data.tokenizers import PAD
from dimba_jax.diffusion.masked import Masked
from dimba_jax.sampling.discrete.distribution import Score, TokenChoice, sureness, surest, surest_apart
from dimba_jax.sampling.discrete.unmasker import Scalar, Step, even_times, fold


@dataclass(frozen=True)
class Confidence:
    """Unmasks the surest positions (MaskGIT, arXiv 2202.04200), a number of them each step.

    After the step to s, alpha_s of the row's editable positions are revealed, to the nearest whole one, and
    at least one more than before. With a `threshold` it is instead every position surer than that, and
    at least the surest one (Fast-dLLM, arXiv 2505.22618).

    How sure a position is (`sureness`) is read off the logits as they come, and does not depend on its draw:
    one position a step, at temperature 1 and with exact posteriors, so samples the exact distribution (not with
    `padding_apart`, which may reveal two).
    `score_noise` is the temperature of Gumbel noise on the log-scores; it fades as t does.

    With `padding_apart` positions whose most probable token is padding and all others are two groups, and of what is
    still masked of each the step reveals (alpha_s - alpha_t) / (1 - alpha_t), rounded, and at least one.
    Otherwise padding, of which a network is sure early, takes up the first steps, and words are written several at
    a time in the last ones. (Ours; experiments/qqp has what it brought.)
    """

    choice: TokenChoice = field(default_factory=TokenChoice)
    score: Score = "probability"
    threshold: float = 0.0
    score_noise: float = 0.0
    padding_apart: bool = False

    @property
    def goes_on(self) -> bool:
        return False

    @property
    def counts(self) -> bool:
        return True

    def times(self, steps: int) -> np.ndarray:
        return even_times(steps)

    def init(self, editable: Bool[Array, "b k"]) -> Int[Array, " b"]:
        return jnp.sum(editable, axis=1, dtype=jnp.int32)

    def update(
        self,
        keys: PRNGKeyArray,
        tokens: Int[Array, "b k"],
        masked: Bool[Array, "b k"],
        logits: Float[Array, "b k v"],
        t: Scalar,
        s: Scalar,
        process: Masked,
        state: Int[Array, " b"],
    ) -> Step:
        sure = sureness(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), self.score)
        if self.threshold > 0.0:
            chosen = surest(sure, masked, jnp.ones_like(state)) | (sure >= jnp.log(self.threshold))
            chosen = masked & (chosen | (s == 0.0))
        else:
            noisy = _add_noise(keys, sure, self.score_noise, t)
            if self.padding_apart:
                share = (process.alpha(s) - process.alpha(t)) / (1.0 - process.alpha(t))
                padding = jnp.argmax(logits, axis=-1) == PAD
                chosen = surest_apart(noisy, masked, padding, share)
            else:
                chosen = surest(noisy, masked, _how_many(masked, state, s, process))
        drawn = self.choice.draw(fold(keys, 1), logits)
        return Step(jnp.where(chosen, drawn, tokens), masked & ~chosen, state)


class Predicted(NamedTuple):
    """Which positions are editable, and how sure each was of its token when that was drawn."""

    editable: Bool[Array, "b k"]
    sure: Float[Array, "b k"]


@dataclass(frozen=True)
class LowConfidence:
    """Predicts every masked position and masks the least sure ones again (LLaDA, arXiv 2502.09992).

    As many stay as `Confidence` would reveal. Unlike there the score is that of the token drawn, so that
    above temperature 0 likely draws are preferred. A token that has once stayed stays, as in LLaDA;
    with `revise` it competes on with the score that it was drawn with, and may be masked again
    (Mask-Predict, arXiv 1904.09324).
    """

    choice: TokenChoice = field(default_factory=TokenChoice)
    score: Score = "probability"
    score_noise: float = 0.0
    revise: bool = False

    @property
    def counts(self) -> bool:
        return True

    @property
    def goes_on(self) -> bool:
        return False  # once all have stayed the schedule masks none again

    def times(self, steps: int) -> np.ndarray:
        return even_times(steps)

    def init(self, editable: Bool[Array, "b k"]) -> Predicted:
        return Predicted(editable, jnp.zeros(editable.shape, jnp.float32))

    def update(
        self,
        keys: PRNGKeyArray,
        tokens: Int[Array, "b k"],
        masked: Bool[Array, "b k"],
        logits: Float[Array, "b k v"],
        t: Scalar,
        s: Scalar,
        process: Masked,
        state: Predicted,
    ) -> Step:
        drawn = self.choice.draw(fold(keys, 1), logits)
        fresh = sureness(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), self.score, drawn)
        sure = jnp.where(masked, fresh, state.sure)
        ranks = jnp.where(masked, _add_noise(keys, fresh, self.score_noise, t), state.sure)
        among = state.editable if self.revise else masked
        revealed = jnp.sum(among & ~masked, axis=1, dtype=jnp.int32)
        number = _how_many(masked, jnp.sum(state.editable, axis=1, dtype=jnp.int32), s, process)
        left = among & ~surest(ranks, among, revealed + number)
        tokens = jnp.where(left, process.mask_id, jnp.where(masked, drawn, tokens))
        return Step(tokens, left, Predicted(state.editable, sure))


def _how_many(masked: Bool[Array, "b k"], editable: Int[Array, " b"], s: Scalar, process: Masked) -> Int[Array, " b"]:
    """How many of the masked positions a step to s reveals: the schedule's share, one at least, in the end all."""
    left = jnp.sum(masked, axis=1, dtype=jnp.int32)
    revealed = jnp.round(editable * process.alpha(s)).astype(jnp.int32)
    return jnp.where(s == 0.0, left, jnp.clip(revealed - (editable - left), 1, left))


def _add_noise(keys: PRNGKeyArray, sure: Float[Array, "b k"], temperature: float, t: Scalar) -> Float[Array, "b k"]:
    """Gumbel noise on scores, of a temperature that fades as t does."""
    if temperature == 0.0:
        return sure
    noise = jax.vmap(lambda key: jax.random.gumbel(key, sure.shape[1:], mode="high"))(fold(keys, 0))
    return sure + temperature * t * noise
