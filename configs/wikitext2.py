"""WikiText-2: masked diffusion (DiffuMamba, small), its hybrid and Transformer twins, and autoregressive baselines.

    python -m dimba_jax.train --config=configs/wikitext2.py --workdir=runs/wikitext2 --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/wikitext2 --task=likelihood --input=DIR/wiki.valid.tokens

DIR holds wiki.train.tokens and wiki.valid.tokens. A text of your own: --config.data.path=FILE.txt, whose last tenth is
held out, or a folder, with --config.data.train_files="('*.txt',)" --config.data.valid_file=NAME.
Without --config.data.path nothing is downloaded: the text is the source of Python's standard library on this machine.

Hardware: one H200 (or another GPU with bfloat16). Measured there: PPL 70.9 a token and 1.48 bits a byte after 66
million training tokens, in 9.5 minutes beside three other runs (experiments/masked_lm, which compares the variants).
Text is cut into rows of 256 tokens; 8,192 pieces are learned from the training text, so perplexities a token compare
with no published ones: bits per byte and perplexity a word do. Every variant has 34 million parameters, within 2%.

Variants (a name alone is DiffuMamba, 8 layers, d 384):
  :h         attention in place of Mamba-2 in layers 0 and 5, with MLPs as much wider as attention is smaller
  :tran      Transformer, 10 layers
  :ar        autoregressive Transformer, 11 layers, d 448: it has no modulation by t to hold parameters
  :ar-mamba  autoregressive Mamba-2, 13 layers, d 448
  :tiny      bytes, 128 a row, for 2 CPU cores, about three minutes (an estimate)
  :tiny-ar   its autoregressive twin
"""

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

MAMBA = RunConfig(
    name="wikitext2",
    data=DataConfig(
        source="text",
        train_files=("wiki.train.tokens",),
        valid_file="wiki.valid.tokens",
        test_file="wiki.test.tokens",
        source_length=0,
        target_length=256,
        normalize="none",
    ),
    tokenizer=TokenizerConfig(vocab_size=8192, lossless=True),
    model=ModelConfig(
        d_model=384,
        layers=8,
        pattern=("mamba2",),
        direction="untied",
        mlp_ratio=2.0,
        dropout=0.1,
        modulation="adaln_zero",
        self_conditioning=False,
        head="untied",
        dtype="bfloat16",
        scan_layers=False,
    ),
    process=ProcessConfig(kind="masked", schedule="log_linear"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, warmup_steps=300, weight_decay=0.1, beta1=0.9, beta2=0.95, ema_decay=0.999
    ),
    training=TrainingConfig(
        steps=2000, batch_size=128, valid_every=250, valid_batches=8, sample_every=0, log_every=100
    ),
    sampling=SamplingConfig(sampler="ancestral", steps=256, batch_size=32),
)
VARIANTS = {
    "": MAMBA,
    "h": with_model(MAMBA, "h", pattern=HYBRID, attention_mlp_ratio=6.3),
    "tran": with_model(MAMBA, "tran", pattern=("attention",), layers=10, mlp_ratio=4.0),
    "ar": autoregressive(MAMBA, "ar", pattern=("attention",), layers=11, d_model=448, mlp_ratio=4.0),
    "ar-mamba": autoregressive(MAMBA, "ar_mamba", layers=13, d_model=448),
    "tiny": tiny(MAMBA, steps=1500, learning_rate=3e-3),
    "tiny-ar": tiny(autoregressive(MAMBA, "ar", pattern=("attention",), mlp_ratio=4.0), steps=1500, learning_rate=3e-3),
}


def get_config(arg: str = ""):
    return choose(arg, VARIANTS)
