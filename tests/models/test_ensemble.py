"""Networks as one: the mean of their probabilities, whatever each of them is made of, and what cannot be averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_denoisers import tiny_model

from dimba_jax.models.ensemble import Ensemble

VOCAB, SOURCE, TARGET = 11, 3, 8


def network(pattern="mamba", seed=0, **more):
    return tiny_model(pattern=pattern, seed=seed, source=SOURCE, target=TARGET, **more)[0]


def row_batch(rows=3, seed=1):
    """Rows with masks among their tokens and padding in one source."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB + 1, (rows, SOURCE + TARGET)).astype(np.int32)
    visible = np.ones(tokens.shape, bool)
    visible[0, 2] = False
    return jnp.asarray(tokens), jnp.asarray(random.uniform(0.1, 1.0, rows), jnp.float32), jnp.asarray(visible)


def probabilities(logits):
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_the_mean_of_probabilities_of_unlike_networks():
    """Their logits are wide, so that a mean of logits, or one that is not normalised, is far from it."""
    networks = [network("mamba"), network("attention", seed=1), network("hybrid", seed=2)]
    tokens, t, visible = row_batch()
    found = jax.jit(lambda: Ensemble(networks)(tokens, t, visible=visible, first=SOURCE))()
    assert found.shape == (3, TARGET, VOCAB) and found.dtype == jnp.float32
    each = [probabilities(one(tokens, t, visible=visible, first=SOURCE)) for one in networks]
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)), np.mean(each, axis=0), atol=2e-6)
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)).sum(axis=-1), 1.0, atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 0.3 < np.abs(each[1] - each[2]).max()
    of_logits = probabilities(sum(np.log(one) for one in each) / 3)
    assert np.abs(of_logits - np.mean(each, axis=0)).max() > 0.05


def test_it_reads_what_a_network_reads():
    """Masks, times, what is visible, and where logits begin are all handed on."""
    together, alone = Ensemble([network()]), network()
    tokens, t, visible = row_batch()
    for options in ({}, {"visible": visible}, {"first": 2}, {"visible": visible, "first": SOURCE}):
        wanted = jax.nn.log_softmax(alone(tokens, t, **options))
        np.testing.assert_allclose(together(tokens, t, **options), wanted, atol=1e-5)
    assert np.abs(together(tokens, t) - together(tokens, t, visible=visible)).max() > 1e-3
    assert np.abs(together(tokens, t) - together(tokens, t / 2)).max() > 1e-3


def test_a_network_and_its_copy_are_that_network():
    one = network("hybrid")
    other = nnx.clone(one)
    tokens, t, visible = row_batch()
    own = one(tokens, t, visible=visible, first=SOURCE)
    for pair in ([one, other], [one, one]):
        found = Ensemble(pair)(tokens, t, visible=visible, first=SOURCE)
        normal = own - jax.nn.logsumexp(own, axis=-1, keepdims=True)  # logits up to a constant at each position
        np.testing.assert_allclose(found, normal, atol=1e-5)
        np.testing.assert_array_equal(found.argmax(-1), own.argmax(-1))


def test_what_nearly_never_comes_has_a_finite_logarithm():
    """Probabilities of 1e-60 are 0 in float32, and their mean would have no logarithm."""
    networks = [nnx.clone(network()) for _ in range(2)]
    for one in networks:
        one.head.bias[...] = one.head.bias[...].at[3].set(-150.0)
    tokens, t, _ = row_batch()
    found = np.asarray(Ensemble(networks)(tokens, t))
    assert np.isfinite(found).all() and found[..., 3].max() < -100


def test_it_counts_as_so_many_networks():
    assert network().calls == 1
    found = [Ensemble([network(seed=seed) for seed in range(count)]) for count in (1, 2, 4)]
    assert [one.calls for one in found] == [1, 2, 4]
    assert (found[1].vocab_size, found[1].mask_id, found[1].source_length) == (VOCAB, VOCAB, SOURCE)


def test_its_parameters_are_those_of_all():
    networks = [network("mamba"), network("attention", seed=1)]
    graph, state = nnx.split(Ensemble(networks))

    def count(of):
        return sum(leaf.size for leaf in jax.tree.leaves(of))

    assert count(state) == sum(count(nnx.state(one, nnx.Param)) for one in networks)
    tokens, t, visible = row_batch()
    again = nnx.merge(graph, nnx.to_pure_dict(state))  # as a teacher is taken apart and put together
    np.testing.assert_allclose(
        again(tokens, t, visible=visible), Ensemble(networks)(tokens, t, visible=visible), atol=1e-6
    )


def test_networks_that_do_not_read_the_same_rows():
    with pytest.raises(ValueError, match="needs a network"):
        Ensemble([])
    for other in (network(vocab=12), tiny_model(source=2, target=TARGET)[0], tiny_model(target=TARGET)[0]):
        with pytest.raises(ValueError, match=r"different \(vocab_size, source_length\): .*\(11, 3\)"):
            Ensemble([network(), other])


def test_a_key_for_dropout_is_refused():
    """It would be passed over in silence."""
    tokens, t, _ = row_batch()
    with pytest.raises(ValueError, match="an ensemble is not trained"):
        Ensemble([network()])(tokens, t, key=jax.random.key(0))
