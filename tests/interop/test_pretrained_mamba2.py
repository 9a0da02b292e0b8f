"""Mamba-2 checkpoints of transformers and mamba_ssm: the same logits here, and what becomes of them in two directions.

The golden checkpoint is committed; where torch and transformers are installed, fresh ones are compared too.
"""

import dataclasses
import functools
import json
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.interop.pretrained_mamba2 import as_flags, initial_params, main, model_settings
from dimba_jax.models.build import abstract_denoiser, make_denoiser
from dimba_jax.training.setup import prepare

HERE = Path(__file__).parent
MAKE = runpy.run_path(str(HERE / "make_golden.py"))
GOLDEN, VOCABULARY = MAKE["GOLDEN"], MAKE["VOCABULARY"]
TOLERANCE = 1e-4


def run_config(settings, *, kind="autoregressive", tokenizer=None, **model):
    direction = "causal" if kind == "autoregressive" else "untied"
    chosen = {name: value for name, value in settings.items() if name != "vocab_size"}
    return from_config_dict(
        {
            "data": {"source": "text", "source_length": 0, "target_length": 8},
            "tokenizer": tokenizer or {"model": "its.model"},
            "model": {"direction": direction, "self_conditioning": False, "chunk": 4} | chosen | model,
            "process": {"kind": kind, "schedule": "log_linear"},
            "sampling": {"sampler": "ancestral"},
        }
    )


@functools.cache
def fresh(config, vocab_size):
    graphdef, state = nnx.split(jax.jit(lambda: make_denoiser(config, vocab_size, nnx.Rngs(0)))(), nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def blank(config, vocab_size):
    """The same tree, all zeros: enough to see what is refused and where things go."""
    state = abstract_denoiser(config, vocab_size)[1]
    return nnx.to_pure_dict(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


def started(config, folder, vocab_size=VOCABULARY):
    graphdef, params = fresh(config, vocab_size)
    return graphdef, initial_params(config, params, folder)


def network(graphdef, params):
    return nnx.merge(graphdef, params)


@jax.jit
def logits(denoiser, tokens, t):
    return denoiser(tokens, t)


def ours(folder, tokens, **more):
    config = run_config(model_settings(folder), **more)
    graphdef, params = started(config, folder)
    return np.asarray(logits(network(graphdef, params), jnp.asarray(tokens), jnp.zeros(len(tokens))))


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def copied(tmp_path):
    """copied(weights={}, drop=(), **config): the golden folder with other files."""

    def make(change=lambda weights: weights, name="copy", **values):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((GOLDEN / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        save_file(change(load_file(GOLDEN / "model.safetensors")), folder / "model.safetensors")
        return folder

    return make


STATE_SPACES = {
    "d_model": 16, "d_intermediate": 0, "n_layer": 3, "vocab_size": 37, "attn_layer_idx": [], "attn_cfg": {},
    "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "headdim": 8, "ngroups": 2, "d_conv": 3}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": False,
}  # fmt: skip


def as_state_spaces(weights):
    return {name.replace("embeddings", "embedding"): value for name, value in weights.items()}


@pytest.fixture
def state_spaces(tmp_path):
    folder = tmp_path / "state_spaces"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(STATE_SPACES))
    save_file(as_state_spaces(load_file(GOLDEN / "model.safetensors")), folder / "model.safetensors")
    return folder


def test_golden_logits(expected):
    found = ours(GOLDEN, expected["tokens"])
    assert np.abs(found - expected["logits"]).max() < TOLERANCE
    assert np.abs(expected["logits"]).max() > 1.0  # the tolerance is one of real values


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"n_groups": 1, "state_size": 5, "conv_kernel": 4, "num_hidden_layers": 1, "hidden_size": 24, "num_heads": 6},
    ],
    ids=["tied", "other sizes"],
)
def test_transformers_itself(tmp_path, settings):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = MAKE["make_model"](7, **settings)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(8).integers(0, VOCABULARY, (2, 9)).astype(np.int32)
    assert np.abs(ours(tmp_path, tokens) - MAKE["logits_of"](model, tokens)).max() < TOLERANCE


def test_names_and_padding_of_state_spaces(expected, state_spaces):
    """37 tokens in a table of 40 rows: the rows that only pad are left out."""
    config = run_config(model_settings(state_spaces))
    graphdef, params = started(config, state_spaces, vocab_size=37)
    tokens = expected["tokens"] % 37
    found = np.asarray(logits(network(graphdef, params), jnp.asarray(tokens), jnp.zeros(2)))
    whole = ours(GOLDEN, tokens)
    np.testing.assert_allclose(found, whole[..., :37], atol=1e-5)
    assert model_settings(state_spaces) == model_settings(GOLDEN) | {"vocab_size": 37}


def test_settings_are_read():
    assert model_settings(GOLDEN) == {
        "d_model": 16, "layers": 3, "state_dim": 4, "head_dim": 8, "groups": 2, "expand": 2, "conv_width": 3,
        "head": "untied", "vocab_size": 40, "pattern": ("mamba2",), "mlp_ratio": 0.0,
    }  # fmt: skip
    assert (
        as_flags({"d_model": 16, "pattern": ("mamba2",)})
        == "--config.model.d_model=16 --config.model.pattern=\"('mamba2',)\""
    )


def test_torch_files_parts_and_bfloat16(copied, tmp_path, expected):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in load_file(GOLDEN / "model.safetensors").items()}
    folder = copied()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    np.testing.assert_array_equal(ours(folder, expected["tokens"]), ours(GOLDEN, expected["tokens"]))

    from safetensors.torch import save_file as save_torch

    (folder / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, held in parts.items():
        save_torch({name: tensors[name].bfloat16() for name in held}, folder / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = ours(folder, expected["tokens"])
    assert 0 < np.abs(found - expected["logits"]).max() < 0.2  # three digits are left of every weight
    (folder / "two.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lists two\.safetensors, which the folder lacks"):
        ours(folder, expected["tokens"])


def test_torch_files_need_torch(copied, expected, monkeypatch):
    folder = copied()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"was saved by torch, which is not here .*safetensors"):
        ours(folder, expected["tokens"])


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


@pytest.mark.parametrize(
    "model, message",
    [
        ({"d_model": 32}, r"\(d_model=32\): set --config.model.d_model=16"),
        (
            {"layers": 2, "state_dim": 8},
            r"\(layers=2, state_dim=8\): set --config.model.layers=3 --config.model.state_dim=4",
        ),
        ({"mlp_ratio": 4.0}, r"set --config.model.mlp_ratio=0.0"),
        ({"pattern": ("attention", "mamba2")}, re.escape("""set --config.model.pattern="('mamba2',)\"""")),
        ({"direction": "shared"}, "config.model.direction='shared': .* choose one of causal, untied, tied"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_that_do_not_fit_are_named(model, message):
    config = run_config(model_settings(GOLDEN), kind="masked")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    with pytest.raises(ConfigError, match=message):
        initial_params(config, {}, GOLDEN)


def test_tokenizers_that_do_not_fit(state_spaces):
    settings = model_settings(GOLDEN)
    with pytest.raises(ConfigError, match="40 tokens, this run's tokenizer 41: .* a tokenizer.json is not"):
        config = run_config(settings)
        initial_params(config, blank(config, 41), GOLDEN)
    with pytest.raises(ConfigError, match="this run would train another: set config.tokenizer.model"):
        config = run_config(settings, tokenizer={"kind": "sentencepiece"})
        initial_params(config, blank(config, VOCABULARY), GOLDEN)
    with pytest.raises(ConfigError, match=r"37 tokens \(in 40 rows\), this run's tokenizer 30"):
        config = run_config(model_settings(state_spaces))
        initial_params(config, blank(config, 30), state_spaces)


def test_gaussian_models_take_no_checkpoint():
    with pytest.raises(ConfigError, match="init_from needs process.kind 'masked' or 'autoregressive'"):
        initial_params(from_config_dict({}), {}, GOLDEN)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model_type": "mamba"}, "model_type is 'mamba', expected 'mamba2'"),
        ({"use_bias": True}, "use_bias is True; only False is supported"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06; only 1e-05"),
        ({"time_step_limit": [0.0, 0.1]}, r"time_step_limit is \[0.0, 0.1\]"),
        ({"ssm_cfg": {}}, "layer is 'Mamba1'; only 'Mamba2'"),
        ({"ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [1]}, r"attn_layer_idx is \[1\]"),
        ({"ssm_cfg": {"layer": "Mamba2"}, "d_intermediate": 64}, "d_intermediate is 64"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_other_architectures_are_refused(copied, values, message):
    with pytest.raises(ConfigError, match=message):
        model_settings(copied(**values))


def test_files_that_do_not_belong_together(copied, tmp_path):
    def start(folder):
        config = run_config(model_settings(folder))
        initial_params(config, blank(config, VOCABULARY), folder)

    with pytest.raises(ConfigError, match=r"init_from=.*nowhere: .*config\.json cannot be read"):
        model_settings(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"layer 2: .*missing \['D'\]"):
        start(copied(lambda w: {k: v for k, v in w.items() if k != "backbone.layers.2.mixer.D"}, "no_d"))
    with pytest.raises(ConfigError, match="lacks backbone.norm_f.weight"):
        start(copied(lambda w: {k: v for k, v in w.items() if k != "backbone.norm_f.weight"}, "no_norm"))
    with pytest.raises(ConfigError, match=r"lacks lm_head\.weight"):
        start(copied(lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, "no_head"))
    with pytest.raises(ConfigError, match=r"layer 0: in_proj.weight: .* the mixer expects"):
        start(copied(name="wider", state_size=8))
    with pytest.raises(ConfigError, match=r"no place: backbone\.layers\.2\.mixer\.A_log"):
        start(copied(name="fewer", num_hidden_layers=2))
    empty = copied(name="empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds neither model.safetensors nor pytorch_model.bin"):
        start(empty)
    (empty / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"cannot be read as safetensors"):
        start(empty)


def test_command_prints_what_to_set(capsys):
    assert main(["", str(GOLDEN)]) == 0
    out = capsys.readouterr().out
    assert "40 tokens" in out and "--config.model.layers=3" in out and "--config.model.conv_width=3" in out
    assert main(["", str(GOLDEN / "nowhere")]) == 1 and "cannot be read" in capsys.readouterr().err
    assert main([""]) == 2 and "give one folder" in capsys.readouterr().err
