"""DiffuSeq on QQP paraphrase: the Transformer twin of configs/mambadiff_qqp.py, T = 2000.

    python -m dimba_jax.train --config=configs/diffuseq_qqp.py --workdir=runs/diffuseq --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/diffuseq --split=test --mbr=1,3,10 --output=runs/diffuseq/eval.json

DIR holds DiffuSeq's train.jsonl, valid.jsonl and test.jsonl.

Hardware: one H200 (or another GPU with bfloat16). Measured there, without a colon: 2.7 minutes of training (3.9 with
start-up and compilation), 35.3M parameters, 859k positions a second. All 2,500 test rows: BLEU .188, iBLEU .098; MBR
over ten samples .226 and .115; copying the source .262 and .010. More in experiments/qqp_gaussian.
(The published model has 91 million parameters and trained for two days on four A100: .188, and .241 with MBR.)

Variants; the first two, near the sizes of the twin's, have not been measured:
  :7m      6.8 million parameters
  :97m     102 million parameters
  :smoke   the same recipe and data for 2 CPU cores, about two minutes; its samples are not worth reading

Where it departs from the published model, and the flag that goes back:
  it predicts tokens                    --config.process.prediction=x0 --config.process.mse_weight=1
  its schedule is learned               --config.process.schedule=sqrt --config.process.noise_scale=1
  it is self-conditioned                --config.model.self_conditioning=False
  the loss counts the target alone      --config.process.loss_on=all
  SwiGLU, RMSNorm and RoPE in place of BERT's layers
"""

from dataclasses import replace

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

MEDIUM = RunConfig(
    name="diffuseq_qqp",
    data=DataConfig(source_length=32, target_length=32, train_extra_direction=True),
    model=ModelConfig(
        d_model=512,
        layers=8,
        pattern=("attention",),
        mlp_ratio=4.0,
        modulation="additive",
        head="untied",
        dtype="bfloat16",
    ),
    process=ProcessConfig(schedule="learned", noise_scale=2.0, timesteps=2000, prediction="logits", mse_weight=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=300),
    training=TrainingConfig(steps=4000, batch_size=512, valid_every=500, log_every=100),
    sampling=SamplingConfig(sampler="ddim", steps=20, eta=1.0, clamp_from=1.0),
)
SMALL = replace(MEDIUM, name="diffuseq_qqp_7m", model=replace(MEDIUM.model, d_model=256, layers=6, head="tied"))
LARGE = replace(
    MEDIUM,
    name="diffuseq_qqp_97m",
    model=replace(MEDIUM.model, d_model=768, layers=12, head="tied"),
    optimizer=replace(MEDIUM.optimizer, learning_rate=3e-4),
)


def get_config(arg: str = ""):
    return choose(arg, {"": MEDIUM, "7m": SMALL, "97m": LARGE, "smoke": smoke(MEDIUM)})
