"""Fast-dLLM's caches against passes over the whole row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_denoisers import Calls, Script, row_keys, tiny_config, tiny_model

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.deviation import cache_deviation
from dimba_jax.sampling.discrete.fast import sample_fast
from dimba_jax.sampling.discrete.full import sample_full
from dimba_jax.sampling.discrete.guidance import guided
from dimba_jax.sampling.discrete.loop import unmask
from dimba_jax.sampling.discrete.unmasking import make_unmasker

GREEDY = SamplingConfig(sampler="confidence", temperature=0.0, steps=3, block_size=4)
DRAWN = dataclasses.replace(GREEDY, temperature=1.2)
CHANCE = SamplingConfig(sampler="ancestral", temperature=1.2, steps=3, block_size=4)
SOURCE, TARGET = 4, 8
SOURCES = np.asarray([[5, 6, 7, EOS], [8, 9, EOS, PAD], [4, EOS, PAD, PAD]], np.int32)


def batch(source=SOURCE, target=TARGET):
    """Tokens, editable, visible: padded sources; targets to be written, but for given tokens here and there."""
    tokens = np.concatenate([SOURCES[:, :source], np.full((3, target), 2, np.int32)], axis=1)
    editable = np.broadcast_to(np.arange(source + target) >= source, tokens.shape).copy()
    for row, at, token in ((0, 1, 9), (0, 2, 7), (0, 6, 8), (1, 7, 6), (2, 3, 5)):
        tokens[row, source + at], editable[row, source + at] = token, False
    visible = (np.arange(source + target) >= source) | (tokens != PAD)
    for x, value in ((tokens, PAD), (editable, False), (visible, False)):
        x[2, -1:] = value  # a shorter row
    return tokens, editable, visible


def sample(model, rows, settings, keys=None, how=sample_fast):
    denoiser, process, config = model
    return how(denoiser, process, *rows, row_keys(len(rows[0])) if keys is None else keys, settings, config=config)


def caches(settings):
    return (dataclasses.replace(settings, cache=cache) for cache in ("none", "prefix", "dual"))


def test_one_block_of_running_text_is_the_whole_row():
    # nothing lies outside of it, so that the cache holds nothing
    model = tiny_model(pattern="hybrid", target=TARGET, endless=True)
    rows = batch(source=0)
    settings = dataclasses.replace(CHANCE, block_size=0)
    whole = sample(model, rows, settings, how=sample_full)
    for with_cache in caches(settings):
        found = sample(model, rows, with_cache)
        np.testing.assert_array_equal(found.tokens, whole.tokens)
        assert int(found.network_calls) == int(whole.network_calls)
        assert int(found.positions) == int(whole.positions) == 3 * TARGET
        assert int(found.window_calls) == (0 if with_cache.cache == "none" else 2)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_block_of_one_step_is_a_pass_over_the_row(cache):
    model = tiny_model(pattern="hybrid", source=SOURCE, target=TARGET, endless=True)
    settings = dataclasses.replace(CHANCE, steps=1)
    whole, cached = (sample(model, batch(), dataclasses.replace(settings, cache=c)) for c in ("none", cache))
    np.testing.assert_array_equal(cached.tokens, whole.tokens)
    assert int(cached.network_calls) == 2 and int(cached.window_calls) == 0


def by_hand(model, rows, settings):
    """The blocks one by one, from `denoiser.refresh` and `denoiser.window` or whole passes."""
    (denoiser, process, config), (tokens, editable, visible) = model, (jnp.asarray(x) for x in rows)
    first, length = denoiser.source_length, tokens.shape[1]
    size, keys, row = settings.block_size, row_keys(len(tokens)), jnp.where(editable, process.mask_id, tokens)

    # (what is visible, what is masked) in the rows with their prompt and, under guidance, in those without
    nothing, source = jnp.zeros_like(editable), jnp.arange(length) < first
    bare = (visible & ~source, nothing) if config.process.condition_dropout else (visible, source | nothing)
    views = [(visible, nothing)] if settings.guidance == 1.0 else [(visible, nothing), bare]

    @functools.partial(jax.jit, static_argnums=1)
    def write(row, k):
        start, end = first + k * size, length if settings.cache == "prefix" else first + (k + 1) * size
        here = slice(start, start + size)
        kept = []
        for seen, masked in views:
            tokens = jnp.where(masked, process.mask_id, row)
            kept.append(denoiser.refresh(tokens, row_time(row), start, size=end - start, visible=seen)[1])

        def network(x, t):
            now = row.at[:, here].set(x)
            logits = []
            for (seen, masked), rest in zip(views, kept, strict=True):
                tokens = jnp.where(masked, process.mask_id, now)
                if settings.cache == "none":
                    logits.append(denoiser(tokens, row_time(now), visible=seen)[:, here])
                    continue
                window = tokens[:, start:end], row_time(now), rest
                logits.append(denoiser.window(*window, visible=seen[:, start:end])[:, :size])
            return logits[0] if len(logits) == 1 else guided(*logits, settings.guidance)

        found = unmask(
            network, process, make_unmasker(settings), row[:, here], editable[:, here],
            jax.vmap(jax.random.fold_in, (0, None))(keys, k), settings.steps, maskable=visible[:, here],
        )  # fmt: skip
        return row.at[:, here].set(found.tokens)

    def row_time(row):
        return jnp.sum(row == process.mask_id, axis=1) / jnp.sum(visible[:, first:], axis=1)

    for k in range((length - first) // size):
        row = write(row, k)
    return row


@pytest.mark.parametrize("cache, pattern", [("none", "hybrid"), ("prefix", "attention"), ("dual", "hybrid")])
def test_windows_stand_in_their_rows(cache, pattern):
    # the time that the network is told is the share of masks in the whole row
    model = tiny_model(pattern=pattern, source=SOURCE, target=TARGET, endless=True)
    settings = dataclasses.replace(DRAWN, cache=cache)
    found = sample(model, batch(), settings).tokens
    np.testing.assert_array_equal(found, by_hand(model, batch(), settings))
    tokens, editable, _ = batch()
    np.testing.assert_array_equal(found[~editable], tokens[~editable])


def deviation(model, rows, settings):
    denoiser, process, config = model
    return cache_deviation(denoiser, process, *rows, row_keys(3), settings, config=config)


def test_a_causal_network_loses_nothing():
    model = tiny_model(pattern="hybrid", direction="causal", source=SOURCE, target=TARGET, time_conditioning=False)
    whole, prefix, dual = (sample(model, batch(), settings) for settings in caches(DRAWN))
    np.testing.assert_array_equal(prefix.tokens, whole.tokens)
    np.testing.assert_array_equal(dual.tokens, whole.tokens)
    seen = deviation(model, batch(), dataclasses.replace(DRAWN, cache="prefix"))
    assert seen["max_difference"] < 1e-4 and seen["argmax_changed"] == 0.0 and seen["compared"] > 0


def test_deviation_is_that_of_single_calls():
    model = tiny_model(pattern="hybrid", source=SOURCE, target=TARGET)
    denoiser, process, config = model
    rows = batch()
    visible, settings = rows[2], dataclasses.replace(DRAWN, cache="dual")
    made = sample_fast(denoiser, process, *rows, row_keys(3), settings, config=config, stages=7)
    states = np.asarray(made.trajectory)  # before each of the six steps, and the end

    @jax.jit
    def both(first, state, start):
        told = (jnp.sum(row == 11, axis=1) / jnp.sum(visible[:, SOURCE:], axis=1) for row in (first, state))
        _, rest = denoiser.refresh(first, next(told), start, size=4, visible=visible)
        t, here = next(told), jax.lax.dynamic_slice_in_dim(state, start, 4, axis=1)
        whole = jax.lax.dynamic_slice_in_dim(denoiser(state, t, visible=visible), start, 4, axis=1)
        seen = jax.lax.dynamic_slice_in_dim(jnp.asarray(visible), start, 4, axis=1)
        return whole, denoiser.window(here, t, rest, visible=seen)

    pairs = []
    for step in (1, 2, 4, 5):
        start = SOURCE + step // 3 * 4
        masked = states[step][:, start : start + 4] == 11
        pairs.append([x[masked] for x in both(states[step - step % 3], states[step], start)])
    whole, window = (np.concatenate(x) for x in zip(*pairs, strict=True))
    difference = np.abs(whole - window)
    seen = deviation(model, rows, settings)
    assert seen["compared"] == len(whole) > 0 and difference.max() > 0.1
    assert seen["max_difference"] == pytest.approx(difference.max(), rel=1e-3)
    assert seen["mean_difference"] == pytest.approx(difference.mean(), rel=1e-3)
    flips = np.argmax(whole, -1) != np.argmax(window, -1)
    assert flips.any() and seen["argmax_changed"] == pytest.approx(flips.mean())
    assert seen["full_calls"] == 2 and seen["window_calls"] == 4 and seen["positions"] == 2 * 12 + 4 * 4


def run_script(
    word_rows, tokens, editable, *, source=0, layout="padded", steps=2, sure=None, block_size=2, visible=True, **more
):
    """The sample, and the calls made."""
    calls = Calls()
    config = tiny_config(source=source, target=len(word_rows[0]) - source, layout=layout)
    tokens = np.asarray(tokens, np.int32)
    made = sample_fast(
        Script(word_rows, 11, source=source, sure=sure, calls=calls), make_process(config.process, 11),
        tokens, np.asarray(editable, bool), np.ones(tokens.shape, bool) & visible, row_keys(len(tokens)),
        dataclasses.replace(GREEDY, steps=steps, block_size=block_size, **more), config=config,
    )  # fmt: skip
    return made, calls.take()


@pytest.mark.parametrize(
    "cache, kinds, lengths",
    [
        ("none", ["whole"] * 6, [8] * 6),
        ("prefix", ["refresh", "window"] * 3, [8, 6, 8, 4, 8, 2]),
        ("dual", ["refresh", "window"] * 3, [8, 2] * 3),
    ],
)
def test_calls_are_counted_as_they_are_made(cache, kinds, lengths):
    word_rows = [[0, 0, 3, 4, 5, 6, 7, 8]] * 2
    tokens, editable = [[7, 1] + [0] * 6] * 2, [[False] * 2 + [True] * 6] * 2
    made, calls = run_script(word_rows, tokens, editable, source=2, cache=cache)
    np.testing.assert_array_equal(made.tokens, [[7, 1, 3, 4, 5, 6, 7, 8]] * 2)
    assert [call.what for call in calls] == kinds and [call.tokens.shape[1] for call in calls] == lengths
    assert int(made.network_calls) == 6 and int(made.window_calls) == kinds.count("window")
    assert int(made.positions) == sum(lengths)
    shares = [6, 5, 4, 3, 2, 1]
    np.testing.assert_allclose([call.t[0] for call in calls], np.asarray(shares) / 6, atol=1e-5)
    # the row as the calls see it: written blocks before, masks behind
    assert calls[2].tokens[0].tolist() == [7, 1, 3, 4, 11, 11, 11, 11]
    # the time of a row that is shorter than the others
    short = np.asarray([[True] * 8, [True] * 7 + [False]])
    made, calls = run_script(word_rows, tokens, editable & short, source=2, cache=cache, visible=short)
    assert [call.what for call in calls] == kinds
    np.testing.assert_allclose([call.t[1] for call in calls], np.asarray([5, 4, 3, 2, 1, 0]) / 5, atol=1e-5)
    # a block without a gap is not run
    made, calls = run_script(word_rows, [[9] * 8] * 2, [[False] * 4 + [True] + [False] * 3] * 2, cache=cache)
    np.testing.assert_array_equal(made.tokens, [[9, 9, 9, 9, 5, 9, 9, 9]] * 2)
    assert int(made.network_calls) == len(calls) == 1 and int(made.positions) == 8


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_rows_end_with_the_block_of_their_eos(cache):
    word_rows = [[3, EOS, 5, 6, 7, 8, 9, 9], [3, 4, EOS, 6, 7, 8, 9, 9]]
    rows = np.zeros((2, 8), np.int32), np.ones((2, 8), bool)
    made, calls = run_script(word_rows, *rows, cache=cache)
    np.testing.assert_array_equal(made.tokens, [[3, EOS] + [PAD] * 6, [3, 4, EOS, 6] + [PAD] * 4])
    assert int(made.network_calls) == len(calls) == 4
    assert calls[2].tokens.tolist() == [[3, EOS] + [PAD] * 6, [3, 4] + [11] * 6]
    packed, _ = run_script(word_rows, *rows, cache=cache, layout="packed")
    np.testing.assert_array_equal(packed.tokens, word_rows)


def test_a_threshold_says_how_many_calls_there_are():
    # both rows are sure of the first block at once; of the second one position is, the others go one by one
    sure = [9, 9, 9, 9, 9, 0.1, 0.3, 0.2]
    made, calls = run_script(
        [[3, 4, 5, 6, 7, 8, 9, 10]],
        [[0] * 8],
        [[True] * 8],
        block_size=4,
        steps=4,
        cache="dual",
        threshold=0.9,
        sure=sure,
    )
    np.testing.assert_array_equal(made.tokens, [[3, 4, 5, 6, 7, 8, 9, 10]])
    assert [call.what for call in calls] == ["refresh", "refresh", "window", "window", "window"]
    assert int(made.network_calls) == 5 and int(made.window_calls) == 3 and int(made.positions) == 2 * 8 + 3 * 4
    assert [call.tokens[0].tolist() for call in calls[2:]] == [[7, 11, 11, 11], [7, 11, 9, 11], [7, 11, 9, 10]]


def test_rows_do_not_depend_on_their_batch():
    model = tiny_model(pattern="hybrid", source=SOURCE, target=TARGET)
    rows, keys, settings = batch(), row_keys(3), dataclasses.replace(CHANCE, cache="dual")
    whole = sample(model, rows, settings, keys).tokens
    for row in range(3):
        own = sample(model, tuple(x[row : row + 1] for x in rows), settings, keys[row : row + 1]).tokens
        np.testing.assert_array_equal(own[0], whole[row])


@pytest.mark.parametrize("cache, dropout", [("none", 0.1), ("dual", 0.1), ("dual", 0.0)])
def test_guidance_compares_with_a_row_without_its_source(cache, dropout):
    model = tiny_model(pattern="attention", source=SOURCE, target=TARGET, condition_dropout=dropout, endless=True)
    settings = dataclasses.replace(DRAWN, guidance=6.0, cache=cache)
    found = sample(model, batch(), settings)
    np.testing.assert_array_equal(found.tokens, by_hand(model, batch(), settings))
    assert int(found.network_calls) == 2 * 6 and int(found.window_calls) == (0 if cache == "none" else 2 * 4)


def test_guidance_of_running_text_masks_what_is_given():
    model = tiny_model(pattern="attention", target=TARGET, endless=True)
    settings = dataclasses.replace(DRAWN, guidance=6.0, cache="dual", block_size=0)
    whole = sample(model, batch(source=0), dataclasses.replace(settings, cache="none"), how=sample_full)
    found = sample(model, batch(source=0), settings)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    assert int(found.network_calls) == int(whole.network_calls) == 6


def test_settings_that_do_not_fit_are_refused():
    rows = batch(source=0)
    with pytest.raises(ConfigError, match="process.block_size=4: a model trained with blocks"):
        sample(tiny_model(target=TARGET, block_size=4), rows, GREEDY)
    with pytest.raises(ConfigError, match="block_size=5 does not divide the target's 8 positions: take 4"):
        sample(tiny_model(target=TARGET), rows, dataclasses.replace(GREEDY, block_size=5))
