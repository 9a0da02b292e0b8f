"""Steps beside a teacher: by hand, in microbatches, and where gradients and validation do not meet it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ConfigError
from dimba_jax.diffusion.passes import Teacher, draw
from dimba_jax.diffusion.passes.masked import visible_positions
from dimba_jax.models.build import make_denoiser
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.training.step import batch_loss, make_valid_step, whole_batch_gradient

VOCAB, SOURCE, SHARE = 11, 4, 0.25


def groups_of(share=SHARE, dropout=0.0, **training):
    return {
        "model": {"self_conditioning": False, "head": "untied", "mlp_ratio": 1.0, "dropout": dropout},
        "process": {
            "kind": "masked", "schedule": "cosine", "condition_dropout": 0.3, "weighting": "linear",
            "label_smoothing": 0.1, "distillation": share,
        },
        "training": training | ({"teachers": "named"} if share else {}),
        "sampling": {"sampler": "ancestral", "steps": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def lively():
    """lively(config, count): networks whose weights are wide, as a teacher, and as they are."""

    def make(config, count=2):
        networks = []
        for seed in range(count):
            graph, params = nnx.split(make_denoiser(config, VOCAB, nnx.Rngs(seed)))
            networks.append(nnx.merge(graph, widened(params, seed)))
        graph, params = nnx.split(Ensemble(networks))
        return Teacher(nnx.to_pure_dict(params), graph), networks

    return make


def widened(params, seed):
    """Parameters of a network that is far from an even distribution, and so from all others."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype), params)


def move(tiny, batch, key, *teacher):
    """The parameters before a step from wide ones, and what it gives."""
    params = widened(tiny.state.params, 9)
    state = dataclasses.replace(jax.tree.map(jnp.copy, tiny.state), params=jax.tree.map(jnp.copy, params))
    return params, *tiny.step(state, batch, key, *teacher)  # which donates its argument


def shares(logits):
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_a_step_by_hand(configs, parts, batches, base_key, lively):
    """The loss on the data, and on the teachers' distribution, of the very same masked tokens."""
    config = configs(**groups_of(dropout=0.3))
    tiny, batch = parts(config), batches()
    teacher, networks = lively(config)
    params, _, report = move(tiny, batch, base_key, teacher)

    key = jax.random.fold_in(base_key, tiny.state.step)
    draws = draw(key, tiny.state.timesteps, tiny.state.process, 8, config)
    t = jnp.broadcast_to(draws.rows.t[:, None], batch["tokens"].shape)
    noised = tiny.state.process.corrupt(draws.rows.noise, batch["tokens"], t, batch["target"])
    options = {"visible": visible_positions(batch, draws.rows.keep), "first": SOURCE}
    student = nnx.merge(tiny.graphdef, params)
    surprise = -np.log(shares(student(noised.tokens, draws.rows.t, **options, key=draws.dropout)))
    taught = np.mean([shares(one(noised.tokens, draws.rows.t, **options)) for one in networks], axis=0)
    own = 0.9 * np.take_along_axis(surprise, batch["tokens"][:, SOURCE:, None], -1)[..., 0] + 0.1 * surprise.mean(-1)
    soft = (taught * surprise).sum(axis=-1)
    weight = np.where(noised.masked, 1 - np.asarray(t) + 1 / 20, 0.0)[:, SOURCE:]
    wanted = [(weight * loss).sum() / own.size for loss in (own, soft)]  # padding is learned, too, and counts
    assert float(report.loss) == pytest.approx((1 - SHARE) * wanted[0] + SHARE * wanted[1], rel=1e-4)
    assert abs(wanted[0] - wanted[1]) > 0.1 * wanted[0]

    with pytest.raises(ConfigError, match=f"config.process.distillation={SHARE}: only training loads teachers"):
        move(tiny, batch, base_key)
    plain = parts(configs(**groups_of(share=0.0, dropout=0.3)))
    assert float(move(plain, batch, base_key)[2].loss) == pytest.approx(wanted[0], rel=1e-4)
    with pytest.raises(ConfigError, match="a step with a teacher needs config.process.distillation above 0"):
        move(plain, batch, base_key, teacher)
    rows = ((1 - SHARE) * weight * own + SHARE * weight * soft).mean(axis=1)
    np.testing.assert_allclose(report.row_loss, rows, rtol=1e-4)


def test_microbatches_have_one_gradient(configs, parts, batches, base_key, lively):
    batch, found = batches(), []
    for pieces in (1, 2, 4):
        config = configs(**groups_of(accumulate=pieces))
        tiny = parts(config)
        teacher, _ = lively(config)
        draws = draw(base_key, tiny.state.timesteps, tiny.state.process, 8, config)

        @jax.jit
        def gradient(params, *teacher, tiny=tiny, draws=draws):
            return whole_batch_gradient(
                params, tiny.graphdef, tiny.state.process, batch, draws, tiny.config, *teacher
            )[::2]  # fmt: skip

        found.append(gradient(tiny.state.params, teacher))
        alone = gradient(tiny.state.params)
    (loss, whole), *others = found
    for other, grads in others:
        assert float(other) == pytest.approx(float(loss), rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), whole, grads)
    differ = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole, alone[1])
    assert differ["head"]["bias"] > 1e-3  # the teacher is in it


def test_a_teacher_is_not_trained(configs, parts, batches, base_key, lively):
    config = configs(**groups_of())
    tiny = parts(config)
    teacher, _ = lively(config)
    draws = draw(base_key, tiny.state.timesteps, tiny.state.process, 8, config)

    @jax.jit
    def gradients(params, of_teacher):
        def loss(params, of_teacher):
            beside = dataclasses.replace(teacher, params=of_teacher)
            return batch_loss(
                params, tiny.graphdef, tiny.state.process, batches(), draws, jnp.float32(1.0), config, beside
            )[0]  # fmt: skip

        return jax.grad(loss, (0, 1))(params, of_teacher)

    own, of_teacher = gradients(tiny.state.params, teacher.params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(of_teacher))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own["head"]))
    before = jax.tree.map(np.array, teacher.params)
    move(tiny, batches(), base_key, teacher)
    jax.tree.map(np.testing.assert_array_equal, before, teacher.params)  # nor donated


def test_figures_of_the_data_know_no_teacher(configs, parts, batches, base_key, lively):
    """The bound on the likelihood in training's figures, and all of validation's."""
    config = configs(**groups_of())
    tiny, plain = parts(config), parts(configs(**groups_of(share=0.0)))
    teacher, _ = lively(config)
    params, with_it, _ = move(tiny, batches(), base_key, teacher)
    _, without, _ = move(plain, batches(), base_key)
    assert float(with_it.totals.loss) != pytest.approx(float(without.totals.loss), rel=1e-3)
    np.testing.assert_allclose(with_it.totals.terms["nelbo"], without.totals.terms["nelbo"], rtol=1e-5)
    found = [
        make_valid_step(one.graphdef, one.config)(params, one.state.process, batches(), base_key)
        for one in (tiny, plain)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)


def test_learning_from_a_teacher_alone_finds_its_distribution(configs, parts, batches, base_key, lively):
    """Of fixed masks the loss comes down to the entropy of the teacher, which no other distribution reaches."""
    groups = groups_of(share=1.0) | {"optimizer": {"learning_rate": 1e-2}}
    groups["process"] = groups["process"] | {"condition_dropout": 0.0}
    config = configs(**groups)
    tiny, batch = parts(config), batches()
    teacher, _ = lively(config)
    draws = draw(base_key, tiny.state.timesteps, tiny.state.process, 8, config)
    t = jnp.broadcast_to(draws.rows.t[:, None], batch["tokens"].shape)
    noised = tiny.state.process.corrupt(draws.rows.noise, batch["tokens"], t, batch["target"])
    together = nnx.merge(teacher.graph, teacher.params)
    logs = together(noised.tokens, draws.rows.t, visible=visible_positions(batch, None), first=SOURCE)
    weight = np.where(noised.masked, 1 - np.asarray(t) + 1 / 20, 0.0)[:, SOURCE:]
    entropy = float((weight * -(np.exp(logs) * np.asarray(logs)).sum(axis=-1)).mean())

    @jax.jit
    def loss(params):
        total = jnp.float32(weight.size)
        return batch_loss(params, tiny.graphdef, tiny.state.process, batch, draws, total, config, teacher)[0]

    state = jax.tree.map(jnp.copy, tiny.state)
    before = float(loss(state.params)) - entropy
    for _ in range(120):
        state, _ = tiny.step(state, batch, base_key, teacher)
    after = float(loss(state.params)) - entropy
    assert 0 < after < 0.5 * before, (before, after, entropy)
