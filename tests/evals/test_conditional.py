"""Continuations behind contexts: values by enumeration and by the chain rule, and what greedy decoding would write."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.config import ConfigError
from dimba_jax.data.tokenizers import EOS, PAD, ByteTokenizer
from dimba_jax.evals.any_order import mask_counts
from dimba_jax.evals.conditional import Conditional
from dimba_jax.evals.estimate import Estimator
from dimba_jax.evals.texts import document_rows

V = 259
BYTES = ByteTokenizer()
AR = {"process": {"kind": "autoregressive"}, "model": {"direction": "causal"}}


def pair_data(path=""):
    return {"source": "jsonl", "path": str(path), "source_length": 8, "target_length": 8}


def log_probs_of(model):
    """tokens -> log-probabilities at each position, at time 0."""
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model.denoiser(tokens, jnp.zeros(1))[0]))
    return lambda tokens: np.asarray(forward(jnp.asarray(tokens)[None]))


def neighbour(text, place):
    """The text with another letter there."""
    return text[:place] + ("b" if text[place] == "a" else "a") + text[place + 1 :]


def test_autoregressive_scores_by_the_chain_rule(make_config, make_model):
    model = make_model(make_config(**AR), letters=True)
    log_probs = log_probs_of(model)
    scores = Conditional(model, draws=5)
    for context, continuation in [("abc", " de"), ("", "xyzuvw"), ("abcd ", "e")]:
        found = scores.score(context, continuation)
        whole = BYTES.encode(context + continuation)
        # the blank at the end of a context is scored with the continuation
        first = len(BYTES.encode(context.rstrip()))
        logp = log_probs([V, *whole[:-1]])
        expected = sum(logp[i, whole[i]] for i in range(first, len(whole)))
        assert found.logp == pytest.approx(expected, rel=1e-5) and found.standard_error == 0.0
    text = ""
    for _ in range(2):
        id = int(np.argmax(log_probs([V, *BYTES.encode("abcd" + text)])[-1]))
        text += BYTES.decode([id])
    assert scores.score("abcd", text).greedy
    assert not any(scores.score("abcd", neighbour(text, i)).greedy for i in range(2))


def test_a_masked_score_is_the_bound_of_the_continuation(make_config, make_model):
    """By enumeration: of two tokens one is masked, or both; t integrates out for a network that knows no time."""
    model = make_model(make_config(process={"time_conditioning": False}), seed=3)
    log_probs = log_probs_of(model)
    context, continuation = "ab", "xy"
    given, wanted = BYTES.encode(context), BYTES.encode(continuation)

    def loss(masks):
        shown = [V if masked else id for id, masked in zip(wanted, masks, strict=True)]
        logp = log_probs([*given, *shown])
        return -sum(logp[len(given) + i, wanted[i]] for i in range(2) if masks[i])

    # integral of (1/t) t^k (1-t)^(n-k) dt = B(k, n-k+1)
    bound = sum(
        math.gamma(k) * math.gamma(3 - k) / math.gamma(3) * loss(masks)
        for masks in itertools.product([False, True], repeat=2)
        if (k := sum(masks))
    )
    found = Conditional(model, draws=4000, batch_size=500).score(context, continuation)
    assert 0 < found.standard_error < 0.05 * bound
    assert -found.logp == pytest.approx(bound, abs=4 * found.standard_error)


def test_a_score_depends_on_its_own_request_alone(make_config, make_model):
    model = make_model(make_config())
    one, other = Conditional(model, draws=4), Conditional(model, draws=4)
    other.score("something", " else")
    assert one.score("abc", "de") == other.score("abc", "de")
    assert one.score("abc", "defg") != Conditional(model, draws=4, seed=1).score("abc", "defg")


def test_draws_of_masks_vary_little(make_config, make_model):
    """Against draws of times: a uniform model has no variance, and a number of masks its own share of the draws."""
    found = Conditional(make_model(make_config(), scale=0.0), draws=3).score("abc", "defg")
    assert found.logp == pytest.approx(-4 * math.log(V), rel=1e-5) and found.standard_error < 1e-3
    assert Conditional(make_model(make_config()), draws=1).score("abc", "de").standard_error is None
    for seed in range(5):
        assert np.bincount(mask_counts(4, 12, seed)).tolist() == [0, 3, 3, 3, 3]
    assert set(mask_counts(4, 2, 0) // 3) == {0, 1} and mask_counts(1, 2, 0).tolist() == [1, 1]


def test_the_context_matters_and_long_ones_lose_their_beginning(make_config, make_model):
    model = make_model(make_config())
    scores = Conditional(model, draws=4)
    assert scores.score("abc", "de").logp != pytest.approx(scores.score("abd", "de").logp)
    long = "0123456789abcdefghij"
    assert scores.score(long, "de") == scores.score(long[-14:], "de")


def test_greedy_is_the_most_certain_first(make_config, make_model):
    """Walked by hand; the text so found is the one that counts as greedy, and its neighbours are not."""
    model = make_model(make_config(process={"time_conditioning": False}), seed=9, letters=True)
    log_probs = log_probs_of(model)
    tokens = [*BYTES.encode("abc"), V, V, V]
    places = []
    for _ in range(3):
        logp = log_probs(tokens)
        places.append(max((i for i in range(3, 6) if tokens[i] == V), key=lambda i: logp[i].max()))
        tokens[places[-1]] = int(logp[places[-1]].argmax())
    text = BYTES.decode(tokens[3:])
    at_once = BYTES.decode(log_probs([*BYTES.encode("abc"), V, V, V]).argmax(axis=-1)[3:])
    in_order = [*BYTES.encode("abc"), V, V, V]
    for i in range(3, 6):
        in_order[i] = int(log_probs(in_order)[i].argmax())
    others = {at_once, BYTES.decode(in_order[3:]), *(neighbour(text, i) for i in range(3))}
    assert places != [3, 4, 5] and len(others - {text}) == 5, "choose a seed to which the order makes a difference"
    scores = Conditional(model, draws=1)
    assert scores.score("abc", text).greedy
    assert not any(scores.score("abc", other).greedy for other in others)


def test_blocks_are_written_behind_the_truth(make_config, make_model):
    """In blocks of one the greedy text is a walk from left to right."""
    model = make_model(make_config(process={"block_size": 1, "time_conditioning": False}), letters=True)
    streams = jax.jit(lambda noisy, clean: model.denoiser.two_streams(noisy, clean, jnp.ones((1, 8)), block_size=1))
    text = "abcd"
    for i in range(4, 8):
        clean = jnp.asarray(BYTES.encode(text.ljust(8)))[None]
        text += BYTES.decode([int(jnp.argmax(streams(jnp.full_like(clean, V), clean)[0, i]))])
    scores = Conditional(model, draws=1)
    assert scores.score("abcd", text[4:]).greedy
    assert not any(scores.score("abcd", neighbour(text[4:], i)).greedy for i in range(4))


def test_rolling_is_the_likelihood_of_the_rows(make_config, make_model):
    text = "the owl eats a mouse, and that is all"
    for more in ({}, AR):
        model = make_model(make_config(**more))
        rows = document_rows([text], model.config.data, BYTES)
        expected = -Estimator(model)(rows, draws=3, seed=2, batch_size=4).nats
        scores = Conditional(model, draws=3, seed=2, batch_size=4)
        assert scores.rolling(text) == pytest.approx(expected)
        assert scores.rolling("") == 0.0


@pytest.mark.parametrize("more", [{}, {"process": {"kind": "autoregressive"}, "model": {"direction": "causal"}}])
def test_pairs_answer_their_source(make_config, make_model, more):
    """The whole target counts: the text, its end, and its padding as far as it is learned."""
    uniform = make_model(make_config(data=pair_data(), **more), scale=0.0)
    found = Conditional(uniform, draws=400, batch_size=100).score("what?", "owls")
    assert -found.logp == pytest.approx(8 * math.log(V), abs=max(4 * found.standard_error, 1e-3))
    request = Conditional(uniform, draws=1)._request("0123456789", "owls")
    assert request.rows["tokens"][0].tolist() == [*BYTES.encode("3456789"), EOS, *BYTES.encode("owls"), EOS, *[PAD] * 3]
    assert request.continuation.tolist() == [False] * 8 + [True] * 5 + [False] * 3
    if not more:  # a masked model has to learn its padding
        return
    process = more.get("process", {}) | {"loss_on_padding": False}
    quiet = make_model(make_config(data=pair_data(), process=process, model=more.get("model", {})), scale=0.0)
    found = Conditional(quiet, draws=400, batch_size=100).score("what?", "owls")
    assert -found.logp == pytest.approx(5 * math.log(V), abs=max(4 * found.standard_error, 1e-3))


def test_what_cannot_be_scored(make_config, make_model):
    scores = Conditional(make_model(make_config()), draws=1)
    with pytest.raises(ConfigError, match="is empty"):
        scores.score("abc", "")
    with pytest.raises(ConfigError, match="20 tokens, and a row of this model has room for 16"):
        scores.score("abc", "x" * 20)
    pairs = Conditional(make_model(make_config(data=pair_data())), draws=1)
    with pytest.raises(ConfigError, match="room for 7"):
        pairs.score("abc", "x" * 8)
    with pytest.raises(ConfigError, match="no text by itself"):
        pairs.rolling("abc")
