"""Learning rates, what decays, and the clip."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dimba_jax.config import OptimizerConfig
from dimba_jax.training.optimizer import decays, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {3: 0.4, 4: 0.4, 19: 0.4}),
        ("linear", {3: 0.4, 4: 0.4, 12: 0.2, 19: 0.4 / 16}),
        ("cosine", {4: 0.4, 12: 0.2, 8: 0.2 * (1 + np.cos(np.pi / 4))}),
    ],
)
def test_learning_rate(schedule, at):
    rate = learning_rate(OptimizerConfig(learning_rate=0.4, warmup_steps=4, schedule=schedule), 20)
    np.testing.assert_allclose([rate(n) for n in range(4)], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose([rate(n) for n in at], list(at.values()), rtol=1e-5)


def test_a_warm_up_longer_than_the_run_is_cut():
    rate = learning_rate(OptimizerConfig(learning_rate=0.4, warmup_steps=200), 2)
    np.testing.assert_allclose([rate(0), rate(1)], [0.2, 0.4], rtol=1e-6)
    assert learning_rate(OptimizerConfig(learning_rate=0.4, warmup_steps=0), 2)(0) == pytest.approx(0.4)


def test_kernels_decay_and_nothing_else():
    ones = jnp.ones((2, 2))
    params = {
        "proj": {"kernel": ones, "bias": ones},
        "norm": {"scale": ones},
        "mixer": {"A_log": ones, "blocks": {0: {"kernel": ones}}},
        "prompt": {"frozen": {"encoder": {"kernel": ones}}},
    }
    assert decays(params) == {
        "proj": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "mixer": {"A_log": False, "blocks": {0: {"kernel": True}}},
        "prompt": {"frozen": {"encoder": {"kernel": False}}},
    }
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1), 10)
    nothing = {"proj": {"kernel": 0 * ones, "bias": 0 * ones}}
    params = {"proj": {"kernel": ones, "bias": ones}}
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    np.testing.assert_allclose(updates["proj"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["proj"]["bias"], 0.0)


@pytest.mark.parametrize(("clip_norm", "scale"), [(2.5, 0.5), (10.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip_norm, scale):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=clip_norm, beta1=0.5)
    optimizer = make_optimizer(config, 10)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose([first_moment["a"][0], first_moment["b"][0]], [1.5 * scale, 2.0 * scale], rtol=1e-6)
