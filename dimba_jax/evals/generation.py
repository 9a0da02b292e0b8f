"""Quality of unconditional text: generative perplexity, and beside it what betrays a sampler that buys it cheaply.

A low generative perplexity alone says nothing: text that repeats itself has one. So the entropy of its tokens,
its distinct n-grams and its repetitions always stand beside it, and below them the same figures of real text,
cut to the same lengths, for all of them depend on length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dimba_jax.config import RunConfig
from dimba_jax.data.examples import Split
from dimba_jax.data.rows import encode_split
from dimba_jax.data.tokenizers import Tokenizer
from dimba_jax.evals.bleu import Ngrams
from dimba_jax.evals.metrics import distinct
from dimba_jax.evals.table import format_blocks

if TYPE_CHECKING:
    from dimba_jax.evals.judge import Judge

MODEL, REAL = "model", "real text"
COLUMNS = {
    "gen_ppl": "gen-PPL", "entropy": "entropy", "distinct1": "dist-1", "distinct2": "dist-2", "distinct3": "dist-3",
    "distinct4": "dist-4", "repetition": "rep-4", "longest_repeat": "longest rep.", "mauve": "MAUVE",
    "length": "tokens", "texts": "texts",
}  # fmt: skip
CUT_CHARACTER = "\ufffd"  # what is left of a character whose bytes were cut in two
DECIMALS = {"gen_ppl": 2, "entropy": 3, "longest_repeat": 1, "length": 1, "texts": 0}

Mauve = Callable[[Sequence[str], Sequence[str]], float]
Figures = dict[str, float | None]


def reference_texts(
    config: RunConfig, tokenizer: Tokenizer, split: Split = "valid", count: int | None = None
) -> list[str]:
    """Real text as the model knows it: the targets of rows of a split, each up to its first end token.

    Args:
      count: rows, evenly over the split; None or more than there are: all of them.

    Raises:
      DataError: see `dimba_jax.data.rows.encode_split`.
    """
    rows, _ = encode_split(config.data, tokenizer, split)
    taken = len(rows) if count is None else min(count, len(rows))
    at = np.linspace(0, len(rows), taken, endpoint=False).astype(int)
    return [tokenizer.decode([int(id) for id in row]) for row in rows.tokens[at, rows.source_length :]]


def generation_report(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    judge: Judge | None,
    tokenizer: Tokenizer,
    mauve: Mauve | None = None,
    split: str = "valid",
    metadata: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Scores texts, and as many real ones cut to their lengths.

    {"task", "split", "judge", "real_length", "systems": {"model": figures, "real text": figures}, "metadata"}.
    "real_length" is the mean length, in tokens, of the real texts before they are cut. The figures:
    gen_ppl, the exponential of the judge's log-loss a token; entropy, see `unigram_entropy`; distinct1-4,
    distinct n-grams of words over all of them, all texts together; repetition and longest_repeat, of words;
    mauve; length, mean tokens; texts, their number. One that cannot be computed is None.

    Args:
      texts: what a model wrote, each up to its end token.
      references: real texts; with fewer than `texts` the row of real text says how many.
      judge: None leaves the perplexity out.
      tokenizer: the model's; entropy and length are in its tokens.

    Raises:
      ValueError: there are no texts or no references.
    """
    if not texts or not references:
        raise ValueError(f"{len(texts)} texts and {len(references)} real ones: give at least one of each")
    lengths = [len(ids) for ids in tokenizer.encode_batch(references)]
    real = cut_alike(references, texts, tokenizer)
    systems = {}
    for name, these in {MODEL: texts, REAL: real}.items():
        figures = text_figures(these, tokenizer)
        nats, tokens = (0.0, 0) if judge is None else judge.nll(these, show_progress=show_progress)
        ppl = math.exp(nats / tokens) if tokens else None
        systems[name] = {"gen_ppl": ppl} | figures
    if mauve is not None:
        systems[MODEL]["mauve"], systems[REAL]["mauve"] = mauve(texts, real), None
    return {
        "task": "generation",
        "split": split,
        "judge": None if judge is None else judge.name,
        "real_length": sum(lengths) / len(lengths),
        "systems": {name: {key: _rounded(value) for key, value in s.items()} for name, s in systems.items()},
        "metadata": dict(metadata or {}),
    }


def cut_alike(references: Sequence[str], texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The first of the references, as many as there are texts, none longer in tokens than the text of its rank.

    The longest meets the longest, and so on: where both have the same lengths, nothing much is cut.
    """
    encoded = tokenizer.encode_batch(references[: len(texts)])
    room = sorted((len(ids) for ids in tokenizer.encode_batch(texts)), reverse=True)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    # fewer references than texts: they stand for all ranks, not for the longest alone
    room = [room[rank * len(room) // len(order)] for rank in range(len(order))]
    cut = {i: tokenizer.decode(encoded[i][:length]) for i, length in zip(order, room, strict=True)}
    return [cut[i].rstrip(CUT_CHARACTER) for i in range(len(encoded))]


def text_figures(texts: Sequence[str], tokenizer: Tokenizer) -> Figures:
    """The figures that need no judge, means over texts.

    Tokens are those of the text read again: bytes that a model wrote and that form no character count as the
    replacement character, three bytes.
    """
    ids = tokenizer.encode_batch(texts)
    words = [text.split() for text in texts]
    ngrams = [Ngrams.of(line) for line in words]
    return {
        "entropy": _mean([unigram_entropy(tokens) for tokens in ids]),
        **{f"distinct{n}": distinct(ngrams, n) for n in range(1, 5)},
        "repetition": _mean([repetition(line) for line in words]),
        "longest_repeat": _mean([longest_repeat(line) for line in words]),
        "length": _mean([len(tokens) for tokens in ids]),
        "texts": len(texts),
    }


def unigram_entropy(tokens: Sequence[int]) -> float:
    """-sum f ln f over the frequencies f of a text's own tokens, in nats (as ReMDM, arXiv 2503.00307, reports it).

    0 if a text has one token over and over, or none; ln(length) if no token comes twice.
    """
    total = len(tokens)
    return math.fsum(n / total * math.log(total / n) for n in Counter(tokens).values())


def repetition(words: Sequence[str], n: int = 4) -> float:
    """The share of a text's n-grams that stood in it before (rep-n of Welleck et al., 2020), in [0, 1]."""
    total = len(words) - n + 1
    return 1.0 - len({tuple(words[i : i + n]) for i in range(total)}) / total if total > 0 else 0.0


def longest_repeat(words: Sequence[str]) -> int:
    """Words of the longest passage that stands in a text twice; the two may overlap."""

    def repeats(length: int) -> bool:
        seen = set()
        for i in range(len(words) - length + 1):
            passage = tuple(words[i : i + length])
            if passage in seen:
                return True
            seen.add(passage)
        return False

    # whatever repeats, repeats in part: halve the interval of what is possible
    low, high = 0, max(len(words) - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if repeats(middle) else (low, middle - 1)
    return low


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, 6)


def format_generation_table(report: Mapping[str, Any]) -> str:
    """The two rows of figures, aligned."""
    judge = report["judge"]
    title = f"{report['split']}, " + ("no judge" if judge is None else f"judged by {judge}")
    return format_blocks({title: report["systems"]}, COLUMNS, DECIMALS)


def print_generation_table(report: Mapping[str, Any]) -> None:
    """Prints `format_generation_table`."""
    print(format_generation_table(report), flush=True)
