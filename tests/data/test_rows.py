import numpy as np
import pytest

from dimba_jax.config import DataConfig, RunConfig
from dimba_jax.data.examples import DataError, Example
from dimba_jax.data.rows import encode_examples, encode_prompts, encode_split
from dimba_jax.data.tokenizers import EOS, PAD, ByteTokenizer, make_tokenizer

TOKENIZER = ByteTokenizer()
CONFIG = DataConfig(source_length=5, target_length=4, normalize="lower")
EXAMPLES = [
    Example("AB", ("c",), 0),
    Example("abcd", ("xyz", "pq"), 1),
    Example("abcde", ("x",), 2),  # source too long
    Example("a", ("wxyz",), 3),  # target too long
]


def ids(text):
    return TOKENIZER.encode(text)


def test_layout():
    rows, report = encode_examples(EXAMPLES[:2], CONFIG, TOKENIZER, "train")
    batch = rows.batch([0, 2])
    assert batch["tokens"].tolist() == [
        [*ids("ab"), EOS, PAD, PAD, *ids("c"), EOS, PAD, PAD],
        [*ids("abcd"), EOS, *ids("pq"), EOS, PAD],
    ]
    assert batch["valid"].astype(int).tolist() == [[1, 1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0]]
    assert batch["target"].astype(int).tolist() == [[0] * 5 + [1] * 4] * 2
    assert batch["row"].tolist() == [0, 1]
    assert (batch["tokens"].dtype, batch["row"].dtype) == (np.int32, np.int64)
    assert batch["target"].dtype == batch["valid"].dtype == np.bool_
    assert (report.rows, report.used) == (3, 3)
    assert str(report) == "train: 3 rows, all fit"


def test_training_rows_that_do_not_fit_are_counted():
    rows, report = encode_examples(EXAMPLES, CONFIG, TOKENIZER, "train")
    assert rows.row.tolist() == [0, 1, 1]
    assert (report.rows, report.used, report.too_long_source, report.too_long_target) == (5, 3, 1, 1)
    assert "2 rows left out" in str(report)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_rows_are_cut(split):
    rows, report = encode_examples(EXAMPLES, CONFIG, TOKENIZER, split)
    assert (report.rows, report.used, report.too_long_source, report.too_long_target) == (5, 5, 1, 1)
    assert "cut to fit" in str(report)
    assert rows.tokens[3].tolist() == [*ids("abcd"), EOS, *ids("x"), EOS, PAD, PAD]
    assert rows.tokens[4].tolist() == [*ids("a"), EOS, PAD, PAD, PAD, *ids("wxy"), EOS]


def test_extra_direction():
    config = DataConfig(source_length=5, target_length=5, train_extra_direction=True)
    rows, report = encode_examples(EXAMPLES[:2], config, TOKENIZER, "train")
    assert report.rows == 6
    assert rows.row.tolist() == [0, 1, 1, 0, 1, 1]
    forward, backward = rows.tokens[:3], rows.tokens[3:]
    np.testing.assert_array_equal(forward, np.roll(backward, 5, axis=1))
    # only in training
    assert encode_examples(EXAMPLES[:2], config, TOKENIZER, "valid")[1].rows == 3


def test_nothing_fits():
    with pytest.raises(DataError, match="none of the 1 rows of 'train' fits.*source_length=5"):
        encode_examples(EXAMPLES[2:3], CONFIG, TOKENIZER, "train")


def test_prompts():
    rows = encode_prompts(TOKENIZER, ["Ab", "abcdef"], CONFIG)
    assert rows["tokens"].tolist() == [[*ids("ab"), EOS] + [PAD] * 6, [*ids("abcd"), EOS] + [PAD] * 4]
    assert rows["target"].astype(int).tolist() == [[0] * 5 + [1] * 4] * 2
    assert rows["valid"].astype(int).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0, 0], [1] * 5 + [0] * 4]


def test_prompts_are_encoded_as_training_sources_are():
    rows, _ = encode_examples(EXAMPLES, CONFIG, TOKENIZER, "test")
    prompts = encode_prompts(TOKENIZER, [EXAMPLES[i].source for i in rows.row], CONFIG)
    np.testing.assert_array_equal(prompts["tokens"][:, :5], rows.tokens[:, :5])
    batch = rows.batch(range(len(rows)))
    np.testing.assert_array_equal(prompts["valid"][:, :5], batch["valid"][:, :5])


@pytest.mark.realdata
def test_real_qqp_rows(real_data, capsys):
    config = RunConfig(
        data=DataConfig(
            path=str(real_data / "qqp"),
            train_files=("train.jsonl", "train.gap_lowercase.jsonl"),
            train_extra_direction=True,
        )
    )
    fewer = DataConfig(path=config.data.path, train_files=("train.jsonl[:8000]",))  # to be quick
    tokenizer = make_tokenizer(RunConfig(data=fewer))
    assert tokenizer.vocab_size == 8192
    rows, report = encode_split(config.data, tokenizer, "train")
    assert str(report) in capsys.readouterr().err  # said aloud: rows that do not fit are left out
    assert report.rows == 272_866
    assert len(rows) == report.used > 0.98 * report.rows
    texts = [tokenizer.decode(row[:32]) for row in rows.tokens[:3].tolist()]
    assert texts[1] == "what are some good songs to make a texting lyric prank ?"
