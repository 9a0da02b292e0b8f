"""Next-token prediction: what is read, and an exact likelihood."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.likelihood import nll
from dimba_jax.models.build import make_denoiser

VOCAB = 3


def causal_config(mixer="mamba2", source=0, **process):
    return from_config_dict(
        {
            "data": {"source": "text" if not source else "jsonl", "source_length": source, "target_length": 3},
            "model": {
                "d_model": 8, "layers": 1, "pattern": (mixer,), "head_dim": 4, "state_dim": 4, "mlp_ratio": 1.0,
                "self_conditioning": False, "direction": "causal", "head": "untied",
            },
            "process": {"kind": "autoregressive", "schedule": "log_linear"} | process,
            "sampling": {"sampler": "ancestral"},
        }
    )  # fmt: skip


def a_network(config):
    graph, params = nnx.split(make_denoiser(config, VOCAB, nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    keys = iter(jax.random.split(jax.random.key(0), 200))
    return graph, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params)


def test_inputs_are_shifted_inside_the_target():
    process = make_process(causal_config().process, VOCAB)
    target = jnp.asarray([[False, False, True, True, True]])
    np.testing.assert_array_equal(process.inputs(jnp.asarray([[1, 2, 0, 1, 2]]), target), [[1, 2, 3, 0, 1]])
    np.testing.assert_array_equal(process.inputs(jnp.asarray([[1, 2, 0]]), jnp.ones((1, 3), bool)), [[3, 1, 2]])


@pytest.mark.parametrize("mixer", ["attention", "mamba", "mamba2"])
def test_the_likelihoods_of_all_texts_sum_to_one(mixer):
    """They would not, if a position could see the token it predicts, or what follows it."""
    config = causal_config(mixer)
    graph, params = a_network(config)
    texts = jnp.asarray(list(itertools.product(range(VOCAB), repeat=3)), jnp.int32)
    batch = {"tokens": texts, "target": jnp.ones_like(texts, bool), "valid": jnp.ones_like(texts, bool)}
    found = nll(graph, params, make_process(config.process, VOCAB), batch, jax.random.key(0), config)
    assert float(jnp.sum(jnp.exp(-found))) == pytest.approx(1.0, abs=1e-5)
    assert float(jnp.max(jnp.exp(-found))) > 1.5 / 27  # and it is not the even distribution


def test_it_needs_causal_mixers():
    with pytest.raises(ConfigError, match="causal"):
        from_config_dict(
            {
                "data": {"source": "text", "source_length": 0},
                "model": {"self_conditioning": False},
                "process": {"kind": "autoregressive", "schedule": "log_linear"},
                "sampling": {"sampler": "ancestral"},
            }
        )
