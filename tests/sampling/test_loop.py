"""The sampling loop around a network whose answers are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import ProcessConfig, SamplingConfig
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.sampling.guidance import guide
from dimba_jax.sampling.loop import nearest_tokens, sample, stage_steps
from dimba_jax.sampling.steppers import make_stepper

ANSWER = [3, 4, 5, 6, 7, 8]
TARGET = np.asarray([[False] * 3 + [True] * 3] * 4)
TOKENS = np.asarray([[9, 1, 0, 0, 0, 0], [10, 11, 1, 0, 0, 0], [9, 9, 1, 0, 0, 0], [2, 1, 0, 0, 0, 0]], np.int32)
VALID = TARGET | (TOKENS != 0)
SETTINGS = SamplingConfig(steps=7)
EXPECTED = np.where(TARGET, ANSWER, TOKENS)


def run(denoiser, settings=SETTINGS, *, rows=4, process=None, stages=0, self_conditioning=True, seed=0, first=0):
    process = process or make_gaussian(ProcessConfig(timesteps=20))
    part = slice(first, first + rows)
    keys = jax.random.split(jax.random.key(seed), 4)[part]
    return sample(
        denoiser, process, make_stepper(settings), jnp.asarray(TOKENS[part]), jnp.asarray(TARGET[part]),
        jnp.asarray(VALID[part]), keys, settings, self_conditioning=self_conditioning, stages=stages,
    )  # fmt: skip


@pytest.mark.parametrize("sampler, steps", [("ddpm", 20), ("ddim", 1), ("dpmpp", 7)])
def test_fills_in_the_target_with_the_answer(make_denoiser, table, sampler, steps):
    settings = dataclasses.replace(SETTINGS, sampler=sampler, steps=steps)
    result = run(make_denoiser(ANSWER), settings)
    np.testing.assert_array_equal(result.tokens, EXPECTED)
    np.testing.assert_allclose(result.z, table[EXPECTED], atol=1e-6)
    assert int(result.network_calls) == steps


@pytest.mark.parametrize("sampler, clamp_from", [("ddpm", 0.0), ("ddim", 1.0), ("dpmpp", 0.5)])
def test_the_source_is_unchanged_at_every_step(make_denoiser, table, sampler, clamp_from):
    seen = []
    denoiser = make_denoiser(ANSWER, pull=0.7, watch=lambda z, t, x0: seen.append((np.asarray(z), np.asarray(t))))
    run(denoiser, dataclasses.replace(SETTINGS, sampler=sampler, clamp_from=clamp_from))
    jax.effects_barrier()
    assert len(seen) == 7
    for z, _ in seen:
        np.testing.assert_array_equal(z[~TARGET], table[TOKENS[~TARGET]])
    latents = np.stack([z for z, _ in seen])
    assert (np.abs(np.diff(latents, axis=0))[:, TARGET] > 0).all()  # while the target moves
    times = np.stack([t[0] for _, t in seen])
    assert times[0] == 1.0 and (np.diff(times) < 0).all() and times[-1] > 0


def test_self_conditioning_sees_the_unclamped_prediction(make_denoiser):
    seen = []
    denoiser = make_denoiser(ANSWER, pull=0.7, watch=lambda z, t, x0: seen.append((z, t, x0)))
    run(denoiser, SETTINGS)
    jax.effects_barrier()
    assert (np.asarray(seen[0][2]) == 0).all()
    for (z, t, _), (_, _, now) in zip(seen, seen[1:], strict=False):
        pull = 0.7 * np.asarray(t)[:, None, None]
        np.testing.assert_allclose(now, (1 - pull) * denoiser.answer[...][None] + pull * z, atol=1e-5)
    seen.clear()
    run(denoiser, SETTINGS, self_conditioning=False)
    jax.effects_barrier()
    assert len(seen) == 7 and all(np.isnan(x0).all() for _, _, x0 in seen)  # it was given none


def test_clamping_rounds_to_the_nearest_embedding(make_denoiser, table):
    # the answer lies beside token 3: clamped, the steps aim at the token; unclamped, beside it
    beside = table[ANSWER] + 0.05
    seen = {}
    for clamp_from in (0.0, 0.6, 1.0):
        denoiser = make_denoiser(ANSWER)
        denoiser.answer[...] = jnp.asarray(beside)
        seen[clamp_from] = np.asarray(run(denoiser, dataclasses.replace(SETTINGS, clamp_from=clamp_from)).z)[TARGET]
    clean = table[EXPECTED][TARGET]
    np.testing.assert_allclose(seen[0.0], clean + 0.05, atol=1e-5)
    np.testing.assert_allclose(seen[1.0], clean, atol=1e-5)
    np.testing.assert_allclose(seen[0.6], clean, atol=1e-5)  # the last steps are clamped
    # and DDIM's path shows from where on it was
    paths = {}
    for clamp_from in (0.5, 0.0):
        latents = []
        denoiser = make_denoiser(ANSWER, watch=lambda z, t, x0, latents=latents: latents.append((t, z)))
        denoiser.answer[...] = jnp.asarray(beside)
        run(denoiser, dataclasses.replace(SETTINGS, clamp_from=clamp_from))
        jax.effects_barrier()
        paths[clamp_from] = latents
    same = [np.allclose(a, b, atol=1e-6) for (_, a), (_, b) in zip(paths[0.5], paths[0.0], strict=True)]
    times = [float(t[0]) for t, _ in paths[0.5]]
    clamped = [k for k, time in enumerate(times) if time <= 0.5]
    assert same == [k <= clamped[0] for k in range(7)]


def test_nearest_is_by_distance_not_by_dot_product():
    table = jnp.asarray([[1.0, 0.0], [3.0, 0.0], [0.0, -1.0]])
    assert int(nearest_tokens(jnp.asarray([[[1.4, 0.0]]]), table)[0, 0]) == 0  # the dot product says 1
    x = jax.random.normal(jax.random.key(0), (3, 5, 2))
    direct = np.argmin(((np.asarray(x)[:, :, None] - np.asarray(table)) ** 2).sum(-1), axis=-1)
    np.testing.assert_array_equal(nearest_tokens(x, table), direct)


def test_compiles_once_for_a_shape(make_denoiser):
    traces = []
    denoiser = make_denoiser(ANSWER, on_trace=lambda shape: traces.append(shape))
    settings = dataclasses.replace(SETTINGS, steps=6)
    run(denoiser, settings)
    first = len(traces)
    assert first == 1  # one scan, its body traced once
    run(denoiser, settings, seed=5)
    denoiser.answer[...] = denoiser.answer[...] * 1.01  # parameters are arguments
    run(denoiser, settings, seed=6)
    run(denoiser, dataclasses.replace(settings, num_samples=9, batch_size=3))
    assert len(traces) == first
    run(denoiser, settings, rows=2)
    assert len(traces) == 2


def test_rows_do_not_depend_on_their_batch(make_denoiser):
    settings = dataclasses.replace(SETTINGS, sampler="ddpm", steps=3, clamp_from=0.0)
    denoiser = make_denoiser(ANSWER, pull=1.0)
    whole, part = run(denoiser, settings), run(denoiser, settings, rows=2, first=1)
    np.testing.assert_allclose(whole.z[1:3], part.z, atol=1e-6)
    np.testing.assert_array_equal(whole.tokens[1:3], part.tokens)
    assert not np.allclose(whole.z[0, 3:], whole.z[1, 3:])


def test_early_exit_gives_the_same_tokens_for_fewer_calls(make_denoiser):
    settings = dataclasses.replace(SETTINGS, steps=20, clamp_from=0.0)
    denoiser = make_denoiser(ANSWER, pull=0.6)
    full = run(denoiser, settings, stages=21)
    changed = (np.diff(full.trajectory, axis=0) != 0).any(-1)
    last = 1 + np.flatnonzero(changed.any(-1)).max()  # calls after which no token changes any more
    early = run(denoiser, dataclasses.replace(settings, early_exit=5), stages=6)
    np.testing.assert_array_equal(early.tokens, full.tokens)
    assert int(full.network_calls) == 20 and int(early.network_calls) == last + 5 < 20
    # the stages that were not reached show the end
    np.testing.assert_array_equal(early.trajectory[-1], early.tokens)
    assert (early.trajectory >= 0).all()
    late = run(denoiser, dataclasses.replace(settings, early_exit=20))
    assert int(late.network_calls) == 20


def test_early_exit_leaves_rows_independent(make_denoiser):
    settings = dataclasses.replace(SETTINGS, sampler="ddpm", steps=20, early_exit=2, clamp_from=0.0)
    denoiser = make_denoiser(ANSWER, pull=1.0)
    whole = run(denoiser, settings)
    for row in range(4):
        np.testing.assert_array_equal(run(denoiser, settings, rows=1, first=row).tokens[0], whole.tokens[row])


def test_guidance_of_one_is_no_guidance(make_denoiser):
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4))
    np.testing.assert_allclose(guide(a, b, 1.0), a, atol=1e-6)
    np.testing.assert_allclose(guide(a, b, 0.0), b)
    np.testing.assert_allclose(guide(a, b, 3.0), 3 * a - 2 * b, rtol=1e-5)
    traces = []
    plain = run(make_denoiser(ANSWER, on_trace=lambda shape: traces.append(shape)), SETTINGS)
    assert len(traces) == 1 and int(plain.network_calls) == 7


def test_guidance_pushes_away_from_the_unconditional(make_denoiser, table):
    # the fake network says 0 without a source: scale w multiplies its answer
    result = run(make_denoiser(ANSWER), dataclasses.replace(SETTINGS, guidance=2.5, clamp_from=0.0))
    np.testing.assert_allclose(result.z[TARGET], 2.5 * table[EXPECTED][TARGET], rtol=1e-4)
    assert int(result.network_calls) == 14


def test_temperature_scales_the_starting_noise(make_denoiser):
    start = {}
    for temperature in (1.0, 0.5, 0.0):
        seen = []
        denoiser = make_denoiser(ANSWER, watch=lambda z, t, x0, seen=seen: seen.append(z))
        run(denoiser, dataclasses.replace(SETTINGS, temperature=temperature))
        jax.effects_barrier()
        start[temperature] = np.asarray(seen[0])[TARGET]
    np.testing.assert_allclose(start[0.5], 0.5 * start[1.0], rtol=1e-6)
    assert (start[0.0] == 0).all() and start[1.0].std() > 0.5


def test_the_trajectory_goes_from_noise_to_the_end(make_denoiser, table):
    seen = []
    denoiser = make_denoiser(ANSWER, pull=0.95, watch=lambda z, t, x0: seen.append(np.asarray(z)))
    result = run(denoiser, SETTINGS, stages=4)
    jax.effects_barrier()
    assert result.trajectory.shape == (4, 4, 6)
    noise = nearest_tokens(jnp.asarray(seen[0]), jnp.asarray(table))
    np.testing.assert_array_equal(result.trajectory[0], np.where(TARGET, noise, TOKENS))
    np.testing.assert_array_equal(result.trajectory[-1], result.tokens)
    # the middle ones are the network's words after the steps that stage_steps names
    assert stage_steps(7, 4).tolist() == [0, 2, 5, 7]
    for stage, step in [(1, 2), (2, 5)]:
        t = np.rint(np.linspace(20, 0, 8))[step - 1] / 20
        x0_hat = (1 - 0.95 * t) * np.asarray(denoiser.answer[...])[None] + 0.95 * t * seen[step - 1]
        words = np.asarray(nearest_tokens(jnp.asarray(x0_hat, jnp.float32), jnp.asarray(table)))
        np.testing.assert_array_equal(result.trajectory[stage], np.where(TARGET, words, TOKENS))
    np.testing.assert_array_equal(run(denoiser, SETTINGS).tokens, result.tokens)


@pytest.mark.parametrize("stages", [1, 9])
def test_stages_have_bounds(make_denoiser, stages):
    with pytest.raises(ValueError, match=f"stages={stages}: expected 0 or 2 to 8 for 7 steps"):
        run(make_denoiser(ANSWER), SETTINGS, stages=stages)


def test_more_steps_than_timesteps_is_an_error(make_denoiser):
    with pytest.raises(ValueError, match="steps=21: expected 1 to 20"):
        run(make_denoiser(ANSWER), dataclasses.replace(SETTINGS, steps=21))


def test_network_output_as_logits(make_denoiser, table):
    # a network for logits: its own logits choose the tokens, and their mean embedding steers the steps
    denoiser = make_denoiser(ANSWER)
    denoiser.answer = nnx.Param(9.0 * jax.nn.one_hot(jnp.asarray(ANSWER), table.shape[0]))
    process = make_gaussian(ProcessConfig(timesteps=20, prediction="logits"))
    result = run(denoiser, dataclasses.replace(SETTINGS, clamp_from=0.0), process=process)
    np.testing.assert_array_equal(result.tokens, EXPECTED)
    soft = np.asarray(jax.nn.softmax(denoiser.answer[...], axis=-1)) @ table
    np.testing.assert_allclose(result.z[0, 3:], soft[3:], atol=1e-5)


@pytest.mark.parametrize("schedule, prediction", [("sqrt", "v"), ("learned", "x0")])
def test_every_process_samples(make_denoiser, schedule, prediction):
    process = make_gaussian(ProcessConfig(timesteps=20, schedule=schedule, prediction=prediction))
    result = run(make_denoiser(ANSWER), SETTINGS, process=process)
    assert np.isfinite(result.z).all()
    if prediction == "x0":
        np.testing.assert_array_equal(result.tokens, EXPECTED)
