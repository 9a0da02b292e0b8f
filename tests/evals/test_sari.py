"""SARI against published figures, by hand, and where a report has it."""

import pytest

from dimba_jax.data.examples import Example
from dimba_jax.evals.bleu import Ngrams
from dimba_jax.evals.report import METRICS, evaluate_outputs
from dimba_jax.evals.sari import edits, sari
from dimba_jax.evals.table import format_table

# the example of EASSE's README: corpus_sari gives 33.17472563619544 in all
SPECIES = Example(
    "About 95 species are currently accepted.",
    (
        "About 95 species are currently known.",
        "About 95 species are now accepted.",
        "95 species are now accepted.",
    ),
    0,
)
CAT = Example("The cat perched on the mat.", ("The cat sat on the mat.", "The cat is on the mat.", "The cat sat."), 1)
OUTPUTS = [["About 95 you now get in."], ["Cat on mat."]]


def test_a_published_figure():
    report = evaluate_outputs([SPECIES, CAT], OUTPUTS, ["The cat perched on the mat."])
    assert report["systems"]["model"]["sari"] == pytest.approx(0.3317472563619544, abs=1e-6)
    assert report["unseen"]["model"]["sari"] == pytest.approx(0.313502, abs=1e-6)  # of the first row alone
    assert "SARI" in format_table(report)


def score(output, source, *references):
    return sari(counts(output, source, *references))


def counts(output, source, *references):
    return edits(ngrams(output), ngrams(source), [ngrams(reference) for reference in references])


def ngrams(text):
    return Ngrams.of(text.split())


def test_by_hand():
    # 1: adds x of x y, 2 * 1 / (1 + 2); keeps a b of a b, and c, 2 * 2 / (3 + 2); deletes d of c d, 2 * 1 / (1 + 2)
    # 2: (c x) of (b x) (x y); (a b) of (a b), and (b c); (c d) of (b c) (c d)
    # 3: (b c x) of (a b x) (b x y); (a b c) of none; (b c d) of (a b c) (b c d)
    # 4: (a b c x) of (a b x y); nothing to keep; (a b c d) of (a b c d)
    add = (2 / 3, 0, 0, 0)
    keep = (4 / 5, 2 / 3, 0, 0)
    delete = (2 / 3, 2 / 3, 2 / 3, 1)
    assert score("a b c x", "a b c d", "a b x y") == pytest.approx(sum(add + keep + delete) / 12)


def test_every_reference_counts_for_keeping_and_deleting():
    # a: all want it kept; b: one of two wants it kept, one deleted
    assert counts("a", "a b", "a", "a b")[..., 0].tolist() == [[0, 0, 0], [2, 2, 3], [1, 2, 1]]


def test_a_copy_has_marks_for_keeping_alone():
    assert score("a b c d e", "a b c d e", "a b c d e") == pytest.approx(1 / 3)
    assert score("a b c d e", "f g h i j", "a b c d e") == pytest.approx(2 / 3)  # adds and deletes all it should
    report = evaluate_outputs([SPECIES, CAT], None)
    copied = [score(e.source, e.source, *e.targets) for e in (SPECIES, CAT)]
    assert 0 < report["systems"]["copy"]["sari"] < 1 / 3 and all(value < 1 / 3 for value in copied)


def test_a_report_has_it_if_any_row_has_several_references():
    alone = evaluate_outputs([Example("a", ("b",), 0)], [["c"]])
    assert tuple(alone["systems"]["model"]) == METRICS
    assert "SARI" not in format_table(alone)
    mixed = evaluate_outputs([Example("a", ("b",), 0), CAT], [["c"], OUTPUTS[1]])
    assert mixed["systems"]["model"]["sari"] is not None
    none_left = evaluate_outputs([CAT], [OUTPUTS[1]], [CAT.source])
    assert none_left["unseen"]["model"]["sari"] is None and "SARI" in format_table(none_left)


def test_no_reference_is_refused():
    with pytest.raises(ValueError, match="no reference"):
        score("a", "a")


def test_the_sample_that_was_chosen_is_scored():
    samples = ["x y z", "the cat is on the mat .", "the cat sat on the mat ."]  # the first is like no other
    report = evaluate_outputs([CAT], [samples], mbr=(1, 3))
    texts = [text.replace(".", " .").lower() for text in (CAT.source, *CAT.targets)]
    one, chosen = report["systems"]["model"]["sari"], report["systems"]["model_mbr3"]["sari"]
    assert one == pytest.approx(score(samples[0], *texts), abs=1e-6)
    assert any(chosen == pytest.approx(score(text, *texts), abs=1e-6) for text in samples[1:])
    assert chosen > one
