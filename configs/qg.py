"""DIMBA on question generation: from a passage to a question that it answers.

    python -m dimba_jax.train --config=configs/qg.py --workdir=runs/qg --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/qg --split=test --mbr=1,3,10 --output=runs/qg/eval.json

DIR holds DiffuSeq's Quasar-T split as train.jsonl, valid.jsonl and test.jsonl (src: passage, trg: question),
or another set in that form, whose files --config.data.train_files, valid_file and test_file name.

Hardware: one H200 (or another GPU with bfloat16). Time and score on Quasar-T: not measured yet.

Variants:
  :masked  DiffuMamba: masked diffusion in place of Gaussian, no prompt encoder
  :squad :squad-masked :squad-h
           DIMBA, DiffuMamba and DiffuMamba-H on 9,784 of SQuAD's pairs (DIR holds nqg_dev.jsonl and nqg_test.jsonl),
           1.9 to 3.7 minutes each beside others on one H200. BLEU .035, .036 and .038 on the test rows, where one
           question for all has .034: too few to learn from (experiments/tasks)
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
    name="qg",
    # Quasar-T's passages take up to 98 pieces and 99 questions of 100 take at most 42 (8k pieces)
    data=DataConfig(source_length=96, target_length=48),
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
    training=TrainingConfig(steps=20_000, batch_size=256, valid_every=1000, sample_every=2000),
    sampling=SamplingConfig(sampler="ddim", steps=50, clamp_from=1.0),
)
SQUAD = {
    "train_files": ("nqg_dev.jsonl[:-500]",),
    "valid_file": "nqg_dev.jsonl[-500:]",
    "test_file": "nqg_test.jsonl",
    # sentences of SQuAD are longer than those passages, its questions shorter: 9,784 of 10,070 pairs fit
    "source_length": 112,
    "target_length": 32,
}
MASKED = masked(FULL)
VARIANTS = {
    "": FULL,
    "masked": MASKED,
    "squad": few_pairs(FULL, "squad", steps=1500, **SQUAD),
    "squad-masked": few_pairs(MASKED, "squad", steps=1500, **SQUAD),
    "squad-h": few_pairs(hybrid(MASKED), "squad", steps=1500, **SQUAD),
    "smoke": smoke(FULL),
}


def get_config(arg: str = ""):
    return choose(arg, VARIANTS)
