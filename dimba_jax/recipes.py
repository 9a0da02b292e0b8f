"""What the files in `configs/` have in common: the choice of a variant, its twins, and the version for a small CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dimba_jax.config import ConfigError, ProcessConfig, RunConfig, SamplingConfig, to_config_dict

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# DiffuMamba-H: attention first, then in every fifth layer (experiments/diffumamba_parameters says why not every sixth)
HYBRID = ("attention", "mamba2", "mamba2", "mamba2", "mamba2")


def choose(arg: str, variants: Mapping[str, RunConfig]) -> ConfigDict:
    """The variant that `--config=FILE.py:ARG` names, as a locked ConfigDict; "" is the recipe without a colon.

    Raises:
      ConfigError: there is no such variant; the message lists those there are.
    """
    if arg not in variants:
        known = ", ".join(f":{name}" for name in variants if name) or "none"
        raise ConfigError(f"this recipe has no variant ':{arg}'; choose one of {known}, or leave the colon out")
    return to_config_dict(variants[arg])


def with_model(config: RunConfig, suffix: str, **model: Any) -> RunConfig:
    """The same recipe under a name of its own, with another network."""
    return replace(config, name=f"{config.name}_{suffix}", model=replace(config.model, **model))


def autoregressive(config: RunConfig, suffix: str, **model: Any) -> RunConfig:
    """The next-token twin: the same data and training, none of it chosen anew here, and a network that looks back only.

    Sampling settings are the same, too, but for `end_bias`, which makes up for what unmasking does to lengths.
    """
    twin = with_model(config, suffix, direction="causal", **model)
    twin = replace(twin, sampling=replace(twin.sampling, end_bias=0.0))
    process = replace(config.process, kind="autoregressive", weighting="elbo")  # weights are of masked positions
    return replace(twin, process=process)


def masked(config: RunConfig, suffix: str = "masked") -> RunConfig:
    """DiffuMamba on the pairs of a Gaussian recipe: tokens are masked, and no encoder reads the prompt beside them."""
    twin = with_model(
        config, suffix, prompt_encoder="none", pooled_prompt=False, context="clean", modulation="adaln_zero",
        self_conditioning=False, dropout=0.1,
    )  # fmt: skip
    return replace(
        twin,
        process=ProcessConfig(kind="masked", schedule="log_linear", weighting="linear", label_smoothing=0.1),
        sampling=SamplingConfig(sampler="confidence", score="margin", steps=16, temperature=0.0),
    )


def hybrid(config: RunConfig, suffix: str = "h") -> RunConfig:
    """DiffuMamba-H of a recipe of pairs: attention in every fifth layer, the first one included.

    MLPs behind attention have 8.3 in place of 4, which makes up for attention's fewer parameters at width 512.
    """
    return with_model(config, suffix, pattern=HYBRID, attention_mlp_ratio=8.3)


def few_pairs(config: RunConfig, suffix: str, *, steps: int, **data: Any) -> RunConfig:
    """A recipe of pairs, Gaussian or masked, where training has thousands of pairs in place of a hundred thousand.

    Steps are fewer, batches smaller, dropout is higher, and parameters are averaged over fewer steps. Sampling is what
    was chosen on QQP (`configs/qqp.py`; margin order and padding apart of `configs/qqp_masked.py`), and Gaussian
    training has its anchors.

    Args:
      steps: of training.
      data: settings of the data that are not the recipe's.
    """
    few = replace(
        with_model(config, suffix, dropout=0.3, scan_layers=False),
        data=replace(config.data, **data),
        optimizer=replace(config.optimizer, warmup_steps=200, ema_decay=0.995),
        training=replace(config.training, steps=steps, batch_size=64, log_every=50, valid_every=250, sample_every=0),
    )
    if config.process.kind == "masked":
        return replace(few, sampling=replace(config.sampling, padding_apart=True))
    sampling = replace(config.sampling, steps=20, eta=0.0, temperature=0.5, anchors=True, padding_apart=True)
    return replace(few, process=replace(config.process, anchor_prob=0.5), sampling=sampling)


def tiny(config: RunConfig, suffix: str = "tiny", *, steps: int, learning_rate: float) -> RunConfig:
    """A language model's recipe for 2 CPU cores: a few minutes of training that are worth looking at.

    Bytes, rows of 128, two layers of width 128 whose Mamba-2 scans both directions at once.
    """
    config = replace(config, name=f"{config.name}_{suffix}")
    return replace(
        config,
        data=replace(config.data, target_length=128),
        tokenizer=replace(config.tokenizer, kind="bytes"),
        model=replace(
            config.model, d_model=128, layers=2, state_dim=16, head_dim=64, dropout=0.0, dtype="float32",
            direction="causal" if config.model.direction == "causal" else "shared", scan_layers=False, remat="none",
        ),
        optimizer=replace(config.optimizer, learning_rate=learning_rate, warmup_steps=100, ema_decay=0.995),
        training=replace(
            config.training, steps=steps, batch_size=16, accumulate=1, log_every=50, checkpoint_every=500,
            valid_every=500, valid_batches=16, sample_every=0,
        ),
        sampling=replace(config.sampling, steps=min(config.sampling.steps, 64), batch_size=16),
    )  # fmt: skip


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe, narrow and short: about two minutes of training on 2 CPU cores.

    What makes the recipe what it is (data, mixers, conditioning, process, loss) stays. It shows that
    everything runs; its samples are not worth reading.
    """
    steps = 300
    return replace(
        config,
        name=f"{config.name}_smoke",
        tokenizer=replace(config.tokenizer, vocab_size=2048),
        model=replace(
            config.model, embedding_dim=32, d_model=64, layers=2, state_dim=16, head_dim=32, prompt_layers=1,
            dtype="float32", remat="none",
        ),
        optimizer=replace(config.optimizer, learning_rate=2e-3, warmup_steps=20, ema_decay=0.98),
        training=replace(
            config.training, steps=steps, batch_size=32, accumulate=1, log_every=20, checkpoint_every=steps,
            valid_every=0, valid_batches=2, sample_every=0,
        ),
        sampling=replace(config.sampling, steps=10, batch_size=64),
    )  # fmt: skip
