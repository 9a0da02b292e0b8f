"""The NELBO of block diffusion at its two ends: blocks of one token, and one block of all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import from_config_dict
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.likelihood import nll, token_nll
from dimba_jax.models.build import make_denoiser
from dimba_jax.training.time_range import candidates, search_time_range

VOCAB, LENGTH = 5, 6


def run_config(block_size: int, pattern=("attention", "mamba2"), **process):
    return from_config_dict(
        {
            "data": {"source": "text", "source_length": 0, "target_length": LENGTH},
            "model": {
                "d_model": 8, "layers": 2, "pattern": pattern, "head_dim": 4, "state_dim": 4, "mlp_ratio": 1.0,
                "self_conditioning": False, "head": "untied",
            },
            "process": {"kind": "masked", "schedule": "log_linear", "block_size": block_size} | process,
            "sampling": {"sampler": "ancestral"},
        }
    )  # fmt: skip


def a_network(config):
    graph, params = nnx.split(make_denoiser(config, VOCAB, nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    keys = iter(jax.random.split(jax.random.key(0), 200))
    return graph, jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape), params)


def a_batch(rows: int):
    tokens = jnp.tile(jax.random.randint(jax.random.key(2), (1, LENGTH), 0, VOCAB), (rows, 1))
    return {"tokens": tokens, "target": jnp.ones_like(tokens, bool), "valid": jnp.ones_like(tokens, bool)}


def next_token_loss(graph, params, process, batch) -> np.ndarray:
    """-log p of every token behind its clean past, one at a time through the cache."""
    network = nnx.merge(graph, params)
    tokens = batch["tokens"][:1]
    cache, losses, clean = network.empty_cache(1, LENGTH), [], jnp.zeros(1)
    for i in range(LENGTH):
        logits, _ = network.extend(jnp.full((1, 1), process.mask_id), jnp.ones(1), cache)
        losses.append(-jax.nn.log_softmax(logits[0, 0])[tokens[0, i]])
        _, cache = network.extend(tokens[:, i : i + 1], clean, cache)
    return np.asarray(losses)


@pytest.mark.parametrize("pattern", [("mamba2",), ("attention", "mamba2")])
def test_blocks_of_one_token_are_next_token_prediction(pattern):
    config = run_config(1, pattern, time_conditioning=False)
    graph, params = a_network(config)
    process = make_process(config.process, VOCAB)
    expected = next_token_loss(graph, params, process, a_batch(1))
    estimate = jax.jit(lambda key: token_nll(graph, params, process, a_batch(2048), key, config)[0])
    draws = np.stack([np.mean(estimate(jax.random.key(i)), axis=0) for i in range(6)])
    error = np.std(draws, axis=0) / np.sqrt(5)
    assert (error < 0.03 * expected + 1e-3).all()
    np.testing.assert_allclose(np.mean(draws, axis=0), expected, atol=float(6 * error.max()))
    # where every token is masked nothing is left to chance: the loss times 1/t with t in reach of 1
    values = np.asarray(estimate(jax.random.key(9)))
    seen = np.where(values > 0, values, np.inf).min(axis=0)
    np.testing.assert_allclose(seen, expected, rtol=2e-2)


def test_one_block_of_all_is_plain_masked_diffusion():
    plain, blocks = run_config(0), run_config(LENGTH)
    graph, params = a_network(plain)
    process = make_process(plain.process, VOCAB)
    batch, key = a_batch(8), jax.random.key(1)
    np.testing.assert_allclose(
        nll(graph, params, process, batch, key, plain), nll(graph, params, process, batch, key, blocks), rtol=1e-5
    )


def test_smaller_blocks_see_more():
    """With the same network the bound at block size 2 differs from that at 3: the blocks are really there."""
    config = run_config(2)
    graph, params = a_network(config)
    process = make_process(config.process, VOCAB)
    batch, key = a_batch(256), jax.random.key(1)
    other = dataclasses.replace(config, process=dataclasses.replace(config.process, block_size=3))
    two, three = (float(jnp.mean(nll(graph, params, process, batch, key, c))) for c in (config, other))
    assert abs(two - three) > 1e-3


def test_the_search_takes_the_range_of_least_variance():
    config = run_config(2, search_time_range=True, time_conditioning=False)
    graph, params = a_network(config)
    process = make_process(config.process, VOCAB)
    found, figures = search_time_range(graph, params, process, [a_batch(64)], config)
    low, high = (float(x) for x in found.time_range)
    assert (round(low, 3), round(high, 3)) in candidates()
    assert figures["time_range/variance"] < figures["time_range/variance_full"]
    assert low >= 0.2  # weights of 1/t vary least where t is large
    again, _ = search_time_range(graph, params, found, [a_batch(64)], config)
    np.testing.assert_array_equal(found.time_range, again.time_range)
