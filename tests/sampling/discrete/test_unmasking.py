"""Which positions each stepper unmasks, and when: its stated behaviour, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ConfigError, SamplingConfig
from dimba_jax.data.tokenizers import PAD
from dimba_jax.sampling.discrete.distribution import TokenChoice
from dimba_jax.sampling.discrete.loop import unmask
from dimba_jax.sampling.discrete.unmasking import Ancestral, Confidence, LowConfidence, ReMDM, make_unmasker

VOCAB, ROWS, LENGTH = 7, 5, 12
MASK = VOCAB
# sureness of the positions of each row, all different, and the token that is most probable there
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, VOCAB)) * 2, jnp.float32)
EVERYWHERE = jnp.ones((ROWS, LENGTH), bool)
GREEDY = TokenChoice(0.0)


def fixed(tokens, t):
    return LOGITS


def states(make_masked, stepper, steps, *, editable=EVERYWHERE, given=0, seed=0, network=fixed, **more):
    """The tokens after every step, from all masked on, and the number of calls."""
    keys = jax.random.split(jax.random.key(seed), ROWS)
    tokens = jnp.full((ROWS, LENGTH), given, jnp.int32)
    run = jax.jit(lambda keys: unmask(network, make_masked(VOCAB), stepper, tokens, editable, keys, steps, steps + 1))
    found = run(keys)
    np.testing.assert_array_equal(found.trajectory[-1], found.tokens)
    return np.asarray(found.trajectory), int(found.network_calls)


def order_of(trajectory):
    """The step at which each position was revealed, 1 the first."""
    return (trajectory == MASK).sum(axis=0)


STEPPERS = [
    Ancestral(),
    Confidence(),
    Confidence(threshold=0.6),
    Confidence(score_noise=3.0),
    Confidence(padding_apart=True),
    LowConfidence(),
    LowConfidence(revise=True),
    ReMDM(strength=0.3),
    ReMDM(variant="rescale", strength=0.5),
    ReMDM(variant="loop", strength=0.05, window=(0.3, 0.7)),
]


@pytest.mark.parametrize("stepper", STEPPERS, ids=str)
def test_revealed_and_given_tokens_never_change_unless_remasked(make_masked, stepper):
    editable = jnp.asarray(np.random.default_rng(1).random((ROWS, LENGTH)) < 0.7)
    trajectory, _ = states(make_masked, stepper, 20, editable=editable, given=5)
    editable = np.asarray(editable)
    assert (trajectory[:, ~editable] == 5).all()
    assert (trajectory[0][editable] == MASK).all() and (trajectory[-1] < VOCAB).all()
    before, after = trajectory[:-1], trajectory[1:]
    lost = (before != MASK) & (after == MASK)
    assert lost.any() == (isinstance(stepper, ReMDM) or stepper == LowConfidence(revise=True))
    assert ((after == before) | (before == MASK) | lost).all()  # from one token to another there is no way at all


@pytest.mark.parametrize("stepper", [Confidence(GREEDY), LowConfidence(GREEDY)], ids=str)
def test_numbers_follow_the_schedule_and_the_surest_come_first(make_masked, stepper):
    trajectory, calls = states(make_masked, stepper, 4)
    assert calls == 4
    assert ((trajectory == MASK).sum(axis=2) == np.asarray([12, 9, 6, 3, 0])[:, None]).all()
    np.testing.assert_array_equal(trajectory[-1], LOGITS.argmax(-1))
    sure = np.asarray(jax.nn.softmax(LOGITS).max(-1))
    step = order_of(trajectory)
    for row in range(ROWS):
        assert (np.diff(step[row][np.argsort(-sure[row])]) >= 0).all()


def test_the_number_follows_alpha_under_another_schedule(make_masked):
    process = make_masked(VOCAB, "cosine")
    keys = jax.random.split(jax.random.key(0), ROWS)
    tokens = jnp.zeros((ROWS, LENGTH), jnp.int32)
    found = jax.jit(lambda keys: unmask(fixed, process, Confidence(), tokens, EVERYWHERE, keys, 4, 5))(keys)
    expected = np.rint(12 * (1 - np.asarray(process.alpha(jnp.linspace(1, 0, 5)))))
    assert expected[2] == 8  # not 6
    assert ((np.asarray(found.trajectory) == MASK).sum(axis=2) == expected[:, None]).all()


@pytest.mark.parametrize("score", ["probability", "margin", "entropy"])
def test_order_by_score(make_masked, score):
    trajectory, _ = states(make_masked, Confidence(GREEDY, score), LENGTH)
    p = np.sort(np.asarray(jax.nn.softmax(LOGITS), np.float64), axis=-1)
    sure = {
        "probability": p[..., -1],
        "margin": p[..., -1] - p[..., -2],
        "entropy": (p * np.log(p)).sum(-1),
    }[score]
    expected = np.argsort(np.argsort(-sure, axis=1), axis=1) + 1
    np.testing.assert_array_equal(order_of(trajectory), expected)


def test_scores_know_nothing_of_temperature_and_filters(make_masked):
    plain = order_of(states(make_masked, Confidence(GREEDY), LENGTH)[0])
    hot = order_of(states(make_masked, Confidence(TokenChoice(5.0, top_k=3)), LENGTH)[0])
    np.testing.assert_array_equal(plain, hot)


def test_padding_apart_has_a_rate_of_its_own(make_masked):
    # row 0: padding is most probable, and sure, in 8 of 12 positions; row 1: in none
    first = np.full((12, VOCAB), 0.0)
    first[:8, PAD], first[8:, 3] = np.linspace(5, 6, 8), [1.0, 4.0, 2.0, 3.0]
    second = np.full((12, VOCAB), 0.0)
    second[:, 4] = np.linspace(1, 2, 12)
    logits = jnp.asarray(np.stack([first, second] + [second] * (ROWS - 2)), jnp.float32)
    network = lambda tokens, t: logits  # noqa: E731
    trajectory, calls = states(make_masked, Confidence(GREEDY, padding_apart=True), 4, network=network)
    step = order_of(trajectory)
    np.testing.assert_array_equal(step[0], [4, 4, 3, 3, 2, 2, 1, 1, 4, 1, 3, 2])  # two of padding and a word a step
    np.testing.assert_array_equal(step[1], np.repeat([4, 3, 2, 1], 3))
    assert calls == 4
    together = order_of(states(make_masked, Confidence(GREEDY), 4, network=network)[0])
    np.testing.assert_array_equal(together[0], [3, 3, 2, 2, 2, 1, 1, 1, 4, 3, 4, 4])  # the words come last, by threes
    # under another schedule: alpha's share of what is left, in each group
    process = make_masked(VOCAB, "cosine")
    keys, tokens = jax.random.split(jax.random.key(0), ROWS), jnp.zeros((ROWS, LENGTH), jnp.int32)
    stepper = Confidence(GREEDY, padding_apart=True)
    run = jax.jit(lambda keys: unmask(network, process, stepper, tokens, EVERYWHERE, keys, 4, 5))
    found = np.asarray(run(keys).trajectory)
    left, alpha = {"padding": [8], "words": [4]}, np.asarray(process.alpha(jnp.linspace(1, 0, 5)))
    for t, s in zip(alpha[:-1], alpha[1:], strict=True):
        for group in left.values():
            n = group[-1]
            group.append(n - (n if s == alpha[-1] else int(np.clip(np.rint(n * (s - t) / (1 - t)), 1, n))))
    assert left["padding"][1] != 6  # as under the even schedule
    np.testing.assert_array_equal((found[:, 0, :8] == MASK).sum(axis=1), left["padding"])
    np.testing.assert_array_equal((found[:, 0, 8:] == MASK).sum(axis=1), left["words"])
    # more steps than positions: one of each group a step, and no call too many
    trajectory, calls = states(make_masked, Confidence(GREEDY, padding_apart=True), 50, network=network)
    assert calls == 12
    assert (((trajectory == MASK).sum(axis=2)[:, 0])[:9] == [12, 10, 8, 6, 4, 3, 2, 1, 0]).all()


def test_at_least_one_a_step_and_no_call_too_many(make_masked):
    editable = EVERYWHERE.at[0, 3:].set(False)  # one row has less to write than the others
    trajectory, calls = states(make_masked, Confidence(), 50, editable=editable)
    left = (trajectory == MASK).sum(axis=2)
    assert calls == LENGTH
    assert (left[:4, 0] == [3, 2, 1, 0]).all() and (left[:13, 1] == np.arange(12, -1, -1)).all()


def test_threshold(make_masked):
    trajectory, calls = states(make_masked, Confidence(GREEDY, threshold=0.55), 50)
    sure = np.asarray(jax.nn.softmax(LOGITS).max(-1))
    step = order_of(trajectory)
    above = sure >= 0.55
    assert above.any(axis=1).all() and not above.all()
    assert (step[above] == 1).all()  # all the sure ones at once
    below = np.where(above, np.inf, sure)
    for row in range(ROWS):  # then one a step, the surest first, as these logits never change
        steps = step[row][np.argsort(-sure[row])][above[row].sum() :]
        np.testing.assert_array_equal(steps, 1 + np.arange(1, 1 + len(steps)))
    assert calls == 1 + np.isfinite(below).sum(axis=1).max()
    trajectory, calls = states(make_masked, Confidence(GREEDY, threshold=1.0), 3)
    assert calls == 3 and ((trajectory == MASK).sum(axis=2)[1:3] == [[11], [10]]).all()  # the last step fills all


def test_temperature_zero_is_deterministic(make_masked):
    for stepper in (Confidence(GREEDY), LowConfidence(GREEDY), Confidence(GREEDY, threshold=0.5)):
        one, two = (states(make_masked, stepper, 5, seed=seed)[0] for seed in (0, 1))
        np.testing.assert_array_equal(one, two)
    one, two = (states(make_masked, Confidence(GREEDY, score_noise=5.0), 5, seed=seed)[0] for seed in (0, 1))
    assert (one != two).any()
    np.testing.assert_array_equal(one[-1], two[-1])  # the noise is in the order alone


@pytest.mark.parametrize("kind", [Confidence, LowConfidence])
def test_score_noise_fades(make_masked, kind):
    def chosen(noise, t):
        stepper, process = kind(GREEDY, score_noise=noise), make_masked(VOCAB)
        keys, tokens = jax.random.split(jax.random.key(0), ROWS), jnp.full((ROWS, LENGTH), MASK)
        t, s = jnp.float32(t), jnp.float32(0.5)
        return stepper.update(keys, tokens, EVERYWHERE, LOGITS, t, s, process, stepper.init(EVERYWHERE)).masked

    np.testing.assert_array_equal(chosen(5.0, 1e-4), chosen(0.0, 1.0))
    assert (chosen(5.0, 1.0) != chosen(0.0, 1.0)).any()


def test_low_confidence_ranks_by_the_token_drawn(make_masked):
    # two positions alike but for the draw: where the likely token was drawn stays, the other is masked again
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.9, 0.1])), (400, 2, 2))
    keys = jax.random.split(jax.random.key(0), 400)
    tokens, free = jnp.zeros((400, 2), jnp.int32), jnp.ones((400, 2), bool)
    found = unmask(lambda tokens, t: logits, make_masked(2), LowConfidence(), tokens, free, keys, 2, 3)
    first = np.asarray(found.trajectory[1])
    kept = first[first < 2]
    assert len(kept) == 400 and abs((kept == 1).mean() - 0.1**2) < 0.02  # an unlikely one stays only if both are
    sure = unmask(lambda tokens, t: logits, make_masked(2), Confidence(), tokens, free, keys, 2, 3)
    first = np.asarray(sure.trajectory[1])
    assert abs((first[first < 2] == 1).mean() - 0.1) < 0.05


def test_revising_masks_the_least_sure_token_of_all_again(make_masked):
    # at t=1 position 0 looks best; later it is seen to be the one that was least sure when it was drawn
    early = jnp.log(jnp.asarray([[0.60, 0.40], [0.55, 0.45], [0.52, 0.48], [0.51, 0.49]]))
    late = jnp.log(jnp.asarray([[0.01, 0.99], [0.95, 0.05], [0.94, 0.06], [0.93, 0.07]]))

    def network(tokens, t):
        return jnp.where(jnp.sum(tokens == 2, axis=1)[:, None, None] == 4, early, late)

    tokens, free = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    keys = jax.random.split(jax.random.key(0), 1)
    for revise, expected in ((True, [[0, 2, 2, 2], [2, 0, 0, 2], [1, 0, 0, 0]]), (False, [[0, 2, 2, 2], [0, 0, 2, 2]])):
        stepper = LowConfidence(GREEDY, revise=revise)
        found = np.asarray(unmask(network, make_masked(2), stepper, tokens, free, keys, 4, 5).trajectory)
        stages = found[[1, 2, 4] if revise else [1, 2], 0]
        np.testing.assert_array_equal(stages, expected)


def test_revising_ends_when_all_tokens_have_stayed(make_masked):
    assert states(make_masked, LowConfidence(GREEDY, revise=True), 50)[1] == LENGTH
    assert states(make_masked, ReMDM(strength=0.0), 50)[1] == 50  # what goes by chance may mask from nothing


def test_filters_do_not_change_the_rate_of_unmasking(make_masked):
    plain = states(make_masked, Ancestral(), 16)[0] == MASK
    filtered = TokenChoice(0.2, top_k=2, top_p=0.3)
    for choice in (filtered, GREEDY):
        np.testing.assert_array_equal(states(make_masked, Ancestral(choice), 16)[0] == MASK, plain)
    remasked = states(make_masked, ReMDM(filtered, strength=0.3), 16)[0] == MASK
    np.testing.assert_array_equal(remasked, states(make_masked, ReMDM(strength=0.3), 16)[0] == MASK)


def test_times_of_the_remasking_loop():
    times = ReMDM(variant="loop", window=(0.1, 0.6)).times(10)
    np.testing.assert_allclose(times, [1, 0.775, 0.55, 0.325, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0], atol=1e-6)
    np.testing.assert_allclose(ReMDM().times(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(ReMDM(variant="loop", window=(0.5, 1.0)).times(4), [1, 0.5, 0.5, 0.25, 0])
    with pytest.raises(ConfigError, match="steps=2: none lies between"):
        ReMDM(variant="loop", window=(0.6, 0.9)).times(2)
    with pytest.raises(ConfigError, match="steps=0"):
        Ancestral().times(0)


def test_the_loop_remasks_in_its_window_alone(make_masked):
    stepper = ReMDM(variant="loop", strength=0.3, window=(0.3, 0.7))
    trajectory, _ = states(make_masked, stepper, 20)
    lost = ((trajectory[:-1] != MASK) & (trajectory[1:] == MASK)).any(axis=(1, 2))
    still = np.diff(stepper.times(20)) == 0
    assert lost[still].mean() > 0.8 and not lost[~still].any()


def test_the_stepper_of_the_settings():
    make = lambda **more: make_unmasker(SamplingConfig(**more))  # noqa: E731
    choice = TokenChoice(0.5, 4, 0.9)
    common = {"temperature": 0.5, "top_k": 4, "top_p": 0.9}
    assert make(sampler="ancestral", **common) == Ancestral(choice)
    assert make(sampler="confidence", score="margin", threshold=0.8, **common) == Confidence(choice, "margin", 0.8)
    assert make(sampler="low_confidence", score_noise=2.0) == LowConfidence(score_noise=2.0)
    assert make(sampler="low_confidence", revise=True) == LowConfidence(revise=True)
    assert make(sampler="confidence", padding_apart=True) == Confidence(padding_apart=True)
    assert make(sampler="remdm", remask="loop", remask_strength=0.02, remask_window=(0.1, 0.5)) == ReMDM(
        variant="loop", strength=0.02, window=(0.1, 0.5)
    )
    for more, message in (
        ({"sampler": "ddim"}, "sampler='ddim': expected ancestral"),
        ({"sampler": "confidence", "threshold": 0.5, "score_noise": 1.0}, "set one of them"),
        ({"sampler": "confidence", "threshold": 0.5, "padding_apart": True}, "knows none: set one of them"),
        ({"sampler": "remdm", "remask_strength": 1.5}, "remask_strength=1.5"),
        ({"sampler": "remdm", "remask": "loop", "remask_window": (0.0, 0.5)}, "take a low end above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**more)
