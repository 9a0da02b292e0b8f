import json

import pytest

from dimba_jax.data.normalize import bert_basic, normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How do I kill rats?", "how do i kill rats ?"),
        ("Don't  stop\tnow", "don ' t stop now"),
        ("C++ costs $5 ^_^ `x`<y", "c + + costs $ 5 ^ _ ^ ` x ` < y"),
        ("Café ÀÉÎõü", "cafe aeiou"),
        ("北京hi", "北 京 hi"),
        ("ひらがな", "ひらかな"),  # kana is not spaced; the voicing mark goes the way of accents
        ("a\u200bb\x00c\x07d\ufffde", "abcde"),
        ("“quoted”—dash…", "“ quoted ” — dash …"),
        ("x\u00a0y\u3000z", "x y z"),
        ("", ""),
    ],
)
def test_bert_basic(text, expected):
    assert bert_basic(text) == expected


def test_modes():
    assert normalize("Is THIS  it?", "none") == "Is THIS  it?"
    assert normalize("Is THIS  it?", "lower") == "is this  it?"
    assert normalize("Is THIS  it?", "bert_basic") == "is this it ?"
    with pytest.raises(ValueError, match="'upper'"):
        normalize("x", "upper")  # type: ignore[arg-type]


def _reference():
    module = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    tokenizer = module.BasicTokenizer(do_lower_case=True)
    return lambda text: " ".join(tokenizer.tokenize(text))


def test_every_character_like_transformers():
    reference = _reference()
    for code in range(0, 0x30000, 7):  # a seventh, to be quick; the ASCII part whole
        texts = [f"a{chr(c)}Bé" for c in ([code] if code >= 128 else range(code, code + 7)) if not 0xD800 <= c < 0xE000]
        for text in texts:
            assert bert_basic(text) == reference(text), ascii(text)


@pytest.mark.realdata
def test_real_texts_like_transformers(real_data):
    reference = _reference()
    texts = []
    for name in ("qqp/test.jsonl", "qqp/train.jsonl", "simplification/asset_valid.jsonl"):
        rows = (json.loads(line) for line in (real_data / name).read_text("utf-8").split("\n")[:-1])
        texts += [text for row in rows for text in (row["src"], row["trg"])]
    chosen = [text for i, text in enumerate(texts) if i % 50 == 0 or not text.isascii()]
    assert len(chosen) > 4000
    for text in chosen:
        assert bert_basic(text) == reference(text)
