"""One step: draws, microbatches, self-conditioning, averages, and its figures."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dimba_kernels.testing import relative_error

from dimba_jax.config import MeshConfig, ProcessConfig
from dimba_jax.diffusion import make_process, make_timestep_sampler, predict
from dimba_jax.diffusion.passes import draw
from dimba_jax.parallel import make_mesh, replicated, shard_batch, split_kernels
from dimba_jax.training.figures import BUCKETS, RowFigures, Totals, summary
from dimba_jax.training.optimizer import make_optimizer
from dimba_jax.training.step import batch_loss, make_train_step, make_valid_step, whole_batch_gradient

GAUSSIAN = make_process(ProcessConfig(), 11)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("targets", [{"loss_on_padding": False}, {"anchor_prob": 0.5}])
def test_microbatches_equal_the_large_batch(configs, parts, base_key, targets):
    results = []
    for accumulate in (1, 4):
        config = configs(
            process=targets | {
                "self_condition_prob": 1.0, "condition_dropout": 0.3, "timestep_sampling": "importance",
                "schedule": "learned",
            },
            training={"accumulate": accumulate},
            # a gradient near 0 would be blown up to a full step by the smallest epsilon, rounding and all
            optimizer={"learning_rate": 1e-3, "epsilon": 1e-6},
        )  # fmt: skip
        results.append(parts(config).run(4, base_key))
    (one, losses), (four, losses_of_four) = results
    np.testing.assert_allclose(losses, losses_of_four, rtol=1e-5)
    assert losses[0] != losses[1]
    for name in ("params", "ema", "opt_state", "timesteps", "process", "totals"):
        close(getattr(one, name), getattr(four, name), atol=1e-5, rtol=1e-5)


def test_a_step_draws_from_its_number_alone(configs, parts, base_key):
    tiny = parts(configs())
    three, _ = tiny.run(3, base_key)
    two, _ = tiny.run(2, base_key)
    two_and_one, _ = tiny.run(1, base_key, two)
    jax.tree.map(np.testing.assert_array_equal, three, two_and_one)
    again, losses = tiny.run(2, base_key)
    other, other_losses = tiny.run(2, jax.random.key(6))
    assert losses != other_losses


def test_one_coin_a_step_decides_about_the_first_pass(configs, base_key):
    config = configs(process={"self_condition_prob": 0.5})
    sampler = make_timestep_sampler(config.process)
    coins = [bool(draw(jax.random.fold_in(base_key, i), sampler, GAUSSIAN, 4, config).first_pass) for i in range(60)]
    assert 15 < sum(coins) < 45
    assert draw(base_key, sampler, GAUSSIAN, 4, configs(process={"self_condition_prob": 0.0})).first_pass is None
    assert draw(base_key, sampler, GAUSSIAN, 4, configs(model={"self_conditioning": False})).first_pass is None


def test_no_gradient_flows_through_the_first_pass(configs, batches, parts, base_key):
    config = configs(process={"self_condition_prob": 1.0})
    tiny, batch = parts(config), batches()
    state, draws, total = (
        tiny.state,
        draw(base_key, tiny.state.timesteps, tiny.state.process, 8, config),
        jnp.float32(7.0),
    )

    def by_hand(params, constant):
        denoiser = nnx.merge(tiny.graphdef, params)
        x0 = denoiser.embed(batch["tokens"])
        noised = state.process.corrupt(draws.rows.noise, x0, draws.rows.t, batch["target"])
        condition = denoiser.encode(batch["tokens"], batch["target"], batch["valid"])
        made = predict(denoiser, state.process, noised.z, draws.rows.t, condition, constant)
        terms = state.process.losses(made.raw, made.x0_hat, made.logits, batch["tokens"], x0, noised)
        return jnp.sum(jnp.where(batch["target"], state.process.total(terms), 0.0)) / total, made.x0_hat

    _, constant = by_hand(state.params, None)
    expected = jax.jit(jax.grad(by_hand, has_aux=True))(state.params, constant)[0]
    found = jax.jit(
        jax.grad(lambda p: batch_loss(p, tiny.graphdef, state.process, batch, draws, total, config), has_aux=True)
    )(state.params)[0]
    close(found, expected, atol=1e-5, rtol=1e-4)


def test_condition_dropout_withholds_the_source_of_some_rows(configs, base_key):
    config = configs(process={"condition_dropout": 0.25})
    keep = draw(base_key, make_timestep_sampler(config.process), GAUSSIAN, 400, config).rows.keep
    assert 260 < int(keep.sum()) < 340
    assert draw(base_key, make_timestep_sampler(config.process), GAUSSIAN, 4, configs()).rows.keep is None


def test_anchors_are_a_part_of_some_targets(configs, base_key):
    config = configs(process={"anchor_prob": 0.75})
    sampler = make_timestep_sampler(config.process)
    draws, plain = draw(base_key, sampler, GAUSSIAN, 2000, config), draw(base_key, sampler, GAUSSIAN, 2000, configs())
    anchors = np.asarray(draws.rows.anchors)
    assert anchors.shape == (2000, 9) and not anchors[:, :4].any()
    share = anchors[:, 4:].mean(axis=1)
    # none in a quarter of the rows; in the others 0 to 5 are as likely as each other, where 5 become 4
    counts = np.bincount((5 * share).round().astype(int), minlength=6)
    np.testing.assert_allclose(counts / 2000, [0.375, 0.125, 0.125, 0.125, 0.25, 0.0], atol=0.03)
    assert counts[5] == 0
    assert plain.rows.anchors is None
    np.testing.assert_array_equal(plain.rows.t, draws.rows.t)  # nothing else is drawn otherwise
    np.testing.assert_array_equal(*(jax.random.key_data(one.rows.noise) for one in (plain, draws)))


@pytest.mark.parametrize("loss_on", ["target", "all"])
def test_anchors_are_clean_and_are_not_predicted(configs, batches, parts, base_key, loss_on):
    config = configs(process={"anchor_prob": 1.0, "self_condition_prob": 0.0, "loss_on": loss_on})
    tiny, batch = parts(config), batches()
    draws = draw(base_key, tiny.state.timesteps, tiny.state.process, 8, config)
    anchors = np.asarray(draws.rows.anchors)
    padding = anchors & ~batch["valid"]
    assert padding.any() and (batch["target"] & ~anchors).any()
    loss = jax.jit(lambda batch: batch_loss(
        tiny.state.params, tiny.graphdef, tiny.state.process, batch, draws, jnp.float32(1.0), config
    ))  # fmt: skip
    _, figures = loss(batch)
    counted = batch["target"] | batch["valid"] if loss_on == "all" else batch["target"]
    np.testing.assert_array_equal(figures.positions, (counted & ~anchors).sum(axis=1))
    # the others see what an anchor is, be it padding, as clean as the source
    for where in (anchors & batch["valid"], padding):
        row, at = np.argwhere(where & (batch["target"] & ~anchors).any(axis=1, keepdims=True))[0]
        other = batch | {"tokens": batch["tokens"].copy()}
        other["tokens"][row, at] = (other["tokens"][row, at] + 5) % 11
        _, changed = loss(other)
        differs = np.asarray(changed.loss != figures.loss)
        assert differs[row] and differs.sum() == 1
    whole, _, _ = whole_batch_gradient(tiny.state.params, tiny.graphdef, tiny.state.process, batch, draws, config)
    np.testing.assert_allclose(whole, figures.loss.sum() / (counted & ~anchors).sum(), rtol=1e-5)


def test_validation_has_no_anchors(configs, batches, parts, base_key):
    plain, anchored = configs(), configs(process={"anchor_prob": 1.0})
    tiny = parts(plain)
    figures = [
        make_valid_step(tiny.graphdef, config)(tiny.state.params, tiny.state.process, batches(), base_key)
        for config in (plain, anchored)
    ]
    close(*figures, rtol=1e-6)


def test_noise_of_a_row_does_not_depend_on_the_batch(configs, base_key):
    sampler = make_timestep_sampler(configs().process)
    few, many = (draw(base_key, sampler, GAUSSIAN, rows, configs()).rows.noise for rows in (3, 8))
    np.testing.assert_array_equal(jax.random.key_data(few), jax.random.key_data(many)[:3])


def test_the_average_warms_up(configs, parts, base_key):
    tiny = parts(configs())  # ema_decay .15: reached after the first step's (1 + 0) / (10 + 0)
    average, state = tiny.state.params, None
    for n in range(3):
        state, _ = tiny.run(1, base_key, state)
        keep = min(0.15, (1 + n) / (10 + n))
        average = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, average, state.params)
        close(state.ema, average, rtol=1e-5, atol=1e-6)


def test_training_learns_one_batch(configs, parts, base_key):
    _, losses = parts(configs()).run(150, base_key)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_figures_add_up(configs, parts, base_key):
    state, losses = parts(configs()).run(5, base_key)
    figures = summary(state.totals)
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert figures["loss"] == pytest.approx(figures["mse"] + figures["ce"] + figures["prior"], rel=1e-5)
    assert float(state.totals.positions.sum()) == 5 * 8 * 5  # steps, rows, target positions
    by_t = [figures[f"loss_by_t/t{i / 10:.1f}-{(i + 1) / 10:.1f}"] for i in range(BUCKETS)]
    assert np.dot(by_t, state.totals.positions) / 200 == pytest.approx(figures["loss"], rel=1e-5)
    assert 0.0 <= figures["accuracy"] <= 1.0


def rows_with(losses):
    losses = jnp.asarray(losses, jnp.float32)
    ones = jnp.ones_like(losses)
    return RowFigures(losses, {"mse": losses, "ce": ones, "prior": ones}, ones, 2.0 * ones, 2.0 * ones)


def test_buckets_hold_their_upper_edge():
    t = jnp.asarray([0.05, 0.1, 0.15, 1.0])
    totals = Totals.zero(GAUSSIAN.terms).add(t, jnp.float32(1.0), jnp.float32(1.0), rows_with([1.0, 2.0, 4.0, 8.0]))
    np.testing.assert_allclose(totals.bucket_loss, [3.0, 4.0, 0, 0, 0, 0, 0, 0, 0, 8.0])
    figures = summary(totals)
    assert figures["loss_by_t/t0.0-0.1"] == pytest.approx(0.75)
    assert "loss_by_t/t0.2-0.3" not in figures
    assert figures["accuracy_by_t/t0.9-1.0"] == pytest.approx(0.5)


def test_validation_draws_the_same_for_the_same_key(configs, batches, parts, base_key):
    config = configs(process={"condition_dropout": 0.5}, model={"dropout": 0.5})
    tiny = parts(config)
    step = make_valid_step(tiny.graphdef, config)
    first, again = (step(tiny.state.ema, tiny.state.process, batches(), base_key) for _ in range(2))
    assert float(first.loss) == float(again.loss)
    assert float(first.positions) == 8 * 5
    other = step(tiny.state.ema, tiny.state.process, batches(), jax.random.key(6))
    assert float(other.loss) != float(first.loss)
    calm = make_valid_step(tiny.graphdef, configs())(tiny.state.ema, tiny.state.process, batches(), base_key)
    assert float(first.loss) == pytest.approx(float(calm.loss), rel=1e-6)  # no dropout, no condition withheld


def test_validation_does_not_move_with_a_learned_schedule(configs, batches, parts, base_key):
    tiny = parts(configs(process={"schedule": "learned"}))
    step = make_valid_step(tiny.graphdef, tiny.config)
    process = tiny.state.process
    before = step(tiny.state.ema, process, batches(), base_key)
    t = jnp.linspace(0.01, 1.0, 2000)
    process = process.update(t, t**4)
    assert float(process.network_time(jnp.asarray([0.5]))[0]) > 0.6  # the warp did move
    assert float(step(tiny.state.ema, process, batches(), base_key).loss) == float(before.loss)


def test_a_batch_split_over_devices_changes_nothing(configs, batches, parts, base_key):
    config = configs(training={"accumulate": 2}, optimizer={"learning_rate": 1e-3, "epsilon": 1e-6})
    tiny = parts(config)
    one, losses = tiny.run(2, base_key)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    where = replicated(mesh)
    step = make_train_step(tiny.graphdef, make_optimizer(config.optimizer, 200), config, where)
    state, batch = jax.device_put(tiny.state, where), shard_batch(mesh, batches())
    for loss in losses:
        with split_kernels(mesh):
            state, report = step(state, batch, base_key)
        assert float(report.loss) == pytest.approx(loss, rel=1e-5)
    close(one.params, jax.device_get(state.params), atol=1e-5)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert step._cache_size() == 1  # the state comes back as it went in


def test_split_kernels_leave_the_gradient_of_every_parameter(configs, batches, parts, base_key):
    """Of gradients, since Adam takes a factor out of them; with kernels, of which the other tests' model has none."""
    small = {"d_model": 8, "state_dim": 4, "direction": "causal", "mlp_ratio": 0.0, "self_conditioning": False}
    tiny = parts(configs(model={"pattern": ("mamba", "mamba2"), "layers": 2, "groups": 2} | small))
    draws = draw(base_key, tiny.state.timesteps, tiny.state.process, 8, tiny.config)

    @jax.jit
    def gradient(params, batch):
        return whole_batch_gradient(params, tiny.graphdef, tiny.state.process, batch, draws, tiny.config)[2]

    expected = gradient(tiny.state.params, batches())
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    params, batch = jax.device_put(tiny.state.params, replicated(mesh)), shard_batch(mesh, batches())
    with split_kernels(mesh):
        assert "shard_map" in str(gradient.trace(params, batch).jaxpr)
        found = gradient(params, batch)
    errors = {
        jax.tree_util.keystr(path): relative_error(leaf, wanted)
        for (path, leaf), wanted in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    }
    assert not {name: error for name, error in errors.items() if not error < 1e-5}
    parameters = [leaf for path, leaf in jax.tree.leaves_with_path(expected) if path[-1].key in ("A_log", "D", "conv")]
    assert len(parameters) == 2 * 3 and all(np.any(leaf) for leaf in parameters)  # of both mixers
