"""Mamba-2 checkpoints and settings that do not fit are refused by name."""

import dataclasses
import re

import pytest
from golden_mamba2 import GOLDEN, VOCABULARY, blank, run_config

from dimba_jax.config import ConfigError, from_config_dict
from dimba_jax.interop.pretrained_mamba2 import initial_params, model_settings


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
