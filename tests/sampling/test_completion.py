"""Running text: rows with something left open, and what becomes of them, around a network whose answers are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax import strip
from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.data.tokenizers import EOS, PAD, ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.models.build import make_denoiser
from dimba_jax.sampling.generate import complete, generate
from dimba_jax.sampling.load import LoadedModel
from dimba_jax.sampling.open_rows import open_rows, readable

BYTES = ByteTokenizer()
MASK = BYTES.vocab_size
ANSWER = "hello world"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Answer(nnx.Module):
    """Knows which byte stands where, however much of the row is masked; temperature 1 cannot sway it."""

    mask_id, vocab_size, source_length, calls = MASK, MASK, 0, 1

    def __init__(self, ids):
        self.ids = nnx.Param(jnp.asarray(ids, jnp.float32))

    def __call__(self, tokens, t, *, visible=None, first=0, key=None):
        ids = self.ids[...][: tokens.shape[1]].astype(jnp.int32)
        return jnp.broadcast_to(60.0 * jax.nn.one_hot(ids, MASK), (*tokens.shape, MASK))[:, first:]


def config_of(**groups):
    values = {
        "data": {"source": "text", "source_length": 0, "target_length": 11, "normalize": "none"},
        "tokenizer": {"kind": "bytes"},
        "model": {"self_conditioning": False, "d_model": 16, "layers": 1, "head_dim": 8, "state_dim": 4, "chunk": 4},
        "process": {"kind": "masked", "schedule": "log_linear"},
        "sampling": {"sampler": "confidence", "steps": 5, "batch_size": 3},
    }
    for name, more in groups.items():
        values[name] = values.get(name, {}) | more
    return from_config_dict(values)


def model_of(text=ANSWER, *, denoiser=None, **groups):
    config = config_of(**groups)
    ids = [*BYTES.encode(text), EOS, *[PAD] * 40]
    return LoadedModel(denoiser or Answer(ids), make_process(config.process, MASK), BYTES, config, 1)


def test_rows_of_beginnings_and_gaps():
    data = config_of().data
    rows = open_rows(BYTES, ["", "ab", "a[[2]]b[[1]]"], data, length=6)
    assert rows.tokens.shape == (3, 6)
    np.testing.assert_array_equal(rows.editable.sum(1), [6, 4, 3])
    a, b = BYTES.encode("ab")
    np.testing.assert_array_equal(rows.tokens[1], [a, b, *[PAD] * 4])
    np.testing.assert_array_equal(rows.tokens[2], [a, PAD, PAD, b, PAD, PAD])
    np.testing.assert_array_equal(rows.editable[2], [False, True, True, False, True, False])
    np.testing.assert_array_equal(rows.visible.sum(1), [6, 6, 5])
    assert [rows.given(i) for i in range(3)] == [0, 2, 1]
    assert [rows.is_beginning(i) for i in range(3)] == [True, True, False]
    assert open_rows(BYTES, ["ab"], data).tokens.shape == (1, 11)  # a training row's length
    wide = open_rows(BYTES, ["ab"], data, length=6, multiple=4)
    assert wide.tokens.shape == (1, 8) and wide.visible.sum() == 6 and wide.editable.sum() == 4
    plain = open_rows(BYTES, ["[[1]]"], data, gaps=False)
    np.testing.assert_array_equal(plain.tokens[0, :5], BYTES.encode("[[1]]"))


def test_padded_rows_with_gaps_end_as_in_training():
    rows = open_rows(BYTES, ["a[[2]]b"], config_of(data={"text": {"layout": "padded"}}).data)
    a, b = BYTES.encode("ab")
    np.testing.assert_array_equal(rows.tokens, [[a, PAD, PAD, b, EOS, *[PAD] * 6]])
    assert rows.visible.all() and rows.editable.sum() == 2


@pytest.mark.parametrize(
    "texts, length, message",
    [
        (["ok", "abcdef"], 6, "text 2 of 2 has 6 tokens, which leaves none of the 6"),
        (["a[[0]]"], None, "text 1 of 1 has a gap of 0 tokens"),
        (["a[[00]]b"], None, "gap of 0 tokens"),
        ([""], 0, "length=0"),
        (["a[[2]]"], 5, "length=5: a text with gaps has its own length"),
        (["a[[99999999999]]"], None, "a gap of 99999999999 tokens"),
        ([f"a[[{'9' * 5000}]]"], None, "a gap of 99999999999999999999 tokens: at most 1,048,576 are written"),
        (["[[1000000]]" * 9], None, "a gap of 1000000 tokens: at most 1,048,576 are written in one row"),
    ],
)
def test_texts_must_leave_something_open(texts, length, message):
    with pytest.raises(ConfigError, match=message):
        open_rows(BYTES, texts, config_of().data, length=length)


def test_masks_are_shown_as_boxes():
    row = np.asarray([*BYTES.encode("hé"), MASK, MASK, *BYTES.encode("x"), EOS, MASK])
    assert readable(BYTES, row) == "hé▯▯x"
    assert readable(BYTES, row[[0, 1, 2]]) == "hé"


def test_beginnings_are_gone_on_with_and_gaps_filled():
    model = model_of()
    found = complete(model, ["", "hel", "h[[4]] w[[3]]d", "J"], model.config.sampling, stages=3)
    assert [of.texts for of in found] == [(ANSWER,), (ANSWER,), (ANSWER,), ("J" + ANSWER[1:],)]
    assert [of.continuations for of in found] == [(ANSWER,), ("lo world",), (), (ANSWER[1:],)]
    assert [of.prompt for of in found][2] == "h[[4]] w[[3]]d"
    assert {of.network_calls for of in found} == {5} and {of.steps for of in found} == {5}
    assert found[0].trajectory[0] == "▯" * 11 and found[2].trajectory[0] == "h▯▯▯▯ w▯▯▯d"
    assert found[2].trajectory[1] != found[2].trajectory[2] == ANSWER
    assert complete(model, [], model.config.sampling) == []
    (short,) = complete(model, ["he"], model.config.sampling, length=5)
    assert short.texts == ("hello",) and short.network_calls == 3  # no more than there are tokens to write


def test_an_end_in_a_gap_is_not_written_and_behind_the_text_it_is_one():
    model = model_of("hello")  # a row that goes on with EOS and PAD
    found = complete(model, ["he[[3]]", "hello[[2]]!"], model.config.sampling)
    assert found[0].texts == ("hello",)
    assert len(found[1].texts[0].encode("utf-8", "replace")) >= 8 and found[1].texts[0].endswith("!")
    padded = model_of("hello", data={"text": {"layout": "padded"}})
    assert complete(padded, ["he"], padded.config.sampling)[0].continuations == ("llo",)


def test_texts_do_not_depend_on_the_batch_size():
    config = config_of(sampling={"sampler": "ancestral", "num_samples": 2})
    model = model_of(denoiser=make_denoiser(config, MASK, nnx.Rngs(0)))
    found = {}
    for size in (1, 4):
        settings = dataclasses.replace(config.sampling, batch_size=size)
        found[size] = [of.texts for of in complete(model, ["", "a[[3]]b", "xy"], settings, seed=3)]
    assert found[1] == found[4]
    assert len({text for texts in found[1] for text in texts}) == 6
    other = [of.texts for of in complete(model, ["", "a[[3]]b", "xy"], config.sampling, seed=4)]
    assert other != found[1]
    for text in found[1][1]:
        assert text.startswith("a") and text.endswith("b")


@pytest.mark.parametrize(
    "process, model, sampling",
    [
        ({"kind": "autoregressive"}, {"direction": "causal"}, {}),
        ({"block_size": 4}, {}, {}),
        ({}, {}, {"block_size": 4}),
        ({}, {}, {"block_size": 4, "cache": "dual", "threshold": 0.3}),
        ({}, {}, {"guidance": 2.0}),
    ],
    ids=["autoregressive", "blocks", "semi", "dual", "guided"],
)
def test_every_way_goes_on_with_and_fills_texts(process, model, sampling):
    config = config_of(process=process, model=model, sampling=sampling, data={"target_length": 12})
    loaded = model_of(denoiser=make_denoiser(config, MASK, nnx.Rngs(0)))
    loaded = dataclasses.replace(loaded, config=config, process=make_process(config.process, MASK))
    found = complete(loaded, ["abc", "x[[3]]yz"], config.sampling, stages=3, length=10)
    assert found[0].texts[0].startswith("abc") and found[0].network_calls > 0
    assert found[1].texts[0].startswith("x") and found[1].texts[0].endswith("yz")
    assert "▯" in found[0].trajectory[0] and found[0].trajectory[-1] == found[0].texts[0]


def test_models_of_pairs_and_of_text_are_told_apart(make_model):
    model = model_of()
    with pytest.raises(ConfigError, match="use complete"):
        generate(model, ["a"], model.config.sampling)
    pairs = make_model()
    with pytest.raises(ConfigError, match="use generate"):
        complete(pairs, ["a"], pairs.config.sampling)
    with pytest.raises(ConfigError, match="stages=9: with 5 sampling steps take from 2 to 6"):
        complete(model, ["a"], model.config.sampling, stages=9)


def test_strip_of_running_text(tmp_path):
    text = strip.draw_strip(model_of(), "he[[3]] world", tmp_path / "strip.png", stages=3)
    lines = text.splitlines()
    assert lines[2:] == ["t = 1.00  |  he▯▯▯ world", *lines[3:4], "t = 0.00  |  hello world"]
    assert strip.draw_strip(model_of(), "", tmp_path / "strip.png", stages=2).splitlines()[0].endswith("▯" * 11)
