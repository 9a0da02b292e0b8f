"""The report of an evaluation: every metric of every system, on all rows and on the unseen ones.

BLEU alone says nothing about paraphrase: copying the source scores better than most published models.
So the copy baseline, BLEU against the source and iBLEU stand beside every figure, and the rows neither
of whose sides occurs in the training data are scored once more by themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dimba_jax.data.normalize import normalize
from dimba_jax.evals.bleu import Ngrams, sentence_bleu
from dimba_jax.evals.metrics import distinct, ibleu, rouge_l, self_bleu
from dimba_jax.evals.records import Record, SourceAndTargets, make_records, record_line
from dimba_jax.evals.sari import Edits, edits, sari
from dimba_jax.progress import progress
from dimba_jax.sampling.mbr import Gain, mbr_choice

METRICS = ("bleu", "rouge_l", "ibleu", "bleu_source", "dist1", "self_bleu", "div4", "length", "network_calls")
MBR_SIZES = (1, 3, 10)

BertScore = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]
Scores = dict[str, float | None]


@dataclass(frozen=True)
class ScoredRow:
    """A record, the sample that decoding over k samples takes from it, and each system's scores."""

    record: Record
    chosen: Mapping[int, int]
    systems: Mapping[str, Scores]
    edits: Mapping[str, Edits]  # of each system, for SARI; empty where it is not scored
    gain: Gain = "bleu"  # what the choice was by

    def to_line(self) -> str:
        """A line of the per-example file."""
        bleu = {name: _rounded(scores["bleu"]) for name, scores in self.systems.items()}
        chosen = {str(k): i for k, i in self.chosen.items()}
        return record_line(
            self.record, chosen=chosen, bleu=bleu, **({} if self.gain == "bleu" else {"gain": self.gain})
        )


def evaluate_outputs(
    examples: Sequence[SourceAndTargets],
    candidates: Sequence[Sequence[str]] | None,
    train_texts: Iterable[str] | None = None,
    mbr: Sequence[int] | None = None,
    network_calls: int | None = None,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """Scores samples against examples; the layout is `make_report`'s.

    `candidates` holds the samples of each example (None scores the copy baseline alone), `train_texts` both
    sides of the training and validation pairs (None leaves the unseen rows out), `mbr` the numbers of samples
    to decode over (None: those of 1, 3, 10 that were drawn), `network_calls` those spent on one sample.

    Raises:
      ValueError: examples and candidates do not match, or fewer samples than `mbr` asks for.
    """
    records = make_records(examples, candidates, train_texts, network_calls)
    return make_report(score_rows(records, mbr), split)


def score_rows(
    records: Sequence[Record],
    mbr: Sequence[int] | None = None,
    *,
    gain: Gain = "bleu",
    bertscore: BertScore | None = None,
    show_progress: bool = False,
) -> list[ScoredRow]:
    """Scores every record: "model" is the first sample, "model_mbrK" the choice among the first K.

    The choice has the greatest mean BLEU against the other samples, or, as "model_mbrK_ibleu", the greatest mean iBLEU:
    of samples that agree as well with the others it is the one that copies less of the source.
    Diversity (self_bleu, div4) is over all samples for "model", over the K for "model_mbrK". SARI is scored if any row
    has several references, as those of simplification have.

    Raises:
      ValueError: there are no records, or one has other than the expected number of samples.
    """
    if not records:
        raise ValueError("there are no rows to score")
    sizes = _mbr_sizes(records, mbr)
    with_sari = any(len(record.references) > 1 for record in records)
    rows = []
    with progress(len(records), "score", enabled=show_progress) as bar:
        for record in records:
            rows.append(_score_row(record, sizes, gain, with_sari))
            bar.update(1)
    if bertscore is not None:
        _add_bertscore(rows, bertscore)
    return rows


def _mbr_sizes(records: Sequence[Record], mbr: Sequence[int] | None) -> tuple[int, ...]:
    drawn = len(records[0].samples)
    for record in records:
        if len(record.samples) != drawn:
            raise ValueError(f"row {record.row} has {len(record.samples)} samples, the first row {drawn}")
    if not drawn:
        return ()
    sizes = [k for k in MBR_SIZES if k <= drawn] if mbr is None else [1, *mbr]
    for k in sizes:
        if not 1 <= k <= drawn:
            raise ValueError(f"mbr={k}: {drawn} samples a row were drawn; take from 1 to {drawn}, or draw more")
    return tuple(sorted(set(sizes)))


def _score_row(record: Record, sizes: Sequence[int], gain: Gain, with_sari: bool) -> ScoredRow:
    source = _Text.of(record.source)
    references = [_Text.of(text) for text in record.references]
    samples = [_Text.of(text) for text in record.samples]
    similarity = [[sentence_bleu(i.ngrams, [j.ngrams]) for j in samples] for i in samples]
    gains = similarity
    if gain == "ibleu":
        copied = [sentence_bleu(sample.ngrams, [source.ngrams]) for sample in samples]
        gains = [[ibleu(bleu, of_source) for bleu in line] for line, of_source in zip(similarity, copied, strict=True)]
    chosen = {k: mbr_choice(range(k), lambda i, j: gains[i][j]) for k in sizes}
    systems: dict[str, Scores] = {}
    for k, index in chosen.items():
        among = len(samples) if k == 1 else k
        calls = None if record.network_calls is None else k * record.network_calls
        systems[system_name(k, gain)] = _scores(samples[index], references, source) | {
            "self_bleu": self_bleu([line[:among] for line in similarity[:among]]) if among > 1 else None,
            "div4": distinct([sample.ngrams for sample in samples[:among]], 4) if among > 1 else None,
            "network_calls": calls,
        }
    systems["copy"] = _scores(source, references, source) | {"network_calls": 0}
    outputs = {system_name(k, gain): samples[index] for k, index in chosen.items()} | {"copy": source}
    wanted = [reference.ngrams for reference in references]
    counts = {name: edits(output.ngrams, source.ngrams, wanted) for name, output in outputs.items() if with_sari}
    return ScoredRow(record, chosen, systems, counts, gain)


def system_name(k: int, gain: Gain = "bleu") -> str:
    """The name of the system that decodes over k samples."""
    return "model" if k == 1 else f"model_mbr{k}" + ("" if gain == "bleu" else f"_{gain}")


@dataclass(frozen=True)
class _Text:
    text: str  # BERT-basic: lower case, punctuation spaced
    ngrams: Ngrams

    @classmethod
    def of(cls, text: str) -> _Text:
        text = normalize(text, "bert_basic")
        return cls(text, Ngrams.of(text.split()))


def _scores(output: _Text, references: Sequence[_Text], source: _Text) -> Scores:
    bleu = sentence_bleu(output.ngrams, [reference.ngrams for reference in references])
    bleu_source = sentence_bleu(output.ngrams, [source.ngrams])
    scores: Scores = dict.fromkeys(METRICS)
    return scores | {
        "bleu": bleu,
        "rouge_l": rouge_l(output.text, [reference.text for reference in references]),
        "ibleu": ibleu(bleu, bleu_source),
        "bleu_source": bleu_source,
        "dist1": distinct([output.ngrams], 1),
        "length": output.ngrams.length,
    }


def _add_bertscore(rows: Sequence[ScoredRow], bertscore: BertScore) -> None:
    references = [row.record.references for row in rows]
    names = {system_name(k, rows[0].gain): k for k in rows[0].chosen}
    for system in rows[0].systems:
        outputs = [
            row.record.samples[row.chosen[names[system]]] if system in names else row.record.source for row in rows
        ]
        for row, value in zip(rows, bertscore(outputs, references), strict=True):
            row.systems[system]["bertscore"] = value


def make_report(rows: Sequence[ScoredRow], split: str, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Means over rows: {"split", "rows", "systems": {name: metrics}, "unseen_rows", "unseen", "metadata"}.

    SARI is no mean: it is of the rows' counts together.
    A figure that cannot be computed (self_bleu of a single sample; anything of no rows) is None, never 0.
    "unseen" is None if it is not known which rows are unseen.
    """
    known = all(row.record.unseen is not None for row in rows)
    unseen = [row for row in rows if row.record.unseen]
    return {
        "split": split,
        "rows": len(rows),
        "systems": _means(rows, rows[0]),
        "unseen_rows": len(unseen) if known else None,
        "unseen": _means(unseen, rows[0]) if known else None,
        "metadata": dict(metadata or {}),
    }


def _means(rows: Sequence[ScoredRow], like: ScoredRow) -> dict[str, Scores]:
    """Of the systems and metrics that the row `like` has."""
    means: dict[str, Scores] = {
        name: {metric: _mean([row.systems[name][metric] for row in rows]) for metric in metrics}
        for name, metrics in like.systems.items()
    }
    for name in like.edits:
        means[name]["sari"] = _rounded(sari(np.sum([row.edits[name] for row in rows], axis=0))) if rows else None
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return _rounded(math.fsum(numbers) / len(numbers)) if numbers and len(numbers) == len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def report_json(report: Mapping[str, Any]) -> str:
    """The report as the text of its file."""
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"
