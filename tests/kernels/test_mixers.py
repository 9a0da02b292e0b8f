"""The models' mixers call the kernels: the same outputs and gradients as with the portable ones."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels.testing import gaps, relative_error
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.block import Block
from dimba_jax.models.conditioning import Stream
from dimba_jax.models.mixers import make_mixer
from dimba_jax.models.mixers.core import two_cores

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton: install the `gpu` extra"
)


def mixer(name, implementation, direction="untied", d_model=8, state_dim=4):
    config = ModelConfig(
        d_model=d_model, head_dim=8, state_dim=state_dim, groups=1, chunk=4, direction=direction, pattern=(name,),
        implementation=implementation,
    )  # fmt: skip
    return make_mixer(config, name, rngs=nnx.Rngs(0))


def outputs_and_gradients(model, x, mask):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x):
        y, _ = nnx.merge(graph, params, rest)(x, mask)
        return jnp.sum(jnp.sin(y)), y

    with jax.default_matmul_precision("highest"):  # or XLA's scans are less exact on a GPU than the kernels
        (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return jax.tree.leaves((y, gradients))


@needs_triton
@pytest.mark.parametrize(
    ("name", "direction"), [("mamba", "untied"), ("mamba2", "untied"), ("mamba2", "tied"), ("mamba2", "shared")]
)
def test_gpu_kernels_change_nothing(name, direction):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32))
    results = [
        outputs_and_gradients(mixer(name, implementation, direction), x, gaps(2, 9))
        for implementation in ("gpu", "xla")
    ]
    assert np.max([relative_error(*pair) for pair in zip(*results, strict=True)]) < 1e-4


@needs_triton
@pytest.mark.parametrize("direction", ["untied", "tied"])
def test_a_pair_whose_convolutions_write_its_parts(direction, monkeypatch):
    """128 features of x, B and C, which the kernels write where the scans read them."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 64)).astype(np.float32))
    models = [mixer("mamba2", name, direction, d_model=64, state_dim=128) for name in ("gpu", "xla")]
    from dimba_kernels.causal_conv1d import gpu_pair

    calls, run = [], gpu_pair.outputs
    monkeypatch.setattr(gpu_pair, "outputs", lambda *arguments: calls.append(arguments) or run(*arguments))
    results = [outputs_and_gradients(model, x, gaps(1, 5)) for model in models]
    assert len(calls) == 2
    assert np.max([relative_error(*pair) for pair in zip(*results, strict=True)]) < 1e-4


@needs_triton
@pytest.mark.parametrize("modulation", ["film", "additive", "adaln_zero"])
@pytest.mark.parametrize("by_position", [False, True])
def test_gpu_kernels_of_a_block_change_nothing(modulation, by_position):
    """The norms of a block, with one condition a row or, for which there is no kernel, one a position."""
    results = []
    rng = np.random.default_rng(0)
    x, c = (jnp.asarray(rng.normal(size=size).astype(np.float32)) for size in ((2, 9, 8), (2, 9, 6)))
    for implementation in ("gpu", "xla"):
        config = ModelConfig(
            d_model=8, head_dim=4, pattern=("attention",), modulation=modulation, condition_dim=6,
            implementation=implementation,
        )  # fmt: skip
        block = Block(config, "attention", rngs=nnx.Rngs(0))
        graph, params = nnx.split(block)
        # what starts at zero would hide what it multiplies
        leaves = [
            jnp.asarray(np.random.default_rng(i).normal(size=p.shape), jnp.float32) / 3
            for i, p in enumerate(jax.tree.leaves(params))
        ]
        params = jax.tree.unflatten(jax.tree.structure(params), leaves)

        def loss(params, x, c, graph=graph):
            y = nnx.merge(graph, params)(Stream(x), None, c if by_position else c[:, 0]).whole()
            return jnp.sum(jnp.sin(y)), y

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        with jax.default_matmul_precision("highest"):
            (_, y), gradients = run(params, x, c)
        results.append(jax.tree.leaves((y, gradients)))
    assert np.max([relative_error(*pair) for pair in zip(*results, strict=True)]) < 1e-4


@pytest.mark.parametrize("states", [False, True])
def test_a_pair_is_two_cores(states):
    model = mixer("mamba2", "xla")
    rng = np.random.default_rng(0)
    left, right = (
        [jnp.asarray(rng.normal(size=(2, 9, part.width)), jnp.float32) for part in core.parts]
        for core in (model.forward, model.backward)
    )
    ahead = behind = None
    if states:
        ahead = jax.tree.map(lambda zeros: zeros + 1, model.forward.initial_state(2))
        behind = jax.tree.map(lambda zeros: zeros - 1, model.backward.initial_state(2))
    inputs = left, right, gaps(2, 9), ahead, behind
    paired = model.forward.pair(model.backward, *inputs)
    one_by_one = two_cores(model.forward, model.backward, *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), paired, one_by_one)
