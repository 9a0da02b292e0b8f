"""Schedules against their papers' closed forms, in float64, and near the ends."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ProcessConfig
from dimba_jax.diffusion import schedules
from dimba_jax.diffusion.schedules import Cosine, Learned, Linear, LogSNR, NoiseScaled, Sqrt, ZeroTerminal

ALL = [Cosine(), Sqrt(), Linear(), LogSNR(), Sqrt(2000), Linear(50), Cosine(4)]
GRID = np.arange(1, 1001, dtype=np.float32) / 1000


def cosine64(t, s=0.008):
    f = np.cos((np.asarray(t, np.float64) + s) / (1 + s) * np.pi / 2) ** 2
    return f / math.cos(s / (1 + s) * math.pi / 2) ** 2


def sqrt64(t):
    return 1 - np.sqrt(np.asarray(t, np.float64) + 1e-4)


@pytest.mark.parametrize(
    "schedule, t, quoted", [(Sqrt(), 0.1, 0.684), (Cosine(), 0.1, 0.972), (Sqrt(), 0.5, 0.293), (Cosine(), 0.5, 0.494)]
)
def test_quoted_alpha_bar(schedule, t, quoted):
    assert float(schedule.alpha_bar(jnp.float32(t))) == pytest.approx(quoted, abs=5e-4)


def test_sqrt_std_at_the_first_step():
    # DiffuSeq's T = 2000 through the betas: the noise already in the data (alpha-bar(0) = .99) drops out
    beta = schedules.betas(Sqrt(2000), 2000)
    assert math.sqrt(float(beta[0])) == pytest.approx(0.121, abs=5e-4)
    assert float(Sqrt(2000).level(jnp.float32(0.0)).sigma) == pytest.approx(0.1, abs=1e-6)
    # and it ends, through the capped last beta, at 2e-7
    assert float(Sqrt(2000).alpha_bar(jnp.float32(1.0))) == pytest.approx(2e-7, rel=0.02)


@pytest.mark.parametrize("schedule, exact", [(Cosine(), cosine64), (Sqrt(), sqrt64)])
def test_closed_form_on_the_grid(schedule, exact):
    t = GRID[:-1]
    level = schedule.level(jnp.asarray(t))
    expected = exact(t)
    np.testing.assert_allclose(level.signal, expected, rtol=2e-4)  # t itself is rounded to float32
    np.testing.assert_allclose(level.noise, 1 - expected, rtol=1e-5)


def test_cosine_betas():
    beta = np.asarray(schedules.betas(Cosine(), 1000))
    expected = np.minimum(1 - cosine64(np.arange(1, 1001) / 1000) / cosine64(np.arange(1000) / 1000), 0.999)
    np.testing.assert_allclose(beta, expected, rtol=1e-2, atol=2e-7)
    assert beta[-1] == pytest.approx(0.999, abs=1e-6)


def test_linear_is_ddpm():
    beta = np.linspace(1e-4, 2e-2, 1000)
    signal = np.cumprod(1 - beta)
    level = Linear().level(jnp.asarray(GRID))
    np.testing.assert_allclose(level.signal, signal, rtol=1e-5)
    np.testing.assert_allclose(level.noise, 1 - signal, rtol=1e-5)
    # scaled to another T it keeps its end, roughly
    assert float(Linear(2000).alpha_bar(jnp.float32(1.0))) == pytest.approx(signal[-1], rel=0.1)


def test_log_snr_is_linear():
    value = np.asarray(LogSNR(8.0, -6.0).level(jnp.asarray(GRID)).log_snr)
    np.testing.assert_allclose(value, 8 - 14 * GRID, atol=1e-4)


@pytest.mark.parametrize("schedule", ALL + [NoiseScaled(Sqrt(), 2.0), ZeroTerminal(Cosine()), ZeroTerminal(Sqrt())])
def test_levels_are_variances_that_fall(schedule):
    t = jnp.linspace(0.0, 1.0, 997, dtype=jnp.float32)
    level = schedule.level(t)
    assert level.signal.dtype == jnp.float32
    np.testing.assert_allclose(level.signal + level.noise, 1.0, atol=3e-7)
    assert (np.asarray(level.signal) >= 0).all() and (np.asarray(level.noise) >= 0).all()
    assert (np.diff(level.signal) <= 0).all()
    assert np.isfinite(level.log_snr).all()
    assert np.abs(level.log_snr).max() <= schedules.LOG_SNR_LIMIT


@pytest.mark.parametrize("timesteps", [2, 10, 1000, 20_000])
@pytest.mark.parametrize("kind", [Cosine, Sqrt, Linear])
def test_the_cap_leaves_some_signal(kind, timesteps):
    last = float(kind(timesteps).alpha_bar(jnp.float32(1.0)))
    assert 0 < last < 0.01


def test_noise_scale_divides_the_snr():
    t = jnp.linspace(0.05, 0.95, 19, dtype=jnp.float32)
    base, scaled = Cosine().level(t), NoiseScaled(Cosine(), 4.0).level(t)
    np.testing.assert_allclose(scaled.signal / scaled.noise, base.signal / base.noise / 16, rtol=1e-5)


@pytest.mark.parametrize("base", [Cosine(), Sqrt(), Linear()])
def test_zero_terminal_snr(base):
    schedule = ZeroTerminal(base)
    ends = jnp.asarray([0.0, 1.0], jnp.float32)
    assert float(schedule.alpha_bar(ends)[1]) == 0.0
    np.testing.assert_allclose(schedule.alpha_bar(ends)[0], base.alpha_bar(ends)[0], rtol=1e-6)
    t = jnp.asarray(GRID)
    a = np.sqrt(np.asarray(base.alpha_bar(t), np.float64))
    first, last = np.sqrt(np.asarray(base.alpha_bar(ends), np.float64))
    np.testing.assert_allclose(schedule.level(t).alpha, (a - last) * first / (first - last), atol=1e-6)
    # the noise keeps its relative accuracy where it is small
    np.testing.assert_allclose(
        schedule.level(t).noise[:3], 1 - ((a - last) * first / (first - last))[:3] ** 2, rtol=1e-3
    )


def learned_from(loss, rounds=60, bins=20, rows=512):
    schedule = Learned.start(LogSNR(), bins)
    update = jax.jit(lambda s, t: s.update(t, loss(s.network_time(t))))
    for i in range(rounds):
        schedule = update(schedule, jax.random.uniform(jax.random.key(i), (rows,)))
    return schedule


@pytest.mark.parametrize("loss", [lambda u: u**2, lambda u: 3 + jnp.log1p(6 * u), lambda u: jax.nn.sigmoid(12 * u - 6)])
def test_learned_warp_evens_out_the_loss(loss):
    schedule = dataclasses.replace(learned_from(loss), mix=0.0)
    u = schedule.network_time(jnp.linspace(0.0, 1.0, 11, dtype=jnp.float32))
    assert float(u[0]) == 0.0 and float(u[-1]) == pytest.approx(1.0)
    before = np.diff(loss(jnp.linspace(0.0, 1.0, 11, dtype=jnp.float32)))
    rises = np.diff(loss(u))
    mean = (loss(u[-1]) - loss(u[0])) / 10
    assert np.abs(before / mean - 1).max() > 0.5
    np.testing.assert_allclose(rises / mean, 1.0, atol=0.2)


def test_learned_warp_stays_monotone_under_a_falling_loss():
    schedule = learned_from(lambda u: jnp.abs(u - 0.3), rounds=20)
    u = np.asarray(schedule.network_time(jnp.linspace(0.0, 1.0, 101, dtype=jnp.float32)))
    assert u[0] == 0.0 and (np.diff(u) > 0).all()
    assert 0.1 < u[2] < 0.5  # the fall and the way back up to .6 add no loss: `mix` alone passes through them


def test_learned_warp_starts_as_the_identity():
    t = jnp.linspace(0.0, 1.0, 33, dtype=jnp.float32)
    np.testing.assert_allclose(Learned.start(Sqrt()).network_time(t), t, atol=1e-6)
    np.testing.assert_allclose(Learned.start(Sqrt()).alpha_bar(t), Sqrt().alpha_bar(t), atol=1e-6)


def test_make_schedule_composes():
    config = ProcessConfig(schedule="learned", noise_scale=2.0, zero_terminal_snr=True, timesteps=500)
    schedule = schedules.make_schedule(config)
    assert isinstance(schedule, Learned) and isinstance(schedule.base, NoiseScaled)
    assert isinstance(schedule.base.base, ZeroTerminal) and schedule.base.base.base == Sqrt(500)
    assert schedules.make_schedule(ProcessConfig()) == Cosine(1000)
    with pytest.raises(ValueError, match="schedule='exp'"):
        schedules.make_schedule(dataclasses.replace(config, schedule="exp"))
