import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimba_jax.config import DataConfig, RunConfig, TextConfig, TokenizerConfig
from dimba_jax.data.examples import DataError
from dimba_jax.data.pipeline import train_iterator, valid_batches
from dimba_jax.data.rows import encode_split
from dimba_jax.data.text import byte_counts, coverage, encode_texts, load_texts, text_rows
from dimba_jax.data.tokenizers import EOS, PAD, UNK, ByteTokenizer, make_tokenizer

BYTES = ByteTokenizer()


def ids(text):
    return BYTES.encode(text)


def text_of(tokens):
    return b"".join(BYTES.spelling[id] for id in tokens.ravel().tolist())


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_packing_loses_nothing_but_the_tail(texts, length):
    stream = [*ids(texts[0])]
    for text in texts[1:]:
        stream += [EOS, *ids(text)]
    if len(stream) < length:
        with pytest.raises(DataError, match="less than one row"):
            encode_texts(texts, BYTES, length, "packed", "train")
        return
    rows, report = encode_texts(texts, BYTES, length, "packed", "train")
    kept = rows.tokens.ravel().tolist()
    assert kept == stream[: len(kept)]
    assert report.left_over == len(stream) - len(kept) < length
    assert rows.tokens.shape[1] == length and rows.tokens.dtype == np.int32


def test_packed_rows_are_all_target_and_valid():
    rows, report = encode_texts(["abc", "de"], BYTES, 3, "packed", "train")
    batch = rows.batch([1, 0])
    assert batch["tokens"].tolist() == [[EOS, *ids("de")], ids("abc")]
    assert batch["target"].all() and batch["valid"].all()
    assert batch["row"].tolist() == [1, 0]
    assert str(report) == "train: 2 rows, all fit"
    assert "1 tokens behind the last one left out" in str(encode_texts(["abcd"], BYTES, 3, "packed", "train")[1])


def test_padded_rows_are_lines():
    texts = ["abc\r\n\n  \nabcd\n", "c"]
    rows, report = encode_texts(texts, BYTES, 4, "padded", "train")
    batch = rows.batch(range(len(rows)))
    assert batch["tokens"].tolist() == [[*ids("abc"), EOS], [*ids("c"), EOS, PAD, PAD]]
    assert batch["valid"].astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["target"].all()
    assert batch["row"].tolist() == [0, 4]  # lines of the split, blank ones counted
    assert (report.rows, report.used, report.too_long_target) == (3, 2, 1) and "1 rows left out" in str(report)
    rows, report = encode_texts(texts, BYTES, 4, "padded", "valid")
    assert rows.tokens[1].tolist() == [*ids("abc"), EOS] and rows.row.tolist() == [0, 3, 4]
    assert "cut to fit" in str(report)
    with pytest.raises(DataError, match="none of the 1 lines of 'train' fits"):
        encode_texts(["abcd"], BYTES, 4, "padded", "train")


def test_coverage_counts_the_text_of_the_rows():
    texts = ["né à\nx yz", "w"]
    rows = text_rows(texts, BYTES, 5, "packed")
    assert text_of(rows.tokens) == "né à\nx y".encode()  # ten bytes; the tail, with the second text, is dropped
    found = coverage(rows, BYTES)
    assert (found.rows, found.tokens, found.bytes, found.characters, found.words) == (2, 10, 10, 8, 4)
    assert byte_counts(rows.tokens, BYTES).tolist() == [5, 5]
    padded = coverage(text_rows(["né à\n\nx yz"], BYTES, 5, "padded"), BYTES)
    assert (padded.rows, padded.tokens, padded.bytes, padded.characters, padded.words) == (2, 10, 8, 7, 3)
    # an end token between two texts ends a word: 'a' and 'b', not 'ab'
    joined = coverage(text_rows(["a", "b"], BYTES, 3, "packed"), BYTES)
    assert (joined.tokens, joined.bytes, joined.words) == (3, 2, 2)


def test_unknown_tokens_are_counted_and_said(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 50, "utf-8")
    data = DataConfig(source="text", path=str(tmp_path / "a.txt"), source_length=0, normalize="none")
    for lossless in (False, True):
        tokenizer = make_tokenizer(RunConfig(data=data, tokenizer=TokenizerConfig(vocab_size=300, lossless=lossless)))
        assert tokenizer.lossless == lossless
        rows = text_rows(["the Zat\nthe Ωat\n"], tokenizer, 4, "packed")
        assert bool((rows.tokens == UNK).any()) is not lossless
        assert (coverage(rows, tokenizer).unknown > 0) is not lossless
        assert ("unknown to the tokenizer" in capsys.readouterr().err) is not lossless


def test_normalisation_keeps_the_lines():
    rows = text_rows(["Aé B!\n\nC"], BYTES, 4, "packed", mode="bert_basic")
    assert text_of(rows.tokens) == b"ae b !\n\nc"[:8]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_split_through_the_pipeline(tmp_path, layout, capsys):
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(200)), "utf-8")
    config = DataConfig(
        source="text", path=str(tmp_path / "a.txt"), source_length=0, target_length=16, normalize="none",
        text=TextConfig(layout=layout, valid_fraction=0.2, test_fraction=0.1),
    )  # fmt: skip
    iterator = train_iterator(config, BYTES, 8, seed=0)
    batch = next(iterator)
    assert batch["tokens"].shape == (8, 16) and batch["target"].all()
    assert batch["valid"].all() == (layout == "packed")
    assert str(iterator.report) in capsys.readouterr().err
    rows, _ = encode_split(config, BYTES, "valid")
    assert len(list(valid_batches(rows, 8))) == -(-len(rows) // 8)
    seen = [text_of(encode_split(config, BYTES, split)[0].tokens) for split in ("train", "valid", "test")]
    assert seen[0].startswith(b"line 0") and b"line 199" in seen[2] + b"line 199" * (layout == "packed")
    assert not any(f"line {i}".encode() in seen[0] for i in range(150, 200))


def test_training_texts_of_a_tokenizer_are_lines_of_the_training_split(tmp_path):
    from dimba_jax.data.tokenizers import training_texts

    (tmp_path / "a.txt").write_text("Aa\n\n b\nc\nheld out\n", "utf-8")
    data = DataConfig(
        source="text", path=str(tmp_path / "a.txt"), source_length=0, normalize="lower",
        text=TextConfig(valid_fraction=0.5),
    )  # fmt: skip
    assert training_texts(RunConfig(data=data)) == ["aa", " b", "c"]


@pytest.mark.realdata
def test_real_wikitext_rows(real_data):
    config = DataConfig(
        source="text", path=str(real_data / "wikitext2"), train_files=("wiki.train.tokens",),
        valid_file="wiki.valid.tokens", source_length=0, target_length=256, normalize="none",
    )  # fmt: skip
    (text,) = load_texts(config, "valid")
    rows, report = encode_split(config, BYTES, "valid")
    raw = text.encode("utf-8")
    assert text_of(rows.tokens) == raw[: len(rows) * 256] and report.left_over == len(raw) % 256
    found = coverage(rows, BYTES)
    assert found.bytes == len(raw) - report.left_over
    assert found.characters == len(raw[: found.bytes].decode("utf-8", errors="ignore"))
    assert found.words == len(raw[: found.bytes].split())
