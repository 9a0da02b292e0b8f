"""The denoiser: from a noised sequence, the time and a prompt to a prediction of the clean one.

It knows no schedule, no process and no loss.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dimba_jax.config import ModelConfig
from dimba_jax.models.conditioning import TimeEmbedding
from dimba_jax.models.embeddings import SMALL_STD, TiedRounding, TokenTable, UntiedRounding
from dimba_jax.models.linear import Linear
from dimba_jax.models.norm import RMSNorm
from dimba_jax.models.positions import at_positions, learned_positions
from dimba_jax.models.prompt import PromptEncoder
from dimba_jax.models.stack import Stack


class Condition(NamedTuple):
    """What the denoiser is told beside z and t; made by `Denoiser.encode`."""

    target: Bool[Array, "b l"]  # what is diffused
    visible: Bool[Array, "b l"]  # source tokens, and every target position: their padding is learned
    context: Float[Array, "b l d"] | None  # the prompt encoder's features at source positions
    pooled: Float[Array, "b c"] | None  # the whole prompt, joining the time


class Denoiser(nnx.Module):
    """Embeddings, prompt encoder, backbone and head.

    A row holds `source_length` positions of source, then `target_length` of target. Parameters are
    float32 `nnx.Param`s and nothing else; those of matmuls are called `kernel`.

    Args:
      output: "embedding" predicts vectors (b, l, e), which `round` turns into logits; "logits"
        predicts logits (b, l, v).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: int,
        source_length: int,
        target_length: int,
        output: Literal["embedding", "logits"] = "embedding",
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.vocab_size = vocab_size
        self.source_length, self.target_length = source_length, target_length
        self.output = output
        e, d = config.embedding_dim, config.d_model
        self.tokens = TokenTable(vocab_size, config, rngs=rngs)
        self.in_proj = Linear(2 * e if config.self_conditioning else e, d, config, bias=True, exact=True, rngs=rngs)
        if config.context != "none":
            self.segments = nnx.Param(SMALL_STD * jax.random.normal(rngs.params(), (2, d)))
        in_sequence = target_length if config.context == "none" else source_length + target_length
        self.positions = learned_positions(config, in_sequence, rngs)
        self.time = TimeEmbedding(config, rngs=rngs)
        # without a way into the network (the ablation of both) an encoder would be dead weight
        enters = config.prompt_encoder != "none" and (config.pooled_prompt or config.context == "encoder")
        self.prompt = PromptEncoder(vocab_size, config, rngs=rngs) if enters else None
        self.stack = Stack(config, config.layers, rngs=rngs)
        self.norm = RMSNorm(d)
        untied = config.head == "untied"
        if untied and output == "logits":
            self.out_proj, self.rounding = Linear(d, vocab_size, config, bias=True, exact=True, rngs=rngs), None
        else:
            self.out_proj = Linear(d, e, config, bias=True, exact=True, rngs=rngs)
            self.rounding = (UntiedRounding if untied else TiedRounding)(vocab_size, config, rngs=rngs)

    def table(self) -> Float[Array, "v e"]:
        """The embeddings of all tokens."""
        return self.tokens()

    def embed(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        """The clean point each token stands for."""
        return self.tokens()[tokens]

    def encode(
        self,
        tokens: Int[Array, "b l"],
        target: Bool[Array, "b l"],
        valid: Bool[Array, "b l"],
        keep: Bool[Array, " b"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Condition:
        """What there is to know of the prompts. Tokens at target positions change nothing in it.

        Args:
          target: the positions to diffuse, of those behind `source_length`. What else stands there is clean, an anchor.
          valid: False at padding (of the source; what is diffused is visible all the same).
          keep: False withholds a row's prompt, for guidance, but no anchor; None keeps all.
          key: for dropout; None for none.
        """
        self._check_length(tokens.shape[1])
        source = valid & ~target
        if keep is not None:
            source = source & (keep[:, None] | ~self._in_source)
        visible = source | target
        if self.prompt is None:
            return Condition(target, visible, None, None)
        part = slice(None, self.source_length)
        embedded = self.embed(tokens[:, part])
        context, pooled = self.prompt(tokens[:, part], embedded, source[:, part], keep, key)
        if self.config.context != "encoder":
            return Condition(target, visible, None, pooled)
        context = jnp.pad(context, ((0, 0), (0, self.target_length), (0, 0)))
        return Condition(target, visible, context, pooled)

    def __call__(
        self,
        z: Float[Array, "b l e"],
        t: Float[Array, " b"],
        condition: Condition,
        *,
        self_condition: Float[Array, "b l e"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l o"]:
        """A prediction at every position, float32: of embeddings (o = e) or logits (o = v).

        Args:
          z: noised embeddings, clean ones at source positions.
          t: diffusion time in [0, 1].
          self_condition: an earlier prediction of the clean embeddings; None stands for zeros.
          key: for dropout; None for none.

        Raises:
          ValueError: rows of another length than the model's, or a self-condition without its inputs.
        """
        self._check_length(z.shape[1])
        c = self.time(t, condition.pooled)
        x = self._inputs(z, self_condition)
        if self.config.context == "none":
            # nothing of the source stands in the sequence, and all of the target is visible
            h = self._placed(self.in_proj(x[:, self.source_length :]))
            h = self.stack(h, None, c, key)
            prediction = self._head(h)
            return jnp.pad(prediction, ((0, 0), (self.source_length, 0), (0, 0)))
        h = self.in_proj(x)
        if condition.context is not None:
            h = jnp.where(self._in_source[:, None], condition.context, h)
        source, target = self.segments[...]
        h = h + jnp.where(condition.target[..., None], target, source)
        return self._head(self.stack(self._placed(h), condition.visible, c, key))

    def narrowed(self, condition: Condition, target: Bool[Array, "b l"]) -> Condition:
        """The condition of the same prompts where fewer positions are diffused: the others have become anchors."""
        return condition._replace(target=target)

    def round(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Logits (float32) of the tokens whose embeddings x stands near.

        Raises:
          ValueError: the model predicts logits through a matrix of its own and has no rounding head.
        """
        if self.rounding is None:
            raise ValueError("output='logits' with head='untied' has no rounding head: its prediction is the logits")
        return self.rounding(x, self.table())

    def _placed(self, h: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        """The stack's inputs, each told its position if there are learned ones."""
        return h if self.positions is None else h + at_positions(self.positions, 0, h.shape[1])

    def _inputs(self, z: Array, self_condition: Array | None) -> Array:
        if not self.config.self_conditioning:
            if self_condition is not None:
                raise ValueError("self_condition given, but config.model.self_conditioning is False")
            return z
        return jnp.concatenate([z, jnp.zeros_like(z) if self_condition is None else self_condition], axis=-1)

    def _head(self, h: Array) -> Array:
        out = self.out_proj(self.norm(h))
        if self.output == "embedding" or self.rounding is None:
            return out
        return self.round(out)

    @property
    def _in_source(self) -> Bool[Array, " l"]:
        return jnp.arange(self.source_length + self.target_length) < self.source_length

    def _check_length(self, length: int) -> None:
        expected = self.source_length + self.target_length
        if length != expected:
            raise ValueError(
                f"rows of {length} positions: this model takes {self.source_length} of source and "
                f"{self.target_length} of target, {expected} in all"
            )


def count_parameters(model: nnx.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
