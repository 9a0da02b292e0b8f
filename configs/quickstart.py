"""Quickstart: a small DIMBA learns to rephrase generated questions, on the CPU, with nothing to download.

    make quickstart

or, step by step,

    python -m dimba_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m dimba_jax.evaluate --checkpoint=runs/quickstart --split=test --output=runs/quickstart/eval.json
    python -m dimba_jax.strip --checkpoint=runs/quickstart --output=runs/quickstart/denoising_strip.png

Hardware: 2 CPU cores; at most 5 minutes of training. Time and score: not measured yet.

Variants:
  :smoke   the same with a few seconds of training, for tests; its samples are not worth reading
"""

from dataclasses import replace

from dimba_jax.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainingConfig,
)
from dimba_jax.recipes import choose

FULL = RunConfig(
    name="quickstart",
    data=DataConfig(source="synthetic", source_length=20, target_length=20),
    tokenizer=TokenizerConfig(vocab_size=512),
    # On a CPU a few wide matmuls beat many small ones: two heads, no remat, float32, one fused two-way scan.
    model=ModelConfig(
        embedding_dim=64,
        d_model=128,
        layers=3,
        pattern=("mamba2",),
        direction="shared",
        mlp_ratio=4.0,
        state_dim=16,
        head_dim=128,
        modulation="film",
        dtype="float32",
        chunk=64,
    ),
    process=ProcessConfig(schedule="cosine", prediction="x0"),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100, ema_decay=0.995),
    training=TrainingConfig(steps=3000, batch_size=64, log_every=50, checkpoint_every=500, sample_every=1000),
    sampling=SamplingConfig(sampler="ddim", steps=20, clamp_from=1.0),
)
SMOKE = replace(
    FULL,
    name="quickstart_smoke",
    data=replace(FULL.data, synthetic=replace(FULL.data.synthetic, pairs=600)),
    model=replace(FULL.model, embedding_dim=16, d_model=32, layers=1, head_dim=32, state_dim=8),
    optimizer=replace(FULL.optimizer, warmup_steps=5),
    training=replace(FULL.training, steps=20, batch_size=16, log_every=5, checkpoint_every=20, sample_every=0),
    sampling=replace(FULL.sampling, steps=6, batch_size=16),
)


def get_config(arg: str = ""):
    return choose(arg, {"": FULL, "smoke": SMOKE})
