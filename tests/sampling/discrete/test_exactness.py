"""What samplers that claim exactness leave behind, against a distribution that is known by enumeration.

A position's logits are its exact posterior given the revealed ones. Positions revealed in one step are then
drawn independently, so a sampler is exact if it reveals one at a time, or nearly always does.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

from dimba_jax.sampling.discrete.distribution import TokenChoice
from dimba_jax.sampling.discrete.unmasker import Step
from dimba_jax.sampling.discrete.unmasking import Ancestral, Confidence, LowConfidence, ReMDM

OPTIMISED = True  # a thousand steps


@pytest.mark.parametrize("schedule", ["log_linear", "cosine"])
def test_ancestral_sampling_in_many_steps(statistic, chi_square_limit, schedule):
    assert statistic(Ancestral(), 1000, schedule=schedule) < chi_square_limit


def test_reusing_logits_changes_nothing(statistic):
    assert statistic(Ancestral(), 200, rows=500, reuse=True) == statistic(Ancestral(), 200, rows=500)


@dataclasses.dataclass(frozen=True)
class OneDraw(Ancestral):
    """The sampler that must not be: mask and tokens in one draw, with the noise of a short format."""

    def update(self, keys, tokens, masked, logits, t, s, process, state):
        before, after = process.alpha(t), process.alpha(s)
        stay = jnp.broadcast_to(jnp.log((1 - after) / (1 - before)), (*masked.shape, 1))
        go = jnp.log((after - before) / (1 - before)) + jax.nn.log_softmax(logits)
        mixed = jnp.concatenate([go, stay], axis=-1).astype(jnp.bfloat16)
        drawn = jax.vmap(jax.random.categorical)(keys, mixed).astype(jnp.int32)
        drawn = jnp.where(masked, drawn, tokens)
        return Step(drawn, drawn == process.mask_id, None)


@pytest.mark.parametrize(
    "stepper, steps",
    [
        (Ancestral(), 2),  # positions of one step know nothing of each other
        (Ancestral(TokenChoice(temperature=0.6)), 200),
        (OneDraw(), 200),
        (Confidence(), 2),
        (ReMDM(strength=0.05), 3),
        (ReMDM(variant="loop", strength=1.0, window=(0.5, 0.9)), 100),  # its window reveals several at once
        (LowConfidence(), 3),  # it prefers the likely draws, as it says
    ],
)
def test_what_is_not_exact_is_rejected(statistic, chi_square_limit, stepper, steps):
    assert statistic(stepper, steps) > 1.5 * chi_square_limit


@pytest.mark.parametrize("score", ["probability", "margin", "entropy"])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_one_position_a_step_is_exact_in_any_order(statistic, chi_square_limit, score, noise):
    # the order hangs on the posteriors, not on the draws
    assert statistic(Confidence(score=score, score_noise=noise), 3) < chi_square_limit


@pytest.mark.parametrize(
    "stepper, steps",
    [
        (ReMDM(variant="cap", strength=0.005), 1000),  # a row's three tokens are masked again some 15 times over
        (ReMDM(variant="cap", strength=0.5), 1000),  # as sigma_max allows: hundreds of times
        (ReMDM(variant="rescale", strength=0.02), 500),
        (ReMDM(variant="loop", strength=0.01, window=(0.4, 0.8)), 500),
    ],
)
def test_remasking_keeps_the_distribution(statistic, chi_square_limit, stepper, steps):
    assert statistic(stepper, steps) < chi_square_limit


def test_the_share_of_masks_follows_the_schedule_under_remasking(make_masked):
    process = make_masked(3)
    rows, steps = 200, 20
    logits: Array = jnp.zeros((rows, 50, 3))
    free = jnp.ones((rows, 50), bool)
    for stepper in (ReMDM(strength=0.2), ReMDM(variant="rescale", strength=0.3), Ancestral()):
        times = stepper.times(steps)
        tokens, masked, state = jnp.full((rows, 50), 3), free, stepper.init(free)
        update = jax.jit(
            lambda keys, tokens, masked, t, s, state, stepper=stepper: stepper.update(
                keys, tokens, masked, logits, t, s, process, state
            )
        )
        again = 0
        for i in range(steps):
            keys = jax.random.split(jax.random.key(i), rows)
            step = update(keys, tokens, masked, times[i], times[i + 1], state)
            again += int((step.masked & ~masked).sum())
            tokens, masked, state = step
            assert abs(float(masked.mean()) - times[i + 1]) < 0.02
            assert bool(((tokens == 3) == masked).all())
        assert (again > 500) == stepper.goes_on
