"""DIMBA on QQP paraphrase: bidirectional Mamba-2, a prompt encoder over the source, FiLM, Gaussian diffusion.

    python -m dimba_jax.train --config=configs/qqp.py --workdir=runs/qqp --config.data.path=DIR
    python -m dimba_jax.evaluate --checkpoint=runs/qqp --split=test --mbr=1,3,10 --output=runs/qqp/eval.json

DIR holds DiffuSeq's train.jsonl, valid.jsonl and test.jsonl. Without --config.data.path the run stops and
names the other ways to get the data.

Hardware: one H200 (or another GPU with bfloat16). Measured there: 8.0 minutes of training (9.2 with start-up and
compilation), 68.7M parameters, 285k positions a second. All 2,500 test rows: BLEU .189, iBLEU .105; MBR over ten
samples .214 and .118; copying the source .262 and .010. More in experiments/qqp_gaussian.

Variants:
  :smoke   the same recipe and data for 2 CPU cores, about two minutes; its samples are not worth reading

Ablations:
  --config.process.schedule=cosine --config.process.noise_scale=4
                                          the paper's schedule, its noise scaled up (.173 against .182, see experiments)
  --config.process.prediction=x0 --config.process.mse_weight=1 --config.model.head=tied
                                          x0 itself is predicted; squared error and rounding cross-entropy
  --config.model.pooled_prompt=False      the prompt no longer joins t in the modulation
  --config.model.context=encoder          the prompt encoder's outputs stand at the source positions
  --config.model.modulation=additive      or adaln_zero, in place of FiLM
  --config.model.direction=causal         no reverse scan, as the paper's text has it
  --config.process.loss_on=all            the loss counts the source positions too
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
    name="qqp",
    # 32 + 32 pieces hold all but one pair in a hundred; each pair is learned in both directions
    data=DataConfig(source_length=32, target_length=32, train_extra_direction=True),
    model=ModelConfig(
        d_model=512,
        layers=8,
        pattern=("mamba2",),
        direction="untied",
        modulation="film",
        prompt_encoder="mixer",
        prompt_layers=2,
        pooled_prompt=True,
        context="clean",
        head="untied",
        dtype="bfloat16",
    ),
    # The network predicts tokens, and their mean embedding is the estimate of x0. With plain cosine noise most
    # of t is trivial; a learned schedule is warped until the loss grows evenly along t.
    process=ProcessConfig(schedule="learned", noise_scale=2.0, prediction="logits", mse_weight=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=300),
    training=TrainingConfig(steps=4000, batch_size=512, valid_every=500, log_every=100),
    sampling=SamplingConfig(sampler="ddim", steps=20, eta=1.0, clamp_from=1.0),
)


def get_config(arg: str = ""):
    return choose(arg, {"": FULL, "smoke": smoke(FULL)})
