"""What a masked position costs beside a teacher: the shares of its two losses, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ProcessConfig
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.masked import MaskedTokens, cross_entropy

VOCAB, ROWS, LENGTH = 7, 4, 5


def masked(**settings):
    return make_process(ProcessConfig(kind="masked", schedule="log_linear", **settings), VOCAB)


@pytest.fixture(scope="module")
def case():
    """Logits of a network and of a teacher, the tokens, and which of them are masked at which time."""
    random = np.random.default_rng(0)
    logits, taught = (3.0 * random.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32) for _ in range(2))
    tokens = random.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    hidden = random.random((ROWS, LENGTH)) < 0.6
    t = np.broadcast_to(random.uniform(0.2, 0.9, (ROWS, 1)).astype(np.float32), (ROWS, LENGTH))
    noised = MaskedTokens(jnp.where(hidden, VOCAB, tokens), jnp.asarray(hidden), jnp.asarray(t))
    return jnp.asarray(logits), jnp.asarray(taught), jnp.asarray(tokens), noised


def by_hand(case, share, smoothing, weight):
    """Position by position, in float64 and without logarithms of sums that are taken apart."""
    logits, taught, tokens, noised = (jax.tree.map(np.asarray, part) for part in case)
    found = np.zeros((ROWS, LENGTH))
    for row, place in np.argwhere(noised.masked):
        q = np.exp(logits[row, place].astype(np.float64))
        p = np.exp(taught[row, place].astype(np.float64))
        surprise = -np.log(q / q.sum())
        own = (1 - smoothing) * surprise[tokens[row, place]] + smoothing * surprise.mean()
        soft = (p / p.sum()) @ surprise
        found[row, place] = weight(float(noised.t[row, place])) * ((1 - share) * own + share * soft)
    return found


WEIGHTS = {"elbo": lambda t: 1 / t, "linear": lambda t: 1 - t + 1 / 1000, "none": lambda t: 1.0}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighting, smoothing", [("elbo", 0.0), ("linear", 0.1), ("none", 0.0)])
def test_a_share_of_the_loss_is_the_teachers(case, share, weighting, smoothing):
    logits, taught, tokens, noised = case
    process = masked(distillation=share, weighting=weighting, label_smoothing=smoothing)
    found = process.objective(logits, tokens, noised, taught)
    np.testing.assert_allclose(found, by_hand(case, share, smoothing, WEIGHTS[weighting]), rtol=2e-5, atol=1e-6)
    assert (np.asarray(found)[~np.asarray(noised.masked)] == 0).all()
    # beside no teacher there is the loss on the data alone, whatever the share
    alone = process.objective(logits, tokens, noised)
    np.testing.assert_allclose(alone, by_hand(case, 0.0, smoothing, WEIGHTS[weighting]), rtol=2e-5, atol=1e-6)


def test_the_bound_on_the_likelihood_knows_no_teacher(case):
    logits, _, tokens, noised = case
    found = masked(distillation=0.5, weighting="none").losses(logits, tokens, noised)["nelbo"]
    np.testing.assert_allclose(found, by_hand(case, 0.0, 0.0, WEIGHTS["elbo"]), rtol=2e-5, atol=1e-6)


def test_all_of_it_knows_no_tokens_and_is_least_for_the_teachers_own_distribution(case):
    logits, taught, tokens, noised = case
    process = masked(distillation=1.0)

    def loss(logits, tokens):
        return jnp.sum(process.objective(logits, tokens, noised, taught))

    assert float(loss(logits, tokens)) == float(loss(logits, (tokens + 1) % VOCAB))
    np.testing.assert_allclose(jax.grad(loss)(taught - 3.0, tokens), 0.0, atol=1e-5)
    assert float(loss(taught, tokens)) < float(loss(logits, tokens))
    assert np.abs(jax.grad(loss)(logits, tokens)).max() > 0.1


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_gradient_is_that_of_both_losses_and_none_is_the_teachers(case, share):
    logits, taught, tokens, noised = case
    process = masked(distillation=share, weighting="none")

    def loss(logits, taught):
        return jnp.sum(process.objective(logits, tokens, noised, taught))

    of_network, of_teacher = jax.grad(loss, (0, 1))(logits, taught)
    wanted = (1 - share) * jax.nn.one_hot(tokens, VOCAB) + share * jax.nn.softmax(taught)
    wanted = (jax.nn.softmax(logits) - wanted) * noised.masked[..., None]
    np.testing.assert_allclose(of_network, wanted, atol=1e-5)
    assert (np.asarray(of_teacher) == 0).all()


def test_a_cross_entropy_is_in_float32():
    """Sums over a vocabulary in bfloat16 would lose the third digit."""
    random = np.random.default_rng(1)
    p, q = (jnp.asarray(random.normal(size=(2, 3, 400)), jnp.bfloat16) for _ in range(2))
    found = cross_entropy(p, q)
    exact = [np.asarray(one, np.float64) for one in (p, q)]
    shares, surprise = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in exact)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, -(shares * np.log(surprise)).sum(-1), rtol=1e-5)
    entropy = cross_entropy(p, p)
    assert (np.asarray(entropy) < np.asarray(found)).all()
