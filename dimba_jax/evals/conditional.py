"""How likely a model finds a continuation behind a context, and whether it would write it: what harnesses ask for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dimba_jax.config import ConfigError
from dimba_jax.data.normalize import normalize
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion.likelihood import token_nll
from dimba_jax.diffusion.process import Process
from dimba_jax.evals.any_order import count_nll, mask_counts, would_write
from dimba_jax.evals.estimate import EXACT, Estimator
from dimba_jax.evals.likelihood import check_model
from dimba_jax.evals.texts import Positions, document_rows
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.sampling.load import LoadedModel

SHORTEST = 8  # positions of a row: rows have this length times a power of two, so that few are compiled


@dataclass(frozen=True)
class Score:
    """log p of a continuation in nats: exact, or the mean of draws of a lower bound."""

    logp: float
    standard_error: float | None  # 0 if exact, None of one draw; of stratified draws it is rather too large
    greedy: bool  # the model would write it: each time its surest token


@dataclass(frozen=True)
class _Request:
    rows: Positions  # of one row
    continuation: Bool[np.ndarray, " l"]


class _Functions(NamedTuple):
    """Compiled for rows of one length."""

    by_time: Callable[..., tuple[Array, Array]]  # -log p of the continuation in each row, whether its tokens are best
    by_count: Callable[..., Array]  # draws of it from numbers of masks
    greedy: Callable[..., Array]  # whether decoding from masks gives the continuation


class Conditional:
    """Scores continuations. A score depends on its own context and continuation alone, and on the seed.

    The context is never masked, and never counts. A bound is drawn from numbers of masks (`any_order.count_nll`),
    that of a model of blocks from times. All requests share their luck, so that the choices of a question are
    compared on equal terms. A language model sees context and continuation side by side, and
    nothing behind them; what is too long loses its beginning. A model of pairs takes the context as source
    and the continuation as a whole target: its end, and the padding the model learned, count.

    `greedy` asks an autoregressive model for its most probable token at every position. A masked one starts from
    masks alone and is shown its surest token, one a call (one a call and block, for a model of blocks, behind
    the true text of the blocks before).

    Args:
      draws: of a bound, for every continuation; an exact likelihood takes one pass.
      batch_size: rows of a compiled call.

    Raises:
      ConfigError: a Gaussian model.
    """

    def __init__(self, model: LoadedModel, *, draws: int, seed: int = 0, batch_size: int = 32):
        check_model(model, [None])
        self.model, self.draws, self.seed, self.batch_size = model, draws, seed, batch_size
        self.exact = model.config.process.kind == EXACT
        self._graphdef, self._params = nnx.split(model.denoiser)
        self._compiled: dict[int, _Functions] = {}
        self._estimator = Estimator(model)

    def score(self, context: str, continuation: str) -> Score:
        """log p(continuation | context).

        Raises:
          ConfigError: an empty continuation, or one too long for a row.
        """
        request = self._request(context, continuation)
        rows = {name: jnp.asarray(values) for name, values in request.rows.items()}
        counted = jnp.asarray(request.continuation)
        process = self.model.process
        functions = self._functions(rows["tokens"].shape[1])
        if self.exact:
            nll, best = functions.by_time(self._params, process, rows, counted, jax.random.key(0))  # nothing is drawn
            return Score(-float(nll[0]), 0.0, bool(best[0]))
        logp = -np.concatenate(list(self._draws(functions, rows, counted)))
        error = float(logp.std(ddof=1)) / math.sqrt(self.draws) if self.draws > 1 else None
        return Score(float(logp.mean()), error, bool(functions.greedy(self._params, process, rows, counted)))

    def _draws(
        self, functions: _Functions, rows: dict[str, Array], counted: Bool[Array, " l"]
    ) -> Iterator[Float[np.ndarray, " n"]]:
        """-log p of the continuation, `batch_size` draws at a time."""
        base, process = jax.random.key(self.seed), self.model.process
        keys = jax.random.split(base, self.draws)
        counts = jnp.asarray(mask_counts(int(rows["target"].sum()), self.draws, self.seed))
        for start in range(0, self.draws, self.batch_size):
            here = slice(start, min(start + self.batch_size, self.draws))
            if self.model.config.process.block_size:
                batch = {name: jnp.repeat(values, here.stop - start, axis=0) for name, values in rows.items()}
                nll, _ = functions.by_time(self._params, process, batch, counted, keys[start])
            else:
                nll = functions.by_count(self._params, process, rows, counts[here], keys[here])
            yield np.asarray(nll, np.float64)

    def rolling(self, text: str) -> float:
        """log p of a whole text in nats, laid out in rows as the model's own; 0 of an empty one.

        Raises:
          ConfigError: a model of pairs, which has no likelihood of a text alone.
        """
        config = self.model.config.data
        if config.source_length:
            raise ConfigError(
                f"this model was trained on pairs (data.source_length={config.source_length}): it scores continuations "
                "of a context, and no text by itself"
            )
        if not text.strip():
            return 0.0
        rows = document_rows([text], config, self.model.tokenizer)
        return -self._estimator(rows, draws=self.draws, seed=self.seed, batch_size=self.batch_size).nats

    def encode(self, text: str) -> list[int]:
        """A text's tokens, normalised as the model's data was."""
        return self.model.tokenizer.encode(normalize(text, self.model.config.data.normalize)) if text else []

    def _request(self, context: str, continuation: str) -> _Request:
        stripped = context.rstrip()  # a blank at the end is part of the next word's token
        given, wanted = self.encode(stripped), self.encode(context[len(stripped) :] + continuation)
        if not wanted:
            raise ConfigError(f"the continuation {continuation!r} is empty: there is nothing to score")
        config = self.model.config
        source, length = config.data.source_length, config.data.target_length
        room = length - (1 if source else 0)  # an end token's
        if len(wanted) > room:
            raise ConfigError(
                f"the continuation {continuation[:40]!r}… has {len(wanted)} tokens, and a row of this model has room "
                f"for {room}: take a model of longer rows"
            )
        if source:
            return _pair(given, wanted, source, length)
        given = given[max(len(given) - (length - len(wanted)), 0) :]
        return _text(given, wanted, self._length(len(given) + len(wanted)), everything=self.exact)

    def _length(self, needed: int) -> int:
        """Positions of a row: few sizes, of whole blocks, none longer than a training row."""
        config = self.model.config
        size = config.process.block_size or 1
        length = SHORTEST
        while length < needed:
            length *= 2
        return min(-(-length // size) * size, config.data.target_length)

    def _functions(self, length: int) -> _Functions:
        if length not in self._compiled:
            self._compiled[length] = self._compile(length)
        return self._compiled[length]

    def _compile(self, length: int) -> _Functions:
        graphdef, config = self._graphdef, self.model.config
        source, on_padding = config.data.source_length, config.process.loss_on_padding
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, target_length=length - source))

        @jax.jit
        def by_time(params: PyTree, process: Process, batch: dict[str, Array], counted: Array, key: PRNGKeyArray):
            nats, found = token_nll(graphdef, params, process, batch, key, config)
            here = counted[None, source:]
            # padding of a pair's target counts where the model learned it: token_nll knows
            nats = nats if source else jnp.where(here, nats, 0.0)
            return jnp.sum(nats, axis=1), jnp.all(found.correct | ~here, axis=1)

        @jax.jit
        def by_count(params: PyTree, process: Process, row: dict[str, Array], counts: Array, keys: PRNGKeyArray):
            denoiser = nnx.merge(graphdef, params)
            return count_nll(denoiser, process, row, counts, keys, source=source, on_padding=on_padding)

        @jax.jit
        def greedy(params: PyTree, process: Process, row: dict[str, Array], counted: Array):
            denoiser = merge_prepared(graphdef, params, length)
            return would_write(denoiser, process, row, counted, source, config.process.block_size)

        return _Functions(by_time, by_count, greedy)


def _text(given: Sequence[int], wanted: Sequence[int], length: int, *, everything: bool) -> _Request:
    """Context and continuation side by side. `everything`: both are target, as next-token models read them."""
    used = len(given) + len(wanted)
    tokens = np.full((1, length), PAD, np.int32)
    tokens[0, :used] = [*given, *wanted]
    valid = np.arange(length)[None] < used
    continuation = valid & (np.arange(length) >= len(given))
    return _Request(
        {"tokens": tokens, "target": valid if everything else continuation, "valid": valid}, continuation[0]
    )


def _pair(given: Sequence[int], wanted: Sequence[int], source: int, length: int) -> _Request:
    given = [*given[max(len(given) - (source - 1), 0) :], EOS]
    wanted = [*wanted, EOS]
    position = np.arange(source + length)[None]
    tokens = np.full(position.shape, PAD, np.int32)
    tokens[0, : len(given)] = given
    tokens[0, source : source + len(wanted)] = wanted
    target = position >= source
    valid = np.where(target, position < source + len(wanted), position < len(given))
    return _Request({"tokens": tokens, "target": target, "valid": valid}, (target & valid)[0])
