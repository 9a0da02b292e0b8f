"""BLEU against nltk's, to the last bit, and the decoding that leans on it."""

import random
from collections import Counter

import pytest
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

from dimba_jax.evals.bleu import Ngrams, sentence_bleu
from dimba_jax.sampling.mbr import mbr_choice

SMOOTHING = SmoothingFunction().method4


def bleu(hypothesis: str, *references: str) -> float:
    return sentence_bleu(Ngrams.of(hypothesis.split()), [Ngrams.of(text.split()) for text in references])


def reference_bleu(hypothesis: str, *references: str) -> float:
    return float(nltk_bleu([text.split() for text in references], hypothesis.split(), smoothing_function=SMOOTHING))


def random_sentence(generator: random.Random, longest: int = 14) -> str:
    return " ".join(generator.choices("a b c d e f g".split(), k=generator.randint(0, longest)))


@pytest.mark.parametrize("references", [1, 2, 5])
def test_equals_nltk_exactly(references):
    generator = random.Random(references)
    for _ in range(1500):
        hypothesis = random_sentence(generator)
        texts = [random_sentence(generator) for _ in range(references)]
        assert bleu(hypothesis, *texts) == reference_bleu(hypothesis, *texts), (hypothesis, texts)


@pytest.mark.parametrize(
    "hypothesis, references",
    [
        ("", ("a b",)),  # empty
        ("a b", ("",)),  # empty reference
        ("a", ("a",)),  # one word: no smoothing, judged on its unigram
        ("a", ("a b c d",)),
        ("a b", ("a b",)),
        ("x y z", ("a b c",)),  # nothing in common
        ("a b c d e", ("a b c d e",)),
        ("a b c", ("a b", "a b c d")),  # two references equally near in length
        ("the the the the", ("the cat", "the the dog")),  # clipping over references
    ],
)
def test_equals_nltk_in_corner_cases(hypothesis, references):
    assert bleu(hypothesis, *references) == reference_bleu(hypothesis, *references)


def test_known_values():
    assert bleu("a b c d e", "a b c d e") == 1.0
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples match
    assert bleu("a b c d x", "a b c d e") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_the_order_of_arguments_matters():
    assert bleu("a b c d", "a b c d e f g h") != bleu("a b c d e f g h", "a b c d")


def test_no_reference_is_an_error():
    with pytest.raises(ValueError, match="no reference"):
        sentence_bleu(Ngrams.of(["a"]), [])


def test_mbr_takes_the_sample_that_agrees_most():
    samples = ["how do i cook rice", "why is the sky blue", "how do i cook the rice", "how do we cook rice"]
    assert mbr_choice(samples, bleu) == 0
    assert mbr_choice(samples[1:], bleu) in (1, 2)


def test_mbr_is_not_transposed():
    # gain(i, j) as hypothesis i against reference j: row 1 wins by rows, column 2 would by columns
    gain = [[9.0, 0.1, 0.8], [0.5, 9.0, 0.9], [0.1, 0.1, 9.0]]
    assert mbr_choice(range(3), lambda i, j: gain[i][j]) == 1


def test_mbr_of_equal_samples_takes_the_first():
    assert mbr_choice(["b", "a b c", "a b c", "a b c"], bleu) == 1
    assert mbr_choice(["only"], bleu) == 0
    with pytest.raises(ValueError, match="no candidates"):
        mbr_choice([], bleu)


def test_a_pair_costs_one_look_at_each_ngram():
    """So that the pairs of a test set take seconds: 225,000 of them for ten samples of each of QQP's 2,500 rows."""

    class Watched(Counter):
        looks = 0

        def __getitem__(self, key):
            Watched.looks += 1
            return super().__getitem__(key)

        def __contains__(self, key):
            Watched.looks += 1
            return super().__contains__(key)

        def __iter__(self):
            raise AssertionError("the other text's n-grams are looked up, not gone through")

        items = keys = values = __iter__

    generator = random.Random(0)
    hypothesis, reference = (generator.choices("abcdefghijklmnopqrst", k=11) for _ in range(2))
    counts = Ngrams.of(reference)
    watched = Ngrams(counts.length, tuple(Watched(dict(one)) for one in counts.counts))
    assert sentence_bleu(Ngrams.of(hypothesis), [watched]) == sentence_bleu(Ngrams.of(hypothesis), [counts])
    assert 0 < Watched.looks <= 2 * (11 + 10 + 9 + 8)  # whether it is there, and how often
