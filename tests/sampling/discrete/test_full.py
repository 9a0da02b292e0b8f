"""Whole rows of a network whose answers are known: prompts, gaps, guidance, lengths, and what it all costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.data.tokenizers import EOS, PAD
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.blocks import sample_blocks
from dimba_jax.sampling.discrete.fast import sample_fast
from dimba_jax.sampling.discrete.full import chosen_length, sample_full
from dimba_jax.sampling.discrete.guidance import guided
from dimba_jax.sampling.discrete.left_to_right import sample_left_to_right
from dimba_jax.sampling.discrete.sample import check_settings, sample_tokens, total_steps, way_of

VOCAB, SOURCE, TARGET = 9, 3, 6
MASK = VOCAB


class Known(nnx.Module):
    """Logits from a table of each position, moved by the neighbours and by how many source tokens are visible."""

    vocab_size = mask_id = VOCAB

    def __init__(self, source, table, watch=None):
        self.source_length = source
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))  # (l, v)
        self.moved = nnx.Param(jnp.asarray(np.random.default_rng(5).normal(size=(VOCAB + 1, VOCAB)), jnp.float32))
        self.watch = watch

    def __call__(self, tokens, t, *, visible=None, first=0, key=None):
        if self.watch is not None:
            jax.debug.callback(self.watch, tokens, t, visible, ordered=True)
        seen = self.moved[...][tokens] * visible[..., None]
        around = jnp.roll(seen, 1, axis=1) + jnp.roll(seen, -1, axis=1)
        prompt = jnp.sum(seen[:, : self.source_length], axis=1, keepdims=True)
        return (self.table[...][None, : tokens.shape[1]] + around + prompt)[:, first:]


def config_of(**groups):
    values = {
        "data": {"source_length": SOURCE, "target_length": TARGET, "normalize": "none"},
        "model": {"self_conditioning": False},
        "process": {"kind": "masked", "schedule": "log_linear", "time_conditioning": False},
        "sampling": {"sampler": "ancestral", "steps": 4, "batch_size": 8},
    }
    for name, more in groups.items():
        values[name] = values.get(name, {}) | more
    return from_config_dict(values)


def text_config(**groups):
    data = {"source": "text", "source_length": 0} | groups.pop("data", {})
    return config_of(data=data, **groups)


TABLE = np.random.default_rng(0).normal(size=(SOURCE + TARGET, VOCAB))


def rows(count=4, source=SOURCE, length=SOURCE + TARGET, seed=0):
    tokens = np.random.default_rng(seed).integers(3, VOCAB, (count, length)).astype(np.int32)
    editable = np.broadcast_to(np.arange(length) >= source, tokens.shape).copy()
    return tokens, editable, np.ones(tokens.shape, bool)


def run(config, parts=None, *, seed=0, stages=0, network=None, keys=None, **settings):
    tokens, editable, visible = rows(source=config.data.source_length) if parts is None else parts
    keys = jax.random.split(jax.random.key(seed), 4)[: len(tokens)] if keys is None else keys
    return sample_tokens(
        network or Known(config.data.source_length, TABLE), make_process(config.process, VOCAB),
        jnp.asarray(tokens), jnp.asarray(editable), jnp.asarray(visible), keys,
        dataclasses.replace(config.sampling, **settings), config=config, stages=stages,
    )  # fmt: skip


def watched():
    """A network that tells of its calls, and the list in which it does."""
    calls = []
    watch = lambda tokens, t, visible: calls.append((np.array(tokens), np.array(t), np.array(visible)))  # noqa: E731
    return calls, watch


SETTINGS = [
    {"sampler": "ancestral", "steps": 40},
    {"sampler": "ancestral", "steps": 40, "reuse_logits": True},
    {"sampler": "confidence", "steps": 4},
    {"sampler": "confidence", "steps": 30},
    {"sampler": "confidence", "steps": 30, "threshold": 0.5},
    {"sampler": "low_confidence", "steps": 3},
    {"sampler": "remdm", "steps": 7, "remask_strength": 0.5},
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


# Guidance


def test_guided_log_probabilities():
    c, u = np.random.default_rng(0).normal(size=(2, 1, 1, 5))
    logp = lambda x: x - np.log(np.exp(x).sum())  # noqa: E731
    np.testing.assert_allclose(guided(jnp.asarray(c), jnp.asarray(u), 3.0), 3 * logp(c) - 2 * logp(u), atol=1e-5)
    np.testing.assert_allclose(guided(jnp.asarray(c), jnp.asarray(u + 7), 1.0), logp(c), atol=1e-5)


def test_the_prompt_is_hidden_as_training_hid_it():
    calls, watch = watched()
    config = config_of(process={"condition_dropout": 0.2})
    tokens, editable, visible = rows()
    visible[:, 2] = False
    run(config, (tokens, editable, visible), network=Known(SOURCE, TABLE, watch), guidance=2.0, sampler="confidence")
    jax.effects_barrier()
    assert len(calls) == 8
    for (given, t, shown), (bare, t_bare, shown_bare) in zip(calls[::2], calls[1::2], strict=True):
        np.testing.assert_array_equal(given[:, :SOURCE], tokens[:, :SOURCE])
        np.testing.assert_array_equal(given[:, SOURCE:], bare[:, SOURCE:])
        np.testing.assert_array_equal(shown, visible)
        np.testing.assert_array_equal(t, t_bare)
        np.testing.assert_array_equal(bare, given)
        assert not shown_bare[:, :SOURCE].any() and shown_bare[:, SOURCE:].all()


def test_guidance_of_running_text_masks_what_is_given():
    calls, watch = watched()
    tokens, editable, visible = rows(source=0)
    editable[:, :4] = False
    run(text_config(), (tokens, editable, visible), network=Known(0, TABLE, watch), guidance=1.5, steps=1)
    jax.effects_barrier()
    (given, _, _), (bare, _, shown) = calls
    assert (given[:, :4] == tokens[:, :4]).all() and (bare == MASK).all() and shown.all()


def test_guidance_moves_samples_towards_the_prompt():
    greedy = {"sampler": "confidence", "temperature": 0.0, "steps": 1}
    config = config_of(process={"condition_dropout": 0.2})
    plain, strong = (np.asarray(run(config, guidance=scale, **greedy).tokens) for scale in (1.0, 5.0))
    tokens, _, visible = rows()
    network = Known(SOURCE, TABLE)
    masked = np.where(np.arange(9) < SOURCE, tokens, MASK)
    hidden = visible & (np.arange(9) >= SOURCE)
    c, u = (jax.nn.log_softmax(network(jnp.asarray(masked), jnp.ones(4), visible=jnp.asarray(seen), first=SOURCE))
            for seen in (visible, hidden))  # fmt: skip
    np.testing.assert_array_equal(plain[:, SOURCE:], c.argmax(-1))
    np.testing.assert_array_equal(strong[:, SOURCE:], (u + 5 * (c - u)).argmax(-1))
    assert (plain != strong).any()


# Length first


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


# Dispatch


@pytest.mark.parametrize(
    "config, settings, way, steps",
    [
        (config_of(), {}, sample_full, 4),
        (config_of(process={"block_size": 2}), {}, sample_blocks, 12),
        (config_of(process={"block_size": 2}), {"block_size": 3}, sample_blocks, 8),
        (config_of(model={"direction": "causal"}), {"block_size": 3}, sample_blocks, 8),
        (
            config_of(model={"direction": "causal"}, process={"time_conditioning": True}),
            {"block_size": 3},
            sample_fast,
            8,
        ),
        (config_of(), {"block_size": 3}, sample_fast, 8),
        (config_of(), {"cache": "dual"}, sample_fast, 4),
        (config_of(process={"kind": "autoregressive"}, model={"direction": "causal"}), {}, sample_left_to_right, 6),
    ],
)
def test_the_way_follows_from_model_and_settings(config, settings, way, steps):
    settings = dataclasses.replace(config.sampling, **settings)
    assert way_of(config, settings) is way
    assert total_steps(config, settings, TARGET) == steps


def test_settings_that_do_not_fit_are_refused():
    autoregressive = config_of(process={"kind": "autoregressive"}, model={"direction": "causal"})
    for config, more, message in (
        (config_of(process={"block_size": 2}), {"length": "first"}, "length='first' is for masked models of pairs"),
        (text_config(), {"length": "first"}, "length='first'"),
        (config_of(process={"time_conditioning": True}), {"reuse_logits": True}, "time_conditioning=False"),
        (config_of(), {"reuse_logits": True, "sampler": "confidence"}, "for 'ancestral' and 'remdm'"),
        (autoregressive, {"guidance": 2.0}, "condition_dropout > 0"),
        (config_of(), {"guidance": 2.0}, "condition_dropout > 0"),  # a source that was never masked in training
        (config_of(process={"block_size": 2}), {"cache": "dual"}, "trained without blocks"),
        (autoregressive, {"cache": "dual"}, "trained without blocks"),
        (autoregressive, {"block_size": 4}, "writes token by token"),
        (config_of(), {"cache": "prefix"}, "there are no blocks: set block_size too"),
        (config_of(), {"early_exit": 3}, "early_exit=3 is for Gaussian"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_settings(config, dataclasses.replace(config.sampling, **more))
    tokens, editable, visible = rows()
    editable[1, 5] = False
    with pytest.raises(ConfigError, match="some tokens of them are given"):
        run(config_of(), (tokens, editable, visible), length="first")
    with pytest.raises(ConfigError, match="remask_strength=2.0"):
        sample_full(
            Known(SOURCE, TABLE), make_process(config_of().process, VOCAB), *map(jnp.asarray, rows()),
            jax.random.split(jax.random.key(0), 4),
            dataclasses.replace(config_of().sampling, sampler="remdm", remask_strength=2.0), config=config_of(),
        )  # fmt: skip


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
