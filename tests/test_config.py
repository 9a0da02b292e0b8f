"""Configs are checked at the edge: unknown keys, types, choices, contradictions."""

import dataclasses
import json

import ml_collections
import pytest

from dimba_jax.config import ConfigError, RunConfig, from_config_dict, to_config_dict, to_dict


def test_a_config_survives_a_checkpoint():
    config = from_config_dict({"model": {"pattern": ["attention", "mamba2"]}, "optimizer": {"learning_rate": 1}})
    assert config.model.pattern == ("attention", "mamba2")
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
    assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
    hash(config)  # tuples stayed tuples


def test_a_recipe_is_a_locked_config_dict():
    values = to_config_dict(RunConfig(name="recipe"))
    assert isinstance(values, ml_collections.ConfigDict)
    assert from_config_dict(values) == RunConfig(name="recipe")
    values.training.steps = 7
    assert from_config_dict(values).training.steps == 7
    with pytest.raises(AttributeError, match="steps"):
        values.training.stepz = 7
    with pytest.raises(TypeError):
        values.training.steps = "many"


def masked(sampler="confidence", **process):
    return {
        "model": {"self_conditioning": False},
        "process": {"kind": "masked", "schedule": "log_linear"} | process,
        "sampling": {"sampler": sampler},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainig": {}}, r"config\.trainig is no setting; did you mean config\.training\?"),
        ({"training": {"stps": 3}}, r"config\.training\.stps is no setting; did you mean config\.training\.steps\?"),
        ({"data": {"synthetic": {"pair": 3}}}, r"did you mean config\.data\.synthetic\.pairs\?"),
        ({"training": 3}, r"config\.training: expected a group of settings, got 3"),
        ({"training": {"steps": "3"}}, r"config\.training\.steps='3': expected int, got str"),
        ({"training": {"steps": True}}, r"config\.training\.steps=True: expected int, got bool"),
        ({"training": {"steps": 1.5}}, r"config\.training\.steps=1\.5: expected int, got float"),
        ({"model": {"scan_layers": 1}}, r"config\.model\.scan_layers=1: expected bool"),
        ({"model": {"pattern": "mamba"}}, r"config\.model\.pattern='mamba': expected a list"),
        ({"model": {"pattern": [1]}}, r"config\.model\.pattern\[0\]=1: expected str"),
        ({"model": {"pattern": ["lstm"]}}, r"config\.model\.pattern holds 'lstm': choose from attention"),
        ({"model": {"pattern": []}}, r"config\.model\.pattern is empty"),
        ({"data": {"columns": ["src"]}}, r"config\.data\.columns=\['src'\]: expected 2 values"),
        ({"process": {"schedule": "cos"}}, r"config\.process\.schedule='cos': choose one of 'cosine', 'sqrt'"),
        ({"training": {"steps": 0}}, r"config\.training\.steps=0: must be at least 1"),
        ({"model": {"dropout": 1.5}}, r"config\.model\.dropout=1\.5: must lie in \[0, 1\]"),
        ({"process": {"noise_scale": 0}}, r"config\.process\.noise_scale=0\.0: must be positive"),
        ({"training": {"accumulate": 3}}, r"config\.training\.batch_size=512 is not divisible by accumulate=3"),
        ({"sampling": {"steps": 1001}}, r"config\.sampling\.steps=1001 exceeds process\.timesteps=1000"),
        ({"model": {"context": "encoder"}}, "needs a prompt_encoder"),
        ({"model": {"pooled_prompt": True}}, "needs a prompt_encoder"),
        ({"model": {"context": "none"}}, "would never see the source"),
        ({"sampling": {"guidance": 2.0}}, "condition_dropout > 0"),
        ({"process": {"prediction": "epsilon", "zero_terminal_snr": True}}, "undefined at zero terminal SNR"),
        ({"process": {"weighting": "linear"}}, "process.kind='gaussian' does not read it; leave it at 'elbo'"),
        ({"process": {"kind": "masked"}}, "config.model.self_conditioning=True: process.kind='masked' needs False"),
        (masked(schedule="sqrt"), "config.process.schedule='sqrt': process.kind='masked' takes log_linear, cosine"),
        (masked(sampler="ddim"), "config.sampling.sampler='ddim': process.kind='masked' takes ancestral"),
        (masked(block_size=5), "needs process.kind='masked' and a divisor of data.target_length=32"),
        (masked(time_range=(0.5, 0.2)), "expected 0 < low < high <= 1"),
        (
            masked(kind="autoregressive"),
            "config.model.direction='untied': process.kind='autoregressive' needs 'causal'",
        ),
        (masked(min_snr_gamma=5.0), "process.kind='masked' does not read it; leave it at 0.0"),
        (masked(distillation=0.5), "config.process.distillation=0.5 and config.training.teachers='' go together"),
        (
            masked() | {"training": {"teachers": "runs/a"}},
            "config.process.distillation=0.0 and config.training.teachers='runs/a' go together: a share above 0",
        ),
        (masked(distillation=0.5) | {"training": {"teachers": " , "}}, "teachers=' , ' go together"),
        (
            masked(distillation=0.5, block_size=8) | {"training": {"teachers": "runs/a"}},
            "config.process.distillation=0.5: a teacher reads whole rows; set process.block_size=0",
        ),
        (
            {"process": {"distillation": 0.5}, "training": {"teachers": "runs/a"}},
            "config.process.distillation=0.5: process.kind='gaussian' does not read it; leave it at 0.0",
        ),
        (
            masked(kind="autoregressive", distillation=0.5) | {"training": {"teachers": "runs/a"}},
            "config.process.distillation=0.5: process.kind='autoregressive' does not read it; leave it at 0.0",
        ),
        (
            {"training": {"teachers": "runs/a"}},
            "config.process.distillation=0.0 and config.training.teachers='runs/a' go together",
        ),
        (masked(distillation=1.5) | {"training": {"teachers": "runs/a"}}, "distillation=1.5: must lie in .0, 1."),
        (masked(distillation=-0.5) | {"training": {"teachers": "runs/a"}}, "distillation=-0.5: must lie in .0, 1."),
        (
            masked()
            | {
                "data": {"source": "text", "source_length": 0},
                "model": {"self_conditioning": False, "positions": "learned"},
            },
            "config.model.positions='learned': running text may be longer than a training row; use 'none'",
        ),
    ],
)
def test_a_config_that_cannot_run_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(values)


def test_every_default_can_run():
    assert from_config_dict({}) == RunConfig()
    for field in dataclasses.fields(RunConfig):
        assert f"{field.name}" in to_dict(RunConfig())
