"""Autoregressive sampling from a cache, against the network run on whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_denoisers import Calls, Script, row_keys, tiny_config, tiny_model

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.distribution import draw_tokens, filtered_log_probs
from dimba_jax.sampling.discrete.guidance import guided
from dimba_jax.sampling.discrete.left_to_right import sample_left_to_right

GREEDY = SamplingConfig(temperature=0.0)
SOURCE, TARGET = 4, 8
SOURCES = np.asarray([[5, 6, 7, EOS], [8, 9, EOS, PAD], [4, EOS, PAD, PAD]], np.int32)


def batch(rows=3, source=SOURCE, target=TARGET):
    """Tokens, editable, visible: padded sources, and targets all to be written."""
    tokens = np.concatenate([SOURCES[:rows, :source], np.full((rows, target), 3, np.int32)], axis=1)
    editable = np.arange(source + target)[None] >= source
    return tokens, np.broadcast_to(editable, tokens.shape).copy(), editable | (tokens != PAD)


def teacher_forced(denoiser, process, tokens, visible, first):
    """Logits of every target token given the true ones before it, in one call without a cache."""
    target = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= first, tokens.shape)
    run = jax.jit(lambda x: denoiser(process.inputs(x, target), jnp.zeros(len(x)), visible=visible, first=first))
    return run(jnp.asarray(tokens))


def over(found, editable):
    """Positions behind the target's first EOS that has no given word behind it."""
    position = np.arange(found.shape[1])
    last_word = np.where(~editable & (position >= SOURCE) & (found != PAD), position, -1).max(axis=1, keepdims=True)
    end = (found == EOS) & (position >= SOURCE) & (position >= last_word)
    return np.cumsum(end, axis=1) - end > 0


@pytest.mark.parametrize("pattern", ["mamba", "attention", "hybrid"])
def test_greedy_tokens_are_those_of_the_network_without_a_cache(pattern):
    denoiser, process, config = tiny_model("autoregressive", pattern=pattern, source=SOURCE)
    tokens, editable, visible = batch()
    tokens[1, SOURCE : SOURCE + 2], editable[1, SOURCE : SOURCE + 2] = (9, 5), False  # a prompt of its own
    tokens[2, 8], editable[2, 8] = 7, False  # and one word further on
    made = sample_left_to_right(denoiser, process, tokens, editable, visible, row_keys(3), GREEDY, config=config)
    found = np.asarray(made.tokens)
    np.testing.assert_array_equal(found[~editable], tokens[~editable])
    logits = np.array(teacher_forced(denoiser, process, found, visible, SOURCE))
    logits[2, : 8 - SOURCE, [PAD, EOS]] = -np.inf  # no end in front of a given word
    best = np.argmax(logits, axis=-1)
    expected = np.where(editable, np.where(over(found, editable), PAD, np.pad(best, ((0, 0), (SOURCE, 0)))), tokens)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found[:, SOURCE:])) > 3  # not one word over and over


def test_draws_have_the_probabilities_of_the_network():
    # all sequences of three tokens, against their frequencies
    denoiser, process, config = tiny_model("autoregressive", vocab=3, target=3, pattern="hybrid")
    rows = 20_000
    tokens, editable, visible = np.zeros((rows, 3), np.int32), np.ones((rows, 3), bool), np.ones((rows, 3), bool)
    made = sample_left_to_right(
        denoiser, process, tokens, editable, visible, row_keys(rows), SamplingConfig(temperature=0.8), config=config
    )
    every = np.stack(np.meshgrid(*[range(3)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    logp = filtered_log_probs(teacher_forced(denoiser, process, every, visible[:27], 0), 0.8)
    chance = np.exp(np.take_along_axis(np.asarray(logp), every[..., None], -1).sum((1, 2)).astype(np.float64))
    seen = np.bincount(np.asarray(made.tokens) @ [9, 3, 1], minlength=27)
    assert chance.sum() == pytest.approx(1.0, abs=1e-5) and chance.max() < 0.7
    chi_square = ((seen - rows * chance) ** 2 / (rows * chance)).sum()
    assert chi_square < 54.1  # 26 degrees of freedom, one in a thousand


def test_each_position_draws_from_its_own_key_with_filters():
    settings = SamplingConfig(temperature=1.3, top_k=5, top_p=0.9)
    denoiser, process, config = tiny_model("autoregressive", source=SOURCE, endless=True)
    tokens, editable, visible = batch()
    keys = row_keys(3, 4)
    made = sample_left_to_right(denoiser, process, tokens, editable, visible, keys, settings, config=config)
    logp = filtered_log_probs(teacher_forced(denoiser, process, made.tokens, visible, SOURCE), 1.3, 5, 0.9)
    for i in range(TARGET):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        np.testing.assert_array_equal(made.tokens[:, SOURCE + i], draw_tokens(own, logp[:, i : i + 1])[:, 0])


@pytest.mark.parametrize(("bias", "ends"), [(-1e4, False), (1e4, True)])
def test_a_bias_makes_texts_longer_or_shorter(bias, ends):
    denoiser, process, config = tiny_model("autoregressive", source=SOURCE)
    tokens, editable, visible = batch()
    settings = dataclasses.replace(GREEDY, end_bias=bias)
    made = sample_left_to_right(denoiser, process, tokens, editable, visible, row_keys(3), settings, config=config)
    words = np.asarray(made.tokens)[:, SOURCE:] > EOS
    assert not words.any() if ends else words.all()


def test_rows_do_not_depend_on_their_batch():
    denoiser, process, config = tiny_model("autoregressive", source=SOURCE)
    tokens, editable, visible = batch()
    editable[1:, SOURCE : SOURCE + 5] = False  # alone, these rows' first four tokens are read in one call
    settings, keys = SamplingConfig(temperature=1.5), row_keys(3)
    whole = sample_left_to_right(denoiser, process, tokens, editable, visible, keys, settings, config=config)
    part = sample_left_to_right(
        denoiser, process, tokens[1:], editable[1:], visible[1:], keys[1:], settings, config=config
    )
    np.testing.assert_array_equal(whole.tokens[1:], part.tokens)
    assert int(part.network_calls) <= 1 + 4 < int(whole.network_calls)


def run_script(words, tokens, editable, *, source=0, layout="padded", settings=GREEDY, stages=0):
    """The sample, and the positions of each call."""
    calls = Calls()
    config = tiny_config("autoregressive", source=source, target=len(words[0]) - source, layout=layout)
    made = sample_left_to_right(
        Script(words, 11, source=source, calls=calls), make_process(config.process, 11), np.asarray(tokens, np.int32),
        np.asarray(editable, bool), np.ones_like(tokens, bool), row_keys(len(tokens)), settings,
        config=config, stages=stages,
    )  # fmt: skip
    return made, [call.tokens.shape[1] for call in calls.take()]


def test_calls_are_counted_as_they_are_made():
    words = [[0, 0, 3, 4, 5, 6]] * 2
    tokens, editable = [[7, 1, 0, 0, 0, 0]] * 2, [[False] * 2 + [True] * 4] * 2
    made, calls = run_script(words, tokens, editable, source=2)
    assert calls == [2, 1, 1, 1, 1]
    assert int(made.network_calls) == 5 and int(made.positions) == 6
    np.testing.assert_array_equal(made.tokens, [[7, 1, 3, 4, 5, 6]] * 2)
    # without a source, and with three tokens given to every row, two of which are read in one call
    words, tokens = [[3, 4, 5, 6, 7, 8]] * 2, [[9, 9, 9, 0, 0, 0]] * 2
    made, calls = run_script(words, tokens, [[False] * 3 + [True] * 3, [False] * 4 + [True] * 2])
    assert calls == [2, 1, 1, 1, 1] and int(made.network_calls) == 5 and int(made.positions) == 6
    np.testing.assert_array_equal(made.tokens, [[9, 9, 9, 6, 7, 8], [9, 9, 9, 0, 7, 8]])
    # nothing left to write behind the third position
    made, calls = run_script(words, [[0, 0, 0, 9, 9, 9]] * 2, [[True] * 3 + [False] * 3] * 2)
    assert calls == [1, 1, 1] and int(made.network_calls) == 3
    np.testing.assert_array_equal(made.tokens, [[3, 4, 5, 9, 9, 9]] * 2)


def test_the_network_reads_the_begin_token_and_then_what_was_written():
    calls = Calls()
    config = tiny_config("autoregressive", source=2, target=3)
    script = Script([[0, 0, 3, 4, 5]], 11, source=2, calls=calls)
    sample_left_to_right(
        script, make_process(config.process, 11), np.asarray([[7, 1, 0, 9, 0]], np.int32),
        np.asarray([[False, False, True, False, True]]), np.ones((1, 5), bool), row_keys(1), GREEDY, config=config,
    )  # fmt: skip
    assert [call.tokens.tolist() for call in calls.take()] == [[[7, 1]], [[11]], [[3]], [[9]]]


def test_rows_end_at_eos():
    words = [[3, EOS, 5, 6, 7, 8], [3, 4, 5, EOS, 7, 8], [3, EOS, 5, 6, EOS, 8]]
    tokens, editable = np.zeros((3, 6), np.int32), np.ones((3, 6), bool)
    tokens[2, 2], editable[2, 2] = 9, False  # a word given behind its first EOS, which can then not stand
    made, calls = run_script(words, tokens, editable)
    expected = [[3, EOS, 0, 0, 0, 0], [3, 4, 5, EOS, 0, 0], [3, 2, 9, 6, EOS, 0]]
    np.testing.assert_array_equal(made.tokens, expected)
    assert calls == [1] * 5 and int(made.network_calls) == 5
    made, _ = run_script(words, tokens, editable, layout="packed")  # EOS stands between documents
    np.testing.assert_array_equal(made.tokens, [[3, 1, 5, 6, 7, 8], [3, 4, 5, 1, 7, 8], [3, 2, 9, 6, 1, 8]])


def test_trajectory_shows_what_is_written_so_far():
    made, _ = run_script([[3, 4, 5, 6]], [[0, 0, 9, 0]], [[True, True, False, True]], stages=3)
    np.testing.assert_array_equal(made.trajectory[:, 0], [[11, 11, 9, 11], [3, 4, 9, 11], [3, 4, 9, 6]])


def test_guidance_compares_with_a_row_without_its_source():
    denoiser, process, config = tiny_model("autoregressive", source=SOURCE, condition_dropout=0.1)
    tokens, editable, visible = batch()
    settings = dataclasses.replace(GREEDY, guidance=3.0)
    made = sample_left_to_right(denoiser, process, tokens, editable, visible, row_keys(3), settings, config=config)
    plain = sample_left_to_right(denoiser, process, tokens, editable, visible, row_keys(3), GREEDY, config=config)
    assert (made.tokens != plain.tokens).any()
    hidden = visible & (np.arange(visible.shape[1]) >= SOURCE)
    pair = (teacher_forced(denoiser, process, made.tokens, seen, SOURCE) for seen in (visible, hidden))
    best = np.argmax(guided(*pair, 3.0), axis=-1)
    found = np.asarray(made.tokens)
    np.testing.assert_array_equal(found[:, SOURCE:], np.where(over(found, editable)[:, SOURCE:], PAD, best))
    assert int(made.network_calls) % 2 == 0


def test_other_processes_are_refused():
    denoiser, process, config = tiny_model("masked")
    tokens, editable, visible = batch(source=0)
    with pytest.raises(ConfigError, match="process.kind='masked'"):
        sample_left_to_right(denoiser, process, tokens, editable, visible, row_keys(3), GREEDY, config=config)
