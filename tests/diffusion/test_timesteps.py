"""How times are drawn: on the grid, evenly, and without bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ProcessConfig
from dimba_jax.diffusion.timesteps import HISTORY, LossSecondMoment, Stratified, Uniform, make_timestep_sampler


@pytest.mark.parametrize("timesteps, rows", [(1000, 512), (7, 64), (1, 3), (50, 1)])
@pytest.mark.parametrize("kind", ["uniform", "stratified", "importance"])
def test_times_lie_on_the_grid(kind, timesteps, rows):
    sampler = make_timestep_sampler(ProcessConfig(timesteps=timesteps, timestep_sampling=kind))
    t, weight = jax.jit(lambda s, k: s.draw(k, rows))(sampler, jax.random.key(0))
    index = np.asarray(t) * timesteps
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    assert index.min() > 0.5 and index.max() < timesteps + 0.5
    np.testing.assert_allclose(weight, 1.0, rtol=1e-5)  # nothing has been learned yet


def test_uniform_covers_all_times():
    t, _ = Uniform(5).draw(jax.random.key(1), 20_000)
    share = np.bincount(np.rint(np.asarray(t) * 5).astype(int), minlength=6)[1:] / 20_000
    np.testing.assert_allclose(share, 0.2, atol=0.02)


def test_stratified_puts_one_row_in_each_stratum():
    t, _ = Stratified(1000).draw(jax.random.key(3), 100)
    index = np.sort(np.rint(np.asarray(t) * 1000).astype(int)) - 1
    assert (np.diff(index) == 10).all() or set(np.diff(index)) <= {9, 10, 11}
    assert (np.asarray(t)[1:] < np.asarray(t)[:-1]).any()  # not in the order of the rows
    draws = [float(Stratified(1000).draw(jax.random.key(i), 1)[0][0]) for i in range(50)]
    assert len(set(draws)) > 40


def warmed(timesteps=20, bins=10, loss=lambda t: t):
    sampler = LossSecondMoment.start(timesteps, bins)
    t = jnp.tile(jnp.arange(1, timesteps + 1, dtype=jnp.float32) / timesteps, HISTORY)
    return sampler.update(t, loss(t))


def test_importance_is_proportional_to_the_root_of_the_second_moment():
    sampler = warmed(20, 20, lambda t: 3.0 * t)
    t = np.arange(1, 21) / 20
    np.testing.assert_allclose(sampler.probabilities(), 0.999 * t / t.sum() + 0.001 / 20, rtol=1e-4)
    # spread counts: losses of 0 and 2 have a second moment of 2, those of 1 and -1 have 1
    t = jnp.tile(jnp.asarray([0.5, 1.0], jnp.float32), HISTORY)
    turn = jnp.arange(t.shape[0]) < HISTORY
    loss = jnp.where(t < 0.75, jnp.where(turn, 0.0, 2.0), jnp.where(turn, -1.0, 1.0))
    p = LossSecondMoment.start(2, 2).update(t, loss).probabilities()
    np.testing.assert_allclose(p[0] / p[1], 2**0.5, rtol=1e-2)


def test_importance_draws_its_distribution_and_its_weights_are_unbiased():
    sampler = warmed()
    t, weight = sampler.draw(jax.random.key(0), 50_000)
    index = np.rint(np.asarray(t) * 20).astype(int)
    share = np.bincount(index, minlength=21)[1:] / 50_000
    np.testing.assert_allclose(share, sampler.probabilities(), atol=0.005)
    p = np.asarray(sampler.probabilities())
    np.testing.assert_allclose(weight, 1 / (20 * p[index - 1]), rtol=1e-5)
    assert float(jnp.mean(weight)) == pytest.approx(1.0, abs=0.03)
    # so the mean of any function of t is that of uniform draws
    assert float(jnp.mean(weight * t**2)) == pytest.approx(np.mean((np.arange(1, 21) / 20) ** 2), abs=0.01)


def test_importance_is_uniform_until_every_bin_is_warm():
    sampler = LossSecondMoment.start(4, 4)
    t = jnp.asarray([0.25] * 30 + [0.5] * 30 + [0.75] * 30 + [1.0] * (HISTORY - 1), jnp.float32)
    sampler = sampler.update(t, t)
    np.testing.assert_allclose(sampler.probabilities(), 0.25, rtol=1e-6)
    sampler = sampler.update(jnp.ones(1), jnp.ones(1))
    assert float(sampler.probabilities()[0]) < 0.2


def test_importance_keeps_the_last_losses_of_a_bin():
    sampler = LossSecondMoment.start(2, 2)
    for start in (0, 7, 14):  # odd sizes wrap around the ring
        rows = jnp.arange(start, start + 7, dtype=jnp.float32)
        sampler = sampler.update(jnp.ones(7), rows)
    assert sorted(np.asarray(sampler.history[1]).tolist()) == list(range(11, 21))
    # more rows at once than are kept: again the last ones, in any bin they fall into
    t = jnp.asarray([0.5, 1.0] * 25, jnp.float32)
    sampler = sampler.update(t, jnp.arange(50, dtype=jnp.float32))
    assert sorted(np.asarray(sampler.history[0]).tolist()) == list(range(30, 50, 2))
    assert sorted(np.asarray(sampler.history[1]).tolist()) == list(range(31, 50, 2))
