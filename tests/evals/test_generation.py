"""Figures of generated text by hand-computed values, the baseline of real text, the report and its table."""

import json
import math

import pytest

from dimba_jax.config import from_config_dict
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.evals.generation import (
    cut_alike,
    format_generation_table,
    generation_report,
    longest_repeat,
    reference_texts,
    repetition,
    text_figures,
    unigram_entropy,
)
from dimba_jax.evals.report import report_json

BYTES = ByteTokenizer()


class CountingJudge:
    """One nat a character, two for a vowel."""

    name = "counting"

    def nll(self, texts, *, show_progress=False):
        joined = "".join(texts)
        return len(joined) + sum(joined.count(vowel) for vowel in "aeiou"), len(joined)


def test_unigram_entropy_by_hand():
    assert unigram_entropy([5, 5, 5, 5]) == 0.0
    assert unigram_entropy([]) == 0.0
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    # three quarters and one quarter, in nats
    assert unigram_entropy([7, 7, 9, 7]) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_entropy_is_of_each_text_then_averaged():
    """Two texts of one letter each hold nothing; together they would hold ln 2."""
    assert text_figures(["aaaa", "bbbb"], BYTES)["entropy"] == 0.0
    assert text_figures(["aabb", "bbbb"], BYTES)["entropy"] == pytest.approx(math.log(2) / 2)


def test_distinct_counts_all_texts_together():
    figures = text_figures(["a b a", "b a b c"], BYTES)
    assert figures["distinct1"] == pytest.approx(3 / 7)
    assert figures["distinct2"] == pytest.approx(3 / 5)  # ab ba, ba ab bc
    assert figures["distinct3"] == pytest.approx(3 / 3)  # aba, bab abc
    assert figures["distinct4"] == 1.0


def test_repetition_by_hand():
    assert repetition("a b c d e".split()) == 0.0
    # of the seven 4-grams abcd bcda cdab dabc abcd bcda cdab three were there before
    assert repetition("a b c d a b c d a b".split()) == pytest.approx(3 / 7)
    assert repetition("a b a".split()) == 0.0  # too short to hold one
    assert repetition("a b a b".split(), n=2) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "text, longest",
    [("", 0), ("a", 0), ("a b c", 0), ("a b a", 1), ("a b c x a b c", 3), ("a a a a a", 4), ("a b x a b y b x a b", 4)],
)
def test_longest_repeat_by_hand(text, longest):
    assert longest_repeat(text.split()) == longest


def test_perplexity_is_of_all_tokens_together():
    """Long texts weigh more: exp(total nats / total tokens), not a mean of perplexities."""
    report = generation_report(["a", "bcd"], ["xxx", "zzz"], judge=CountingJudge(), tokenizer=BYTES)
    assert report["systems"]["model"]["gen_ppl"] == pytest.approx(math.exp(5 / 4), abs=1e-6)
    assert report["systems"]["real text"]["gen_ppl"] == pytest.approx(math.exp(1.0), abs=1e-6)


def test_real_text_is_cut_to_the_lengths_of_the_texts():
    texts = ["ab", "abcdef", "abcd"]
    references = ["123456789", "12", "12345", "never reached"]
    # the longest meets the longest: 9 -> 6, 5 -> 4, 2 -> 2
    assert cut_alike(references, texts, BYTES) == ["123456", "12", "1234"]
    report = generation_report(texts, references, judge=None, tokenizer=BYTES)
    model, real = report["systems"].values()
    assert (model["length"], model["texts"]) == (4.0, 3) and (real["length"], real["texts"]) == (4.0, 3)
    assert report["real_length"] == pytest.approx((9 + 2 + 5 + 13) / 4)


def test_fewer_real_texts_stand_for_all_lengths():
    assert cut_alike(["x" * 9, "y" * 9], ["a", "ab", "abc", "abcd"], BYTES) == ["xxxx", "yy"]


def test_no_half_character_is_left_by_a_cut():
    assert cut_alike(["aéé"], ["1234"], BYTES) == ["aé"]


def test_no_judge_leaves_a_gap_and_entropy_stays():
    report = generation_report(["ab"], ["cd"], judge=None, tokenizer=BYTES)
    assert report["judge"] is None and report["systems"]["model"]["gen_ppl"] is None
    lines = format_generation_table(report).splitlines()
    assert "no judge" in lines[0] and "entropy" in lines[0] and "gen-PPL" in lines[0]
    assert lines[2].split()[:3] == ["model", "-", "0.693"]


def test_empty_texts_have_no_perplexity():
    model = generation_report(["", ""], ["cd"], judge=CountingJudge(), tokenizer=BYTES)["systems"]["model"]
    assert model["gen_ppl"] is None and model["entropy"] == model["length"] == model["distinct1"] == 0.0
    with pytest.raises(ValueError, match="0 texts and 1 real ones"):
        generation_report([], ["cd"], judge=None, tokenizer=BYTES)


def test_layout_of_report_and_table():
    report = generation_report(
        ["a b a b", "c d"], ["a b c d", "e f"], judge=CountingJudge(), tokenizer=BYTES, split="test",
        mauve=lambda texts, references: 0.5, metadata={"step": 3},
    )  # fmt: skip
    assert list(report) == ["task", "split", "judge", "real_length", "systems", "metadata"]
    assert json.loads(report_json(report)) == report
    model, real = report["systems"].values()
    assert list(model) == list(real)
    assert model["mauve"] == 0.5 and real["mauve"] is None
    lines = [line for line in format_generation_table(report).splitlines() if line]
    heading = lines[0]
    assert "test, judged by counting" in heading
    assert heading.index("gen-PPL") < heading.index("entropy") < heading.index("dist-1")  # side by side
    assert [line.split("  ")[0] for line in lines[2:]] == ["model", "real text"]
    assert len({len(line) for line in lines}) == 1


def test_reference_texts_are_the_rows_of_a_split(tmp_path):
    pairs = [{"src": "x", "trg": f"target {i}"} for i in range(6)]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = from_config_dict(
        {"data": {"path": str(tmp_path), "source_length": 4, "target_length": 6}, "tokenizer": {"kind": "bytes"}}
    )
    assert reference_texts(config, BYTES) == ["targe"] * 6  # cut to the row, its end token left out
    config = from_config_dict(
        {"data": {"path": str(tmp_path), "source_length": 4, "target_length": 12}, "tokenizer": {"kind": "bytes"}}
    )
    assert reference_texts(config, BYTES, count=3) == ["target 0", "target 2", "target 4"]
    assert len(reference_texts(config, BYTES, count=100)) == 6
