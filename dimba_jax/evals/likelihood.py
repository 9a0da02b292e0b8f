"""The likelihood of texts under a model, beside codes that know less: the report of `evaluate --task=likelihood`.

No figure stands alone. The same text is scored by the frequencies of its own tokens and bytes, by those of the
training text, and by two compressors; all of them, as the model, in nats a token and in bits a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dimba_jax.config import ConfigError, DataConfig
from dimba_jax.data.rows import encode_split
from dimba_jax.data.tokenizers import Tokenizer
from dimba_jax.diffusion.masked import FULL_RANGE
from dimba_jax.errors import UserError
from dimba_jax.evals.baselines import byte_nats, compressed_nats, figures, unigram_nats
from dimba_jax.evals.estimate import EXACT, Estimator, with_block_size
from dimba_jax.evals.table import format_blocks
from dimba_jax.evals.texts import ScoredText, all_rows, counted_ids
from dimba_jax.sampling.load import LoadedModel

COLUMNS = {
    "nats_per_token": "nats/token", "nats_per_token_se": "±", "ppl": "PPL", "ppl_word": "PPL/word",
    "bits_per_byte": "bits/byte", "bits_per_byte_se": "±", "bits_per_character": "bits/char",
}  # fmt: skip
DECIMALS = {"ppl": 2, "ppl_word": 1}
BASELINES = {
    "unigram": "its tokens' own frequencies", "training": "frequencies of training", "bytes": "its bytes' frequencies",
    "gzip": "gzip -9", "xz": "xz -9e",
}  # fmt: skip
OTHER_BLOCKS = "*"


def check_model(model: LoadedModel, block_sizes: Sequence[int | None]) -> None:
    """Refuses what cannot be scored, before anything is read.

    Raises:
      ConfigError: a Gaussian model, or a block size the model cannot be scored at.
    """
    if model.config.process.kind == "gaussian":
        raise ConfigError(
            "this checkpoint has process.kind='gaussian': its loss in the space of embeddings bounds no likelihood of "
            "tokens. Take one of kind 'masked' or 'autoregressive', or --task=seq2seq"
        )
    for size in block_sizes:
        with_block_size(model.config, size)


def likelihood_report(
    model: LoadedModel,
    texts: Sequence[ScoredText],
    *,
    draws: int,
    seed: int = 0,
    batch_size: int = 32,
    block_sizes: Sequence[int | None] = (None,),
    training: Int[np.ndarray, " v"] | str = "not asked for",
    metadata: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Scores texts, each at every block size, and their baselines.

    {"task", "value": "exact" or "bound", "draws" (of every row), "time_range" (of a bound: always the full one,
    whatever training drew from), "seed", "row_length", "trained_block_size", "normalize", "lossless" (whether the
    tokenizer gives texts back as they were), "training_unigram" ("given", or why not), "texts", "metadata"}.
    Of a text: name, rows, tokens (end tokens included), words, bytes, characters, unknown_tokens, "model": a
    list of figures, one for each block size, and "baselines": figures by name. The figures are those of
    `baselines.figures`; the loss of padding behind an end token, where the model learns it, is in them.

    Args:
      block_sizes: None is the model's own, 0 the whole row at once.
      training: frequencies of the training text's tokens, or why there are none.

    Raises:
      ConfigError: see `check_model`.
    """
    check_model(model, block_sizes)
    process, tokenizer = model.config.process, model.tokenizer
    exact = process.kind == EXACT
    known = not isinstance(training, str)
    out = []
    estimators = [(process.block_size if size is None else size, Estimator(model, size)) for size in block_sizes]
    for text in texts:
        found = []
        for size, estimator in estimators:
            value = estimator(text.rows, draws=draws, seed=seed, batch_size=batch_size, show_progress=show_progress)
            found.append({"block_size": size} | figures(value.nats, text.counts, value.standard_error))
        counts = text.counts
        out.append({
            "name": text.name, "rows": len(text), "tokens": counts.tokens, "words": counts.words,
            "bytes": counts.bytes, "characters": counts.characters, "unknown_tokens": text.unknown,
            "model": found,
            "baselines": _baselines(text, tokenizer.vocab_size, training if known else None),
        })  # fmt: skip
    return {
        "task": "likelihood",
        "value": "exact" if exact else "bound",
        "draws": 1 if exact else draws,
        "time_range": None if exact else list(FULL_RANGE),
        "seed": None if exact else seed,
        "row_length": model.config.data.target_length,
        "trained_block_size": process.block_size,
        "normalize": model.config.data.normalize,
        "lossless": tokenizer.lossless,
        "training_unigram": "given" if known else training,
        "texts": out,
        "metadata": dict(metadata or {}),
    }


def training_frequencies(config: DataConfig, tokenizer: Tokenizer) -> Int[np.ndarray, " v"] | str:
    """How often each token stands in the targets of the training split, or why that cannot be said."""
    try:
        rows, _ = encode_split(config, tokenizer, "train")
    except (UserError, OSError) as error:
        return str(error)
    return np.bincount(counted_ids(all_rows(rows)), minlength=tokenizer.vocab_size)


def _baselines(text: ScoredText, vocab_size: int, training: Int[np.ndarray, " v"] | None) -> dict[str, Any]:
    nats = {"unigram": unigram_nats(text.ids, vocab_size)}
    if training is not None:
        nats["training"] = unigram_nats(text.ids, vocab_size, training)
    nats |= {"bytes": byte_nats(text.text), **compressed_nats(text.text)}
    return {
        name: {k: v for k, v in figures(value, text.counts).items() if "_se" not in k} for name, value in nats.items()
    }


def format_likelihood_table(report: Mapping[str, Any]) -> str:
    """A line for each text and block size, the baselines of each text below, and what there is to know of them."""
    several = any(len(text["model"]) > 1 for text in report["texts"])
    model, baselines = {}, {}
    for text in report["texts"]:
        for found in text["model"]:
            size = found["block_size"]
            blocks = f", blocks of {size}" if size else ", no blocks" if several else ""
            model[text["name"] + blocks + OTHER_BLOCKS * (not _as_trained(size, report))] = found
        for name, title in BASELINES.items():
            if name in text["baselines"]:
                baselines[f"{text['name']}: {title}"] = dict.fromkeys(COLUMNS) | text["baselines"][name]
    title = "exact" if report["value"] == "exact" else f"bound, {report['draws']} draws"
    table = format_blocks({title: model, "without a model": baselines}, COLUMNS, DECIMALS)
    return "\n".join([table, *_notes(report)])


def _as_trained(block_size: int, report: Mapping[str, Any]) -> bool:
    """A block of the whole row is the same as none."""
    length = report["row_length"]
    return (block_size or length) == (report["trained_block_size"] or length)


def _notes(report: Mapping[str, Any]) -> list[str]:
    out = []
    if report["value"] == "bound":
        out.append(f"±: one standard error over the draws, not over texts; times are of {report['time_range']}.")
    if not all(_as_trained(found["block_size"], report) for text in report["texts"] for found in text["model"]):
        own = report["trained_block_size"]
        trained = f"blocks of {own}" if own else "no blocks"
        out.append(f"{OTHER_BLOCKS} trained with {trained}: the bound holds, but it is not the one training tightened.")
    if report["training_unigram"] != "given":
        out.append(f"No frequencies of training: {report['training_unigram']}")
    if not report["lossless"]:
        out.append("The tokenizer loses blanks or rare characters: bytes and characters are of what it keeps.")
    if report["normalize"] != "none":
        out.append(f"All figures are of the texts after normalize={report['normalize']!r}.")
    for text in report["texts"]:
        if text["unknown_tokens"]:
            out.append(f"{text['name']}: {text['unknown_tokens']:,} tokens are unknown, and cost too little.")
    return out


def print_likelihood_table(report: Mapping[str, Any]) -> None:
    """Prints `format_likelihood_table`."""
    print(format_likelihood_table(report), flush=True)
