"""MAUVE (Pillutla et al., 2021), optional: neither the package nor its weights come with the project."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from dimba_jax.errors import UserError

MODEL = "gpt2-large"
MAX_TOKENS = 1024  # of a text, in the features' model


class MauveError(UserError, RuntimeError):
    """The package or the weights of MAUVE cannot be had."""


def load_mauve(model: str = MODEL) -> Callable[[Sequence[str], Sequence[str]], float]:
    """A function (texts, references) -> MAUVE in [0, 1], 1 where the two cannot be told apart.

    Its figures depend on the number of texts (thousands are meant) and on their length: only those of equal
    numbers and lengths can be compared.

    Raises:
      MauveError: `mauve-text` is not installed; when called: the weights are neither cached nor reachable.
    """
    try:
        mauve = importlib.import_module("mauve")  # by its name alone: this file has the same one
    except ImportError as error:
        raise MauveError(
            f"MAUVE needs the package mauve-text ({error}): pip install -e '.[mauve]', or leave --mauve out"
        ) from None

    def score(texts: Sequence[str], references: Sequence[str]) -> float:
        try:
            found = mauve.compute_mauve(
                p_text=list(references),
                q_text=list(texts),
                featurize_model_name=model,
                max_text_length=MAX_TOKENS,
                verbose=False,
            )
        except OSError as error:  # what transformers raises without a network
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise MauveError(
                f"MAUVE cannot load the weights {model} ({reason}): connect once to download them (3 GB), "
                "or leave --mauve out"
            ) from None
        return float(found.mauve)

    return score
