"""Gaussian sampling around anchors, and what is done to a network's logits on the way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ConfigError, ProcessConfig, SamplingConfig
from dimba_jax.data.vocabulary import EOS, PAD
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.loop import biased, sample
from dimba_jax.sampling.steppers import make_stepper

SOURCE, TARGET, VOCAB = 2, 4, 12
TOKENS = np.asarray([[9, 1, 0, 0, 0, 0], [10, 1, 0, 0, 0, 0]], np.int32)
IS_TARGET = np.arange(SOURCE + TARGET) >= SOURCE
ANSWER = np.asarray([3, 4, 5, 6, 7, 8])
SURE = np.asarray([0.0, 0.0, 2.0, 4.0, 1.0, 3.0])  # how far the answer's logit stands out: second, fourth, first, third


class Logits(nnx.Module):
    """Puts out the answer's logit, more or less sure of it, and tells what it was asked.

    A position still diffused beside k anchors has the answer shifted by k (times `shift`): what was written stays.
    """

    def __init__(self, table, watch, sure=SURE, answer=ANSWER, shift=1):
        self.embedding, self.watch, self.sure = nnx.Param(jnp.asarray(table)), watch, tuple(sure)
        self.answer, self.shift = tuple(answer), shift

    def table(self):
        return self.embedding[...]

    def embed(self, tokens):
        return self.table()[tokens]

    def encode(self, tokens, target, valid, keep=None, *, key=None):
        return jnp.array(target)

    def narrowed(self, condition, target):
        return target

    def __call__(self, z, t, condition, *, self_condition=None, key=None):
        jax.debug.callback(self.watch, z, condition, self_condition, ordered=True)
        anchors = TARGET - jnp.sum(condition, axis=1)
        answer = (jnp.asarray(self.answer)[None] + self.shift * anchors[:, None]) % VOCAB
        return jnp.asarray(self.sure)[None, :, None] * jax.nn.one_hot(answer, VOCAB)


@pytest.fixture
def run(table):
    def sampled(seen, sure=SURE, answer=ANSWER, shift=1, target=IS_TARGET, stages=0, **settings):
        settings = SamplingConfig(**{"steps": 4, "anchors": True} | settings)
        process = make_gaussian(ProcessConfig(timesteps=20, prediction="logits", mse_weight=0.0, anchor_prob=0.5))
        target = jnp.broadcast_to(target, TOKENS.shape)
        network = Logits(table, lambda *asked: seen.append([np.asarray(part) for part in asked]), sure, answer, shift)
        result = sample(
            network, process, make_stepper(settings), jnp.asarray(TOKENS), target,
            jnp.asarray(target | (TOKENS != 0)), jax.random.split(jax.random.key(0), len(TOKENS)), settings,
            self_conditioning=True, stages=stages,
        )  # fmt: skip
        jax.effects_barrier()
        return result

    return sampled


@pytest.mark.parametrize("score", ["probability", "margin", "entropy"])
def test_the_surest_become_anchors(run, table, score):
    seen = []
    result = run(seen, score=score)
    order = SOURCE + np.argsort(-SURE[SOURCE:])  # positions as they are written, one a step
    expected = TOKENS.copy()
    for anchors, (z, still, _) in enumerate(seen):
        assert (still.sum(axis=1) == TARGET - anchors).all()
        assert not still[:, order[:anchors]].any() and not still[:, :SOURCE].any()
        np.testing.assert_array_equal(z[~still], table[expected[~still]])  # clean, as the source is
        assert (np.abs(z[still] - table[expected][still]).max(axis=-1) > 1e-3).all()
        expected[:, order[anchors]] = (ANSWER[order[anchors]] + anchors) % VOCAB
    np.testing.assert_array_equal(result.tokens, expected)
    np.testing.assert_allclose(result.z, table[expected])
    assert int(result.network_calls) == 4


def test_guidance_tells_both_calls_what_is_an_anchor(run):
    seen = []
    run(seen, guidance=2.0)
    masks = [still for _, still, _ in seen]
    assert [int(still[0].sum()) for still in masks] == [4, 4, 3, 3, 2, 2, 1, 1]
    for one, other in zip(masks[::2], masks[1::2], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("steps, shares", [(2, [4, 2]), (3, [4, 3, 1]), (8, [4, 4, 3, 2, 2, 2, 1, 0])])
def test_every_step_writes_its_share(run, steps, shares):
    seen = []
    run(seen, steps=steps)
    assert [int(still[0].sum()) for _, still, _ in seen] == shares


WORDS, ONE_WORD = [3, 4, 5, 6, PAD, PAD], [3, 4, PAD, 6, PAD, PAD]


@pytest.mark.parametrize(
    "answer, apart, steps, written",
    [
        (WORDS, True, 2, [[3, 4], [2, 3, 4, 5]]),  # the surest word beside the surest padding
        (WORDS, True, 4, [[3, 4], [2, 3, 4, 5]]),  # half a position is one; nothing is left for further steps
        (WORDS, False, 2, [[4, 5], [2, 3, 4, 5]]),  # padding first
        (ONE_WORD, True, 2, [[3, 4, 5], [2, 3, 4, 5]]),  # two of the three
        ([*WORDS[:2], PAD, PAD, PAD, PAD], True, 2, [[4, 5], [2, 3, 4, 5]]),  # halves of one group
        ([*WORDS[:2], PAD, PAD, PAD, PAD], True, 3, [[4], [3, 4, 5], [2, 3, 4, 5]]),  # 1/3 of four, 1/2 of three
    ],
)
def test_padding_is_written_at_a_rate_of_its_own(run, table, answer, apart, steps, written):
    seen = []
    sure = np.asarray([0.0, 0.0, 1.0, 2.0, 4.0, 3.0])
    result = run(seen, sure, answer, shift=0, steps=steps, padding_apart=apart)
    anchors = [np.flatnonzero(~still[0][SOURCE:]) + SOURCE for _, still, _ in seen]
    assert [list(where) for where in anchors] == [[], *written[:-1]]
    assert int(result.network_calls) == len(written)
    np.testing.assert_allclose(result.z[:, SOURCE:], np.tile(table[np.asarray(answer[SOURCE:])], (2, 1, 1)))
    np.testing.assert_array_equal(result.tokens[:, SOURCE:], np.tile(answer[SOURCE:], (2, 1)))


def test_rows_end_each_in_its_time(run):
    # the second row has one position to write, and the loop goes on for the first; one is still open in no row
    sure, target = np.asarray([0.0, 0.0, 1.0, 2.0, 4.0, 3.0]), np.tile(IS_TARGET, (2, 1))
    target[1, SOURCE + 1 :] = False
    for rows in (target, target[::-1]):
        seen = []
        result = run(seen, sure, [3, 4, 5, 6, 7, PAD], shift=0, target=rows, steps=20, padding_apart=True, stages=6)
        assert int(result.network_calls) == len(seen) == 3  # of three words and a padding, one of each a step
        expected = np.where(rows, [3, 4, 5, 6, 7, PAD], TOKENS)
        np.testing.assert_array_equal(result.tokens, expected)
        np.testing.assert_array_equal(result.trajectory[1:], np.tile(expected, (5, 1, 1)))  # 4, 8, … steps: all later


def test_padding_that_turns_out_a_word_is_one(run):
    seen, answer = [], [3, 4, 5, 6, PAD, PAD]
    run(seen, SURE, answer, steps=4, padding_apart=True)
    # beside two anchors every answer is another one: what was padding in the first step is a word like the others
    assert [int(still[0].sum()) for _, still, _ in seen] == [4, 2, 1]


def test_stages_show_guesses_and_anchors(run, table):
    seen = []
    settings = SamplingConfig(steps=4, anchors=True)
    process = make_gaussian(ProcessConfig(timesteps=20, prediction="logits", mse_weight=0.0, anchor_prob=0.5))
    target = jnp.broadcast_to(IS_TARGET, TOKENS.shape)
    result = sample(
        Logits(table, lambda *_: seen.append(None)), process, make_stepper(settings), jnp.asarray(TOKENS), target,
        target | (jnp.asarray(TOKENS) != 0), jax.random.split(jax.random.key(0), 2), settings,
        self_conditioning=True, stages=5,
    )  # fmt: skip
    np.testing.assert_array_equal(result.trajectory[-1], result.tokens)
    np.testing.assert_array_equal(result.trajectory[1][:, SOURCE:], np.tile(ANSWER[SOURCE:], (2, 1)))


def test_without_anchors_all_of_the_target_is_diffused(run):
    seen = []
    result = run(seen, anchors=False)
    assert all(np.array_equal(still, np.tile(IS_TARGET, (2, 1))) for _, still, _ in seen)
    np.testing.assert_array_equal(result.tokens[:, SOURCE:], np.tile(ANSWER[SOURCE:], (2, 1)))


def test_the_mean_embedding_is_that_of_sharper_tokens(run, table):
    seen = {}
    for temperature in (1.0, 0.5, 0.05):
        asked = []
        run(asked, anchors=False, mean_temperature=temperature)
        seen[temperature] = asked[1][2]  # the second call sees the first one's estimate
    for temperature, x0_hat in seen.items():
        logits = SURE[:, None] * np.eye(VOCAB)[ANSWER] / temperature
        mean = jax.nn.softmax(logits, axis=-1) @ table
        np.testing.assert_allclose(x0_hat, np.tile(mean, (2, 1, 1)), atol=1e-5)


def test_a_bias_against_the_end_makes_texts_longer(run):
    logits = np.random.default_rng(0).normal(size=(2, 3, VOCAB)).astype(np.float32)
    found = np.asarray(biased(jnp.asarray(logits), -1.5))
    np.testing.assert_allclose(found[..., [PAD, EOS]], logits[..., [PAD, EOS]] - 1.5, rtol=1e-6)
    np.testing.assert_array_equal(np.delete(found, [PAD, EOS], axis=-1), np.delete(logits, [PAD, EOS], axis=-1))
    for bias, ends in ((0.0, False), (5.0, True)):
        tokens = np.asarray(run([], anchors=False, end_bias=bias).tokens)[:, SOURCE:]
        assert np.isin(tokens, [PAD, EOS]).all() == ends


@pytest.mark.parametrize(
    "process, sampling, message",
    [
        ({}, {"anchors": True}, "trained with process.anchor_prob > 0"),
        ({"anchor_prob": 0.5}, {"anchors": True, "early_exit": 2}, "every step writes positions"),
        ({"anchor_prob": 1.5}, {}, "must lie in"),
        ({"anchor_prob": 0.5, "loss_on_padding": False}, {}, "may be all that counts"),
        ({}, {"mean_temperature": 0.5}, "is for process.prediction='logits'"),
        ({"prediction": "logits"}, {"mean_temperature": 0.0}, "must be positive"),
        ({}, {"end_bias": -1.0}, "that predict tokens"),
    ],
)
def test_settings_that_do_not_fit(process, sampling, message):
    from dimba_jax.config import from_config_dict

    with pytest.raises(ConfigError, match=message):
        from_config_dict({"process": process, "sampling": sampling})


def test_a_model_that_knows_no_anchors_is_not_asked_for_them(make_model):
    model = make_model()
    with pytest.raises(ConfigError, match="trained with process.anchor_prob > 0"):
        generate(model, ["a"], dataclasses.replace(model.config.sampling, anchors=True))


@pytest.mark.parametrize("name, value", [("score", "margin"), ("padding_apart", True)])
def test_settings_of_anchors_alone(make_model, name, value):
    from dimba_jax import sampling_flags

    config = make_model(process={"anchor_prob": 0.5}).config
    assert getattr(sampling_flags.settings(config, {name: value, "anchors": True}), name) == value
    with pytest.raises(ConfigError, match=f"--{name} has no meaning with sampler 'ddim' without --anchors"):
        sampling_flags.settings(config, {name: value})
