"""Shakespeare in bytes (MambaByte): masked diffusion on the tiny Shakespeare text, and its twins.

    python -m dimba_jax.train --config=configs/shakespeare.py --workdir=runs/shakespeare --config.data.path=FILE
    python -m dimba_jax.evaluate --checkpoint=runs/shakespeare --task=likelihood --input=FILE

FILE is tinyshakespeare's input.txt: its first 90% are trained on and the rest validates, as is usual. Any other text
will do, or a folder, with --config.data.train_files="('*.txt',)" --config.data.valid_file=NAME.
Without --config.data.path nothing is downloaded: the text is the source of Python's standard library on this machine.

Hardware: one H200 (or another GPU with bfloat16). Measured there: 2.46 bits a byte after 33 million training tokens, in
three minutes beside three other runs (experiments/masked_lm, which compares the variants).
A row is 256 bytes. Every variant has 21 million parameters, within 2%: many for a megabyte, so that what is measured
is also how fast each of them overfits.

Variants (a name alone is DiffuMamba, 6 layers, d 384):
  :h         attention in place of Mamba-2 in layers 0 and 5, with MLPs as much wider as attention is smaller
  :tran      Transformer, 8 layers
  :ar        autoregressive Transformer, 12 layers: it has no modulation by t to hold parameters
  :ar-mamba  autoregressive Mamba-2, 13 layers
  :tiny      128 bytes a row, for 2 CPU cores, about three minutes (an estimate)
  :tiny-ar   its autoregressive twin
"""

from dimba_jax.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    TextConfig,
    TokenizerConfig,
    TrainingConfig,
)
from dimba_jax.recipes import HYBRID, autoregressive, choose, tiny, with_model

MAMBA = RunConfig(
    name="shakespeare",
    data=DataConfig(
        source="text",
        train_files=("train*.txt",),
        valid_file="valid.txt",
        test_file="test.txt",
        source_length=0,
        target_length=256,
        normalize="none",
        text=TextConfig(valid_fraction=0.1),
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    model=ModelConfig(
        d_model=384,
        layers=6,
        pattern=("mamba2",),
        direction="untied",
        mlp_ratio=2.0,
        dropout=0.2,
        modulation="adaln_zero",
        self_conditioning=False,
        head="untied",
        dtype="bfloat16",
        scan_layers=False,
    ),
    process=ProcessConfig(kind="masked", schedule="log_linear"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, warmup_steps=200, weight_decay=0.1, beta1=0.9, beta2=0.95, ema_decay=0.999
    ),
    training=TrainingConfig(
        steps=1000, batch_size=128, valid_every=100, valid_batches=4, sample_every=0, log_every=100
    ),
    sampling=SamplingConfig(sampler="ancestral", steps=256, batch_size=32),
)
VARIANTS = {
    "": MAMBA,
    "h": with_model(MAMBA, "h", pattern=HYBRID, attention_mlp_ratio=6.3),
    "tran": with_model(MAMBA, "tran", pattern=("attention",), layers=8, mlp_ratio=3.6),
    "ar": autoregressive(MAMBA, "ar", pattern=("attention",), layers=12, mlp_ratio=3.8),
    "ar-mamba": autoregressive(MAMBA, "ar_mamba", layers=13, mlp_ratio=2.2),
    "tiny": tiny(MAMBA, steps=1500, learning_rate=3e-3),
    "tiny-ar": tiny(autoregressive(MAMBA, "ar", pattern=("attention",), mlp_ratio=4.0), steps=1500, learning_rate=3e-3),
}


def get_config(arg: str = ""):
    return choose(arg, VARIANTS)
