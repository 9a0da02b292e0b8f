"""A model comes back from a checkpoint as it was saved, with its tokenizer and its learned schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.config import from_config_dict, to_dict
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.models.denoiser import Denoiser
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.load import from_parts, load

CONFIG = from_config_dict(
    {
        "data": {"source_length": 6, "target_length": 5, "normalize": "none"},
        "model": {
            "embedding_dim": 8, "d_model": 16, "layers": 1, "head_dim": 8, "state_dim": 4, "chunk": 4, "expand": 1,
        },
        "process": {"timesteps": 10, "schedule": "learned", "condition_dropout": 0.1},
        "sampling": {"steps": 3, "batch_size": 2},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    tokenizer = ByteTokenizer()
    network = Denoiser(
        CONFIG.model, vocab_size=tokenizer.vocab_size, source_length=6, target_length=5, rngs=nnx.Rngs(0)
    )
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    t = jnp.linspace(0.01, 1.0, 2000, dtype=jnp.float32)
    process = make_gaussian(CONFIG.process).update(t, t**3)
    return {"params": jax.tree.map(lambda leaf: leaf + 1.0, params), "ema": params, "process": process}


@pytest.fixture(scope="module")
def workdir(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder) as checkpoints:
        for step in (3, 5):
            checkpoints.save(step, parts, data_state=None, config=to_dict(CONFIG), tokenizer=ByteTokenizer().to_dict())
    return folder


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, b)))


def state_of(model):
    return nnx.to_pure_dict(nnx.state(model.denoiser, nnx.Param))


def test_load(workdir, parts):
    model = load(workdir)
    assert model.step == 5 and model.config == CONFIG
    assert same(state_of(model), parts["ema"])
    assert same(jax.tree.leaves(model.process), jax.tree.leaves(parts["process"]))
    assert float(model.process.level(jnp.float32(0.5)).signal) < float(
        make_gaussian(CONFIG.process).level(jnp.float32(0.5)).signal
    )
    assert same(state_of(load(workdir, step=3, ema=False)), parts["params"])


def test_a_loaded_model_samples_as_the_one_in_memory(workdir, parts):
    loaded = load(workdir)
    made = from_parts(CONFIG, ByteTokenizer(), parts["ema"], parts["process"], 5)
    found = [generate(model, ["abc", "x"], CONFIG.sampling, seed=1) for model in (loaded, made)]
    assert found[0] == found[1]
    assert all(of.network_calls == 3 for of in found[0])


def test_layers_that_were_scanned_may_run_one_by_one(workdir):
    assert CONFIG.model.scan_layers
    scanned, unrolled = load(workdir), load(workdir, scan_layers=False)
    assert unrolled.config == dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, scan_layers=False))
    assert same(state_of(scanned), state_of(unrolled))
    assert generate(scanned, ["abc"], CONFIG.sampling) == generate(unrolled, ["abc"], CONFIG.sampling)
    assert scanned.denoiser.stack.scan_layers and not unrolled.denoiser.stack.scan_layers


def test_sampling_with_the_real_network_leaves_the_prompt_alone(parts):
    # guidance, early exit and every sampler run through the real network
    model = from_parts(CONFIG, ByteTokenizer(), parts["ema"], parts["process"], 5)
    for more in ({"sampler": "dpmpp", "guidance": 2.0}, {"sampler": "ddpm", "early_exit": 1}):
        settings = from_config_dict({**to_dict(CONFIG), "sampling": {**to_dict(CONFIG)["sampling"], **more}}).sampling
        (one,) = generate(model, ["abc"], settings, stages=2)
        assert isinstance(one.texts[0], str) and len(one.trajectory) == 2


def test_missing_checkpoints_are_named(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no step 4; it has 3, 5"):
        load(workdir, step=4)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):  # and none is begun
        load(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_another_models_parameters_are_refused(parts, tmp_path):
    wrong = to_dict(CONFIG) | {"model": to_dict(CONFIG)["model"] | {"d_model": 24}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, data_state=None, config=wrong, tokenizer=ByteTokenizer().to_dict())
    with pytest.raises(CheckpointError, match="another model"):
        load(tmp_path)


def test_from_parts_takes_a_state_too(parts):
    graph_state = nnx.state(load_free(parts), nnx.Param)
    model = from_parts(CONFIG, ByteTokenizer(), graph_state, parts["process"], 2)
    np.testing.assert_array_equal(model.denoiser.table(), load_free(parts).table())


def load_free(parts):
    return from_parts(CONFIG, ByteTokenizer(), parts["ema"], parts["process"], 2).denoiser


def test_a_masked_model_comes_back_with_its_range_of_times(tmp_path):
    from dimba_jax.diffusion.masked import Masked
    from dimba_jax.models.build import make_denoiser

    config = from_config_dict(
        to_dict(CONFIG)
        | {"model": to_dict(CONFIG)["model"] | {"self_conditioning": False},
           "process": {"kind": "masked", "schedule": "log_linear", "timesteps": 10},
           "sampling": {"sampler": "confidence", "steps": 3, "batch_size": 2}}
    )  # fmt: skip
    network = make_denoiser(config, 259, nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    process = make_process(config.process, 259).with_time_range((0.3, 0.8))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            2, {"params": params, "ema": params, "process": process},
            data_state=None, config=to_dict(config), tokenizer=ByteTokenizer().to_dict(),
        )  # fmt: skip
    model = load(tmp_path)
    assert isinstance(model.process, Masked) and model.process.mask_id == 259
    np.testing.assert_allclose(model.process.time_range, (0.3, 0.8))
    made = from_parts(config, ByteTokenizer(), params, process, 2)
    found = [generate(one, ["abc", "x"], config.sampling, seed=1) for one in (model, made)]
    assert found[0] == found[1]
    assert {of.network_calls for of in found[0]} == {3}


def test_a_model_trained_with_kernels_for_other_hardware_is_sampled_with_those_for_this(parts, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, implementation="tpu"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, data_state=None, config=to_dict(config), tokenizer=ByteTokenizer().to_dict())
    model = load(tmp_path)
    assert model.config == dataclasses.replace(config, model=CONFIG.model)
    assert "implementation='tpu' cannot run here: 'auto' in its place" in capsys.readouterr().err
    assert generate(model, ["ab"], model.config.sampling)[0].texts
