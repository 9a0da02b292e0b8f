"""Temperature, filters, draws and scores of token distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import SamplingConfig
from dimba_jax.sampling.discrete.distribution import (
    TokenChoice,
    draw_tokens,
    filtered_log_probs,
    sureness,
    token_choice,
)

P = np.asarray([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.log(jnp.asarray(P, jnp.float32))[None, None]


def filtered(**how):
    return np.exp(np.asarray(filtered_log_probs(LOGITS + 3.0, **how)))[0, 0]


def only(*kept):
    return np.where(np.isin(np.arange(5), kept), P, 0.0) / P[list(kept)].sum()


@pytest.mark.parametrize(
    "how, expected",
    [
        ({}, P),
        ({"top_k": 2}, only(1, 3)),
        ({"top_k": 9}, P),
        ({"top_p": 0.69}, only(1, 3)),
        ({"top_p": 0.71}, only(1, 3, 4)),
        ({"top_p": 1e-6}, only(1)),
        ({"top_k": 3, "top_p": 0.8}, only(1, 3)),  # of what top-k leaves: .4 + .3 of .85
        ({"top_k": 3, "top_p": 0.83}, only(1, 3, 4)),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0, "top_k": 2}, np.sqrt(only(1, 3)) / np.sqrt(only(1, 3)).sum()),
        ({"temperature": 0.0}, only(1)),
    ],
)
def test_filters(how, expected):
    np.testing.assert_allclose(filtered(**how), expected, atol=1e-6)


def test_equal_probabilities_are_cut_to_the_number_asked_for():
    even = jnp.zeros((1, 1, 8))
    assert int((np.asarray(filtered_log_probs(even, top_k=3)) > -np.inf).sum()) == 3
    assert int((np.asarray(filtered_log_probs(even, top_p=0.5)) > -np.inf).sum()) == 4


def test_what_is_forbidden_stays_so():
    logits = LOGITS.at[..., 1].set(-jnp.inf)
    assert np.asarray(filtered_log_probs(logits, top_p=0.9))[0, 0, 1] == -np.inf
    assert np.asarray(filtered_log_probs(logits, temperature=0.0)).argmax() == 3
    assert not np.isnan(np.asarray(sureness(filtered_log_probs(logits), "entropy"))).any()


def test_draws_follow_the_distribution_and_each_row_its_own_key():
    keys = jax.random.split(jax.random.key(0), 50)
    logp = jnp.broadcast_to(filtered_log_probs(LOGITS), (50, 400, 5))
    drawn = np.asarray(draw_tokens(keys, logp))
    shares = np.bincount(drawn.reshape(-1), minlength=5) / drawn.size
    assert np.abs(shares - P).max() < 4 * np.sqrt(0.25 / drawn.size)
    np.testing.assert_array_equal(np.asarray(draw_tokens(keys[7:8], logp[7:8]))[0], drawn[7])
    assert (drawn[0] != drawn[1]).any()


def test_draws_have_the_whole_range_of_the_noise(monkeypatch):
    modes, categorical = [], jax.random.categorical
    monkeypatch.setattr(
        jax.random, "categorical", lambda *args, mode=None, **more: (modes.append(mode), categorical(*args, **more))[1]
    )
    draw_tokens(jax.random.split(jax.random.key(0), 1), LOGITS)
    assert modes == ["high"]


def test_temperature_zero_draws_nothing():
    choice = token_choice(SamplingConfig(temperature=0.0, sampler="ancestral"))
    keys = jax.random.split(jax.random.key(0), 1)
    assert choice == TokenChoice(0.0) and int(choice.draw(keys, LOGITS)[0, 0]) == 1
    assert int(draw_tokens(keys, filtered_log_probs(LOGITS, 0.0))[0, 0]) == 1
    settings = SamplingConfig(temperature=0.7, top_k=3, top_p=0.9)
    assert token_choice(settings) == TokenChoice(0.7, 3, 0.9)


def test_sureness():
    logp = filtered_log_probs(LOGITS)
    for score, expected in {
        "probability": 0.4,
        "margin": 0.4 - 0.3,
        "entropy": np.exp((P * np.log(P)).sum()),
    }.items():
        np.testing.assert_allclose(np.exp(np.asarray(sureness(logp, score)))[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(sureness(logp, "probability", jnp.asarray([[2]]))), 0.05, rtol=1e-5)
    even = filtered_log_probs(jnp.zeros((1, 1, 4)))
    assert np.asarray(sureness(even, "margin"))[0, 0] == -np.inf
    np.testing.assert_allclose(np.exp(np.asarray(sureness(even, "entropy")))[0, 0], 0.25, rtol=1e-5)
