"""BERTScore (Zhang et al., 2020), optional: neither the package nor its weights come with the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dimba_jax.errors import UserError

MODEL = "microsoft/deberta-xlarge-mnli"


class BertScoreError(UserError, RuntimeError):
    """The package or the weights of BERTScore cannot be had."""


def load_bertscore(model: str = MODEL) -> Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]:
    """A function (outputs, references of each) -> F1 of each output, without baseline rescaling.

    Raises:
      BertScoreError: `bert_score` is not installed, or the weights are neither cached nor reachable.
    """
    try:
        from bert_score import BERTScorer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BertScoreError(
            f"BERTScore needs the package bert-score ({error}): pip install -e '.[bertscore]', or leave --bertscore out"
        ) from None
    try:
        scorer = BERTScorer(model_type=model, lang="en", rescale_with_baseline=False)
    except (OSError, ValueError) as error:  # what transformers raises without a network or for a broken cache
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BertScoreError(
            f"BERTScore cannot load the weights {model} ({reason}): connect once to download them (3 GB), "
            "or leave --bertscore out"
        ) from None

    def score(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        _, _, f1 = scorer.score(list(outputs), [list(texts) for texts in references])
        return [float(value) for value in f1]

    return score
