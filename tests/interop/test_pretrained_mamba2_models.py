"""What becomes of a Mamba-2 checkpoint in models of ours: two directions, time, a mask token, training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_mamba2 import GOLDEN, TOLERANCE, VOCABULARY, blank, fresh, network, ours, run_config, started
from safetensors.numpy import load_file

from dimba_jax.config import ConfigError
from dimba_jax.interop.pretrained_mamba2 import initial_params, model_settings
from dimba_jax.training.setup import prepare


def mixer_of(params, layer):
    mixer = params["stack"]["groups"]["blocks"][0]["mixer"]
    return jax.tree.map(lambda leaf: leaf[layer], mixer)


def test_forward_half_is_the_checkpoint_and_the_reverse_its_copy():
    settings = model_settings(GOLDEN)
    configs = run_config(settings), run_config(settings, kind="masked")
    causal, both = (initial_params(config, blank(config, VOCABULARY), GOLDEN) for config in configs)
    for layer in range(3):
        one, untied = mixer_of(causal, layer), mixer_of(both, layer)
        for half in ("forward", "backward"):
            jax.tree.map(np.testing.assert_array_equal, untied[half], one["core"])
        W, V = one["in_proj"]["kernel"], one["out_proj"]["kernel"]
        np.testing.assert_array_equal(untied["in_proj"]["kernel"], np.concatenate([W, W], 1))
        np.testing.assert_array_equal(untied["out_proj"]["kernel"], np.concatenate([V / 2, V / 2], 0))


@pytest.mark.parametrize("direction", ["untied", "tied"])
def test_a_layer_starts_as_the_mean_of_both_directions(direction):
    settings = model_settings(GOLDEN)
    graphdef, params = started(run_config(settings, kind="masked", direction=direction), GOLDEN)
    pair = network(graphdef, params).stack.groups.blocks[0].mixer
    pair = jax.tree.map(lambda leaf: leaf[1], pair)
    graphdef, params = started(run_config(settings), GOLDEN)
    causal = jax.tree.map(lambda leaf: leaf[1], network(graphdef, params).stack.groups.blocks[0].mixer)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 16), np.float32))
    ahead = causal(x, None)[0]
    back = causal(x[:, ::-1], None)[0][:, ::-1]
    np.testing.assert_allclose(pair(x, None)[0], (ahead + back) / 2, atol=1e-5)


@pytest.mark.parametrize("modulation", ["film", "additive", "adaln_zero"])
def test_time_changes_nothing_at_first_and_gates_are_open(modulation, expected):
    """A model that looks ahead alone and is told the time says what the checkpoint says."""
    found = ours(GOLDEN, expected["tokens"], kind="masked", modulation=modulation, direction="causal")
    assert np.abs(found - expected["logits"]).max() < TOLERANCE


def test_mask_row_is_the_mean_and_the_rest_stays_fresh():
    config = run_config(model_settings(GOLDEN), kind="masked")
    graphdef, before = fresh(config, VOCABULARY)
    after = initial_params(config, before, GOLDEN)
    table = load_file(GOLDEN / "model.safetensors")["backbone.embeddings.weight"]
    np.testing.assert_array_equal(after["table"][:-1], table)
    np.testing.assert_allclose(after["table"][-1], table.mean(0), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after["time"], before["time"])
    assert jax.tree.structure(after) == jax.tree.structure(before)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail("moved"), after, before)


def test_tied_checkpoint_may_start_a_head_of_its_own(copied):
    folder = copied(lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, tie_word_embeddings=True)
    config = run_config(model_settings(folder) | {"head": "untied"}, kind="masked")
    params = initial_params(config, blank(config, VOCABULARY), folder)
    np.testing.assert_array_equal(params["head"]["kernel"], np.asarray(params["table"])[:-1].T)
    config = run_config(model_settings(GOLDEN) | {"head": "tied"}, kind="masked")
    with pytest.raises(ConfigError, match=r"\(head='tied'\): set --config.model.head=untied"):
        initial_params(config, {}, GOLDEN)


def test_raw_bytes_move_behind_the_special_ids(copied):
    rows = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)
    folder = copied(lambda w: w | {"backbone.embeddings.weight": rows, "lm_head.weight": 2 * rows}, vocab_size=256)
    config = run_config(model_settings(folder), kind="masked", tokenizer={"kind": "bytes"})
    params = initial_params(config, blank(config, 259), folder)
    np.testing.assert_array_equal(params["table"][3:259], rows)
    np.testing.assert_allclose(params["table"][:3], np.tile(rows.mean(0), (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(params["head"]["kernel"][:, 3:], 2 * rows.T)


def test_a_masked_model_trains_on_from_it():
    """The loss of a batch falls; both directions and the modulation get gradients."""
    import optax

    config = run_config(model_settings(GOLDEN), kind="masked", modulation="adaln_zero")
    graphdef, params = started(config, GOLDEN)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, VOCABULARY, (4, 8)), jnp.int32)
    masked = jnp.arange(8) % 2 == 0

    def loss(params):
        out = network(graphdef, params)(jnp.where(masked, VOCABULARY, tokens), jnp.full(4, 0.5))
        return optax.softmax_cross_entropy_with_integer_labels(out, tokens)[:, masked].mean()

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        return value, grads, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    first, grads, params = step(params)
    for _ in range(3):
        last, _, params = step(params)
    assert float(last) < float(first)
    block = grads["stack"]["groups"]["blocks"][0]
    for part in (block["mixer"]["forward"]["A_log"], block["mixer"]["backward"]["A_log"], block["mixer_norm"]):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(part))


def test_a_run_starts_from_it(copied, tmp_path):
    """`config.training.init_from`: the parameters and their average are the checkpoint's, in buffers of their own."""
    rows = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)
    folder = copied(lambda w: w | {"backbone.embeddings.weight": rows, "lm_head.weight": rows}, vocab_size=256)
    (tmp_path / "text.txt").write_text("some text to train on " * 20)
    config = run_config(model_settings(folder), kind="masked", tokenizer={"kind": "bytes"})
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=str(tmp_path / "text.txt")),
        training=dataclasses.replace(config.training, batch_size=8, init_from=str(folder)),
    )
    state = prepare(config, tmp_path / "run").state
    for params in (state.params, state.ema):
        np.testing.assert_array_equal(params["table"][3:259], rows)
        A_log = load_file(GOLDEN / "model.safetensors")["backbone.layers.2.mixer.A_log"]
        np.testing.assert_array_equal(mixer_of(params, 2)["backward"]["A_log"], A_log)
    # a step gives both away to its successor, so they may not be one
    params, ema = (
        part["table"].addressable_shards[0].data.unsafe_buffer_pointer() for part in (state.params, state.ema)
    )
    assert params != ema
