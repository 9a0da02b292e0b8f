"""Steps that leave it to chance which positions are unmasked: ancestral sampling, and the same with re-masking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ConfigError
from dimba_jax.diffusion.masked import Masked
from dimba_jax.sampling.discrete.distribution import TokenChoice
from dimba_jax.sampling.discrete.unmasker import Scalar, Step, even_times, fold

Remask = Literal["cap", "rescale", "loop"]


@dataclass(frozen=True)
class Ancestral:
    """Samples q(z_s | z_t, x0) (MDLM, arXiv 2406.07524) in two draws a position.

    First whether it is unmasked, with probability (alpha_s - alpha_t) / (1 - alpha_t), then which token it
    gets. One draw from the mixture of mask and tokens would lose rare tokens to rounding, the more steps the
    more of them; and temperature or filters would move the rate of unmasking. Exact as steps grow, given
    the exact posterior of each token: positions that one step unmasks are drawn independently.
    """

    choice: TokenChoice = field(default_factory=TokenChoice)

    @property
    def goes_on(self) -> bool:
        return False

    @property
    def counts(self) -> bool:
        return False

    def times(self, steps: int) -> np.ndarray:
        return even_times(steps)

    def init(self, editable: Bool[Array, "b k"]) -> None:
        return None

    def update(
        self,
        keys: PRNGKeyArray,
        tokens: Int[Array, "b k"],
        masked: Bool[Array, "b k"],
        logits: Float[Array, "b k v"],
        t: Scalar,
        s: Scalar,
        process: Masked,
        state: None,
    ) -> Step:
        before, after = process.alpha(t), process.alpha(s)
        return _reveal(keys, tokens, masked, logits, (after - before) / (1.0 - before), s, self.choice)


@dataclass(frozen=True)
class ReMDM:
    """Re-masks each revealed position with probability sigma, and reveals so many more (Wang et al., arXiv 2503.00307).

    A masked position is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which
    keeps the share of masks at every time what it is without re-masking. sigma is at most
    sigma_max = min(1, (1 - alpha_s) / alpha_t), and by variant:

    cap: `strength`, or sigma_max if that is less. rescale: `strength` times sigma_max. loop: t falls from
    1 to the window's low end while the clock runs from 1 to its high end; it stands still while the clock
    runs through the window, where alone sigma is as in cap; behind it time and clock are the same again. So
    the window re-masks a text of alpha(low) revealed positions (the paper's alpha(t_on)).

    Re-masking asks for no token, so with exact posteriors the text stays a fair sample as long as no step reveals
    two positions that nothing draws again. In cap and rescale sigma_max goes to 0 in the end, and of two positions
    some 0.4 / sqrt(steps) end that way: they are exact as steps grow, whatever the strength. The loop does not
    anneal: about sigma / 2 of those that its window leaves revealed do, so sigma must go to 0 too.
    """

    choice: TokenChoice = field(default_factory=TokenChoice)
    variant: Remask = "cap"
    strength: float = 0.05
    window: tuple[float, float] = (0.05, 0.55)

    @property
    def goes_on(self) -> bool:
        return True

    @property
    def counts(self) -> bool:
        return False

    def times(self, steps: int) -> np.ndarray:
        """Raises ConfigError if no step of the loop lies within its window."""
        clock = even_times(steps)
        if self.variant != "loop":
            return clock
        low, high = self.window
        falling = 1.0 - (1.0 - clock) * (1.0 - low) / max(1.0 - high, 1e-6)
        times = np.where(clock > low, np.maximum(falling, low), clock).astype(np.float32)
        if not (np.diff(times) == 0.0).any():
            raise ConfigError(
                f"steps={steps}: none lies between remask_window={self.window}, so nothing would be re-masked; "
                "take more steps or a wider window"
            )
        return times

    def init(self, editable: Bool[Array, "b k"]) -> Bool[Array, "b k"]:
        return editable

    def update(
        self,
        keys: PRNGKeyArray,
        tokens: Int[Array, "b k"],
        masked: Bool[Array, "b k"],
        logits: Float[Array, "b k v"],
        t: Scalar,
        s: Scalar,
        process: Masked,
        state: Bool[Array, "b k"],
    ) -> Step:
        before, after = process.alpha(t), process.alpha(s)
        greatest = jnp.minimum(1.0, (1.0 - after) / jnp.maximum(before, 1e-9))
        sigma = {
            "cap": lambda: jnp.minimum(self.strength, greatest),
            "rescale": lambda: self.strength * greatest,
            "loop": lambda: jnp.where(t == s, jnp.minimum(self.strength, greatest), 0.0),
        }[self.variant]()
        rate = (after - (1.0 - sigma) * before) / (1.0 - before)
        again = state & ~masked & (_uniform(fold(keys, 2), masked.shape[1]) < sigma)
        tokens, masked, _ = _reveal(keys, tokens, masked, logits, rate, s, self.choice)
        return Step(jnp.where(again, process.mask_id, tokens), masked | again, state)


def _reveal(
    keys: PRNGKeyArray,
    tokens: Int[Array, "b k"],
    masked: Bool[Array, "b k"],
    logits: Float[Array, "b k v"],
    rate: Scalar,
    s: Scalar,
    choice: TokenChoice,
) -> Step:
    """Each masked position gets a token with probability `rate`; all of them on the last step."""
    chosen = masked & ((_uniform(fold(keys, 0), masked.shape[1]) < rate) | (s == 0.0))
    # with many steps and few positions most steps choose none, and draws over the vocabulary are not cheap
    drawn = jax.lax.cond(jnp.any(chosen), lambda: choice.draw(fold(keys, 1), logits), lambda: tokens)
    return Step(jnp.where(chosen, drawn, tokens), masked & ~chosen, None)


def _uniform(keys: PRNGKeyArray, length: int) -> Float[Array, "b k"]:
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
