"""Which way of sampling follows from a model and its settings, and what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from known_network import SOURCE, TABLE, TARGET, VOCAB, Known, config_of, rows, run, text_config

from dimba_jax.config import ConfigError
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.blocks import sample_blocks
from dimba_jax.sampling.discrete.fast import sample_fast
from dimba_jax.sampling.discrete.full import sample_full
from dimba_jax.sampling.discrete.left_to_right import sample_left_to_right
from dimba_jax.sampling.discrete.sample import check_settings, total_steps, way_of


@pytest.mark.parametrize(
    "config, settings, way, steps",
    [
        (config_of(), {}, sample_full, 4),
        (config_of(process={"block_size": 2}), {}, sample_blocks, 12),
        (config_of(process={"block_size": 2}), {"block_size": 3}, sample_blocks, 8),
        (config_of(model={"direction": "causal"}), {"block_size": 3}, sample_blocks, 8),
        (
            config_of(model={"direction": "causal"}, process={"time_conditioning": True}),
            {"block_size": 3},
            sample_fast,
            8,
        ),
        (config_of(), {"block_size": 3}, sample_fast, 8),
        (config_of(), {"cache": "dual"}, sample_fast, 4),
        (config_of(process={"kind": "autoregressive"}, model={"direction": "causal"}), {}, sample_left_to_right, 6),
    ],
)
def test_the_way_follows_from_model_and_settings(config, settings, way, steps):
    settings = dataclasses.replace(config.sampling, **settings)
    assert way_of(config, settings) is way
    assert total_steps(config, settings, TARGET) == steps


def test_settings_that_do_not_fit_are_refused():
    autoregressive = config_of(process={"kind": "autoregressive"}, model={"direction": "causal"})
    for config, more, message in (
        (config_of(process={"block_size": 2}), {"length": "first"}, "length='first' is for masked models of pairs"),
        (text_config(), {"length": "first"}, "length='first'"),
        (config_of(process={"time_conditioning": True}), {"reuse_logits": True}, "time_conditioning=False"),
        (config_of(), {"reuse_logits": True, "sampler": "confidence"}, "for 'ancestral' and 'remdm'"),
        (autoregressive, {"guidance": 2.0}, "condition_dropout > 0"),
        (config_of(), {"guidance": 2.0}, "condition_dropout > 0"),  # a source that was never masked in training
        (config_of(process={"block_size": 2}), {"cache": "dual"}, "trained without blocks"),
        (autoregressive, {"cache": "dual"}, "trained without blocks"),
        (autoregressive, {"block_size": 4}, "writes token by token"),
        (config_of(), {"cache": "prefix"}, "there are no blocks: set block_size too"),
        (config_of(), {"early_exit": 3}, "early_exit=3 is for Gaussian"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_settings(config, dataclasses.replace(config.sampling, **more))
    tokens, editable, visible = rows()
    editable[1, 5] = False
    with pytest.raises(ConfigError, match="some tokens of them are given"):
        run(config_of(), (tokens, editable, visible), length="first")
    with pytest.raises(ConfigError, match="remask_strength=2.0"):
        sample_full(
            Known(SOURCE, TABLE), make_process(config_of().process, VOCAB), *map(jnp.asarray, rows()),
            jax.random.split(jax.random.key(0), 4),
            dataclasses.replace(config_of().sampling, sampler="remdm", remask_strength=2.0), config=config_of(),
        )  # fmt: skip
