"""What a step of absorbing diffusion from time t to s < t is: which masked positions get a token, which lose theirs.

A stepper knows no network: it gets logits. Tokens that are not editable it never touches, and on the last
step (s = 0) every masked position gets a token. Times are those of the process; `process.alpha(t)` is the
probability that a position is unmasked at t.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ConfigError
from dimba_jax.diffusion.masked import Masked

Scalar = Float[Array, ""]


class Step(NamedTuple):
    """The tokens after a step, where they are masked, and what the stepper remembers."""

    tokens: Int[Array, "b k"]
    masked: Bool[Array, "b k"]
    state: Any


class Unmasker(Protocol):
    """Frozen and hashable: a static argument of the loop."""

    @property
    def goes_on(self) -> bool:
        """Whether it may mask tokens where nothing is masked, so that the loop cannot end before its last step."""
        ...

    @property
    def counts(self) -> bool:
        """Whether it reveals a number of positions, not each by chance: how many are masked then tells the time."""
        ...

    def times(self, steps: int) -> np.ndarray:
        """steps + 1 times from 1 to 0, never rising."""
        ...

    def init(self, editable: Bool[Array, "b k"]) -> Any:
        """What is remembered between steps."""
        ...

    def update(
        self,
        keys: PRNGKeyArray,
        tokens: Int[Array, "b k"],
        masked: Bool[Array, "b k"],
        logits: Float[Array, "b k v"],
        t: Scalar,
        s: Scalar,
        process: Masked,
        state: Any,
    ) -> Step:
        """The step from t to s. `keys` holds one key a row, of this step alone."""
        ...


def even_times(steps: int) -> np.ndarray:
    """steps + 1 evenly falling times from 1 to 0.

    Raises:
      ConfigError: no step.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: must be at least 1")
    return np.linspace(1.0, 0.0, steps + 1).astype(np.float32)


def fold(keys: PRNGKeyArray, data: int) -> PRNGKeyArray:
    """Keys of one of the draws of a step."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
