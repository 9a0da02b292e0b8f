"""The network of token processes on whole rows: what enters, what comes out, and that everything learns."""

import dataclasses
import functools

import dimba_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ConfigError, DataConfig, ModelConfig, ProcessConfig, RunConfig
from dimba_jax.models import TokenDenoiser, count_parameters
from dimba_jax.models.build import abstract_denoiser, kernels_asked_for, make_denoiser

V, LS, L = 11, 3, 8
CONFIG = ModelConfig(
    d_model=16, layers=2, pattern=("attention",), head_dim=8, state_dim=4, mlp_ratio=1.0, chunk=4,
    self_conditioning=False, head="untied",
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, V + 1, (2, L), dtype=np.int32)
TIMES = np.asarray([0.3, 0.8], np.float32)


def build(source_length=LS, time_conditioned=True, conditioned=True, **settings):
    config = dataclasses.replace(CONFIG, **settings)
    return TokenDenoiser(
        config, vocab_size=V, source_length=source_length, target_length=L - source_length,
        time_conditioned=time_conditioned, conditioned=conditioned, rngs=nnx.Rngs(0),
    )  # fmt: skip


@functools.cache
def make(**settings):
    """A network of random parameters, none of them zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: build(**settings))
    return jax.tree.map(lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape, np.float32)), shapes)


@functools.partial(jax.jit, static_argnames="first")
def run(model, tokens, t, visible=None, first=0):
    return model(tokens, t, visible=visible, first=first)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_logits_are_over_the_tokens_without_mask(head):
    model = make(head=head)
    assert model.mask_id == V and model.table.shape == (V + 1, 16)
    logits = run(model, TOKENS, TIMES)
    assert logits.shape == (2, L, V) and logits.dtype == jnp.float32
    assert "kernel" not in str(jax.tree_util.tree_flatten_with_path(model.table)[0])  # which an optimizer would decay


def test_the_tied_head_is_the_table():
    model = jax.tree.map(jnp.asarray, make(head="tied"))
    before = run(model, TOKENS[:, :4], TIMES)
    unused = sorted(set(range(V)) - set(TOKENS[:, :4].ravel().tolist()))[0]
    model.table[...] = model.table[...].at[unused].multiply(2.0)
    after = np.asarray(run(model, TOKENS[:, :4], TIMES))
    np.testing.assert_allclose(after[..., unused], 2 * before[..., unused], rtol=1e-5)
    np.testing.assert_array_equal(np.delete(after, unused, -1), np.delete(before, unused, -1))


def test_first_leaves_out_logits_and_nothing_else():
    model = make()
    whole = run(model, TOKENS, TIMES)
    np.testing.assert_allclose(run(model, TOKENS, TIMES, first=LS), whole[:, LS:], atol=1e-6)
    per_position = np.tile(TIMES[:, None], (1, L))
    np.testing.assert_allclose(run(model, TOKENS, per_position, first=LS), whole[:, LS:], atol=1e-5)


def test_time_of_each_position():
    """A position's own time matters to it; with mixers that see everything, to others as well."""
    model, times = make(), np.tile(TIMES[:, None], (1, L))
    np.testing.assert_allclose(run(model, TOKENS, times), run(model, TOKENS, TIMES), atol=1e-5)
    times[:, 5] = 0.0
    moved = np.abs(run(model, TOKENS, times) - run(model, TOKENS, TIMES)).max(axis=(0, 2))
    assert (moved > 1e-5).all() and moved.argmax() == 5


def test_without_time_conditioning_every_t_is_zero():
    told, untold = make(), make(time_conditioned=False)
    assert count_parameters(told) == count_parameters(untold)
    zero = run(told, TOKENS, 0 * TIMES)
    assert not np.allclose(run(told, TOKENS, TIMES), zero, atol=1e-3)
    np.testing.assert_allclose(run(untold, TOKENS, TIMES), zero, atol=1e-6)
    np.testing.assert_allclose(run(untold, TOKENS, np.tile(TIMES[:, None], (1, L))), zero, atol=1e-6)


def test_segments_tell_source_from_target():
    model = make()
    same = np.full((1, L), 4, np.int32)
    mixed = np.asarray(run(make(pattern=("mamba2",), direction="causal", conv_width=1), same, TIMES[:1]))
    assert np.abs(mixed[0, 0] - mixed[0, LS]).max() > 1e-3
    without = build(source_length=0)
    assert not hasattr(without, "segments") and hasattr(model, "segments")
    swapped = jax.tree.map(jnp.asarray, model)
    swapped.segments[...] = model.segments[...][::-1]
    assert not np.allclose(run(swapped, TOKENS, TIMES), run(model, TOKENS, TIMES), atol=1e-3)


def test_learned_positions_tell_equal_tokens_apart():
    """With no token but the mask, logits follow the positions' vectors, of a whole row and of a window."""
    masks = np.full((1, L), V, np.int32)
    model = make(pattern=("mamba2",), positions="learned")
    assert model.positions.shape == (L, 16) and build().positions is None
    logits = run(model, masks, TIMES[:1])
    moved = jax.tree.map(jnp.asarray, model)
    moved.positions[...] = jnp.roll(model.positions[...], 1, axis=0)
    assert not np.allclose(run(moved, masks, TIMES[:1]), logits, atol=1e-3)

    alike = jax.tree.map(jnp.asarray, model)
    alike.positions[...] = jnp.broadcast_to(model.positions[...][3], (L, 16))
    h, h_alike = (np.asarray(m._embed(masks, 2)) for m in (model, alike))  # as a window that starts at 2 is embedded
    np.testing.assert_array_equal(h[0, 1], h_alike[0, 1])
    assert np.abs(h[0, 0] - h_alike[0, 0]).max() > 1e-3
    assert np.isfinite(h[0, : L - 2]).all() and np.isnan(h[0, L - 2 :]).all()  # behind the last there is none


@pytest.mark.parametrize(("pattern", "direction"), [("mamba2", "untied"), ("mamba", "tied"), ("mamba2", "shared")])
def test_invisible_positions_reach_neither_values_nor_gradients(pattern, direction):
    """Junk at padding changes nothing anywhere else, in either direction, and its embedding gets no gradient."""
    model = make(pattern=(pattern,), direction=direction)
    tokens, visible = TOKENS % (V - 1), np.ones((2, L), bool)
    visible[0, 1:LS] = visible[1, 0] = False
    junk = np.where(visible, tokens, V - 1)

    @jax.jit
    def loss(model, tokens):
        logits = model(tokens, TIMES, visible=visible)
        return jnp.sum(jnp.sin(logits) * visible[..., None]), logits

    (_, before), gradients = jax.value_and_grad(loss, has_aux=True)(model, tokens)
    (_, after), junk_gradients = jax.value_and_grad(loss, has_aux=True)(model, junk)
    np.testing.assert_array_equal(np.asarray(before)[visible], np.asarray(after)[visible])
    assert not np.asarray(junk_gradients.table[...])[V - 1].any()
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(junk_gradients), strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(a).max()))


@pytest.mark.parametrize(("head", "positions"), [("tied", "none"), ("untied", "learned")])
def test_every_parameter_learns(head, positions):
    model = make(head=head, positions=positions, modulation="adaln_zero", pattern=("attention", "mamba2"))
    gradients = jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(m(TOKENS, TIMES, first=LS)))))(model)
    named = jax.tree_util.tree_flatten_with_path(gradients)[0]
    assert not [jax.tree_util.keystr(path) for path, g in named if not np.abs(g).max() > 0]


def test_the_ratio_of_attention_blocks():
    d = CONFIG.d_model
    layer = d * 2 * 8 + 8 * d  # in and out matrices of a SwiGLU 8 wide, the gate among them
    settings = dict(pattern=("attention", "mamba2"), conditioned=False, mlp_ratio=0.0)
    without, one = (
        count_parameters(jax.eval_shape(lambda r=r: build(attention_mlp_ratio=r, **settings))) for r in (-1.0, 0.5)
    )
    assert one - without == layer + d  # and its norm, in one of the two blocks
    full, less = (
        count_parameters(jax.eval_shape(lambda r=r: build(attention_mlp_ratio=r, pattern=("attention",), layers=1)))
        for r in (-1.0, 0.0)
    )
    assert full > less


def test_pattern_of_the_hybrid():
    """DiffuMamba-H: one attention block in every five, the first of them."""
    model = jax.eval_shape(lambda: build(pattern=("attention", *["mamba2"] * 4), layers=24))
    period = [type(block.mixer).__name__ for block in model.stack.groups.blocks]
    rest = [type(block.mixer).__name__ for block in model.stack.rest.blocks]
    assert model.stack.repeats == 4
    layers = period * 4 + rest
    assert [i for i, name in enumerate(layers) if name == "Attention"] == [0, 5, 10, 15, 20] and len(layers) == 24


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_built_from_a_config(kind):
    config = RunConfig(
        model=dataclasses.replace(CONFIG, direction="causal"),
        process=ProcessConfig(kind=kind, schedule="log_linear", time_conditioning=False),
        data=DataConfig(source_length=LS, target_length=L - LS),
    )
    graph, abstract = abstract_denoiser(config, V)
    model = nnx.merge(graph, jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), abstract))
    assert isinstance(model, TokenDenoiser) and (model.source_length, model.mask_id) == (LS, V)
    assert (model.time is None) == (kind == "autoregressive") and not model.time_conditioned
    fresh = jax.jit(lambda: make_denoiser(config, V, nnx.Rngs(0)))()
    assert abs(np.std(fresh.table[...]) - 0.02) < 0.005
    assert ("modulation" in str(jax.tree_util.tree_flatten_with_path(fresh)[0])) == (kind == "masked")


def test_what_kernels_asked_for_do_not_take_is_said_with_the_setting():
    settings = dict(pattern=("mamba2",), state_dim=10_000, groups=1, implementation="tpu")
    config = RunConfig(model=dataclasses.replace(CONFIG, **settings), process=ProcessConfig(kind="masked"))
    with pytest.raises(ConfigError, match="implementation='tpu': ssd.* cannot run .* a state of 10000 numbers"):
        with kernels_asked_for(config), dimba_kernels.target("tpu"):
            jax.eval_shape(lambda: build(**settings)(TOKENS, TIMES))
