"""Whole rows of a network whose answers are known: prompts, gaps, lengths, and what it all costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_network import MASK, SOURCE, TABLE, TARGET, VOCAB, Known, config_of, rows, run, text_config, watched

from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.errors import ConfigError
from dimba_jax.sampling.discrete.full import chosen_length

SETTINGS = [
    {"sampler": "ancestral", "steps": 40},
    {"sampler": "ancestral", "steps": 40, "reuse_logits": True},
    {"sampler": "confidence", "steps": 4},
    {"sampler": "confidence", "steps": 30},
    {"sampler": "confidence", "steps": 30, "threshold": 0.5},
    {"sampler": "low_confidence", "steps": 3},
    {"sampler": "remdm", "steps": 7, "remask_strength": 0.5},
    {"sampler": "low_confidence", "steps": 3, "revise": True},
    {"sampler": "confidence", "steps": 30, "padding_apart": True},
    {"sampler": "confidence", "steps": 3, "padding_apart": True, "guidance": 2.0, "end_bias": -1.0},
    {"sampler": "confidence", "steps": 3, "guidance": 2.0},
    {"sampler": "confidence", "steps": 3, "length": "first"},
    {"sampler": "ancestral", "steps": 3, "length": "first", "guidance": 2.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(map(str, s.values())))
def test_calls_are_counted_as_they_are_made_and_given_tokens_stay(settings):
    calls, watch = watched()
    config = config_of(process={"condition_dropout": 0.2})
    tokens, editable, visible = rows()
    if settings.get("length") != "first":
        editable[1, 5] = editable[2, SOURCE:7] = False
    found = run(config, (tokens, editable, visible), network=Known(SOURCE, TABLE, watch), **settings)
    jax.effects_barrier()
    assert int(found.network_calls) == len(calls)
    assert int(found.positions) == len(calls) * (SOURCE + TARGET)
    new = np.asarray(found.tokens)
    np.testing.assert_array_equal(new[~editable], tokens[~editable])
    assert ((new >= 0) & (new < VOCAB)).all()
    assert (calls[0][0][:, SOURCE:][editable[:, SOURCE:]] == MASK).all()  # what stood there is not looked at
    expected = {"ancestral": 40, "remdm": 7, "low_confidence": 3}.get(settings["sampler"], 30)
    assert 1 < len(calls) <= (1 + (settings.get("guidance", 1) > 1)) * (expected + 1)


def test_logits_are_reused_after_steps_that_change_nothing():
    plain, reused = (run(config_of(), sampler="ancestral", steps=60, reuse_logits=reuse) for reuse in (False, True))
    np.testing.assert_array_equal(plain.tokens, reused.tokens)
    assert int(reused.network_calls) < 25 < int(plain.network_calls)  # 24 positions: no more changes than that


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "ancestral"}, {"sampler": "confidence", "score_noise": 1.0}, {"sampler": "remdm", "steps": 6},
     {"sampler": "low_confidence"}, {"sampler": "confidence", "length": "first"}],
    ids=lambda s: s["sampler"],
)  # fmt: skip
def test_a_row_depends_on_its_own_key_and_content_alone(settings):
    config = config_of()
    parts = rows()
    keys = jax.random.split(jax.random.key(3), 4)
    whole = np.asarray(run(config, parts, keys=keys, **settings).tokens)
    for row in (0, 3):
        alone = run(config, [part[row : row + 1] for part in parts], keys=keys[row : row + 1], **settings)
        np.testing.assert_array_equal(np.asarray(alone.tokens)[0], whole[row])
    swapped = run(config, [part[::-1] for part in parts], keys=keys[::-1], **settings)
    np.testing.assert_array_equal(np.asarray(swapped.tokens)[::-1], whole)
    assert (np.asarray(run(config, parts, seed=9, **settings).tokens) != whole).any()


def test_trajectory():
    found = run(config_of(), sampler="confidence", steps=3, stages=4)
    trajectory = np.asarray(found.trajectory)
    np.testing.assert_array_equal((trajectory == MASK).sum(-1), np.broadcast_to([[6], [4], [2], [0]], (4, 4)))
    np.testing.assert_array_equal(trajectory[..., :SOURCE], np.broadcast_to(rows()[0][:, :SOURCE], (4, 4, SOURCE)))
    np.testing.assert_array_equal(trajectory[-1], found.tokens)
    early = np.asarray(run(config_of(), sampler="confidence", steps=12, stages=13).trajectory)
    assert ((early == MASK).sum(-1)[:7, 0] == np.arange(6, -1, -1)).all() and (early[7:] == early[6]).all()


def test_the_network_is_told_the_time_that_fits_its_masks():
    times = {}
    for name, config, given in (("all", text_config(), 0), ("half", text_config(), 4)):
        for sampler in ("confidence", "ancestral"):
            calls, watch = watched()
            tokens, editable, visible = rows(source=0, length=8)
            editable[:, :given] = False
            run(config, (tokens, editable, visible), network=Known(0, TABLE, watch), sampler=sampler, steps=4)
            jax.effects_barrier()
            times[name, sampler] = [float(t[0]) for _, t, _ in calls]
    np.testing.assert_allclose(times["all", "confidence"], [1, 0.75, 0.5, 0.25], atol=1e-6)
    np.testing.assert_allclose(times["all", "ancestral"][:2], [1, 0.75], atol=1e-6)
    np.testing.assert_allclose(times["half", "confidence"], [0.5, 0.375, 0.25, 0.125], atol=1e-6)
    np.testing.assert_allclose(times["half", "ancestral"][:2], [0.5, 0.375], atol=1e-6)


def test_gaps_are_filled_with_words():
    table = TABLE.copy()
    table[:, [PAD, EOS]] += 50.0  # nothing is likelier than an end
    tokens, editable, visible = rows(source=0)
    editable[:] = False
    editable[:, 2:5] = True
    found = np.asarray(run(text_config(), (tokens, editable, visible), network=Known(0, table)).tokens)
    np.testing.assert_array_equal(found[~editable], tokens[~editable])
    assert (found[editable] > EOS).all()
    editable[:, 2:] = True
    found = np.asarray(run(text_config(), (tokens, editable, visible), network=Known(0, table)).tokens)
    assert (found[:, 2:] <= EOS).all()


WHOLE, BLOCKS = {"sampler": "confidence"}, {"sampler": "confidence", "block_size": 3}


@pytest.mark.parametrize("settings", [WHOLE, BLOCKS, BLOCKS | {"sampler": "ancestral"}])
def test_a_bias_against_the_end_makes_texts_longer(settings):
    table = TABLE.copy()
    table[:, [PAD, EOS]] += 20.0
    words = [
        (np.asarray(run(config_of(), network=Known(SOURCE, table), end_bias=bias, **settings).tokens) > EOS)[:, SOURCE:]
        for bias in (0.0, -40.0)
    ]
    assert not words[0].any() and words[1].all()


@pytest.mark.parametrize(
    "settings", [{"length": "first", "end_bias": -1.0}, {"anchors": True}, {"mean_temperature": 0.5}]
)
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match="set end_bias=0 and|are for Gaussian diffusion"):
        run(config_of(), sampler="confidence", **settings)


def test_length_is_chosen_from_the_probability_of_padding():
    pad = jnp.asarray([[0.01, 0.02, 0.1, 0.4, 0.9, 0.98]])  # 3.59 positions are expected to be used
    logits = jnp.log(jnp.stack([pad, *[(1 - pad) / 4] * 4], axis=-1))
    for bias, expected in ((0.0, 4), (0.4, 4), (1.0, 5), (-1.2, 2), (-9.0, 2), (9.0, 6)):
        assert int(chosen_length(logits, bias)[0]) == expected


def test_the_end_stands_where_the_length_says():
    table = TABLE.copy()
    table[:, [PAD, EOS]] = -50.0
    table[SOURCE + 3 :, PAD] = 50.0  # three positions used, EOS among them
    for bias, used in ((0.0, 3), (2.0, 5)):
        found = run(config_of(), network=Known(SOURCE, table), length="first", length_bias=bias, stages=2)
        target = np.asarray(found.tokens)[:, SOURCE:]
        assert (target[:, used - 1] == EOS).all() and (target[:, used:] == PAD).all()
        assert (target[:, : used - 1] > EOS).all()
        start = np.asarray(found.trajectory)[0, :, SOURCE:]
        assert (start[:, : used - 1] == MASK).all() and (start[:, used - 1] == EOS).all()
    assert (np.asarray(run(config_of(), network=Known(SOURCE, table)).tokens)[:, SOURCE + 3 :] == PAD).all()


def test_settings_that_sampling_does_not_read_compile_nothing_anew():
    traces = []

    class Counting(Known):
        def __call__(self, *args, **more):
            traces.append(1)
            return super().__call__(*args, **more)

    network = Counting(SOURCE, TABLE)
    run(config_of(), network=network)
    count = len(traces)
    run(config_of(), network=network, num_samples=3, batch_size=7, ema=False)
    assert len(traces) == count
