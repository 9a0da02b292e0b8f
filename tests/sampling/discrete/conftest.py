"""A distribution over 27 sequences that is known, and the network that knows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ProcessConfig
from dimba_jax.diffusion import make_process
from dimba_jax.sampling.discrete.loop import unmask

VOCAB, LENGTH = 3, 3
CHI_SQUARE = 52.0  # of 26 degrees of freedom: exceeded by chance once in 500 times


@pytest.fixture(scope="session")
def target():
    """p(x) of every sequence of three tokens out of three, each far from independent of the others."""
    return np.random.default_rng(3).dirichlet(np.full(VOCAB**LENGTH, 0.6)).reshape((VOCAB,) * LENGTH) * 0.9 + 0.1 / 27


@pytest.fixture(scope="session")
def exact(target):
    """The network whose logits are log p(x_i | the tokens that are revealed)."""

    def network(tokens, t):
        joint = jnp.asarray(target, jnp.float32)[None]
        for i in range(LENGTH):
            known = jax.nn.one_hot(tokens[:, i], VOCAB) + (tokens[:, i] == VOCAB)[:, None]
            joint = joint * known.reshape([-1, *(VOCAB if j == i else 1 for j in range(LENGTH))])
        marginals = [joint.sum([j + 1 for j in range(LENGTH) if j != i]) for i in range(LENGTH)]
        return jnp.log(jnp.stack(marginals, axis=1))

    return network


@pytest.fixture(scope="session")
def make_masked():
    """make_masked(vocab_size, schedule): a masked process."""
    return lambda vocab_size, schedule="log_linear": make_process(
        ProcessConfig(kind="masked", schedule=schedule), vocab_size
    )


@pytest.fixture(scope="session")
def statistic(target, exact, make_masked):
    """statistic(stepper, steps): chi-square of the sequences that this many rows sample, against p."""

    def of(stepper, steps, *, rows=3000, seed=0, schedule="log_linear", reuse=False):
        process = make_masked(VOCAB, schedule)

        @jax.jit
        def sample(keys):
            tokens, free = jnp.zeros((rows, LENGTH), jnp.int32), jnp.ones((rows, LENGTH), bool)
            return unmask(exact, process, stepper, tokens, free, keys, steps, reuse=reuse).tokens

        tokens = np.asarray(sample(jax.random.split(jax.random.key(seed), rows)))
        assert ((tokens >= 0) & (tokens < VOCAB)).all()
        found = np.bincount(tokens @ [9, 3, 1], minlength=27)
        expected = rows * target.reshape(-1)
        return float(np.sum((found - expected) ** 2 / expected))

    return of


@pytest.fixture(scope="session")
def chi_square_limit():
    return CHI_SQUARE
