"""Masked diffusion: corruption, weights, and a NELBO that converges to its exact value."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ConfigError, ProcessConfig, RunConfig, from_config_dict
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.likelihood import nll, token_nll
from dimba_jax.diffusion.masked import FULL_RANGE
from dimba_jax.diffusion.passes import draw
from dimba_jax.diffusion.passes.masked import masked_pass, position_times
from dimba_jax.diffusion.timesteps import Continuous
from dimba_jax.models.build import make_denoiser

VOCAB, LENGTH = 3, 3
MASK = VOCAB


def run_config(source: int = 0, **groups) -> RunConfig:
    values = {
        "data": {"source": "text" if source == 0 else "jsonl", "source_length": source, "target_length": LENGTH},
        "model": {
            "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 4, "mlp_ratio": 1.0, "head": "untied",
            "self_conditioning": False, "modulation": "film",
        },
        "process": {"kind": "masked", "schedule": "log_linear"},
        "sampling": {"sampler": "ancestral"},
    }  # fmt: skip
    for name, settings in groups.items():
        values[name] = values[name] | settings
    return from_config_dict(values)


def a_network(config: RunConfig, seed: int = 0):
    """A fixed random network whose outputs are far from even, and depend on t where it is told t."""
    graph, params = nnx.split(make_denoiser(config, VOCAB, nnx.Rngs(seed)))
    params = nnx.to_pure_dict(params)
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    return graph, jax.tree.map(lambda leaf: leaf + 0.5 * jax.random.normal(next(keys), leaf.shape), params)


def rows_of(text, rows: int = 1, source: int = 0):
    tokens = jnp.tile(jnp.asarray(text, jnp.int32), (rows, 1))
    target = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= source, tokens.shape)
    return {"tokens": tokens, "target": target, "valid": jnp.ones_like(target)}


def exact_nelbo(graph, params, process):
    """(text, low, high) -> the mean over t of the loss over all patterns of masks. Nothing is drawn.

    Gauss-Legendre, fine enough for what the network makes of t.
    """
    nodes, shares = (jnp.asarray(x, jnp.float32) for x in np.polynomial.legendre.leggauss(1500))
    patterns = jnp.asarray(list(itertools.product([False, True], repeat=LENGTH)))
    network = nnx.merge(graph, params)

    @jax.jit
    def exact(text, low, high):
        def at(t):
            log_p = jax.nn.log_softmax(network(jnp.where(patterns, MASK, text), jnp.full(len(patterns), t)), axis=-1)
            loss = -jnp.take_along_axis(log_p, text[None, :, None], axis=-1)[..., 0]
            stay = process.alpha(t)
            chance = jnp.prod(jnp.where(patterns, 1 - stay, stay), axis=1)
            return process.weight(t) * jnp.sum(chance * jnp.sum(jnp.where(patterns, loss, 0.0), axis=1))

        return jnp.sum(shares / 2 * jax.vmap(at)(low + (high - low) * (nodes + 1) / 2))

    return lambda text, low=1e-6, high=1.0: float(exact(jnp.asarray(text), low, high))


@pytest.mark.parametrize("schedule", ["log_linear", "cosine"])
def test_the_estimate_converges_to_the_exact_nelbo(schedule):
    config = run_config(process={"schedule": schedule})
    graph, params = a_network(config)
    process = make_process(config.process, VOCAB)
    estimate = jax.jit(lambda batch, key: nll(graph, params, process, batch, key, config))
    nelbo = exact_nelbo(graph, params, process)
    for text in ([0, 1, 2], [2, 2, 0]):
        exact = nelbo(text, *FULL_RANGE)
        draws = [np.mean(estimate(rows_of(text, 4096), jax.random.key(i))) for i in range(16)]
        error = np.std(draws) / np.sqrt(len(draws) - 1)
        assert error < 0.01 * exact
        assert abs(np.mean(draws) - exact) < 5 * error
        # leaving out the least times costs a few thousandths at most
        assert nelbo(text) == pytest.approx(exact, rel=5e-3)


def test_without_time_the_schedule_does_not_matter():
    values = []
    for schedule in ("log_linear", "cosine"):
        config = run_config(process={"schedule": schedule, "time_conditioning": False})
        graph, params = a_network(config)
        values.append(exact_nelbo(graph, params, make_process(config.process, VOCAB))([0, 1, 2]))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_nelbo_bounds_the_likelihood_of_its_own_sampler():
    """Summed over all texts, exp(-NELBO) may not exceed 1: a weight or a mask probability too small would."""
    config = run_config()
    graph, params = a_network(config)
    nelbo = exact_nelbo(graph, params, make_process(config.process, VOCAB))
    mass = sum(np.exp(-nelbo(text)) for text in itertools.product(range(VOCAB), repeat=LENGTH))
    assert 0.2 < mass <= 1.0


@pytest.mark.parametrize("schedule", ["log_linear", "cosine"])
def test_the_weight_is_the_schedules_derivative(schedule):
    process = make_process(ProcessConfig(kind="masked", schedule=schedule), VOCAB)
    t = jnp.linspace(0.01, 0.99, 25)
    slope = jax.vmap(jax.grad(process.alpha))(t)
    np.testing.assert_allclose(process.weight(t), -slope / (1 - process.alpha(t)), rtol=2e-4)
    assert float(process.alpha(jnp.float32(0.0))) == 1.0
    assert abs(float(process.alpha(jnp.float32(1.0)))) < 1e-6


def test_corruption_masks_at_its_rate_and_never_the_source():
    process = make_process(ProcessConfig(kind="masked", schedule="cosine"), VOCAB)
    batch = rows_of([0, 1, 2, 0, 1], rows=4000, source=2)
    keys = jax.random.split(jax.random.key(0), 4000)
    t = jnp.broadcast_to(jnp.asarray([0.5, 0.5, 0.2, 0.5, 0.9]), batch["tokens"].shape)
    noised = process.corrupt(keys, batch["tokens"], t, batch["target"])
    rate = np.mean(noised.masked, axis=0)
    assert (rate[:2] == 0).all()
    np.testing.assert_allclose(rate[2:], 1 - process.alpha(t[0, 2:]), atol=0.03)
    np.testing.assert_array_equal(noised.tokens, np.where(noised.masked, MASK, batch["tokens"]))
    few = process.corrupt(keys[:7], batch["tokens"][:7], t[:7], batch["target"][:7])
    np.testing.assert_array_equal(few.masked, noised.masked[:7])  # a row's masks are its own


def test_a_whole_mask_at_the_last_time():
    process = make_process(ProcessConfig(kind="masked", schedule="log_linear"), VOCAB)
    batch = rows_of([0, 1, 2], rows=500)
    noised = process.corrupt(
        jax.random.split(jax.random.key(0), 500), batch["tokens"], jnp.ones((500, 3)), batch["target"]
    )
    assert bool(noised.masked.all())


def test_only_masked_positions_count_and_all_valid_tokens_divide():
    config = run_config(source=2)
    graph, params = a_network(config)
    process = make_process(config.process, VOCAB)
    batch = rows_of([0, 1, 2, 1, 0], rows=6, source=2)
    batch["valid"] = batch["valid"].at[:3, 4].set(False)
    draws = draw(jax.random.key(1), Continuous(), process, 6, config)
    found = masked_pass(graph, params, process, batch, draws, config)
    assert found.objective.shape == (6, LENGTH)
    seen = ~np.asarray(found.predicted) & np.asarray(found.positions)
    assert seen.any() and (np.asarray(found.objective)[seen] == 0).all()
    assert int(found.positions.sum()) == 6 * LENGTH  # padding is learned, and counts
    assert int(found.predicted.sum()) < 6 * LENGTH


def test_the_search_moves_training_times_but_no_bound():
    config = run_config(process={"time_range": (0.4, 0.6), "time_conditioning": False})
    graph, params = a_network(config)
    process = make_process(config.process, VOCAB)
    t = draw(jax.random.key(0), Continuous(), process, 64, config).rows.t
    assert 0.4 <= float(t.min()) < 0.42 and 0.58 < float(t.max()) <= 0.6
    full = make_process(ProcessConfig(kind="masked", schedule="log_linear"), VOCAB)
    batch, key = rows_of([0, 1, 2], 8), jax.random.key(3)
    np.testing.assert_array_equal(
        nll(graph, params, process, batch, key, config), nll(graph, params, full, batch, key, config)
    )


def test_times_of_blocks_lie_on_their_positions():
    t = position_times(jnp.asarray([[0.25, 0.75]]), 2, 6)
    np.testing.assert_allclose(t, [[0.25, 0.25, 0.25, 0.25, 0.75, 0.75]])


def test_other_weightings():
    batch = rows_of([0, 1, 2], 5)
    logits = jax.random.normal(jax.random.key(0), (5, 3, 3))
    keys = jax.random.split(jax.random.key(1), 5)
    plain = make_process(ProcessConfig(kind="masked", schedule="log_linear", weighting="none"), VOCAB)
    noised = plain.corrupt(keys, batch["tokens"], jnp.full((5, 3), 0.7), batch["target"])
    loss = -jax.nn.log_softmax(logits)[jnp.arange(5)[:, None], jnp.arange(3), batch["tokens"]] * noised.masked
    np.testing.assert_allclose(plain.objective(logits, batch["tokens"], noised), loss, rtol=1e-5)
    linear = dataclasses.replace(plain, weighting="linear")
    np.testing.assert_allclose(linear.objective(logits, batch["tokens"], noised), 0.301 * loss, rtol=1e-4)
    elbo = dataclasses.replace(plain, weighting="elbo")
    np.testing.assert_allclose(elbo.objective(logits, batch["tokens"], noised), loss / 0.7, rtol=1e-5)
    smooth = dataclasses.replace(plain, label_smoothing=0.3)
    even = -jnp.mean(jax.nn.log_softmax(logits), axis=-1) * noised.masked
    np.testing.assert_allclose(
        smooth.objective(logits, batch["tokens"], noised), 0.7 * loss + 0.3 * even, rtol=1e-5, atol=1e-6
    )


def test_an_embedding_model_has_no_likelihood():
    config = from_config_dict({"data": {"source_length": 2, "target_length": 3}})
    with pytest.raises(ConfigError, match="no likelihood"):
        token_nll(None, None, make_process(config.process, VOCAB), rows_of([0, 1, 2]), jax.random.key(0), config)  # pyright: ignore
