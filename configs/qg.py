"""DIMBA on question generation: from a passage to a question that it answers.

    python -m dimba_jax.train --config=configs/qg.py --workdir=runs/qg --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/qg --split=test --mbr=1,3,10 --output=runs/qg/eval.json

DIR holds DiffuSeq's Quasar-T split as train.jsonl, valid.jsonl and test.jsonl (src: passage, trg: question),
or another set in that form: with SQuAD's sentences, name the files, as in
--config.data.train_files="('nqg_dev.jsonl[:-500]',)" --config.data.valid_file="nqg_dev.jsonl[-500:]"
--config.data.test_file=nqg_test.jsonl

Hardware: one H200 (or another GPU with bfloat16). Time and score: not measured yet.

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


def get_config(arg: str = ""):
    return choose(arg, {"": FULL, "masked": masked(FULL), "smoke": smoke(FULL)})
