import re

import pytest

from dimba_jax.config import SyntheticConfig
from dimba_jax.data.examples import DataError
from dimba_jax.data.grammar import TOPICS
from dimba_jax.data.normalize import bert_basic
from dimba_jax.data.synthetic import load_synthetic, split_cells

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def data():
    return {split: load_synthetic(SyntheticConfig(), split) for split in SPLITS}


def texts(data):
    return [(e.source, e.targets[0]) for examples in data.values() for e in examples]


def test_sizes_and_distinctness(data):
    assert {split: len(examples) for split, examples in data.items()} == {"train": 10_800, "valid": 600, "test": 600}
    pairs = texts(data)
    assert len(set(pairs)) == len(pairs) >= 5000
    assert len({source for source, _ in pairs}) == len(pairs)  # the target is a function of the source
    assert not any(source == target for source, target in pairs)


def test_words_and_lengths(data):
    pairs = texts(data)
    words = {word for pair in pairs for text in pair for word in text[:-1].split()}
    assert 250 <= len(words) <= 410
    assert all(re.fullmatch("[a-z]+", word) for word in words)
    for pair in pairs:
        for text in pair:
            assert text.endswith("?") and "  " not in text and "{" not in text
            assert 5 <= len(text.split()) <= 14, text


def test_copying_scores_badly(data):
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    smoothing = bleu.SmoothingFunction().method4
    scores = [
        bleu.sentence_bleu([target.split()], source.split(), smoothing_function=smoothing)
        for source, target in ((bert_basic(e.source), bert_basic(e.targets[0])) for e in data["test"])
    ]
    assert 0.05 < sum(scores) / len(scores) < 0.15


def test_held_out_cells_are_new_but_their_parts_are_known():
    cells = split_cells(0)
    train = set(cells["train"])
    for split in ("valid", "test"):
        assert not train & set(cells[split])
        assert {cell.template for cell in cells[split]} == {t for topic in TOPICS for t in topic.templates}
    assert not set(cells["valid"]) & set(cells["test"])
    for part in ("entity", "template"):
        assert {getattr(cell, part) for cell in cells["train"]} >= {
            getattr(cell, part) for split in ("valid", "test") for cell in cells[split]
        }


@pytest.mark.parametrize("pairs", [500, 12_000])
def test_examples_come_from_the_cells_of_their_split(pairs):
    cells = split_cells(3)
    origin = {pair: (split, cell) for split in SPLITS for cell in cells[split] for pair in cell.pairs()}
    seen = {split: [] for split in SPLITS}
    for split in SPLITS:
        for example in load_synthetic(SyntheticConfig(pairs=pairs, seed=3), split):
            found, cell = origin[example.source, example.targets[0]]
            assert found == split
            seen[split].append(cell)
    # even the smallest training set meets every entity and every template
    assert {c.entity for c in seen["train"]} == {e for topic in TOPICS for e in topic.entities}
    assert {c.template for c in seen["train"]} == {t for topic in TOPICS for t in topic.templates}


def test_templates_are_whole():
    for topic in TOPICS:
        assert len(set(topic.entities)) == len(topic.entities) == 24
        for template in topic.templates:
            assert "{0}" in template.source and "{1}" in template.target
            assert template.source.endswith(" {m}?") and template.target.endswith(" {m}?")
            # "a {0}" is right for every entity only if none begins with a vowel
            if " a {" in template.source + template.target:
                assert not [form for forms in topic.entities for form in forms if form[0] in "aeio"]


def test_deterministic_in_the_seed(data):
    assert load_synthetic(SyntheticConfig(), "test") == data["test"]
    assert load_synthetic(SyntheticConfig(seed=1), "test") != data["test"]
    assert data["test"][0].row == 0 and data["test"][-1].row == 599
    # the very rows: results quoted anywhere rest on them
    assert data["test"][0].source == "how can i fix my broken piano alone?"
    assert data["test"][0].targets == ("what should i do to repair a piano on my own?",)


@pytest.mark.parametrize("pairs", [499, 20_000])
def test_sizes_the_grammar_cannot_give(pairs):
    with pytest.raises(DataError, match=f"pairs={pairs}: the grammar gives between 500 and"):
        load_synthetic(SyntheticConfig(pairs=pairs), "train")
