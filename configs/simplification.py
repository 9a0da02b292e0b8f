"""DIMBA on text simplification: from a sentence to a simpler one.

    python -m dimba_jax.train --config=configs/simplification.py --workdir=runs/simple --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/simple --split=test --mbr=1,3,10 --output=runs/simple/eval.json

DIR holds DiffuSeq's Wiki-Auto split as train.jsonl, valid.jsonl and test.jsonl. A row's target may be a list of
references; where a row has `refs`, as ASSET's do, they are taken.

Hardware: one H200 (or another GPU with bfloat16). Time and score on Wiki-Auto: not measured yet.
Copying the source is hard to beat in this task, too: on ASSET's 2,000 sentences and their ten references it has BLEU
.932, iBLEU .546 and SARI .228. `evaluate` scores SARI where rows have several references.

Variants:
  :masked  DiffuMamba: masked diffusion in place of Gaussian, no prompt encoder
  :asset :asset-masked :asset-h
           DIMBA, DiffuMamba and DiffuMamba-H on 1,700 sentences of ASSET (DIR holds asset_valid.jsonl), 1.1 to 3.5
           minutes each beside others on one H200. BLEU .050, .062 and .117, SARI .259, .262 and .287 on 200 others,
           where the first half of the source has .640 and .321: too few to learn from (experiments/tasks)
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
from dimba_jax.recipes import choose, few_pairs, hybrid, masked, smoke

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
ASSET = {
    "train_files": ("asset_valid.jsonl[:1700]",),
    "valid_file": "asset_valid.jsonl[1700:1800]",
    "test_file": "asset_valid.jsonl[1800:]",
    "source_length": 64,  # 16,976 of 17,000 pairs fit
    "target_length": 64,
}
MASKED = masked(FULL)
VARIANTS = {
    "": FULL,
    "masked": MASKED,
    "asset": few_pairs(FULL, "asset", steps=1500, **ASSET),
    "asset-masked": few_pairs(MASKED, "asset", steps=1000, **ASSET),
    "asset-h": few_pairs(hybrid(MASKED), "asset", steps=1500, **ASSET),
    "smoke": smoke(FULL),
}


def get_config(arg: str = ""):
    return choose(arg, VARIANTS)
