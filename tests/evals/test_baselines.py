"""Codes without a model, and what a log-loss is divided by: worked out by hand."""

import gzip
import lzma
import math

import numpy as np
import pytest

from dimba_jax.evals.baselines import Counts, byte_nats, compressed_nats, figures, unigram_nats


def test_figures_by_hand():
    # two words, 11 characters of which two take two bytes; 4 tokens at 3 bits each
    counts = Counts.of("käse brötle", 4)
    assert counts == Counts(tokens=4, words=2, bytes=13, characters=11)
    found = figures(12 * math.log(2), counts, standard_error=math.log(2))
    assert found["nats_per_token"] == pytest.approx(3 * math.log(2))
    assert found["nats_per_token_se"] == pytest.approx(math.log(2) / 4)
    assert found["ppl"] == pytest.approx(8.0)
    assert found["ppl_se"] == pytest.approx(8.0 * math.log(2) / 4)
    assert found["ppl_word"] == pytest.approx(2**6)
    assert found["bits_per_byte"] == pytest.approx(12 / 13)
    assert found["bits_per_byte_se"] == pytest.approx(1 / 13)
    assert found["bits_per_character"] == pytest.approx(12 / 11)
    assert found["bits_per_character_se"] == pytest.approx(1 / 11)


def test_what_cannot_be_computed_is_none():
    found = figures(1.0, Counts(tokens=1, words=0, bytes=1, characters=1))
    assert found["ppl_word"] is None and found["nats_per_token_se"] is None and found["ppl_se"] is None
    # a long text of one word: its perplexity is no number a computer has
    assert figures(5000.0, Counts(tokens=1000, words=1, bytes=1000, characters=1000))["ppl_word"] is None


def test_unigrams_by_hand():
    tokens = np.array([3, 3, 3, 5])
    own = -(3 * math.log(3 / 4) + math.log(1 / 4))
    assert unigram_nats(tokens, 6) == pytest.approx(own)
    # of six tokens, of which 3 was seen twice and 4 once: (2+1, 1+1, 1, …) over 9
    other = unigram_nats(tokens, 6, np.array([0, 0, 0, 2, 1, 0]))
    assert other == pytest.approx(-(3 * math.log(3 / 9) + math.log(1 / 9)))
    assert other > own
    assert byte_nats("aaab") == pytest.approx(own)


def test_its_own_frequencies_are_the_best():
    tokens = np.random.default_rng(0).integers(0, 8, 100)
    own = unigram_nats(tokens, 8)
    assert own < 100 * math.log(8)
    for seed in range(5):
        assert own <= unigram_nats(tokens, 8, np.random.default_rng(seed).integers(0, 50, 8))


def test_compressed_sizes_are_those_of_the_files():
    text = "to be or not to be, that is the question: " * 40
    bits = {name: nats / math.log(2) for name, nats in compressed_nats(text).items()}
    assert bits["gzip"] == pytest.approx(8 * len(gzip.compress(text.encode(), 9)))
    assert bits["xz"] == pytest.approx(8 * len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)))
    assert bits["gzip"] < 8 * len(text) / 10
