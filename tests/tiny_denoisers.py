"""Small token denoisers for tests of cached sampling: real ones with lively weights, and one that follows a script."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dimba_jax.config import from_config_dict
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion import make_process
from dimba_jax.models.build import abstract_denoiser

PATTERNS = {"mamba": ("mamba2",), "attention": ("attention",), "hybrid": ("attention", "mamba2")}


def tiny_config(kind="masked", *, source=0, target=8, direction=None, pattern="mamba", layout="packed", **process):
    """A run of a tiny model: pairs if there is a source, else running text."""
    data = {"source": "text", "text": {"layout": layout}} if source == 0 else {}
    return from_config_dict(
        {
            "data": {**data, "source_length": source, "target_length": target},
            "model": {
                "d_model": 16, "layers": 2, "state_dim": 8, "head_dim": 8, "mlp_ratio": 0.0, "chunk": 8,
                "pattern": PATTERNS[pattern], "self_conditioning": False, "head": "untied",
                "direction": direction or ("causal" if kind == "autoregressive" else "untied"),
            },
            "process": {"kind": kind, "schedule": "log_linear", **process},
            "sampling": {"sampler": "ancestral"},
        }
    )  # fmt: skip


@functools.cache
def tiny_model(kind="masked", *, vocab=11, seed=0, endless=False, **more):
    """(denoiser, process, config), all weights drawn anew and wide, so that every input tells in the logits.

    An `endless` one writes neither EOS nor PAD.
    """
    config = tiny_config(kind, **more)
    graph, shapes = abstract_denoiser(config, vocab)
    random = np.random.default_rng(seed)
    parameters = jax.tree.map(lambda x: jnp.asarray(0.5 * random.normal(size=x.shape), x.dtype), shapes)
    if endless:
        bias = parameters["head"]["bias"]
        bias[...] = bias[...].at[jnp.asarray([PAD, EOS])].set(-1e9)
    return nnx.merge(graph, parameters), make_process(config.process, vocab), config


def row_keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


class Call(NamedTuple):
    what: str  # "whole", "extend", "refresh" or "window"
    tokens: np.ndarray
    t: np.ndarray
    visible: np.ndarray


class Calls:
    """The calls of a `Script`, in their order; equal to itself alone, so that compiled functions may hold it."""

    def __init__(self):
        self.made = []
        self.traced = 0

    def take(self):
        """Those since the last time."""
        jax.effects_barrier()
        made, self.made = self.made, []
        return made


class Script(nnx.Module):
    """Wants `words` (b, l) at the row's positions, whatever it reads; `calls` sees how it is called.

    `sure` (l,) is the logit of the wanted word, above 0 for all others.
    """

    def __init__(self, words, vocab, *, source=0, sure=None, calls=None):
        self.words = nnx.Param(jnp.asarray(words))
        self.sure = nnx.Param(jnp.full(self.words.shape[1], 9.0) if sure is None else jnp.asarray(sure, jnp.float32))
        self.vocab_size = self.mask_id = vocab
        self.source_length = source
        self.calls = calls

    def empty_cache(self, rows, capacity):
        return jnp.int32(0)

    def extend(self, tokens, t, cache, *, visible=None):
        self._note("extend", tokens, t, visible)
        return self._say(tokens, cache), cache + tokens.shape[1]

    def __call__(self, tokens, t, *, visible=None, first=0, key=None):
        self._note("whole", tokens, t, visible)
        return self._say(tokens, 0)[:, first:]

    def refresh(self, tokens, t, start, *, size, visible=None, first=0):
        self._note("refresh", tokens, t, visible)
        return self._say(tokens, 0)[:, first:], jnp.asarray(start)

    def window(self, tokens, t, surroundings, *, visible=None):
        self._note("window", tokens, t, visible)
        return self._say(tokens, surroundings)

    def _note(self, what, *of_call):
        if self.calls is not None:
            calls = self.calls
            calls.traced += 1
            jax.debug.callback(lambda *x: calls.made.append(Call(what, *map(np.asarray, x))), *of_call, ordered=True)

    def _say(self, tokens, start):
        k, copies = tokens.shape[1], tokens.shape[0] // self.words.shape[0]
        here = jax.lax.dynamic_slice_in_dim(jnp.tile(self.words[...], (copies, 1)), start, k, axis=1)
        sure = jax.lax.dynamic_slice_in_dim(self.sure[...], start, k)
        return sure[None, :, None] * jax.nn.one_hot(here, self.vocab_size)
