"""A small network whose answers are known, in place of a trained one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


class FakeDenoiser(nnx.Module):
    """Predicts `answer` where the source is visible, with a pull towards z; can tell of its traces and calls.

    `pull` says how much of the prediction is z: 0 knows the answer from the first step on.
    """

    def __init__(self, table, answer, *, pull=0.0, watch=None, on_trace=None):
        self.embedding = nnx.Param(jnp.asarray(table, jnp.float32))
        self.answer = nnx.Param(jnp.asarray(answer, jnp.float32))  # (l, e)
        self.pull, self.watch, self.on_trace = pull, watch, on_trace

    def table(self):
        return self.embedding[...]

    def embed(self, tokens):
        return self.table()[tokens]

    def encode(self, tokens, target, valid, keep=None, *, key=None):
        return jnp.ones(tokens.shape[0]) if keep is None else keep.astype(jnp.float32)

    def narrowed(self, condition, target):
        return condition

    def __call__(self, z, t, condition, *, self_condition=None, key=None):
        if self.on_trace is not None:
            self.on_trace(z.shape)
        if self.watch is not None:
            nothing = jnp.full_like(z, jnp.nan)
            jax.debug.callback(self.watch, z, t, nothing if self_condition is None else self_condition, ordered=True)
        answer = jnp.broadcast_to(self.answer[...][None], (z.shape[0], *self.answer.shape))
        if self.pull:
            pull = self.pull * t[:, None, None]
            answer = (1.0 - pull) * answer + pull * z
        return condition[:, None, None] * answer

    def round(self, x0_hat):
        return x0_hat @ self.table().T - 0.5 * jnp.sum(jnp.square(self.table()), axis=-1)[None, None, :]


@pytest.fixture(scope="session")
def table():
    return np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)


@pytest.fixture
def make_denoiser(table):
    """make_denoiser(answer_tokens, **more): a network that knows which tokens come out."""
    return lambda tokens, **more: FakeDenoiser(table, table[np.asarray(tokens)], **more)


@pytest.fixture
def make_model(tmp_path):
    """make_model(text, **more): a model in memory that answers every prompt with this text, over bytes."""
    from dimba_jax.config import RunConfig, from_config_dict
    from dimba_jax.data.tokenizers import ByteTokenizer
    from dimba_jax.diffusion import make_process
    from dimba_jax.sampling.load import LoadedModel

    def make(text="abc", *, denoiser=None, process=None, sampling=None, model=None, **more):
        config: RunConfig = from_config_dict(
            {
                "data": {"source_length": 8, "target_length": 6, "normalize": "lower"},
                "model": model or {},
                "process": {"timesteps": 20} | (process or {}),
                "sampling": {"steps": 5, "batch_size": 4} | (sampling or {}),
            }
        )
        tokenizer = ByteTokenizer()
        table = np.random.default_rng(1).normal(size=(tokenizer.vocab_size, 16)).astype(np.float32)
        target = [*tokenizer.encode(text), 1, *[0] * 6][:6]
        answer = table[np.asarray([0] * 8 + target)]
        network = denoiser or FakeDenoiser(table, answer, **more)
        return LoadedModel(network, make_process(config.process, tokenizer.vocab_size), tokenizer, config, 7)

    return make
