"""DIMBA on open-domain dialogue: from a remark to an answer.

    python -m dimba_jax.train --config=configs/dialogue.py --workdir=runs/dialogue --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/dialogue --split=test --mbr=1,3,10 --output=runs/dialogue/eval.json

DIR holds DiffuSeq's split of the Commonsense Conversation data as train.jsonl, valid.jsonl and test.jsonl.

Hardware: one H200 (or another GPU with bfloat16). Time and score: not measured yet.
An answer is hardly ever the reference's: expect BLEU near .01, and look at dist-1 and div-4.

Variants:
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
from dimba_jax.recipes import choose, smoke

FULL = RunConfig(
    name="dialogue",
    data=DataConfig(source_length=64, target_length=64),
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
    training=TrainingConfig(steps=60_000, batch_size=512, valid_every=1000, sample_every=2000),
    sampling=SamplingConfig(sampler="ddim", steps=50, clamp_from=1.0),
)


def get_config(arg: str = ""):
    return choose(arg, {"": FULL, "smoke": smoke(FULL)})
