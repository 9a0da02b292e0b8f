"""A network prepared for many calls computes what it did, and no call casts or cuts the kernel of a projection."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import target
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Linear, Part
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.models.token_denoiser import TokenDenoiser

CONFIG = ModelConfig(
    d_model=16, layers=3, pattern=("attention", "mamba2"), direction="untied", head_dim=4, state_dim=4,
    modulation="adaln_zero", condition_dim=8, head="untied", mlp_ratio=2.0,
)  # fmt: skip
VOCAB = 11


def network(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    model = TokenDenoiser(config, vocab_size=VOCAB, source_length=0, target_length=8, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model)
    key = jax.random.key(1)  # what starts at zero would hide what it multiplies
    return graph, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), parameters)


def logits(merge, graph, parameters):
    tokens = jnp.arange(14).reshape(2, 7) % VOCAB
    return merge(graph, parameters)(tokens, jnp.array([0.3, 0.8]))


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_results(dtype, scan_layers):
    graph, parameters = network(replace(CONFIG, dtype=dtype, scan_layers=scan_layers))
    expected, found = (
        jax.jit(logits, static_argnums=(0, 1))(merge, graph, parameters) for merge in (nnx.merge, merge_prepared)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_call_casts_and_cuts_no_kernel(scan_layers):
    graph, parameters = network(replace(CONFIG, dtype="bfloat16", scan_layers=scan_layers))
    kernels = {
        leaf.shape[-2:] for path, leaf in jax.tree_util.tree_leaves_with_path(parameters) if "kernel" in str(path[-2:])
    }

    def touched(merge) -> list[str]:
        network = merge(graph, parameters)
        tokens = jnp.zeros((2, 7), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda tokens: network(tokens, jnp.array([0.3, 0.8])))(tokens)
        found = [(eqn.primitive.name, eqn.invars[0].aval) for eqn in equations(jaxpr.jaxpr) if eqn.invars]
        return [
            f"{name} of {what}"
            for name, what in found
            if what.shape[-2:] in kernels and what.ndim <= 3
            if name in ("split", "slice") or (name == "convert_element_type" and what.dtype == jnp.float32)
        ]

    assert touched(nnx.merge)
    assert touched(merge_prepared) == []


@pytest.mark.parametrize(("rows", "apart"), [(1024, False), (16384, True)])
def test_on_a_gpu_matmuls_with_large_results_have_inputs_of_their_own(rows, apart):
    """16384 x 960 bfloat16 are 30 MiB; a CPU's and a TPU's compiler are left alone."""
    config = replace(CONFIG, d_model=960, dtype="bfloat16")
    graph, parameters = nnx.split(Linear(960, 1920, config, parts=(Part(960), Part(960)), rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((1, rows, 960), jnp.bfloat16)

    def barriers() -> int:
        run = jax.make_jaxpr(lambda parameters, x: nnx.merge(graph, parameters).cut(x))
        found = [eqn for eqn in equations(run(parameters, x).jaxpr) if eqn.primitive.name == "optimization_barrier"]
        assert all(len(eqn.invars) == 2 for eqn in found)  # input and kernel: equal barriers are made one
        return len(found)

    assert barriers() == 0
    with target("gpu"):
        assert barriers() == (2 if apart else 0)


@pytest.mark.gpu
def test_a_gpu_s_compiler_keeps_them_apart():
    """Without barriers, and with those around the inputs alone, it made one matmul of both."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    config = replace(CONFIG, d_model=960, dtype="bfloat16")
    graph, parameters = nnx.split(Linear(960, 1920, config, parts=(Part(960), Part(960)), rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((16, 1024, 960), jnp.bfloat16)
    run = jax.jit(lambda parameters, x: nnx.merge(graph, parameters).cut(x))
    program = run.lower(parameters, x).compile().as_text()
    assert len(re.findall(r'custom_call_target="__cublas|__triton\w*gemm', program)) == 2, program


def test_a_projection_is_called_or_cut():
    whole = Linear(4, 8, CONFIG, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no parts to be cut into: call it"):
        whole.cut(jnp.ones((2, 4)))
    cut = Linear(4, 8, CONFIG, parts=(Part(4), Part(4)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cut into parts: call its cut"):
        cut(jnp.ones((2, 4)))


def equations(jaxpr):
    """All of a program's, those of the programs inside it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
