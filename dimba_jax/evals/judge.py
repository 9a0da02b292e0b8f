"""Judges of generated text: language models whose log-loss of it is its generative perplexity.

A judge reads a text in windows of its own context, each afresh behind its begin token, so that every token
counts once. Perplexities are a token of the judge's vocabulary: only figures of one judge can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dimba_jax.data.normalize import normalize
from dimba_jax.data.tokenizers import UNK
from dimba_jax.diffusion.likelihood import token_nll
from dimba_jax.errors import UserError
from dimba_jax.progress import announce, progress
from dimba_jax.sampling.load import LoadedModel, load

HUGGING_FACE = "hf:"


class JudgeError(UserError, RuntimeError):
    """A judge that cannot be had, or that cannot judge."""


class Judge(Protocol):
    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    def nll(self, texts: Sequence[str], *, show_progress: bool = False) -> tuple[float, int]:
        """-log p of the texts, added up, in nats; and the tokens that were counted."""
        ...


def load_judge(name: str, *, batch_size: int = 32) -> Judge:
    """The judge a command names: the working directory of an autoregressive run, or `hf:` and a Hugging Face model.

    Raises:
      JudgeError: not an autoregressive model of text; a package or the weights are missing.
      FileNotFoundError: no checkpoint there.
    """
    if name.startswith(HUGGING_FACE):
        return HFJudge(name.removeprefix(HUGGING_FACE), batch_size=batch_size)
    return OwnJudge(load(name), batch_size=batch_size, name=Path(name).name)


class OwnJudge:
    """An autoregressive language model of this library.

    Texts are normalised as its training data was. An end token is not counted: a text does not say whether
    its writer ended it or ran out of room.

    Raises:
      JudgeError: a model of another kind, whose likelihood is only bounded, or one of pairs.
    """

    def __init__(self, model: LoadedModel, *, batch_size: int = 32, name: str = ""):
        config = model.config
        self.name = name or config.name
        if config.process.kind != "autoregressive":
            raise JudgeError(
                f"the judge {self.name} has process.kind={config.process.kind!r}, whose likelihood is only bounded: "
                "give an autoregressive model"
            )
        if config.data.source_length:
            raise JudgeError(
                f"the judge {self.name} is a model of pairs (data.source_length={config.data.source_length}): "
                "give one of running text"
            )
        self._config, self._tokenizer, self._batch_size = config, model.tokenizer, batch_size
        self._score = _scorer(model)

    def nll(self, texts: Sequence[str], *, show_progress: bool = False) -> tuple[float, int]:
        data = self._config.data
        encoded = self._tokenizer.encode_batch([normalize(text, data.normalize) for text in texts])
        windows = [window for ids in encoded for window in _windows(ids, data.target_length)]
        unknown, tokens = sum(text.count(UNK) for text in encoded), sum(map(len, encoded))
        if unknown:
            announce(
                f"judge {self.name}: {unknown:,} of {tokens:,} tokens are unknown to its tokenizer, and what they "
                "stood for is not judged; give a judge with config.tokenizer.lossless=True or of bytes"
            )
        nats = 0.0
        with progress(len(windows), f"judge {self.name}", enabled=show_progress) as bar:
            for ids, used in _batches(windows, self._batch_size, data.target_length):
                nats += float(self._score(ids, used).sum())
                bar.update(int(used.any(1).sum()))
        return nats, tokens


def _scorer(model: LoadedModel) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(tokens, where they are) -> -log p of each, in nats, and 0 behind them."""
    graphdef, params = nnx.split(model.denoiser)

    @jax.jit
    def score(params: Any, process: Any, tokens: jax.Array, used: jax.Array) -> jax.Array:
        # what lies behind a text is no target, and nothing of it is seen
        batch = {"tokens": tokens, "target": used, "valid": used}
        key = jax.random.key(0)  # nothing is drawn of an autoregressive model
        return token_nll(graphdef, params, process, batch, key, model.config)[0]

    return lambda tokens, used: np.asarray(
        score(params, model.process, jnp.asarray(tokens), jnp.asarray(used)), np.float64
    )


class HFJudge:
    """A causal language model of Hugging Face, by its name or folder; runs in torch, on a GPU if torch has one.

    Where the tokenizer has a begin token, windows start with it; otherwise their first token is read and not
    counted. Text behind the first end token is left out, the end token itself counts (as MDLM does).

    Args:
      length: positions of a window, at most as many as the model has.

    Raises:
      JudgeError: torch or transformers is not installed, or the model is neither on disk nor reachable.
    """

    def __init__(self, name: str, *, batch_size: int = 8, length: int = 1024):
        try:
            import torch  # pyright: ignore[reportMissingImports]
            from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise JudgeError(
                f"--judge={HUGGING_FACE}{name} needs torch and transformers ({error}): pip install -e '.[judge]', "
                "or give the working directory of an autoregressive run"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError) as error:  # what transformers raises without a network or for a broken folder
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise JudgeError(
                f"--judge={HUGGING_FACE}{name} cannot be loaded ({reason}): give a folder that holds a causal "
                "language model and its tokenizer, or connect once to download it"
            ) from None
        self.name = Path(name).name
        self._torch, self._device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device).eval()
        room = getattr(model.config, "max_position_embeddings", None) or length
        self._bos, self._length, self._batch_size = self._tokenizer.bos_token_id, min(length, room), batch_size

    def nll(self, texts: Sequence[str], *, show_progress: bool = False) -> tuple[float, int]:
        given = 0 if self._bos is None else 1
        windows = []
        for text in texts:
            for ids in _windows(self._until_end(text), self._length - given):
                windows.append([self._bos] * given + ids)
        windows = [ids for ids in windows if len(ids) > 1]
        nats, tokens = 0.0, 0
        with progress(len(windows), f"judge {self.name}", enabled=show_progress) as bar:
            for ids, used in _batches(windows, self._batch_size, None):
                nats += self._score(ids, used)
                tokens += int(used[:, 1:].sum())
                bar.update(int(used.any(1).sum()))
        return nats, tokens

    def _until_end(self, text: str) -> list[int]:
        ids = [int(id) for id in self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        end = self._tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _score(self, ids: np.ndarray, used: np.ndarray) -> float:
        torch = self._torch
        with torch.inference_mode():
            tokens, mask = (torch.from_numpy(a.astype(np.int64)).to(self._device) for a in (ids, used))
            logits = self._model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
            return float((losses.double() * mask[:, 1:]).sum())


def _windows(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), length):
        yield list(ids[start : start + length])


def _batches(
    windows: Sequence[Sequence[int]], size: int, length: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Right-padded (b, l) tokens and where they are, `size` rows at a time.

    With a `length` every batch has the same shape, filled up with empty rows, for one compilation.
    """
    for start in range(0, len(windows), size):
        part = windows[start : start + size]
        shape = (len(part), max(map(len, part))) if length is None else (size, length)
        tokens, used = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, ids in enumerate(part):
            tokens[row, : len(ids)], used[row, : len(ids)] = ids, True
        yield tokens, used
