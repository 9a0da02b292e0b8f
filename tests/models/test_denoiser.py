"""The denoiser as a whole: shapes, what reaches what, and that every parameter learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ModelConfig
from dimba_jax.models import Denoiser, count_parameters

LS, LT, V, E = 5, 6, 20, 8
L = LS + LT
CONFIG = ModelConfig(
    embedding_dim=E, d_model=16, layers=2, head_dim=8, state_dim=4, mlp_ratio=1.0, chunk=4, prompt_layers=1
)
TINY = dict(pattern=("attention",), layers=1, mlp_ratio=0.0)
VARIANTS = {
    "dimba": dict(prompt_encoder="mixer", pooled_prompt=True),
    "encoder_context": dict(prompt_encoder="mlp", context="encoder", modulation="additive"),
    "prompt_alone": dict(prompt_encoder="mlp", pooled_prompt=True, context="none", self_conditioning=False),
    "frozen": dict(prompt_encoder="frozen", pooled_prompt=True, context="encoder", modulation="adaln_zero"),
    "untied": dict(head="untied", pattern=("mamba",), mlp_ratio=0.0),
    "positions": dict(positions="learned"),
    "positions_alone": dict(
        prompt_encoder="mlp", pooled_prompt=True, context="none", self_conditioning=False, positions="learned"
    ),
    "diffuseq": dict(pattern=("attention",), normalize_embeddings=False),
}


def build(output="embedding", **settings):
    config = dataclasses.replace(CONFIG, **settings)
    return Denoiser(config, vocab_size=V, source_length=LS, target_length=LT, output=output, rngs=nnx.Rngs(0))


@functools.cache
def make(output="embedding", **settings):
    """A denoiser of random parameters, none of them zero, so that everything matters."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: build(output, **settings))
    return jax.tree.map(lambda p: jnp.asarray(0.4 * rng.standard_normal(p.shape, np.float32)), shapes)


def batch():
    tokens = np.random.default_rng(2).integers(3, V, (3, L), dtype=np.int32)
    target = np.broadcast_to(np.arange(L) >= LS, (3, L)).copy()
    valid = np.ones((3, L), bool)
    valid[0, 3:LS] = valid[1, LS - 1] = valid[2, L - 2 :] = False
    return tokens, target, valid


def noise(seed=3):
    return np.random.default_rng(seed).standard_normal((3, L, E), np.float32)


TIMES = np.asarray([0.1, 0.5, 0.9], np.float32)
KEEP = np.ones(3, bool)


@jax.jit
def _encode(model, tokens, target, valid, keep):
    return model.encode(tokens, target, valid, keep)


def encode(model, tokens, target, valid, keep=KEEP):
    return _encode(model, tokens, target, valid, keep)


@jax.jit
def predict(model, z, t, condition, self_condition=None):
    return model(z, t, condition, self_condition=self_condition)


@jax.jit
def train(model, tokens, target, valid, keep):
    """Condition, prediction, and the gradient of a loss that asks something of every output."""

    def loss(model):
        z = jnp.where(target[..., None], noise(), model.embed(tokens))
        condition = model.encode(tokens, target, valid, keep)
        back = 0.1 * z if model.config.self_conditioning else None
        y = model(z, TIMES, condition, self_condition=back)
        return jnp.sum(jnp.sin(model.round(y))[:, LS:]) + jnp.sum(jnp.sin(3 * y)), (condition, y)

    gradients, (condition, y) = jax.grad(loss, has_aux=True)(model)
    return condition, y, gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_leaks_and_gradients(variant):
    model = make(**VARIANTS[variant])
    tokens, target, valid = batch()
    keep = np.asarray([True, True, False])
    condition, prediction, gradients = train(model, tokens, target, valid, keep)
    assert prediction.shape == (3, L, E) and prediction.dtype == jnp.float32
    assert np.isfinite(prediction).all()

    # the prompt encoder never sees the target
    other, _, _ = train(model, np.where(target, (tokens + 7) % V, tokens), target, valid, keep)
    for a, b in zip(jax.tree.leaves(condition), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)

    # the source matters where it is kept, and not where it is withheld
    _, moved, _ = train(model, np.where(target, tokens, (tokens + 7) % V), target, valid, keep)
    changed = np.abs(moved - prediction)[:, LS:].max(axis=(1, 2))
    assert (changed[:2] > 1e-5).all() and changed[2] == 0

    named = [(jax.tree_util.keystr(path), g) for path, g in jax.tree_util.tree_flatten_with_path(gradients)[0]]
    dead = [name for name, g in named if not np.abs(g).max() > 0]
    frozen = [name for name, _ in named if "frozen" in name]
    assert dead == frozen
    assert bool(frozen) == (variant == "frozen")


def test_padding_of_the_source_is_never_seen_and_that_of_the_target_always():
    model = make()
    tokens, target, valid = batch()
    condition = encode(model, tokens, target, valid)
    np.testing.assert_array_equal(condition.visible, (valid & ~target) | target)
    z = noise()
    before = np.asarray(predict(model, z, TIMES, condition))
    visible = np.asarray(condition.visible)
    after = np.asarray(predict(model, np.where(visible[..., None], z, np.float32(50)), TIMES, condition))
    assert np.array_equal(before[visible], after[visible])
    z[2, L - 1] += 1
    moved = np.asarray(predict(model, z, TIMES, condition))
    assert np.abs(moved - before)[2, : L - 1].max() > 1e-5


@pytest.mark.parametrize("variant", ["dimba", "encoder_context"])
def test_anchors_are_seen_as_they_are_with_and_without_a_prompt(variant):
    model = make(**VARIANTS[variant])
    tokens, target, valid = batch()
    anchors = np.zeros_like(target)
    anchors[:, LS + 1] = anchors[:, LS + 4] = True
    for keep in (None, np.asarray([True, False, False])):
        whole = model.encode(tokens, target, valid, keep)
        condition = model.encode(tokens, target & ~anchors, valid | anchors, keep)
        kept = np.ones(3, bool) if keep is None else keep
        np.testing.assert_array_equal(condition.visible, (valid & ~target & kept[:, None]) | target)
        same = [np.array_equal(a, b) for a, b in zip(condition[2:], whole[2:], strict=True) if a is not None]
        assert same and all(same)  # the prompt is the source alone
        np.testing.assert_array_equal(model.narrowed(whole, target & ~anchors).target, condition.target)
        z = noise()
        before = np.asarray(predict(model, z, TIMES, condition))
        assert np.abs(before - np.asarray(predict(model, z, TIMES, whole))).max() > 1e-3  # it is told which they are
        z[:, LS + 4] += 1
        assert (np.abs(np.asarray(predict(model, z, TIMES, condition)) - before)[:, LS + 2].max(axis=-1) > 1e-6).all()


def test_time_and_self_condition_matter():
    model = make(**TINY)
    condition = encode(model, *batch())
    z = noise()
    base = predict(model, z, TIMES, condition)
    assert not np.allclose(base, predict(model, z, TIMES + np.float32(0.05), condition), atol=1e-4)
    assert not np.allclose(base, predict(model, z, TIMES, condition, noise(9)), atol=1e-3)
    np.testing.assert_allclose(base, predict(model, z, TIMES, condition, np.zeros_like(z)), atol=1e-6)


def test_a_prompt_encoder_that_enters_nowhere_is_not_built():
    """Turning `pooled_prompt` off in a recipe of clean context leaves no parameters behind."""
    ablated = jax.eval_shape(lambda: build(prompt_encoder="mixer", pooled_prompt=False))
    plain = jax.eval_shape(lambda: build(prompt_encoder="none"))
    assert jax.tree.structure(nnx.state(ablated)) == jax.tree.structure(nnx.state(plain))


def test_without_context_the_source_positions_are_zero():
    model = make(**VARIANTS["prompt_alone"])
    prediction = predict(model, noise(), TIMES, encode(model, *batch()))
    assert not np.asarray(prediction)[:, :LS].any()
    assert np.asarray(prediction)[:, LS:].any()


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_logits_output(head):
    model = make("logits", head=head, **TINY)
    logits = predict(model, noise(), TIMES, encode(model, *batch()))
    assert logits.shape == (3, L, V) and logits.dtype == jnp.float32
    if head == "untied":
        with pytest.raises(ValueError, match="has no rounding head"):
            model.round(noise())


def test_rounding_returns_the_token_an_embedding_stands_for():
    model = jax.jit(lambda: build(**TINY))()
    tokens = np.arange(V)[None]
    table = np.asarray(model.table())
    np.testing.assert_allclose((table**2).mean(-1), 1.0, rtol=1e-5)
    embedded = model.embed(tokens)
    np.testing.assert_array_equal(np.argmax(model.round(embedded), -1), tokens)
    expected = np.asarray(embedded) @ table.T / np.sqrt(E)
    np.testing.assert_allclose(model.round(embedded), expected, atol=1e-5)
    drawn = np.asarray(jax.jit(lambda: build(**TINY, normalize_embeddings=False).table())())
    assert abs(drawn.std() - 1) < 0.2 and np.ptp((drawn**2).mean(-1)) > 0.1


def test_frozen_encoder_takes_outside_weights():
    model = jax.tree.map(jnp.asarray, make(**VARIANTS["frozen"]))
    encoder = model.prompt.encoder
    tokens, target, valid = batch()
    before = encode(model, tokens, target, valid).context
    weights = {name: 1.1 * np.asarray(p[...]) for name, p in encoder.frozen.items()}
    encoder.load(weights)
    assert not np.allclose(before, encode(model, tokens, target, valid).context)
    with pytest.raises(ValueError, match="0.embedding has shape"):
        encoder.load(weights | {"0.embedding": np.zeros((V, E + 1))})
    with pytest.raises(ValueError, match=r"missing weights \['0.embedding'\], unknown weights \['table'\]"):
        encoder.load({k: v for k, v in weights.items() if k != "0.embedding"} | {"table": np.zeros(3)})
    # an optimizer that decays the leaves called `kernel` leaves these alone
    assert not any(name == "kernel" for name in encoder.frozen)


@pytest.mark.parametrize("pattern", ["mamba2", "mamba", "attention"])
def test_bfloat16_is_near_float32(pattern):
    """Matmuls in bfloat16; parameters, prediction and gradients stay float32."""
    tokens, target, valid = batch()
    settings = dict(pattern=(pattern,), layers=1, direction="causal")
    exact, rough = (train(make(dtype=d, **settings), tokens, target, valid, KEEP) for d in ("float32", "bfloat16"))
    assert 0 < np.abs(exact[1] - rough[1]).mean() < 0.05 * np.abs(exact[1]).mean()
    for x, y in zip(jax.tree.leaves(exact[2]), jax.tree.leaves(rough[2]), strict=True):
        assert y.dtype == jnp.float32
        # the loss is steep on purpose; a gradient that is wrong, not rough, is off by its own size
        assert np.linalg.norm(x - y) <= 0.5 * np.linalg.norm(x) + 1e-3


def test_rows_of_another_length_are_refused():
    model = make(**TINY)
    condition = encode(model, *batch())
    with pytest.raises(ValueError, match="rows of 9 positions: this model takes 5 of source and 6 of target"):
        model(noise()[:, :9], TIMES, condition)
    with pytest.raises(ValueError, match="self_conditioning is False"):
        make(**TINY, self_conditioning=False)(noise(), TIMES, condition, self_condition=noise())


def test_parameters_are_counted_and_all_alike():
    model = make(**TINY, modulation="additive", self_conditioning=False)
    d = 16
    attention = 4 * d * d + d + d * d + d  # projections, norm, modulation
    time = 2 * (d * d + d)
    ends = V * E + (E * d + d) + 2 * d + d + (d * E + E) + V + 1  # table, in, segments, norm, out, rounding
    assert count_parameters(model) == attention + time + ends
    assert {type(leaf) for leaf in jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable))} == {nnx.Param}
