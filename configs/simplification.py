"""DIMBA on text simplification: from a sentence to a simpler one.

    python -m dimba_jax.train --config=configs/simplification.py --workdir=runs/simple --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/simple --split=test --mbr=1,3,10 --output=runs/simple/eval.json

DIR holds DiffuSeq's Wiki-Auto split as train.jsonl, valid.jsonl and test.jsonl. A row's target may be a list of
references; where a row has `refs`, as ASSET's do, they are taken. One file can serve all splits:
--config.data.train_files="('asset_valid.jsonl[:1700]',)" --config.data.valid_file="asset_valid.jsonl[1700:1800]"
--config.data.test_file="asset_valid.jsonl[1800:]"

Hardware: one H200 (or another GPU with bfloat16). Time and score: not measured yet.
Copying the source is hard to beat in this task, too: on ASSET's 2,000 sentences and their ten references it has BLEU
.932, iBLEU .546 and SARI .228. `evaluate` scores SARI where rows have several references.

Variants:
  :masked  DiffuMamba: masked diffusion in place of Gaussian, no prompt encoder
  :smoke   the same recipe and data for 2 CPU cores, about two minutes; its samples are not worth reading
"""

from dimba_jax.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    TrainingConfig,
)
from dimba_jax.recipes import choose, masked, smoke

FULL = RunConfig(
    name="simplification",
    # 999 sentences of 1,000 take at most 84 pieces, 99 simplifications of 100 at most 60 (8k pieces, ASSET)
    data=DataConfig(source_length=80, target_length=80),
    model=ModelConfig(
        d_model=512,
        layers=8,
        pattern=("mamba2",),
        direction="untied",
        modulation="film",
        prompt_encoder="mixer",
        prompt_layers=2,
        pooled_prompt=True,
        head="untied",
        dtype="bfloat16",
    ),
    process=ProcessConfig(schedule="learned", noise_scale=2.0, prediction="logits", mse_weight=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=500),
    training=TrainingConfig(steps=40_000, batch_size=256, valid_every=1000, sample_every=2000),
    sampling=SamplingConfig(sampler="ddim", steps=50, clamp_from=1.0),
)


def get_config(arg: str = ""):
    return choose(arg, {"": FULL, "masked": masked(FULL), "smoke": smoke(FULL)})
