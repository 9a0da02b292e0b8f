"""DiffuMamba, DiffuMamba-H and DiffuTran (arXiv 2511.15927) at the sizes of the paper, and autoregressive baselines.

    python -m dimba_jax.train --config=configs/diffumamba.py:tiny --workdir=runs/tiny
    python -m dimba_jax.train --config=configs/diffumamba.py:240m --workdir=runs/diffumamba --config.data.path=DIR

DIR holds plain text as train*.txt, valid.txt and test.txt; for other names, --config.data.train_files="('*.md',)" etc.
Without --config.data.path nothing is downloaded: the text is the source of Python's standard library on this machine,
which is enough for :tiny and for trying things out.

Hardware: :tiny 2 CPU cores; the others several GPUs or TPU chips: 25, 50 and 120 billion tokens in the paper, which is
what their steps come to. On one GPU add --config.training.accumulate=32, or a smaller batch. On an H200, in batches of
16 rows, :240m trains at 105,100 tokens/s (so its 25 billion take 2.8 days), in 23 GiB; at 122,000 (2.4 days), in 29
GiB, with --config.model.remat=kernels and --config.model.scan_layers=False. experiments/throughput has more.
experiments/scale predicts what they take on slices of TPUs.

Variants. A size alone is DiffuMamba; -h has attention in every fifth layer, the first one included; -tran is the
Transformer, with twice the MLP ratio. Without a colon: :240m.
  :240m  :240m-h  :240m-tran    24 layers, d 960
  :500m  :500m-h  :500m-tran    36 layers, d 960
  :1b3   :1b3-h   :1b3-tran     24 layers, d 1920
  :h     :tran                  short for :240m-h and :240m-tran
  :ar    :ar-mamba              the next token, by a causal Transformer or a causal Mamba-2 of the shape of :240m
  :tiny  :tiny-h  :tiny-tran  :tiny-ar    two layers, bytes, rows of 128, for 2 CPU cores: three minutes (estimated)

From the paper: all of the shapes, AdaLN on t, log-linear masking, untied directions added, Adam (.9, .95) with weight
decay .1, clipping at 1, EMA .9999, batches of 512 rows of 1,024 tokens. Where this departs from it:
  the tokenizer is trained on the text (theirs is GPT-2's, padded to 50,304); the size is the same
  the learning rate, 1e-4 with a cosine to 0, is a second-hand figure; the warm-up is MDLM's
  heads have 64 features throughout (the paper's tables give 24 heads in one place and 32 in another)
  MLPs are SwiGLU of the same number of weights; norms are RMSNorm; the condition of AdaLN has MDLM's width, 128
Parameters: :240m 482 million, :500m 675, :1b3 1,675. The paper's .24B, .29B and .26B fit 12 layers in place of the 24
in its table: for those, --config.model.layers=12. experiments/diffumamba_parameters has the counts, and how the
hybrid's layout was read.
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
from dimba_jax.recipes import HYBRID, autoregressive, choose, tiny, with_model

ROWS, LENGTH = 512, 1024


def diffumamba(name: str, d_model: int, layers: int, billion_tokens: int) -> RunConfig:
    steps = round(billion_tokens * 1e9 / (ROWS * LENGTH))
    return RunConfig(
        name=f"diffumamba_{name}",
        data=DataConfig(
            source="text",
            train_files=("train*.txt",),
            valid_file="valid.txt",
            test_file="test.txt",
            source_length=0,
            target_length=LENGTH,
            normalize="none",
        ),
        tokenizer=TokenizerConfig(vocab_size=50_304, lossless=True),
        model=ModelConfig(
            d_model=d_model,
            layers=layers,
            pattern=("mamba2",),
            direction="untied",
            mlp_ratio=2.0,
            state_dim=128,
            head_dim=64,
            expand=2,
            conv_width=4,
            modulation="adaln_zero",
            condition_dim=128,
            self_conditioning=False,
            head="untied",
            dtype="bfloat16",
            remat="dots",
        ),
        process=ProcessConfig(kind="masked", schedule="log_linear", time_conditioning=True),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            schedule="cosine",
            warmup_steps=2500,
            weight_decay=0.1,
            beta1=0.9,
            beta2=0.95,
            clip_norm=1.0,
            ema_decay=0.9999,
        ),
        training=TrainingConfig(steps=steps, batch_size=ROWS, valid_every=1000, log_every=100),
        sampling=SamplingConfig(sampler="ancestral", steps=128, batch_size=16),
    )


def family(mamba: RunConfig) -> dict[str, RunConfig]:
    """A DiffuMamba and its twins of the same width and depth."""
    return {
        "": mamba,
        "-h": with_model(mamba, "h", pattern=HYBRID),
        "-tran": with_model(mamba, "tran", pattern=("attention",), mlp_ratio=4.0),
    }


SMALL = diffumamba("240m", d_model=960, layers=24, billion_tokens=25)
MEDIUM = diffumamba("500m", d_model=960, layers=36, billion_tokens=50)
LARGE = diffumamba("1b3", d_model=1920, layers=24, billion_tokens=120)
TINY = tiny(replace(SMALL, name="diffumamba"), steps=1500, learning_rate=3e-3)
SIZES = {"240m": SMALL, "500m": MEDIUM, "1b3": LARGE, "tiny": TINY}
VARIANTS = {f"{size}{twin}": config for size, mamba in SIZES.items() for twin, config in family(mamba).items()}
VARIANTS |= {
    "": SMALL,
    "h": VARIANTS["240m-h"],
    "tran": VARIANTS["240m-tran"],
    "ar": autoregressive(SMALL, "ar", pattern=("attention",), mlp_ratio=4.0),
    "ar-mamba": autoregressive(SMALL, "ar_mamba"),
    "tiny-ar": autoregressive(TINY, "ar", pattern=("attention",), mlp_ratio=4.0),
}


def get_config(arg: str = ""):
    return choose(arg, VARIANTS)
