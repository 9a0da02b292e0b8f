"""Steppers on a Gaussian toy with its exact denoiser: what they recover, and at which order they converge."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ProcessConfig, SamplingConfig
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.diffusion.schedules import Level
from dimba_jax.sampling.loop import time_grid
from dimba_jax.sampling.steppers import DDIM, DDPM, DPMSolverPP2M, make_stepper


@dataclass(frozen=True)
class Toy:
    """x0 ~ N(mean, std^2), every component alike."""

    mean: float = 1.5
    std: float = 0.5

    def denoise(self, z, level):
        """E[x0 | z]."""
        gain = level.alpha * self.std**2 / (level.signal * self.std**2 + level.noise)
        return self.mean + gain * (z - level.alpha * self.mean)

    def flow(self, z, t, s):
        """Where the probability flow takes z from level t to level s."""
        spread = [np.sqrt(float(at.signal) * self.std**2 + float(at.noise)) for at in (t, s)]
        return float(s.alpha) * self.mean + spread[1] / spread[0] * (z - float(t.alpha) * self.mean)


def walk(process, stepper, toy, z, grid, keys=None):
    """z taken along the grid with the exact denoiser."""
    keys = jax.random.split(jax.random.key(1), z.shape[0]) if keys is None else keys
    times = jnp.asarray(grid)

    @jax.jit
    def run(z):
        def step(carry, i):
            state, z = carry
            t, s = process.level(times[i]), process.level(times[i + 1])
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            return stepper.update(step_keys, state, z, toy.denoise(z, t), t, s), None

        (state, last), _ = jax.lax.scan(step, (stepper.init(z), z), jnp.arange(len(grid) - 1))
        return stepper.finalize(state, last)

    return run(z)


def recovered(process, stepper, toy, steps, rows=400, shape=(8, 8)):
    """Mean and variance of the samples that start from the prior and take so many steps."""
    z = process.prior(jax.random.split(jax.random.key(0), rows), shape)
    x0 = np.asarray(walk(process, stepper, toy, z, time_grid(process.timesteps, steps)))
    return x0.mean(), x0.var()


TOY = Toy()
COUNT = 400 * 64  # independent draws in `recovered`
STEPPERS = [DDPM(), DDIM(), DDIM(0.5), DPMSolverPP2M()]


def process(schedule="cosine", timesteps=1000, **more):
    return make_gaussian(ProcessConfig(schedule=schedule, timesteps=timesteps, **more))


def linear_moments(process, steps, eta):
    """Mean and variance that DDIM with the exact denoiser has after so many steps, by recursion in float64.

    Written out from the paper's update, apart from the code: x0_hat is affine in z, so z stays Gaussian.
    """
    grid = time_grid(process.timesteps, steps)
    level = process.level(jnp.asarray(grid))
    signal, noise = np.asarray(level.signal, np.float64), np.asarray(level.noise, np.float64)
    mean, var = 0.0, 1.0
    for k in range(steps):
        (at, nt), (as_, ns) = (signal[k], noise[k]), (signal[k + 1], noise[k + 1])
        gain = np.sqrt(at) * TOY.std**2 / (at * TOY.std**2 + nt)
        fresh = eta**2 * ns / nt * (1 - at / as_)
        x0_of_z, x0_offset = gain, TOY.mean * (1 - gain * np.sqrt(at))
        eps_of_z, eps_offset = (1 - np.sqrt(at) * x0_of_z) / np.sqrt(nt), -np.sqrt(at) * x0_offset / np.sqrt(nt)
        slope = np.sqrt(as_) * x0_of_z + np.sqrt(max(ns - fresh, 0)) * eps_of_z
        offset = np.sqrt(as_) * x0_offset + np.sqrt(max(ns - fresh, 0)) * eps_offset
        mean, var = slope * mean + offset, slope**2 * var + fresh
    return mean, var


# the share of the spread that 10, 50 and all 200 steps may cut off: first order, so it falls like 1/steps.
# sqrt ends on a step from noise .27 however fine the grid is, and that step is what it loses
LOST = {"cosine": (0.24, 0.07, 0.02), "sqrt": (0.44, 0.26, 0.15)}


@pytest.mark.parametrize("schedule", LOST)
@pytest.mark.parametrize("steps, place", [(10, 0), (50, 1), (200, 2)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_and_ddpm_recover_the_distribution(schedule, steps, place, eta):
    of = process(schedule, timesteps=200)
    mean, var = recovered(of, DDPM() if eta else DDIM(), TOY, steps)
    expected_mean, expected_var = linear_moments(of, steps, eta)
    # what is measured is what this many steps must give, within the error of the draws ...
    assert mean == pytest.approx(expected_mean, abs=4 * TOY.std / COUNT**0.5)
    assert var == pytest.approx(expected_var, rel=4 * (2 / COUNT) ** 0.5 + 1e-3)
    # ... and that is the distribution itself, but for what the steps cut off
    assert expected_mean == pytest.approx(TOY.mean, abs=0.005)
    assert 1 - LOST[schedule][place] < np.sqrt(expected_var) / TOY.std < 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "log_snr"])
def test_all_steps_end_where_the_flow_does(schedule):
    of = process(schedule, timesteps=1000)
    z = of.prior(jax.random.split(jax.random.key(0), 4), (4, 4))
    exact = TOY.flow(z, of.level(jnp.float32(1.0)), Level(jnp.float32(1.0), jnp.float32(0.0)))
    for stepper in (DDIM(), DPMSolverPP2M()):
        x0 = walk(of, stepper, TOY, z, time_grid(1000, 1000))
        np.testing.assert_allclose(x0, exact, atol=0.01)


def errors(stepper, counts):
    """Distances from the exact flow over one stretch of time, in so many even steps of log-SNR."""
    of = process("log_snr", timesteps=4096)
    z = jax.random.normal(jax.random.key(0), (2, 4, 4))
    start, end = 0.75, 0.25
    exact = TOY.flow(z, of.level(jnp.float32(start)), of.level(jnp.float32(end)))
    walks = (walk(of, stepper, TOY, z, np.linspace(start, end, n + 1, dtype=np.float32)) for n in counts)
    return np.asarray([float(jnp.max(jnp.abs(x - exact))) for x in walks])


def test_dpm_solver_converges_at_second_order():
    error = errors(DPMSolverPP2M(), [16, 32, 64, 128])
    ratio = error[:-1] / error[1:]
    assert (ratio > 3.2).all() and ratio[-1] == pytest.approx(4.0, abs=0.3), ratio
    assert error[-1] < errors(DDIM(), [128])[0] / 5


def test_ddim_converges_at_first_order():
    error = errors(DDIM(), [8, 16, 32, 64])
    ratio = error[:-1] / error[1:]
    assert ratio[-1] == pytest.approx(2.0, abs=0.2), ratio


def test_the_first_step_of_dpm_solver_is_ddims():
    of = process()
    z = jax.random.normal(jax.random.key(0), (2, 4, 4))
    grid = np.asarray([0.9, 0.8], np.float32)
    two = [walk(of, stepper, TOY, z, grid) for stepper in (DDIM(), DPMSolverPP2M())]
    np.testing.assert_allclose(two[0], two[1], atol=1e-5)


def test_ddim_with_all_noise_is_ddpm():
    of = process("linear", timesteps=50)
    z = of.prior(jax.random.split(jax.random.key(0), 3), (4, 4))
    grid = time_grid(50, 25)
    np.testing.assert_allclose(walk(of, DDIM(1.0), TOY, z, grid), walk(of, DDPM(), TOY, z, grid), atol=1e-4)


@pytest.mark.parametrize("stepper", STEPPERS)
@pytest.mark.parametrize("schedule, zero", [("cosine", True), ("sqrt", False), ("log_snr", False), ("learned", True)])
def test_the_last_step_leaves_no_noise(stepper, schedule, zero):
    # whatever the network said last is the end, to the bit, for any number of steps
    of = process(schedule, timesteps=100, zero_terminal_snr=zero)
    keys = jax.random.split(jax.random.key(0), 2)
    z = of.prior(keys, (3, 4))
    state = stepper.init(z)
    x0 = jnp.zeros_like(z)
    grid = time_grid(100, 3)
    for k in range(3):
        t, s = (of.level(jnp.float32(time)) for time in grid[k : k + 2])
        x0 = TOY.denoise(z, t)
        state, z = stepper.update(keys, state, z, x0, t, s)
        assert np.isfinite(z).all()
    np.testing.assert_allclose(stepper.finalize(state, z), x0, atol=1e-6)


@pytest.mark.parametrize("stepper", STEPPERS)
def test_a_true_estimate_is_followed_to_the_letter(stepper):
    # knowing x0, every stepper keeps the noise's share of z at what the level says
    of, rows = process("cosine", timesteps=100), 300
    keys = jax.random.split(jax.random.key(0), rows)
    x0 = jnp.full((rows, 4, 8), 2.0)
    z = of.corrupt(keys, x0, jnp.full(rows, 0.8), jnp.ones((rows, 4), bool)).z
    state = stepper.init(z)
    for t, s in [(0.8, 0.5), (0.5, 0.3)]:
        at, to = of.level(jnp.float32(t)), of.level(jnp.float32(s))
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, jnp.int32(1 + 10 * t))
        state, z = stepper.update(step_keys, state, z, x0, at, to)
        assert float(jnp.mean(z)) == pytest.approx(2.0 * float(to.alpha), abs=0.03)
        assert float(jnp.var(z)) == pytest.approx(float(to.noise), rel=0.06)


@pytest.mark.parametrize("stepper", [DDPM(), DDIM(0.5)])
def test_a_rows_noise_is_its_own(stepper):
    of = process()
    keys = jax.random.split(jax.random.key(3), 4)
    z = jnp.ones((4, 2, 3))
    t, s = of.level(jnp.float32(0.6)), of.level(jnp.float32(0.4))
    whole = stepper.update(keys, stepper.init(z), z, 0 * z, t, s)[1]
    part = stepper.update(keys[2:3], stepper.init(z[:1]), z[:1], 0 * z[:1], t, s)[1]
    np.testing.assert_array_equal(whole[2], part[0])
    assert not np.array_equal(whole[0], whole[1])


def test_make_stepper():
    settings = SamplingConfig(eta=0.3)
    assert make_stepper(settings) == DDIM(0.3)
    assert make_stepper(dataclasses.replace(settings, sampler="ddpm")) == DDPM()
    assert make_stepper(dataclasses.replace(settings, sampler="dpmpp")) == DPMSolverPP2M()
    with pytest.raises(ValueError, match="sampler='euler'"):
        make_stepper(dataclasses.replace(settings, sampler="euler"))


@pytest.mark.parametrize("timesteps, steps", [(1000, 1), (1000, 7), (1000, 999), (1000, 1000), (3, 2), (1, 1)])
def test_time_grid(timesteps, steps):
    grid = time_grid(timesteps, steps)
    assert grid.shape == (steps + 1,) and grid[0] == 1.0 and grid[-1] == 0.0
    assert (np.diff(grid) < 0).all()
    np.testing.assert_allclose(grid * timesteps, np.rint(grid * timesteps), atol=1e-4)


@pytest.mark.parametrize("steps", [0, 101])
def test_time_grid_has_bounds(steps):
    with pytest.raises(ValueError, match=f"steps={steps}: expected 1 to 100"):
        time_grid(100, steps)
