"""State-space mixers: projections around one core, or two that look both ways.

No sequence is flipped: the kernels scan from the right when asked, and invisible positions leave
both the convolution's window and the state untouched, so padding reaches neither direction.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dimba_jax.config import ConfigError, ModelConfig
from dimba_jax.models.linear import Linear, Part
from dimba_jax.models.mixers.core import Core, Projected, blocks, state_before, state_behind, two_cores
from dimba_jax.models.mixers.mamba2 import Mamba2Core
from dimba_jax.models.mixers.state import ScanSides, ScanState


class Scanning(nnx.Module):
    """What all of them share; see `Mixer`. A kind says how its cores lie between the projections."""

    in_proj: Linear
    out_proj: Linear

    @property
    def _ahead(self) -> Core:
        """The core that scans forward."""
        raise NotImplementedError

    @property
    def _parts(self) -> tuple[Part, ...]:
        """What the input projection is cut into."""
        return self._ahead.parts

    def _share(self, projected: Projected) -> Projected:
        """What of the projection that core reads."""
        return projected

    def _behind(self, projected: Projected, mask: Bool[Array, "b l"] | None, end: Int[Array, ""] | int) -> Any:
        """What the reverse scan carries when it has passed position `end`; None for a causal mixer."""
        raise NotImplementedError

    def _mix(
        self,
        projected: Projected,
        mask: Bool[Array, "b l"] | None,
        ahead: ScanState | None,
        behind: Any,
    ) -> tuple[Float[Array, "b l _"], Any]:
        """The cores, entered with these states (None: zeros); and the forward state at the end, if one came in."""
        raise NotImplementedError

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l d"], ScanState | None]:
        if reverse:
            raise ConfigError("a bidirectional mixer has no reverse: set config.model.direction='causal'")
        y, state = self._mix(self._project(x), mask, state, None)
        return self.out_proj(y), state

    def initial_state(self, rows: int, capacity: int) -> ScanState:
        """The state before any position; its size does not depend on `capacity`."""
        return self._ahead.initial_state(rows)

    def _project(self, x: Float[Array, "b l d"]) -> Projected:
        return self.in_proj.cut(x)

    def two_streams(
        self,
        clean: Float[Array, "b l d"],
        noisy: Float[Array, "r k d"],
        mask: Bool[Array, "b l"] | None,
        noisy_mask: Bool[Array, "r k"] | None,
        first: int,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "r k d"]]:
        (b, l, _), block = clean.shape, noisy.shape[1]
        projected = self._project(clean)
        source, rest = [part[:, :first] for part in projected], [part[:, first:] for part in projected]
        source_mask, rest_mask = (None, None) if mask is None else (mask[:, :first], mask[:, first:])
        entry, parts = self.initial_state(b, l), []
        if first:
            y, entry = self._mix(source, source_mask, entry, None)
            parts.append(y)
        # the clean states at the edges are all that passes between blocks: with them, every block is a row
        states = self._ahead.entry_states(self._share(rest), rest_mask, entry, block)
        cut = [blocks(part, block) for part in rest]
        y, _ = self._mix(cut, None if rest_mask is None else blocks(rest_mask, block), states, None)
        parts.append(y.reshape(b, l - first, -1))
        y_noisy, _ = self._mix(self._project(noisy), noisy_mask, states, None)
        return self.out_proj(jnp.concatenate(parts, axis=1)), self.out_proj(y_noisy)

    def refresh(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None, start: Int[Array, ""] | int, size: int
    ) -> tuple[Float[Array, "b l d"], ScanSides]:
        projected = self._project(x)
        y, _ = self._mix(projected, mask, None, None)
        ahead = state_before(self._ahead, self._share(projected), mask, start)
        return self.out_proj(y), ScanSides(ahead, self._behind(projected, mask, start + size))

    def window(
        self, x: Float[Array, "b k d"], mask: Bool[Array, "b k"] | None, sides: ScanSides
    ) -> Float[Array, "b k d"]:
        y, _ = self._mix(self._project(x), mask, sides.ahead, sides.behind)
        return self.out_proj(y)


class Causal(Scanning):
    """One core between its projections: the Mamba block of the papers, in either direction."""

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        self.core = core(config, rngs=rngs)
        self.in_proj = _input_projection(self._parts, config, rngs)
        self.out_proj = Linear(self.core.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        mask: Bool[Array, "b l"] | None,
        state: ScanState | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "b l d"], ScanState]:
        y, state = self.core(self._project(x), mask, state, reverse=reverse)
        return self.out_proj(y), state

    @property
    def _ahead(self):
        return self.core

    def _behind(self, projected, mask, end):
        return None

    def _mix(self, projected, mask, ahead, behind):
        return self.core(projected, mask, ahead)


class Untied(Scanning):
    """Two whole mixers, one a direction, added (DiffuMamba).

    Both input projections are one matmul, and so are both output projections: kernels
    [W_forward | W_backward] over the same input, and [V_forward; V_backward] over the two outputs.
    """

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        self.forward = core(config, rngs=rngs)
        self.backward = core(config, rngs=rngs)
        self.in_proj = _input_projection(self._parts, config, rngs)
        self.out_proj = Linear(2 * self.forward.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    @property
    def _ahead(self):
        return self.forward

    @property
    def _parts(self):
        return (*self.forward.parts, *self.backward.parts)

    def _share(self, projected):
        return projected[: len(self.forward.parts)]

    def _behind(self, projected, mask, end):
        return state_behind(self.backward, projected[len(self.forward.parts) :], mask, end)

    def _mix(self, projected, mask, ahead, behind):
        left, right = self._share(projected), projected[len(self.forward.parts) :]
        return two_cores(self.forward, self.backward, left, right, mask, ahead, behind)


class Tied(Scanning):
    """Two cores between shared projections (as in Caduceus and MDLM's dimamba)."""

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        self.forward = core(config, rngs=rngs)
        self.backward = core(config, rngs=rngs)
        self.in_proj = _input_projection(self._parts, config, rngs)
        self.out_proj = Linear(self.forward.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    @property
    def _ahead(self):
        return self.forward

    def _behind(self, projected, mask, end):
        return state_behind(self.backward, projected, mask, end)

    def _mix(self, projected, mask, ahead, behind):
        both, state = two_cores(self.forward, self.backward, projected, projected, mask, ahead, behind)
        return sum(jnp.split(both, 2, axis=-1)), state


class Shared(Scanning):
    """One Mamba-2 core for both directions, scanned by one fused call where neither has a state.

    Raises:
      ConfigError: another core than Mamba-2's, which alone has a fused two-direction scan.
    """

    def __init__(self, core: type[Core], config: ModelConfig, *, residual_scale: float = 1.0, rngs: nnx.Rngs):
        if not issubclass(core, Mamba2Core):
            raise ConfigError(
                "config.model.direction='shared' needs mamba2: use pattern=('mamba2',), or direction 'tied' or 'untied'"
            )
        self.core = core(config, rngs=rngs)
        self.in_proj = _input_projection(self._parts, config, rngs)
        self.out_proj = Linear(self.core.inner, config.d_model, config, scale=residual_scale, rngs=rngs)

    @property
    def _ahead(self):
        return self.core

    def _behind(self, projected, mask, end):
        return self.core.both_ways_behind(projected, mask, end)

    def _mix(self, projected, mask, ahead, behind):
        return self.core.both_ways(projected, mask, ahead, behind)


def _input_projection(parts: tuple[Part, ...], config: ModelConfig, rngs: nnx.Rngs) -> Linear:
    return Linear(config.d_model, sum(part.width for part in parts), config, parts=parts, rngs=rngs)
