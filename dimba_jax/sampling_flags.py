"""Sampling settings as options of a command: a flag for each, and those given in the place of a checkpoint's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from dimba_jax.config import ConfigError, RunConfig, SamplingConfig, from_config_dict, to_dict

# every setting of SamplingConfig: what its flag's help says
HELP = {
    "sampler": "ddpm, ddim or dpmpp (Gaussian); ancestral, confidence, low_confidence or remdm (masked); this and the "
    "following default to the checkpoint's config",
    "steps": "denoising steps of a row, or of a block, up to the process's timesteps",
    "eta": "ddim: share of ancestral noise",
    "guidance": "classifier-free guidance; 1 is off; pairs: of a model trained with condition_dropout",
    "clamp_from": "Gaussian: round predictions to embeddings at t up to this; 0: never",
    "temperature": "Gaussian: standard deviation of the starting noise; tokens: of their distribution, 0 takes the "
    "most probable",
    "num_samples": "texts for each prompt",
    "batch_size": "rows of one compiled call",
    "anchors": "Gaussian, trained with anchor_prob: every step makes its surest positions clean tokens",
    "mean_temperature": "Gaussian that predicts tokens: temperature of those whose mean embedding estimates x0",
    "early_exit": "Gaussian: stop after so many steps without a changed token; 0: never",
    "ema": "take the averaged parameters",
    "end_bias": "added to the logits of the end token and of padding; below 0 texts become longer",
    "top_k": "tokens: draw among the k most probable; 0: all",
    "top_p": "tokens: draw among the fewest that hold this probability",
    "score": "confidence, low_confidence, anchors: what makes a position sure (probability, margin or entropy)",
    "threshold": "confidence: unmask every position surer than this, one at least; 0: an even share a step",
    "score_noise": "confidence, low_confidence: temperature of Gumbel noise on the scores, fading with t",
    "padding_apart": "confidence, anchors: write where padding is most probable at a rate of its own, beside the words",
    "revise": "low_confidence: what has been written may be masked again",
    "reuse_logits": "ancestral, remdm: no network call after a step that changed no token (no time conditioning)",
    "remask": "remdm: cap, rescale or loop",
    "remask_strength": "remdm: sigma's cap, or its share of the greatest possible",
    "remask_window": "remdm loop: low,high; from t = high to low it only re-masks",
    "block_size": "masked: positions of a block, left to right; 0: the model's own, or none",
    "cache": "masked, trained without blocks: none, prefix or dual (Fast-dLLM), which are approximate",
    "length": "masked models of pairs: first chooses the target's length in one call before its words; or model",
    "length_bias": "tokens added to the length so chosen",
}
_FLAG_NAMES = {"length": "length_choice"}  # --length is a number of tokens

_GAUSSIAN = ("ddpm", "ddim", "dpmpp")
_MASKED = ("ancestral", "confidence", "low_confidence", "remdm")
_TOKENS = (*_MASKED, "autoregressive")
# by which samplers a setting is read; those that are not here are read by all
READ_BY = {
    "sampler": _GAUSSIAN + _MASKED, "steps": _GAUSSIAN + _MASKED,
    "eta": ("ddim",), "clamp_from": _GAUSSIAN, "early_exit": _GAUSSIAN, "anchors": _GAUSSIAN,
    "mean_temperature": _GAUSSIAN,
    "top_k": _TOKENS, "top_p": _TOKENS,
    "score": ("confidence", "low_confidence", *_GAUSSIAN), "score_noise": ("confidence", "low_confidence"),
    "threshold": ("confidence",), "padding_apart": ("confidence", *_GAUSSIAN), "revise": ("low_confidence",),
    "reuse_logits": ("ancestral", "remdm"),
    "remask": ("remdm",), "remask_strength": ("remdm",), "remask_window": ("remdm",),
    "block_size": _MASKED, "cache": _MASKED, "length": _MASKED, "length_bias": _MASKED,
}  # fmt: skip


def define(values: flags.FlagValues) -> None:
    """One flag for each sampling setting, None unless given."""
    kinds = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        tuple: flags.DEFINE_list,
    }
    defaults = dataclasses.asdict(SamplingConfig())
    for name, text in HELP.items():
        kinds[type(defaults[name])](_FLAG_NAMES.get(name, name), None, text, flag_values=values)


def given(values: flags.FlagValues) -> dict[str, Any]:
    """The sampling settings that the command line names.

    Raises:
      ConfigError: a list of something else than numbers.
    """
    found = {name: values[_FLAG_NAMES.get(name, name)].value for name in HELP}
    return {
        name: _numbers(name, value) if isinstance(value, list) else value
        for name, value in found.items()
        if value is not None
    }


def settings(config: RunConfig, named: dict[str, Any]) -> SamplingConfig:
    """The checkpoint's sampling settings with the named ones in their place, checked against its process.

    Raises:
      ConfigError: one that is wrong, or that the sampler does not read.
    """
    values = to_dict(config)
    found = from_config_dict(values | {"sampling": values["sampling"] | named}).sampling
    sampler = "autoregressive" if config.process.kind == "autoregressive" else found.sampler
    for name in named:
        readers = READ_BY.get(name, (sampler,))
        if sampler not in readers:
            what = "an autoregressive model" if sampler == "autoregressive" else f"sampler {sampler!r}"
            raise ConfigError(
                f"--{_FLAG_NAMES.get(name, name)} has no meaning with {what}: it is for {', '.join(readers)}"
            )
    for name in ("score", "padding_apart"):
        if name in named and sampler in _GAUSSIAN and not found.anchors:
            raise ConfigError(f"--{name} has no meaning with sampler {sampler!r} without --anchors")
    return found


def _numbers(name: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise ConfigError(f"--{name}={','.join(texts)}: expected numbers with commas between them") from None
