"""Guidance in calls on parts of rows: the batch a second time, without its prompt, in the same call."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from dimba_jax.config import RunConfig, SamplingConfig
from dimba_jax.errors import ConfigError
from dimba_jax.sampling.discrete.guidance import guided, hides_source, without_prompt
from dimba_jax.sampling.discrete.windows import part


@dataclass(frozen=True)
class GuidedRows:
    """How the network sees a batch: as it is (scale 1), or followed by the same rows without their prompt.

    One call for both halves counts as two: `calls` is what a call of the network costs.
    """

    scale: float
    prompt: Bool[Array, "b l"]  # what the second half does without
    shown: Bool[Array, "b l"]  # what is visible in the first half
    mask_id: int
    hide: bool  # the prompt is invisible; False: there are masks in its place

    @property
    def calls(self) -> int:
        return 1 if self.scale == 1.0 else 2

    def tokens(self, x: Int[Array, "b k"], start: Int[Array, ""] | int = 0) -> Int[Array, "rows k"]:
        """The rows' tokens, given those of the batch at positions [start, start + k)."""
        return jnp.concatenate([x, self._bare(x, start)[0]]) if self.calls == 2 else x

    def visible(self, start: Int[Array, ""] | int, size: int) -> Bool[Array, "rows k"]:
        """What is visible of positions [start, start + size)."""
        shown = part(self.shown, start, size)
        return jnp.concatenate([shown, self._bare(shown.astype(jnp.int32), start)[1]]) if self.calls == 2 else shown

    def times(self, t: Float[Array, " b"]) -> Float[Array, " rows"]:
        """The rows' times."""
        return jnp.concatenate([t, t]) if self.calls == 2 else t

    def logits(self, logits: Float[Array, "rows k v"]) -> Float[Array, "b k v"]:
        """The guided logits of the batch."""
        if self.calls == 1:
            return logits
        conditional, unconditional = jnp.split(logits, 2)
        return guided(conditional, unconditional, self.scale)

    def _bare(self, x: Int[Array, "b k"], start: Int[Array, ""] | int) -> tuple[Array, Array]:
        size = x.shape[1]
        where = part(self.prompt, start, size), part(self.shown, start, size)
        return without_prompt(x, *where, self.mask_id, hide=self.hide)


def check_guidance(settings: SamplingConfig, config: RunConfig) -> None:
    """Behind an exact cache a prompt can only be hidden: masks never stood among the clean tokens it holds.

    Raises:
      ConfigError: guidance, and a model that was never trained without its source.
    """
    if settings.guidance != 1.0 and not hides_source(config):
        raise ConfigError(
            f"guidance={settings.guidance} needs a model of pairs trained with process.condition_dropout > 0: "
            "use guidance=1"
        )
