"""Which positions count, and that parts of a batch add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.diffusion.objective import counted, reduce, row_means

#                       source, EOS, PAD | target, EOS, PAD
TARGET = jnp.asarray([[0, 0, 0, 1, 1, 1]], bool)
VALID = jnp.asarray([[1, 1, 0, 1, 1, 0]], bool)


@pytest.mark.parametrize(
    "loss_on, padding, expected",
    [
        ("target", True, [0, 0, 0, 1, 1, 1]),
        ("target", False, [0, 0, 0, 1, 1, 0]),
        ("all", True, [1, 1, 0, 1, 1, 1]),
        ("all", False, [1, 1, 0, 1, 1, 0]),
    ],
)
def test_counted_positions(loss_on, padding, expected):
    assert np.asarray(counted(TARGET, VALID, loss_on, padding))[0].astype(int).tolist() == expected


def test_microbatches_add_up_to_the_batch():
    values = jax.random.uniform(jax.random.key(0), (8, 6))
    positions = jnp.arange(6)[None, :] < jnp.asarray([[1], [6], [2], [5], [3], [3], [4], [6]])
    weights = jnp.arange(1.0, 9.0)
    total = jnp.sum(positions).astype(jnp.float32)
    whole = reduce(values, positions, weights, total)
    parts = sum(reduce(values[i : i + 2], positions[i : i + 2], weights[i : i + 2], total) for i in range(0, 8, 2))
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(whole, (np.asarray(values) * positions * np.arange(1, 9)[:, None]).sum() / 30, rtol=1e-6)


def test_positions_that_do_not_count_cannot_spread_nan():
    values = jnp.asarray([[1.0, jnp.nan], [3.0, jnp.inf]])
    positions = jnp.asarray([[True, False], [True, False]])
    assert float(reduce(values, positions, jnp.ones(2), jnp.float32(2.0))) == 2.0
    np.testing.assert_array_equal(row_means(values, positions), [1.0, 3.0])


def test_a_row_without_positions_has_mean_zero():
    assert float(row_means(jnp.ones((1, 3)), jnp.zeros((1, 3), bool))[0]) == 0.0
