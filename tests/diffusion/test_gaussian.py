"""Corruption, conversions and losses of the Gaussian process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ConfigError, ProcessConfig
from dimba_jax.diffusion.gaussian import make_gaussian, noise_from, prediction_from, row_noise, x0_from
from dimba_jax.diffusion.process import Noised

SCHEDULES = ["cosine", "sqrt", "linear", "log_snr", "learned"]


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.001, 0.7])
def test_moments_of_the_corruption(schedule, t):
    process = make_gaussian(ProcessConfig(schedule=schedule))
    rows = 256
    x0 = jnp.broadcast_to(jnp.asarray([[2.0, -1.0, 0.5, 0.0]]), (8, 4))[None].repeat(rows, 0)
    target = jnp.ones((rows, 8), bool)
    z = np.asarray(process.corrupt(keys(rows), x0, jnp.full(rows, t), target).z)
    signal = float(process.schedule.alpha_bar(jnp.float32(t)))
    draws = rows * 8
    sigma = np.sqrt(1 - signal)
    np.testing.assert_allclose(
        z.mean((0, 1)), np.sqrt(signal) * np.asarray(x0[0, 0]), atol=4 * sigma / draws**0.5 + 1e-6
    )
    np.testing.assert_allclose(z.var((0, 1)), 1 - signal, rtol=4 * (2 / draws) ** 0.5)


def test_only_the_target_is_noised():
    process = make_gaussian(ProcessConfig())
    x0 = jax.random.normal(jax.random.key(0), (3, 6, 4))
    target = jnp.asarray([[False] * 3 + [True] * 3] * 3)
    noised = process.corrupt(keys(3), x0, jnp.asarray([0.1, 0.5, 1.0]), target)
    np.testing.assert_array_equal(noised.z[:, :3], x0[:, :3])
    assert (np.asarray(noised.z[:, 3:]) != np.asarray(x0[:, 3:])).all()
    level = process.level(noised.t).over(3)
    np.testing.assert_allclose(noised.z[:, 3:], (level.alpha * x0 + level.sigma * noised.noise)[:, 3:], rtol=1e-6)


def test_noise_of_a_row_does_not_depend_on_its_batch():
    process = make_gaussian(ProcessConfig())
    x0, t, target = jnp.ones((4, 5, 3)), jnp.full(4, 0.5), jnp.ones((4, 5), bool)
    whole = process.corrupt(keys(4), x0, t, target)
    part = process.corrupt(keys(4)[2:3], x0[:1], t[:1], target[:1])
    np.testing.assert_array_equal(whole.z[2], part.z[0])
    np.testing.assert_array_equal(process.prior(keys(4), (5, 3))[2], process.prior(keys(4)[2:3], (5, 3))[0])
    assert not np.array_equal(whole.noise[0], whole.noise[1])


@pytest.mark.parametrize("kind", ["x0", "v", "epsilon"])
@pytest.mark.parametrize("schedule", ["cosine", "sqrt", "learned"])
def test_conversions_invert_each_other(schedule, kind):
    process = make_gaussian(ProcessConfig(schedule=schedule, prediction=kind, min_snr_gamma=5.0))
    t = jnp.asarray([0.001, 0.1, 0.5, 0.9, 0.99], jnp.float32)
    x0 = jax.random.normal(jax.random.key(0), (5, 6, 4))
    noised = process.corrupt(keys(5), x0, t, jnp.ones((5, 6), bool))
    perfect = prediction_from(kind, x0, noised.noise, process.level(t))
    table = jnp.zeros((1, 4))
    x0_hat = process.denoised(perfect, noised.z, t, table)
    np.testing.assert_allclose(x0_hat, x0, atol=2e-4)
    back = noise_from(x0_hat, noised.z, process.level(t))
    np.testing.assert_allclose(back, noised.noise, atol=2e-3)


@pytest.mark.parametrize("kind", ["x0", "v", "epsilon"])
def test_conversions_stay_finite_without_signal(kind):
    level = make_gaussian(ProcessConfig(zero_terminal_snr=True, prediction="v")).level(jnp.ones(2))
    assert float(level.signal[0]) == 0.0
    z = jax.random.normal(jax.random.key(0), (2, 3, 4))
    x0 = jax.random.normal(jax.random.key(1), (2, 3, 4))
    table = jnp.zeros((1, 4))
    x0_hat = x0_from(kind, prediction_from(kind, x0, z, level), z, level, table)
    assert np.isfinite(x0_hat).all()
    if kind != "epsilon":  # which says nothing about x0 here
        np.testing.assert_allclose(x0_hat, x0, atol=1e-6)


def test_logits_stand_for_their_mean_embedding():
    process = make_gaussian(ProcessConfig(prediction="logits"))
    table = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    logits = jnp.log(jnp.asarray([[[0.25, 0.75]]]))
    np.testing.assert_allclose(process.denoised(logits, jnp.zeros((1, 1, 2)), jnp.ones(1), table), [[[0.25, 0.75]]])


def test_every_schedule_is_clean_at_time_zero():
    for schedule in SCHEDULES:
        level = make_gaussian(ProcessConfig(schedule=schedule)).level(jnp.asarray([0.0, 0.001]))
        assert float(level.signal[0]) == 1.0 and float(level.noise[0]) == 0.0
        assert 0.0 < float(level.noise[1]) < 0.2


def test_losses_by_hand():
    process = make_gaussian(ProcessConfig(schedule="log_snr", mse_weight=2.0, ce_weight=3.0, prior_weight=5.0))
    x0 = jnp.asarray([[[1.0, -1.0], [0.0, 2.0]]])
    x0_hat = jnp.asarray([[[0.0, -1.0], [1.0, 0.0]]])
    logits = jnp.asarray([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]])
    tokens = jnp.asarray([[2, 1]])
    losses = process.losses(x0_hat, x0_hat, logits, tokens, x0, Noised(x0, x0, jnp.ones(1)))
    np.testing.assert_allclose(losses["mse"], [[0.5, 2.5]], rtol=1e-6)
    expected = [np.log(np.exp([0, 1, 2]).sum()) - 2, np.log(np.exp([3.0, 0, 0]).sum())]
    np.testing.assert_allclose(losses["ce"][0], expected, rtol=1e-6)
    a = 1 / (1 + np.exp(10.0))
    kl = [0.5 * sum(a * x**2 + (1 - a) - 1 - np.log(1 - a) for x in row) for row in [(1.0, -1.0), (0.0, 2.0)]]
    np.testing.assert_allclose(losses["prior"][0], kl, rtol=1e-4)
    total = 2 * losses["mse"] + 3 * losses["ce"] + 5 * losses["prior"]
    np.testing.assert_allclose(process.total(losses), total, rtol=1e-6)


def test_min_snr_weights():
    t = jnp.asarray([0.05, 0.5, 0.95], jnp.float32)
    assert (np.asarray(make_gaussian(ProcessConfig()).weights(t)) == 1.0).all()
    process = make_gaussian(ProcessConfig(schedule="log_snr", min_snr_gamma=5.0))
    np.testing.assert_allclose(process.weights(t), [5.0, 1.0, np.exp(-9.0)], rtol=1e-4)


def test_epsilon_needs_min_snr():
    with pytest.raises(ConfigError, match="min_snr_gamma=0.0"):
        make_gaussian(ProcessConfig(prediction="epsilon"))


def test_update_moves_a_learned_schedule_only():
    t = jnp.linspace(0.01, 1.0, 2000, dtype=jnp.float32)
    fixed = make_gaussian(ProcessConfig())
    assert fixed.update(t, t) == fixed
    learned = make_gaussian(ProcessConfig(schedule="learned"))
    moved = jax.jit(lambda p: p.update(t, t**4))(learned)
    assert float(moved.network_time(jnp.full(1, 0.5))[0]) > 0.6
    assert float(moved.level(jnp.float32(0.5)).signal) < float(learned.level(jnp.float32(0.5)).signal)
    assert jax.tree.leaves(dataclasses.replace(moved, schedule=fixed.schedule)) == []


def test_row_noise_is_standard_normal():
    noise = np.asarray(row_noise(keys(100), (16, 16)))
    assert abs(noise.mean()) < 0.03 and abs(noise.var() - 1) < 0.05
