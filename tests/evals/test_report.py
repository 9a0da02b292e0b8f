"""Metrics of rows, means over them, the report's layout, the table and the per-example file."""

import json
import math
from dataclasses import replace

import pytest

from dimba_jax.data.examples import DataError, Example
from dimba_jax.evals.bleu import Ngrams, sentence_bleu
from dimba_jax.evals.metrics import distinct, ibleu, rouge_l, self_bleu
from dimba_jax.evals.records import make_records, pooled, read_records
from dimba_jax.evals.report import METRICS, evaluate_outputs, make_report, report_json, score_rows
from dimba_jax.evals.table import format_table

EXAMPLES = [
    Example("How do I cook rice?", ("What is the way to cook rice?",), 0),
    Example("Why is the sky blue?", ("What makes the sky blue?", "Why does the sky look blue?"), 1),
]
CANDIDATES = [
    ("how to cook rice ?", "what is a way to cook rice ?", "what is the way to cook it ?"),
    ("why is sky blue ?", "what is the sky ?", "why is the sky so blue ?"),
]


def test_rouge_l_by_hand():
    # longest common subsequence a c d: precision 3/4, recall 3/5
    assert rouge_l("a c x d", ["a b c d e"]) == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert rouge_l("a b", ["x y", "a b"]) == 1.0  # the best reference counts
    assert rouge_l("running", ["run"]) == 0.0  # no stemmer


def test_distinct_and_self_bleu_by_hand():
    assert distinct([Ngrams.of("a b a".split())], 1) == pytest.approx(2 / 3)
    assert distinct([Ngrams.of("a b c d e".split()), Ngrams.of("a b c d".split())], 4) == pytest.approx(2 / 3)
    assert distinct([Ngrams.of([])], 1) == 0.0
    assert self_bleu([[1, 0.2, 0.3], [0.9, 1, 0.4], [0.8, 0.7, 1]]) == pytest.approx(0.3)  # pairs i < j only
    assert ibleu(0.2619, 1.0) == pytest.approx(0.00952)


def test_layout_of_the_report():
    report = evaluate_outputs(EXAMPLES, CANDIDATES, {"why is the SKY  blue?"}, mbr=(1, 3), network_calls=50)
    assert list(report) == ["split", "rows", "systems", "unseen_rows", "unseen", "metadata"]
    assert (report["split"], report["rows"], report["unseen_rows"]) == ("test", 2, 1)
    assert list(report["systems"]) == list(report["unseen"]) == ["model", "model_mbr3", "copy"]
    for scores in report["systems"].values():
        assert tuple(scores) == (*METRICS, "sari")  # the second row has two references
    model, mbr3, copy = report["systems"].values()
    assert (model["network_calls"], mbr3["network_calls"], copy["network_calls"]) == (50, 150, 0)
    assert copy["bleu_source"] == 1.0
    assert copy["self_bleu"] is None and copy["div4"] is None
    assert 0 < model["self_bleu"] < 1 and 0 < model["div4"] <= 1
    for scores in report["systems"].values():
        assert scores["ibleu"] == pytest.approx(0.8 * scores["bleu"] - 0.2 * scores["bleu_source"], abs=2e-6)
    assert json.loads(report_json(report)) == report


def test_each_text_is_counted_once(monkeypatch):
    """MBR compares every sample with every other: counting n-grams for each pair would take minutes, not seconds."""
    counted, count = [], Ngrams.of
    monkeypatch.setattr(Ngrams, "of", lambda words: counted.append(" ".join(words)) or count(words))
    records = make_records(EXAMPLES, CANDIDATES, None)
    score_rows(records, (1, 3))
    texts = [text for r in records for text in (r.source, *r.references, *r.samples)]
    assert len(counted) == len(texts) == 11


def test_the_output_is_the_hypothesis_in_every_bleu():
    """BLEU punishes only short hypotheses, so a long output and a short one tell the two sides apart."""
    [row] = score_rows(make_records([Example("a b c d", ("a b c d e f",), 0)], [["a b c d e f g h", "a b c d"]], None))
    model, copy = row.systems["model"], row.systems["copy"]
    assert model["bleu"] == pytest.approx(math.prod([6 / 8, 5 / 7, 4 / 6, 3 / 5]) ** 0.25)
    assert model["bleu_source"] == pytest.approx(math.prod([4 / 8, 3 / 7, 2 / 6, 1 / 5]) ** 0.25)
    assert model["self_bleu"] == pytest.approx(math.prod([4 / 8, 3 / 7, 2 / 6, 1 / 5]) ** 0.25)
    assert copy["bleu"] == pytest.approx(math.exp(1 - 6 / 4))


def test_mbr_takes_samples_as_hypotheses():
    # the short one is all in the long one, but pays for its brevity: exp(1 - 8/4) against (4/8 3/7 2/6 1/5)^(1/4)
    [row] = score_rows(make_records([Example("x", ("y",), 0)], [["a b c d e f g h", "a b c d"]], None), (2,))
    assert row.chosen[2] == 1


def test_single_sample_has_no_diversity():
    report = evaluate_outputs(EXAMPLES, [texts[:1] for texts in CANDIDATES])
    assert list(report["systems"]) == ["model", "copy"]
    assert report["systems"]["model"]["self_bleu"] is None
    assert report["systems"]["model"]["div4"] is None
    assert report["systems"]["model"]["network_calls"] is None
    assert report["unseen"] is None and report["unseen_rows"] is None


def test_model_is_the_first_sample_and_mbr_another():
    rows = score_rows(make_records(EXAMPLES, CANDIDATES, None), (1, 3))
    assert [dict(row.chosen) for row in rows] == [{1: 0, 3: 1}, {1: 0, 3: 2}]
    alone = evaluate_outputs(EXAMPLES, [[texts[row.chosen[3]]] for texts, row in zip(CANDIDATES, rows, strict=True)])
    both = make_report(rows, "test")
    for metric in ("bleu", "rouge_l", "ibleu", "bleu_source", "dist1", "length"):
        assert both["systems"]["model_mbr3"][metric] == alone["systems"]["model"][metric]


def test_case_and_punctuation_do_not_count():
    report = evaluate_outputs([Example("x", ("Où is it, exactly?",), 0)], [["ou is it , EXACTLY ?"]])
    assert report["systems"]["model"]["bleu"] == 1.0
    assert report["systems"]["model"]["length"] == 6


def test_unseen_rows_are_those_with_neither_side_in_training():
    examples = [Example("a b", ("c d",), 0), Example("e f", ("g h",), 1), Example("i j", ("k l",), 2)]
    records = make_records(examples, None, ["A  b", "nothing", "g H\n"])
    assert [record.unseen for record in records] == [False, False, True]
    none_left = evaluate_outputs(examples, None, ["a b", "e f", "i j"])
    assert none_left["unseen_rows"] == 0
    assert none_left["unseen"]["copy"]["bleu"] is None


def test_means_are_over_rows():
    report = evaluate_outputs(EXAMPLES, CANDIDATES)
    single = [evaluate_outputs([e], [c])["systems"]["model"] for e, c in zip(EXAMPLES, CANDIDATES, strict=True)]
    for metric in ("bleu", "rouge_l", "dist1", "self_bleu", "div4", "length"):
        assert report["systems"]["model"][metric] == pytest.approx(sum(s[metric] for s in single) / 2, abs=2e-6)


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="1 sets of samples for 2 examples"):
        evaluate_outputs(EXAMPLES, CANDIDATES[:1])
    with pytest.raises(ValueError, match="mbr=10: 3 samples"):
        evaluate_outputs(EXAMPLES, CANDIDATES, mbr=(10,))
    with pytest.raises(ValueError, match="row 1 has 2 samples"):
        evaluate_outputs(EXAMPLES, [CANDIDATES[0], CANDIDATES[1][:2]])
    with pytest.raises(ValueError, match="no rows"):
        evaluate_outputs([], [])


def test_mbr_by_ibleu_takes_what_copies_less():
    """Two pairs of samples agree as well with the other pair; the first one is the source itself."""
    source, other = "how do i cook the rice", "which way is the rice cooked"
    records = make_records([Example(source, ("which way is rice cooked",), 0)], [(source, source, other, other)], None)
    by_bleu, by_ibleu = score_rows(records, (4,))[0], score_rows(records, (4,), gain="ibleu")[0]
    assert by_bleu.chosen == {1: 0, 4: 0} and by_ibleu.chosen == {1: 0, 4: 2}
    assert list(by_ibleu.systems) == ["model", "model_mbr4_ibleu", "copy"]
    assert by_ibleu.systems["model"] == by_bleu.systems["model"]
    scores = by_ibleu.systems["model_mbr4_ibleu"]
    bleu = sentence_bleu(Ngrams.of(other.split()), [Ngrams.of(source.split())])
    assert (
        scores["bleu_source"] == pytest.approx(bleu)
        and scores["self_bleu"] == by_bleu.systems["model_mbr4"]["self_bleu"]
    )
    # one that agrees better with the rest is taken, though it copies somewhat more
    near = make_records([Example("a b c d e f", ("x",), 0)], [("a b c d x y", "a b c d x z", "g h i j k l")], None)
    assert score_rows(near, (3,), gain="ibleu")[0].chosen[3] == 0
    with_bertscore = score_rows(records, (4,), gain="ibleu", bertscore=lambda outputs, references: [0.5])
    assert with_bertscore[0].systems["model_mbr4_ibleu"]["bertscore"] == 0.5


def test_bertscore_is_one_more_metric_of_every_system():
    def length_ratio(outputs, references):
        return [len(output) / len(texts[0]) for output, texts in zip(outputs, references, strict=True)]

    rows = score_rows(make_records(EXAMPLES, CANDIDATES, None), (1, 3), bertscore=length_ratio)
    report = make_report(rows, "test")
    expected = [len(e.source) / len(e.targets[0]) for e in EXAMPLES]
    assert report["systems"]["copy"]["bertscore"] == pytest.approx(sum(expected) / 2, abs=1e-6)
    expected = [len(c[r.chosen[3]]) / len(e.targets[0]) for e, c, r in zip(EXAMPLES, CANDIDATES, rows, strict=True)]
    assert report["systems"]["model_mbr3"]["bertscore"] == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert "BERTScore" in format_table(report)


def test_table_is_aligned():
    report = evaluate_outputs(EXAMPLES, CANDIDATES, ["why is the sky blue?"], mbr=(1, 3), network_calls=2000)
    lines = [line for line in format_table(report).splitlines() if line]
    assert len(lines) == 2 * (2 + 3)
    assert len({len(line) for line in lines}) == 1  # right-aligned figures end in one column
    assert "-" in lines[4].split()  # the copy baseline has no self-BLEU
    assert "BERTScore" not in lines[0]


def test_records_survive_the_file(tmp_path):
    records = make_records(EXAMPLES, CANDIDATES, ["why is the sky blue?"], 50)
    rows = score_rows(records, (1, 3))
    path = tmp_path / "x.jsonl"
    path.write_text("".join(row.to_line() + "\n" for row in rows))
    assert read_records(path) == records
    assert json.loads(path.read_text().splitlines()[1])["chosen"] == {"1": 0, "3": 2}


def test_pooled_records_take_turns():
    """a0 b0 "" b1 b2: a row is unseen only where it is for all, and calls are known only if they agree."""
    ours = make_records(EXAMPLES, [("a0", ""), ("c0", "c1")], ["nothing"], 16)
    theirs = make_records(EXAMPLES, [("b0", "b1", "b2"), ("d0", "d1", "d2")], [EXAMPLES[0].source], 16)
    found = pooled([ours, theirs], ["ours", "theirs"])
    assert [record.samples for record in found] == [("a0", "b0", "", "b1", "b2"), ("c0", "d0", "c1", "d1", "d2")]
    assert [record.unseen for record in found] == [False, True]
    assert [record.network_calls for record in found] == [16, 16]
    assert pooled([ours], ["ours"]) == ours
    assert pooled([ours, theirs], ["ours", "theirs"], 3)[1].samples == ("c0", "d0", "c1")
    three = pooled([ours, theirs, ours], ["ours", "theirs", "others"])
    assert three[1].samples == ("c0", "d0", "c0", "c1", "d1", "c1", "d2")
    calls = pooled([ours, [replace(record, network_calls=27) for record in theirs]], ["ours", "theirs"])
    assert [record.network_calls for record in calls] == [None, None]
    untold = [replace(record, unseen=None) for record in theirs]
    assert {record.unseen for record in pooled([untold, untold], ["a", "b"])} == {None}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda records: records[:1],
            "theirs has 1 rows, ours 2: pool evaluations of one split, with the same --limit",
        ),
        (lambda records: [records[0], replace(records[1], row=7)], "theirs:2: another row"),
        (lambda records: [replace(records[0], source="another"), records[1]], "theirs:1: another row"),
        (lambda records: [replace(records[0], references=("another",)), records[1]], "theirs:1: another row"),
        (lambda records: [replace(record, samples=()) for record in records], "theirs holds no samples"),
        (
            lambda records: [replace(record, unseen=True) for record in records],
            "ours does not tell unseen rows, theirs",
        ),
    ],
)
def test_records_that_cannot_be_pooled(change, message):
    ours = make_records(EXAMPLES, CANDIDATES, None)
    with pytest.raises(DataError, match=message):
        pooled([ours, change(ours)], ["ours", "theirs"])


GOOD = '{"row": 0, "source": "a", "references": ["b"], "samples": ["c"]}'


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"row": 0, "source": "a", "references": ["b"]}', "has no 'samples'"),
        (GOOD.replace('"a"', "3"), "'source' is 3: expected str"),
        (GOOD.replace('["c"]', "[1]"), "'samples' holds 1"),
        (GOOD.replace('["b"]', "[]"), "'references' is empty"),
        (GOOD.replace('["c"]', '["c", "d"]'), "has 2 samples where line 1 has 1"),
        (GOOD.replace("}", ', "unseen": "no"}'), "'unseen' is 'no': expected bool"),
    ],
)
def test_malformed_records_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(DataError, match=r"x\.jsonl:2: ") as error:
        read_records(path)
    assert message in str(error.value)


def test_scores_are_finite_for_empty_outputs():
    report = evaluate_outputs(EXAMPLES, [("", ""), ("", "x")])
    model = report["systems"]["model"]
    assert all(value is None or math.isfinite(value) for value in model.values())
    assert model["bleu"] == model["length"] == model["dist1"] == 0.0
