"""Block diffusion from a cache, against the network run without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_denoisers import Calls, Script, row_keys, tiny_config, tiny_model

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.blocks import sample_blocks
from dimba_jax.sampling.discrete.fast import sample_fast
from dimba_jax.sampling.discrete.full import sample_full
from dimba_jax.sampling.discrete.guidance import guided
from dimba_jax.sampling.discrete.left_to_right import sample_left_to_right
from dimba_jax.sampling.discrete.loop import unmask
from dimba_jax.sampling.discrete.unmasking import make_unmasker

GREEDY = SamplingConfig(sampler="confidence", temperature=0.0, steps=3)
CHANCE = SamplingConfig(sampler="ancestral", temperature=1.2, steps=3)
SOURCE, TARGET, SIZE = 4, 12, 4
SOURCES = np.asarray([[5, 6, 7, EOS], [8, 9, EOS, PAD], [4, EOS, PAD, PAD]], np.int32)


def batch(source=SOURCE, target=TARGET):
    """Tokens, editable, visible: padded sources; targets to be written, but for given tokens here and there."""
    tokens = np.concatenate([SOURCES[:, :source], np.full((3, target), 2, np.int32)], axis=1)
    editable = np.broadcast_to(np.arange(source + target) >= source, tokens.shape).copy()
    for row, at, token in ((0, 1, 9), (0, 2, 7), (0, 6, 8), (1, 11, 6), (2, 9, 5)):
        if at < target:
            tokens[row, source + at], editable[row, source + at] = token, False
    visible = (np.arange(source + target) >= source) | (tokens != PAD)
    for x, value in ((tokens, PAD), (editable, False), (visible, False)):
        x[2, -2:] = value  # a shorter row
    return tokens, editable, visible


def without_cache(model, run, rows, keys, settings, size):
    """The blocks one by one; `run(row, noisy, t, start)` gives the logits of whole targets. Nothing is ended by EOS."""
    denoiser, process, _ = model
    tokens, editable, visible = (jnp.asarray(x) for x in rows)
    row, first = jnp.where(editable, process.mask_id, tokens), denoiser.source_length
    blocks = (row.shape[1] - first) // size

    @jax.jit
    def write(row, k):
        start = first + k * size

        def network(x, t):
            return part(run(put(row, masks, start), put(row, x, start), t, start), start - first, size)

        masks = jnp.full((len(row), size), process.mask_id)
        found = unmask(
            network, process, make_unmasker(settings), part(row, start, size), part(editable, start, size),
            jax.vmap(jax.random.fold_in, (0, None))(keys, k), settings.steps,
            maskable=part(visible, start, size),
        )  # fmt: skip
        return put(row, found.tokens, start)

    for k in range(blocks):
        row = write(row, k)
    return row


def part(x, start, size):
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def put(x, new, start):
    return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1)


def two_streams(model, visible, size):
    """Logits of all blocks as training computes them."""
    denoiser = model[0]
    first = denoiser.source_length

    def logits(clean, noisy, t, _):
        times = jnp.broadcast_to(t[:, None], noisy.shape)
        return denoiser.two_streams(noisy, clean, times, visible=visible, block_size=size, first=first)

    return logits


def sample(model, rows, settings, keys=None, stages=0):
    denoiser, process, config = model
    keys = row_keys(len(rows[0])) if keys is None else keys
    return sample_blocks(denoiser, process, *rows, keys, settings, config=config, stages=stages)


@pytest.mark.parametrize(
    "pattern, settings",
    [
        ("mamba", GREEDY), ("attention", GREEDY), ("hybrid", GREEDY), ("hybrid", CHANCE),
        ("hybrid", dataclasses.replace(GREEDY, padding_apart=True)),
        ("hybrid", dataclasses.replace(GREEDY, sampler="low_confidence", revise=True)),
    ],
)  # fmt: skip
def test_the_cache_changes_nothing(pattern, settings):
    model = tiny_model(pattern=pattern, source=SOURCE, target=TARGET, block_size=SIZE, endless=True)
    tokens, editable, visible = batch()
    found = sample(model, (tokens, editable, visible), settings).tokens
    expected = without_cache(
        model, two_streams(model, visible, SIZE), (tokens, editable, visible), row_keys(3), settings, SIZE
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[~editable], tokens[~editable])
    assert len(np.unique(found[:, SOURCE:][editable[:, SOURCE:]])) > 1


@pytest.mark.parametrize(("bias", "ends"), [(-1e4, False), (1e4, True)])
def test_a_bias_makes_texts_longer_or_shorter(bias, ends):
    model = tiny_model(source=SOURCE, target=TARGET, block_size=SIZE)
    tokens, _, visible = batch()
    everything = np.broadcast_to(np.arange(SOURCE + TARGET) >= SOURCE, tokens.shape).copy()
    found = sample(model, (tokens, everything, visible | everything), dataclasses.replace(GREEDY, end_bias=bias)).tokens
    words = np.asarray(found)[:, SOURCE:] > EOS
    assert not words.any() if ends else words.all()


def test_a_causal_model_needs_no_training_with_blocks():
    # if it is told no time: its network without a cache is the plain call on the row as far as it is written
    model = tiny_model(pattern="hybrid", direction="causal", target=TARGET, time_conditioning=False, endless=True)
    tokens, editable, visible = batch(source=0)
    settings = dataclasses.replace(GREEDY, block_size=SIZE)

    def logits(_, noisy, t, start):
        return model[0](noisy, t)

    found = sample(model, (tokens, editable, visible), settings).tokens
    expected = without_cache(model, logits, (tokens, editable, visible), row_keys(3), settings, SIZE)
    np.testing.assert_array_equal(found, expected)


def test_one_block_is_the_whole_row():
    model = tiny_model(pattern="hybrid", target=TARGET, block_size=TARGET)
    rows, keys = batch(source=0), row_keys(3, 5)
    made = sample(model, rows, CHANCE, keys)
    denoiser, process, config = model
    whole = sample_full(denoiser, process, *rows, keys, CHANCE, config=config)
    np.testing.assert_array_equal(made.tokens, whole.tokens)
    assert int(made.network_calls) == int(whole.network_calls) == 3
    assert int(made.positions) == int(whole.positions) == 3 * TARGET


def test_blocks_of_one_are_written_left_to_right():
    model = tiny_model(pattern="mamba", target=6, block_size=1, endless=True)
    denoiser, process, _ = model
    tokens, editable, visible = batch(source=0, target=6)
    settings = dataclasses.replace(GREEDY, steps=1)
    found = sample(model, (tokens, editable, visible), settings).tokens
    row = jnp.asarray(tokens)
    masks = jnp.full_like(row, process.mask_id)
    logits = jax.jit(lambda x: denoiser.two_streams(masks, x, jnp.ones(x.shape), block_size=1))
    for i in range(6):
        best = jnp.argmax(logits(row)[:, i], axis=-1)
        row = row.at[:, i].set(jnp.where(editable[:, i], best, row[:, i]))
    np.testing.assert_array_equal(found, row)


def test_rows_do_not_depend_on_their_batch():
    model = tiny_model(pattern="hybrid", source=SOURCE, target=TARGET, block_size=SIZE)
    rows, keys = batch(), row_keys(3)
    whole = sample(model, rows, CHANCE, keys).tokens
    for row in range(3):
        own = sample(model, tuple(x[row : row + 1] for x in rows), CHANCE, keys[row : row + 1]).tokens
        np.testing.assert_array_equal(own[0], whole[row])


def test_rows_may_be_longer_than_in_training():
    model = tiny_model(pattern="hybrid", target=TARGET, block_size=SIZE, seed=1)
    tokens, editable, visible = batch(source=0, target=2 * TARGET)
    found = sample(model, (tokens, editable, visible), GREEDY)
    short = sample(model, tuple(x[:, :TARGET] for x in (tokens, editable, visible)), GREEDY)
    np.testing.assert_array_equal(found.tokens[:, :TARGET], short.tokens)
    assert (found.tokens < model[0].mask_id).all() and found.tokens.shape == (3, 2 * TARGET)


def run_script(word_rows, tokens, editable, *, source=0, size=2, layout="padded", steps=2, stages=0, sure=None, **more):
    """The sample, and the calls made."""
    calls = Calls()
    config = tiny_config(source=source, target=len(word_rows[0]) - source, layout=layout, block_size=size)
    tokens = np.asarray(tokens, np.int32)
    made = sample_blocks(
        Script(word_rows, 11, source=source, sure=sure, calls=calls), make_process(config.process, 11),
        tokens, np.asarray(editable, bool), np.ones(tokens.shape, bool), row_keys(len(tokens)),
        dataclasses.replace(GREEDY, steps=steps, **more), config=config, stages=stages,
    )  # fmt: skip
    return made, calls.take()


def test_calls_are_counted_as_they_are_made():
    word_rows = [[0, 0, 3, 4, 5, 6, 7, 8]] * 2
    tokens, editable = [[7, 1] + [0] * 6] * 2, [[False] * 2 + [True] * 6] * 2
    made, calls = run_script(word_rows, tokens, editable, source=2)
    np.testing.assert_array_equal(made.tokens, [[7, 1, 3, 4, 5, 6, 7, 8]] * 2)
    # the source; two steps and the commitment of each block, but for the last one
    assert [call.tokens.shape for call in calls] == [(2, 2)] * 9
    assert int(made.network_calls) == 9 and int(made.positions) == 18 and int(made.window_calls) == 0
    read = [call.tokens[0].tolist() for call in calls]
    assert read[0] == [7, 1] and read[3] == [3, 4] and read[6] == [5, 6]
    assert read[1] == read[4] == read[7] == [11, 11]
    times = [call.t.tolist() for call in calls]
    np.testing.assert_allclose(
        times, [[0.0] * 2] + [[1.0] * 2, [0.5] * 2, [0.0] * 2] * 2 + [[1.0] * 2, [0.5] * 2], atol=1e-6
    )
    # with four given tokens to a row the first two blocks are only read, and nothing comes behind the last gap
    given = [[False] * 4 + [True] + [False] * 3] * 2
    made, calls = run_script(word_rows, [[9] * 8] * 2, given)
    np.testing.assert_array_equal(made.tokens, [[9, 9, 9, 9, 5, 9, 9, 9]] * 2)
    assert [call.tokens[0].tolist() for call in calls] == [[9, 9], [9, 9], [11, 9]]
    assert int(made.network_calls) == 3


def test_rows_end_with_the_block_of_their_eos():
    word_rows = [[3, EOS, 5, 6, 7, 8, 9, 9], [3, 4, EOS, 6, 7, 8, 9, 9], [3, EOS, 5, 6, EOS, 8, 9, 9]]
    tokens, editable = np.zeros((3, 8), np.int32), np.ones((3, 8), bool)
    tokens[2, 2], editable[2, 2] = 9, False  # a word given behind its first EOS, which can then not stand
    made, calls = run_script(word_rows, tokens, editable)
    expected = [[3, EOS] + [PAD] * 6, [3, 4, EOS, 6] + [PAD] * 4, [3, 2, 9, 6, EOS, 8, PAD, PAD]]
    np.testing.assert_array_equal(made.tokens, expected)
    assert int(made.network_calls) == len(calls) == 3 * 2 + 2  # none for the last block
    alone, calls = run_script(word_rows[:1], tokens[:1], editable[:1])
    np.testing.assert_array_equal(alone.tokens, expected[:1])
    assert int(alone.network_calls) == len(calls) == 2
    packed, _ = run_script(word_rows[:2], tokens[:2], editable[:2], layout="packed")
    np.testing.assert_array_equal(packed.tokens, word_rows[:2])


def test_a_threshold_ends_a_block_early():
    # sure of the first block and not of the second: one step, then one for each position
    made, calls = run_script(
        [[3, 4, 5, 6, 7, 8]], [[0] * 6], [[True] * 6], size=3, steps=3, threshold=0.9, sure=[9, 9, 9, 0.1, 0.3, 0.2]
    )
    assert int(made.network_calls) == len(calls) == 1 + 1 + 3
    np.testing.assert_array_equal(made.tokens, [[3, 4, 5, 6, 7, 8]])
    assert calls[3].tokens.tolist() == [[11, 7, 11]]


def test_trajectory_goes_from_masks_to_the_end():
    word_rows = [[3, 4, 5, 6], [3, EOS, 5, 6]]
    made, _ = run_script(word_rows, [[0] * 4] * 2, [[True] * 4] * 2, stages=5, sure=[2, 1, 1, 2])
    expected = [
        [[11, 11, 11, 11], [3, 11, 11, 11], [3, 4, 11, 11], [3, 4, 11, 6], [3, 4, 5, 6]],
        [[11, 11, 11, 11], [3, 11, 11, 11], [3, 1, 11, 11], [3, 1, 0, 0], [3, 1, 0, 0]],
    ]
    np.testing.assert_array_equal(np.swapaxes(made.trajectory, 0, 1), expected)
    alone, _ = run_script(word_rows[1:], [[0] * 4], [[True] * 4], stages=3)
    np.testing.assert_array_equal(alone.trajectory[:, 0], [[11] * 4, [3, 1, 11, 11], [3, 1, 0, 0]])


@pytest.mark.parametrize("how", [sample_blocks, sample_fast, sample_left_to_right])
def test_compiles_once_for_a_shape(how):
    kind = "autoregressive" if how is sample_left_to_right else "masked"
    config = tiny_config(kind, target=4, block_size=2 if how is sample_blocks else 0)
    calls, process = Calls(), make_process(config.process, 11)
    network = Script([[3, 4, 5, 6]], 11, calls=calls)
    rows = np.zeros((1, 4), np.int32), np.ones((1, 4), bool), np.ones((1, 4), bool)
    how(network, process, *rows, row_keys(1), dataclasses.replace(CHANCE, block_size=2), config=config)
    traced = calls.traced
    network.words[...] = network.words[...] + 1  # parameters are arguments
    settings = dataclasses.replace(CHANCE, block_size=2, num_samples=7, batch_size=3, ema=False)
    found = how(network, process, *rows, row_keys(1, 3), settings, config=config)
    assert calls.traced == traced > 0
    if how is not sample_left_to_right:
        traced = calls.traced
        how(network, process, *rows, row_keys(1, 3), dataclasses.replace(settings, steps=4), config=config)
        assert calls.traced > traced
    assert found.tokens.shape == (1, 4)


def test_guidance_compares_with_a_row_without_its_source():
    more = {"source": SOURCE, "target": TARGET, "block_size": SIZE, "endless": True}
    model = tiny_model(pattern="hybrid", condition_dropout=0.1, **more)
    tokens, editable, visible = batch()
    settings = dataclasses.replace(GREEDY, guidance=2.5)
    made = sample(model, (tokens, editable, visible), settings)
    hidden = visible & (np.arange(SOURCE + TARGET) >= SOURCE)
    pair = two_streams(model, visible, SIZE), two_streams(model, hidden, SIZE)
    expected = without_cache(
        model,
        lambda *at: guided(pair[0](*at), pair[1](*at), 2.5),
        (tokens, editable, visible),
        row_keys(3),
        settings,
        SIZE,
    )
    np.testing.assert_array_equal(made.tokens, expected)
    plain = sample(model, (tokens, editable, visible), GREEDY)
    assert (made.tokens != plain.tokens).any() and int(made.network_calls) == 2 * int(plain.network_calls)
    with pytest.raises(ConfigError, match="guidance=2.5 needs a model of pairs"):
        sample(tiny_model(pattern="hybrid", **more), (tokens, editable, visible), settings)


def test_settings_that_do_not_fit_are_refused():
    rows = batch(source=0)
    with pytest.raises(ConfigError, match="block_size=5 does not divide the target's 12 positions: take 4"):
        sample(tiny_model(target=TARGET, block_size=SIZE), rows, dataclasses.replace(GREEDY, block_size=5))
    with pytest.raises(ConfigError, match="sampling.block_size=0"):
        sample(tiny_model(target=TARGET, direction="causal", time_conditioning=False), rows, GREEDY)
    with pytest.raises(ConfigError, match="direction='untied'.*needs a model trained with blocks"):
        sample(tiny_model(target=TARGET), rows, dataclasses.replace(GREEDY, block_size=4))
