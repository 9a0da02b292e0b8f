"""A network prepared for many calls computes what it did, and no call casts or cuts the kernel of a projection."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels import sharding, target
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models.linear import Linear, Part, contract
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


def prepared(graph, parameters):
    return merge_prepared(graph, parameters, positions=14)


def logits(merge, graph, parameters):
    tokens = jnp.arange(14).reshape(2, 7) % VOCAB
    return merge(graph, parameters)(tokens, jnp.array([0.3, 0.8]))


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_results(dtype, scan_layers):
    graph, parameters = network(replace(CONFIG, dtype=dtype, scan_layers=scan_layers))
    expected, found = (
        jax.jit(logits, static_argnums=(0, 1))(merge, graph, parameters) for merge in (nnx.merge, prepared)
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
    assert touched(prepared) == []


def projection(parts: tuple[Part, ...], *, together: bool) -> Linear:
    config = replace(CONFIG, d_model=960, dtype="bfloat16")
    return Linear(960, sum(part.width for part in parts), config, parts=parts, together=together, rngs=nnx.Rngs(0))


def matmuls(linear: Linear, rows: int) -> tuple[int, int]:
    """Of a call: matmuls, and barriers around the input and the kernel of one."""
    found = list(equations(jax.make_jaxpr(linear.cut)(jnp.zeros((1, rows, 960), jnp.bfloat16)).jaxpr))
    barriers = [eqn for eqn in found if eqn.primitive.name == "optimization_barrier"]
    assert all(len(eqn.invars) == 2 for eqn in barriers)  # equal barriers are made one
    return sum(eqn.primitive.name == "dot_general" for eqn in found), len(barriers)


EQUAL = (Part(960), Part(960))
SHARING = (Part(960, "gates"), Part(960), Part(5, "steps"), Part(960, "gates"), Part(5, "steps"))


@pytest.mark.parametrize(
    ("parts", "together", "positions", "count"),
    [(EQUAL, True, 1024, 1), (EQUAL, True, 16384, 2), (EQUAL, False, 1024, 2), (SHARING, False, 1024, 3)],
)
def test_on_a_gpu_a_call_of_a_prepared_network_puts_no_kernels_together(parts, together, positions, count):
    """XLA would, in every call. 16384 x 960 bfloat16 are 30 MiB; other numbers of rows are no other program."""
    linear = projection(parts, together=together)
    with target("gpu"):
        linear.prepare(positions)
        barriers = 0 if count == 1 else count  # a single kernel is read where it stands in a stack of layers
        assert [matmuls(linear, rows) for rows in (1024, 16384)] == [(count, barriers)] * 2
    linear = projection(parts, together=together)
    linear.prepare(positions)
    assert matmuls(linear, 1024) == (len({part.shared or i for i, part in enumerate(parts)}), 0)


@pytest.mark.parametrize("widths", [(960, 960, 960), (12, 20, 5)])
def test_parts_out_of_one_matmul_are_those_out_of_several(widths):
    """Some of them no multiple of the eight columns that kernels are padded to."""
    parts = tuple(Part(width) for width in widths)
    x = jax.random.normal(jax.random.key(2), (2, 7, 960), jnp.bfloat16)
    expected = projection(parts, together=True).cut(x)
    linear = projection(parts, together=True)
    with target("gpu"):
        linear.prepare(14)
        assert len(linear.prepared) == 1
        found = jax.jit(linear.cut)(x)
    assert [part.shape[-1] for part in found] == list(widths)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=1e-2, atol=1e-3)


def test_kernels_whose_columns_are_split_over_devices_stay_apart():
    """Columns of several, put together, would be split anew."""
    linear = projection(EQUAL, together=True)
    mesh = jax.make_mesh((2,), ("tensor",))
    with target("gpu"), sharding(mesh, heads="tensor"):
        linear.prepare(14)
    assert len(linear.prepared) == 2


def test_parts_of_one_matmul_are_written_alike():
    with pytest.raises(ValueError, match="together needs parts that name none"):
        projection(SHARING, together=True)
    with pytest.raises(ValueError, match="together needs parts that are not `along`"):
        projection((Part(960), Part(960, along=True)), together=True)
    with pytest.raises(ValueError, match="share the matmul 'steps' differ in `along`"):
        projection((Part(5, "steps", along=True), Part(960), Part(5, "steps")), together=False)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_a_part_may_be_written_feature_by_feature(dtype, exact):
    """Values, gradients and calls prepared beforehand are the same; the matmul's own result has the features first."""
    parts = (Part(16, "gates"), Part(13), Part(3, "steps", along=True))
    linear = Linear(16, 32, replace(CONFIG, dtype=dtype), parts=parts, exact=exact, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(linear)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 2e-2, "atol": 2e-2}

    def loss(parameters, x):
        return sum(jnp.sum(jnp.sin(part.astype(jnp.float32))) for part in nnx.merge(graph, parameters).cut(x))

    for shape in ((2, 5, 16), (1, 1, 16), (7, 16), (2, 3, 4, 16)):
        x = jax.random.normal(jax.random.key(3), shape)
        expected, slopes = linear.cut(x), jax.grad(loss, argnums=(0, 1))(parameters, x)
        with target("gpu"):
            found, others = linear.cut(x), jax.grad(loss, argnums=(0, 1))(parameters, x)
            calling = nnx.merge(graph, parameters)
            calling.prepare(x.size // 16)
            calls = [found, calling.cut(x)]
        for one in calls:
            for a, b in zip(one, expected, strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                np.testing.assert_allclose(np.float32(a), np.float32(b), **tolerance)
        for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(slopes), strict=True):
            np.testing.assert_allclose(np.float32(a), np.float32(b), **tolerance)

    def results() -> set[tuple[int, ...]]:
        """The shapes of the matmuls' results."""
        found = equations(jax.make_jaxpr(linear.cut)(jnp.ones((2, 5, 16))).jaxpr)
        return {eqn.outvars[0].aval.shape for eqn in found if eqn.primitive.name == "dot_general"}

    assert results() == {(10, 16), (10, 8)}  # 13 and 3 columns are padded
    with target("gpu"):
        assert results() == {(10, 16), (8, 10)}


@pytest.mark.parametrize("rows", [1, 2])
def test_exact_results_of_one_row_are_those_of_a_row_among_others(rows):
    """On a GPU it is given another row, since XLA would write the kernel out in float32 for one."""
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((rows, 3, 16), (16, 24))))
    x = x[:, :1]

    def run(x):
        return contract(x, kernel, jnp.bfloat16, exact=True)

    expected = run(x)
    with target("gpu"):
        padded = [eqn for eqn in equations(jax.make_jaxpr(run)(x).jaxpr) if eqn.primitive.name == "pad"]
        found = run(x)
    assert len(padded) == (rows == 1)
    assert found.shape == (rows, 1, 24)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("rows", "apart"), [(1024, False), (16384, True)])
def test_on_a_gpu_matmuls_with_large_results_have_inputs_of_their_own(rows, apart):
    """Not prepared, in training; 16384 x 960 bfloat16 are 30 MiB. A CPU's and a TPU's compiler are left alone."""
    linear = projection(EQUAL, together=True)
    assert matmuls(linear, rows) == (2, 0)
    with target("gpu"):
        assert matmuls(linear, rows) == (2, 2 if apart else 0)


@pytest.mark.gpu
def test_a_gpu_s_compiler_keeps_them_apart():
    """Without barriers, and with those around the inputs alone, it made one matmul of both."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    graph, parameters = nnx.split(projection(EQUAL, together=True))
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
