"""Likelihoods of texts: known values under known models, honest standard errors, and every token counted once."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ConfigError
from dimba_jax.data.examples import DataError
from dimba_jax.data.tokenizers import EOS, PAD, ByteTokenizer
from dimba_jax.evals.estimate import Estimator
from dimba_jax.evals.likelihood import format_likelihood_table, likelihood_report
from dimba_jax.evals.texts import document_rows, file_text, split_text

V = 259
BYTES = ByteTokenizer()
AR = {"process": {"kind": "autoregressive"}, "model": {"direction": "causal"}}
TEXT = "the owl eats a mouse\nthe mouse eats käse\n"  # 42 bytes, 41 characters, 9 words, 2 lines


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "owl.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture
def masked(make_config, make_model):
    return make_model(make_config())


@pytest.fixture
def uniform(make_config, make_model):
    return make_model(make_config(), scale=0.0)


def rows_of(model, text=TEXT):
    return document_rows([text], model.config.data, BYTES)


def padded(length):
    return {"data": {"text": {"layout": "padded"}, "target_length": length}}


def test_packed_rows_hold_the_whole_text_once(make_config, path):
    text = file_text(path, make_config().data, BYTES)
    assert text.text == TEXT and text.rows["tokens"].shape == (3, 16)
    assert (text.counts.tokens, text.counts.bytes, text.counts.characters, text.counts.words) == (42, 42, 41, 9)
    np.testing.assert_array_equal(text.rows["target"], np.arange(48).reshape(3, 16) < 42)
    np.testing.assert_array_equal(text.rows["target"], text.rows["valid"])
    two = document_rows(["ab", "c"], make_config().data, BYTES)
    assert two["tokens"][0, :4].tolist() == [100, 101, EOS, 102]


def test_padded_rows_are_lines_and_an_end_is_a_line_break(make_config, path):
    text = file_text(path, make_config(**padded(24)).data, BYTES)
    assert len(text) == 2 and text.text == TEXT
    assert text.counts.tokens == text.counts.bytes == 42
    assert text.rows["target"].all() and (text.rows["tokens"] == PAD).sum() == 6
    cut = file_text(path, make_config(**padded(8)).data, BYTES)
    assert cut.text == "the owl\nthe mou\n"


def test_limit_counts_what_it_keeps(make_config, path):
    text = file_text(path, make_config().data, BYTES, limit=2)
    assert text.text == TEXT[:32] and text.counts.tokens == 32


def test_normalised_text_is_what_is_scored(make_config, tmp_path):
    file = tmp_path / "loud.txt"
    file.write_text("LOUD\nTEXT\n")
    assert file_text(file, make_config(data={"normalize": "lower"}).data, BYTES).text == "loud\ntext\n"


@pytest.mark.parametrize(
    "content, message",
    [(None, "no such file"), (b"", "is empty"), (b" \n", "is empty"), (b"good\nb\xffad\n", "line 2: not UTF-8")],
)
def test_files_that_cannot_be_read(make_config, tmp_path, content, message):
    file = tmp_path / "x.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        file_text(file, make_config().data, BYTES)


def test_nothing_left_after_normalising(make_config, tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("\u200b")  # a character that BERT drops
    with pytest.raises(DataError, match="nothing of the text is left"):
        file_text(file, make_config(data={"normalize": "bert_basic"}).data, BYTES)


def test_a_model_of_pairs_has_no_text_files(make_config, path):
    config = make_config(data={"source": "jsonl", "source_length": 8})
    with pytest.raises(ConfigError, match="trained on pairs"):
        file_text(path, config.data, BYTES)


def test_pairs_are_scored_by_their_targets(make_config, make_model, tmp_path):
    (tmp_path / "valid.jsonl").write_text(json.dumps({"src": "a question", "trg": "an answer"}) + "\n")
    data = {"source": "jsonl", "path": str(tmp_path), "source_length": 12, "target_length": 12}
    model = make_model(make_config(data=data, **AR), scale=0.0)
    text = split_text(model.config.data, BYTES, "valid")
    assert text.text == "an answer\n" and text.counts.tokens == 10
    # padding is learned, and its loss is part of the bound
    assert Estimator(model)(text.rows, draws=1).nats == pytest.approx(12 * math.log(V), rel=1e-5)
    quiet = make_model(
        make_config(data=data, process=AR["process"] | {"loss_on_padding": False}, model=AR["model"]), scale=0.0
    )
    assert Estimator(quiet)(text.rows, draws=1).nats == pytest.approx(10 * math.log(V), rel=1e-5)


def test_an_autoregressive_model_is_exact(make_config, make_model):
    model = make_model(make_config(**AR))
    rows = rows_of(model)
    found = Estimator(model)(rows, draws=5, batch_size=2)
    assert found.exact and found.draws == 1 and found.standard_error == 0.0
    assert found.nats == pytest.approx(Estimator(model)(rows, draws=1, seed=9, batch_size=3).nats, rel=1e-6)
    # by the chain rule, token by token
    expected = 0.0
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model.denoiser(tokens, jnp.zeros(1))[0]))
    for row, target in zip(rows["tokens"], rows["target"], strict=True):
        seen = np.concatenate([[V], row[:-1]])
        logp = np.asarray(forward(jnp.asarray(seen[None])))
        expected -= sum(logp[i, row[i]] for i in np.flatnonzero(target))
    assert found.nats == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_costs_log_v_a_token(uniform):
    found = Estimator(uniform)(rows_of(uniform), draws=64)
    assert not found.exact and found.draws == 64
    assert 0 < found.standard_error < 0.05 * found.nats
    assert abs(found.nats - 42 * math.log(V)) < 4 * found.standard_error


def test_the_standard_error_is_that_of_repeated_estimates(masked):
    """And it shrinks as one over the root of the draws."""
    rows, estimator = rows_of(masked), Estimator(masked)
    found = {draws: [estimator(rows, draws=draws, seed=seed, batch_size=2) for seed in range(40)] for draws in (4, 16)}
    spread = {draws: np.std([value.nats for value in values], ddof=1) for draws, values in found.items()}
    claimed = {
        draws: math.sqrt(np.mean([value.standard_error**2 for value in values])) for draws, values in found.items()
    }
    for draws in found:  # 40 repetitions know their spread to 11%
        assert claimed[draws] == pytest.approx(spread[draws], rel=0.4)
    assert claimed[4] / claimed[16] == pytest.approx(2.0, rel=0.15)


def test_rows_that_fill_up_the_last_batch_do_not_count(uniform):
    rows = rows_of(uniform)
    means = [Estimator(uniform)(rows, draws=200, batch_size=size) for size in (2, 3)]
    for found in means:  # a third row counted twice would add a quarter
        assert found.nats == pytest.approx(42 * math.log(V), rel=0.05)


def test_one_draw_has_no_standard_error_and_seeds_matter(masked):
    rows, estimator = rows_of(masked), Estimator(masked)
    one = estimator(rows, draws=1)
    assert one.standard_error is None
    assert one == estimator(rows, draws=1) != estimator(rows, draws=1, seed=1)


def test_positions_behind_the_text_are_not_seen(masked):
    rows = rows_of(masked)
    other = rows | {"tokens": np.where(rows["target"], rows["tokens"], 77)}
    estimator = Estimator(masked)
    assert estimator(rows, draws=3).nats == pytest.approx(estimator(other, draws=3).nats, rel=1e-6)


def test_the_report(make_config, make_model, path):
    model = make_model(make_config(**AR), scale=0.0)
    text = file_text(path, model.config.data, BYTES)
    frequencies = np.bincount(text.ids, minlength=V)
    report = likelihood_report(model, [text], draws=3, training=frequencies, metadata={"step": 7})
    json.dumps(report)
    assert (report["value"], report["draws"], report["time_range"], report["seed"]) == ("exact", 1, None, None)
    assert report["training_unigram"] == "given" and report["metadata"] == {"step": 7}
    (of,) = report["texts"]
    assert (of["rows"], of["tokens"], of["bytes"], of["characters"], of["words"]) == (3, 42, 42, 41, 9)
    (found,) = of["model"]
    assert found["bits_per_byte"] == pytest.approx(math.log2(V), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(math.log2(V) * 42 / 41, rel=1e-5)
    assert found["ppl"] == pytest.approx(V, rel=1e-4)
    assert found["ppl_word"] == pytest.approx(V ** (42 / 9), rel=1e-3)
    assert list(of["baselines"]) == ["unigram", "training", "bytes", "gzip", "xz"]
    assert of["baselines"]["unigram"]["bits_per_byte"] == pytest.approx(of["baselines"]["bytes"]["bits_per_byte"])
    assert of["baselines"]["training"]["ppl"] > of["baselines"]["unigram"]["ppl"]
    table = format_likelihood_table(report)
    assert "exact" in table and "gzip" in table and "draws" not in table


def test_the_table_says_what_there_is_to_know(masked, path):
    text = file_text(path, masked.config.data, BYTES)
    report = likelihood_report(masked, [text], draws=2, training="the disk is gone")
    assert report["value"] == "bound" and report["draws"] == 2 and report["time_range"] == [1e-3, 1.0]
    assert "training" not in report["texts"][0]["baselines"]
    table = format_likelihood_table(report)
    assert "bound, 2 draws" in table and "No frequencies of training: the disk is gone" in table
    assert "*" not in table


def test_what_cannot_be_scored(masked, make_config, make_model):
    with pytest.raises(ConfigError, match="block size 5 does not divide .* 16 positions.*1, 2, 4, 8, 16"):
        likelihood_report(masked, [], draws=1, block_sizes=[4, 5])
    with pytest.raises(ConfigError, match="only masked models are scored in blocks"):
        likelihood_report(make_model(make_config(**AR)), [], draws=1, block_sizes=[4])


def test_a_sweep_over_block_sizes(make_config, make_model, path):
    model = make_model(make_config(process={"block_size": 4}))
    text = file_text(path, model.config.data, BYTES)
    report = likelihood_report(model, [text], draws=3, block_sizes=[None, 0, 16, 1])
    own, none, whole, single = report["texts"][0]["model"]
    assert [of["block_size"] for of in (own, none, whole, single)] == [4, 0, 16, 1]
    assert report["trained_block_size"] == 4
    # one block of the whole row is no blocks, to the same draws
    assert whole["nats_per_token"] == pytest.approx(none["nats_per_token"], rel=1e-5)
    assert len({round(of["nats_per_token"], 3) for of in (own, none, single)}) == 3
    table = format_likelihood_table(report)
    names = [line.split("  ")[0] for line in table.splitlines() if line.startswith(str(path)) and "blocks" in line]
    name = str(path)
    assert names == [f"{name}, blocks of 4", f"{name}, no blocks*", f"{name}, blocks of 16*", f"{name}, blocks of 1*"]
    assert "* trained with blocks of 4" in table
    same = likelihood_report(make_model(make_config()), [text], draws=1, block_sizes=[16])
    assert "*" not in format_likelihood_table(same)
