"""Steps that tests of checkpoints write, and a run of some fifteen steps that writes its own."""

import jax
import jax.numpy as jnp

from dimba_jax import train


def state(step):
    """The parts of a training state, different for each step."""
    big = jax.random.normal(jax.random.key(step), (40, 50))  # noise: what can be compressed has fewer bytes to flip
    return {
        "params": {"w": big},
        "ema": {"w": big + 1.0},
        "process": (),
        "training": {"moments": (big, jnp.int32(step))},
    }


def save(checkpoints, step):
    checkpoints.save(step, state(step), data_state={"place": step}, config={"name": "x"}, tokenizer={"k": 1})


def train_tiny(recipe, workdir, *more):
    return train.main(["train", f"--config={recipe}", f"--workdir={workdir}", *more])
