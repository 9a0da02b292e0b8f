import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimba_jax.config import DataConfig, RunConfig, SyntheticConfig, TokenizerConfig
from dimba_jax.data.examples import DataError
from dimba_jax.data.tokenizers import (
    EOS,
    PAD,
    UNK,
    ByteTokenizer,
    SentencePieceTokenizer,
    make_tokenizer,
    tokenizer_from_dict,
    train_sentencepiece,
    training_texts,
)

TEXTS = ["the cat sat on the mat .", "a dog sat on a log .", "goldfish swim with goldfish ?"] * 3


def quick_config(vocab_size=448, **data):
    return RunConfig(
        data=DataConfig(source="synthetic", synthetic=SyntheticConfig(pairs=500), **data),
        tokenizer=TokenizerConfig(vocab_size=vocab_size),
    )


@pytest.fixture(scope="module")
def pieces():
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 60))


def test_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("aé") == [3 + 0x61, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([*tokenizer.encode("aé"), EOS, 100, PAD]) == "aé"
    assert tokenizer.decode([3 + 0xC3, PAD, UNK, 3 + 0x61]) == "\ufffda"
    assert tokenizer.encode_batch(["a", ""]) == [[100], []]


def test_sentencepiece_round_trip(pieces):
    for text in TEXTS:
        ids = pieces.encode(text)
        assert min(ids) > UNK and max(ids) < pieces.vocab_size
        assert pieces.decode([*ids, EOS, *ids, PAD]) == text
        assert pieces.decode([PAD, *ids, PAD, PAD]) == text
    assert pieces.encode_batch(TEXTS) == [pieces.encode(text) for text in TEXTS]
    assert pieces.encode("") == []
    assert UNK in pieces.encode("Z")


def test_a_word_that_is_part_of_no_other_is_one_piece(pieces):
    # without the repeated words it would be spelt in letters
    assert len(pieces.encode("goldfish")) == 1


def test_every_character_is_kept_unless_there_are_too_many():
    rare = [*TEXTS, "ΩΨ"]
    assert UNK not in SentencePieceTokenizer(train_sentencepiece(rare, 200)).encode("ΩΨ")
    many = [*TEXTS * 150, "".join(map(chr, range(0x4E00, 0x4E00 + 500)))]
    tokenizer = SentencePieceTokenizer(train_sentencepiece(many, 100))
    assert UNK not in tokenizer.encode("the cat .") and UNK in tokenizer.encode("\u4f00")


def test_training_is_deterministic():
    assert train_sentencepiece(TEXTS, 60) == train_sentencepiece(TEXTS, 60)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), SentencePieceTokenizer(train_sentencepiece(TEXTS, 60))])
def test_to_dict_round_trip(tokenizer):
    values = json.loads(json.dumps(tokenizer.to_dict()))
    again = tokenizer_from_dict(values)
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    with pytest.raises(DataError, match="'words'"):
        tokenizer_from_dict({"kind": "words"})


CODE = ["def f(x):", "    return  x", "\tif <unk>:", "        pass  # café", "the cat <unk> sat </s> on the mat ."] * 20


@pytest.fixture(scope="module")
def exact():
    return SentencePieceTokenizer(train_sentencepiece(CODE, 400, lossless=True))


def test_lossless_keeps_what_the_plain_one_loses(exact, pieces):
    assert exact.lossless and ByteTokenizer().lossless and not pieces.lossless
    for text in (
        "  a \n\n\tb  ",
        "\u2581",
        " \u2581 \u2581x",
        "\r\n",
        "\x00",
        "<unk></s>\ue000unk<0x41>",
        "한글🐍",
        "",
    ):
        found = exact.encode(text)
        assert exact.decode(found) == text, ascii(text)
        assert not found or min(found) > UNK
        assert b"".join(exact.spelling[id] for id in found) == text.encode("utf-8")
    assert pieces.decode(pieces.encode("  a \n b ")) != "  a \n b "


# the alphabet of the training text too, for its pieces meet only there
TEXT = st.text(st.characters(codec="utf-8")) | st.text(st.sampled_from("def return cat<unk>\t\n \u2581é"), max_size=40)


@given(TEXT)
@settings(max_examples=400, deadline=None)
def test_lossless_round_trip_of_any_text(exact, text):
    found = exact.encode(text)
    assert exact.decode(found) == text
    assert UNK not in found and EOS not in found and PAD not in found
    assert exact.encode_document(text).tolist() == found == exact.encode_batch(["x", text])[1]


def test_lossless_pieces_hold_blanks_and_whole_words(exact):
    assert len(exact.encode("        ")) <= 3  # an indentation
    assert len(exact.encode(" <unk>")) <= 2  # the name of no special piece
    assert exact.encode("a\nb") == [*exact.encode("a"), *exact.encode("\n"), *exact.encode("b")]
    assert len(exact.encode("\n")) == len(exact.encode("\t")) == 1


def test_lossless_decode_of_what_a_model_may_write(exact):
    byte = {exact.spelling[id]: id for id in range(exact.vocab_size)}
    assert exact.decode([PAD, byte[b"a"], UNK, byte[b"\xc3"], byte[b"a"], EOS, byte[b"a"]]) == "a\ufffda"


def test_lossless_is_a_property_of_the_model(exact, pieces, tmp_path):
    assert tokenizer_from_dict(json.loads(json.dumps(exact.to_dict()))).lossless
    assert train_sentencepiece(CODE, 400, lossless=True) == exact.model
    path = tmp_path / "mine.model"
    path.write_bytes(pieces.model)
    with pytest.raises(DataError, match="does not give every text back"):
        make_tokenizer(RunConfig(tokenizer=TokenizerConfig(model=str(path), lossless=True)))
    path.write_bytes(exact.model)
    assert make_tokenizer(RunConfig(tokenizer=TokenizerConfig(model=str(path), lossless=True))).lossless


def test_a_lossless_tokenizer_is_kept_apart_in_a_workdir(tmp_path):
    import dataclasses

    config = quick_config()
    make_tokenizer(config, tmp_path)
    other = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, lossless=True))
    with pytest.raises(DataError, match=r"tokenizer\.model was not trained on this"):
        make_tokenizer(other, tmp_path)


def test_long_documents_take_seconds(exact):
    text = "\n".join(CODE) * 1500  # 3 MB
    for tokenizer in (exact, ByteTokenizer()):
        started = time.perf_counter()
        found = tokenizer.encode_document(text)
        assert time.perf_counter() - started < 10
        assert b"".join(tokenizer.spelling[id] for id in found[-2000:].tolist()) in text.encode("utf-8")
        assert sum(map(len, (tokenizer.spelling[id] for id in found.tolist()))) == len(text.encode("utf-8"))


def test_a_plain_tokenizer_reads_a_document_by_lines(pieces):
    found = pieces.encode_document("the cat sat\non the mat .").tolist()
    assert found == pieces.encode("the cat sat") + pieces.encode("on the mat .")


def test_too_small_a_vocabulary():
    with pytest.raises(DataError, match="vocab_size=4 on 9 texts"):
        train_sentencepiece(TEXTS, 4)


def test_make_tokenizer_keeps_it_in_the_workdir(tmp_path):
    config = quick_config()
    tokenizer = make_tokenizer(config, tmp_path / "run")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == tokenizer.model
    assert tokenizer.vocab_size <= 448
    again = make_tokenizer(config, tmp_path / "run")
    assert again.to_dict() == tokenizer.to_dict() == make_tokenizer(config).to_dict()
    assert isinstance(make_tokenizer(RunConfig(tokenizer=TokenizerConfig(kind="bytes"))), ByteTokenizer)


def test_make_tokenizer_refuses_one_of_another_run(tmp_path):
    make_tokenizer(quick_config(), tmp_path)
    for other in (quick_config(vocab_size=300), quick_config(normalize="none")):
        with pytest.raises(DataError, match=r"tokenizer\.model was not trained on this"):
            make_tokenizer(other, tmp_path)


def test_make_tokenizer_loads_the_named_model(tmp_path, pieces):
    path = tmp_path / "mine.model"
    path.write_bytes(pieces.model)
    config = RunConfig(tokenizer=TokenizerConfig(model=str(path)))
    assert make_tokenizer(config, tmp_path / "run").to_dict() == pieces.to_dict()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"mine\.model is no sentencepiece model"):
        make_tokenizer(config)
    with pytest.raises(DataError, match=r"gone\.model: no such file"):
        make_tokenizer(RunConfig(tokenizer=TokenizerConfig(model=str(tmp_path / "gone.model"))))


def test_special_ids_must_be_ours(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(DataError, match="expected pad 0, eos 1, unk 2"):
        SentencePieceTokenizer(model.getvalue())


def test_synthetic_words_are_pieces():
    config = RunConfig(data=DataConfig(source="synthetic"), tokenizer=TokenizerConfig(vocab_size=448))
    tokenizer = make_tokenizer(config)
    lengths = [len(ids) for ids in tokenizer.encode_batch(training_texts(config))]
    assert max(lengths) < 16  # an end token fits beside each
