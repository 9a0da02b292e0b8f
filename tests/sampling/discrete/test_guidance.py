"""Guidance of masked models: towards the prompt, which is hidden as training hid it."""

import jax
import jax.numpy as jnp
import numpy as np
from known_network import MASK, SOURCE, TABLE, Known, config_of, rows, run, text_config, watched

from dimba_jax.sampling.discrete.guidance import guided


def test_guided_log_probabilities():
    c, u = np.random.default_rng(0).normal(size=(2, 1, 1, 5))
    logp = lambda x: x - np.log(np.exp(x).sum())  # noqa: E731
    np.testing.assert_allclose(guided(jnp.asarray(c), jnp.asarray(u), 3.0), 3 * logp(c) - 2 * logp(u), atol=1e-5)
    np.testing.assert_allclose(guided(jnp.asarray(c), jnp.asarray(u + 7), 1.0), logp(c), atol=1e-5)


def test_the_prompt_is_hidden_as_training_hid_it():
    calls, watch = watched()
    config = config_of(process={"condition_dropout": 0.2})
    tokens, editable, visible = rows()
    visible[:, 2] = False
    run(config, (tokens, editable, visible), network=Known(SOURCE, TABLE, watch), guidance=2.0, sampler="confidence")
    jax.effects_barrier()
    assert len(calls) == 8
    for (given, t, shown), (bare, t_bare, shown_bare) in zip(calls[::2], calls[1::2], strict=True):
        np.testing.assert_array_equal(given[:, :SOURCE], tokens[:, :SOURCE])
        np.testing.assert_array_equal(given[:, SOURCE:], bare[:, SOURCE:])
        np.testing.assert_array_equal(shown, visible)
        np.testing.assert_array_equal(t, t_bare)
        np.testing.assert_array_equal(bare, given)
        assert not shown_bare[:, :SOURCE].any() and shown_bare[:, SOURCE:].all()


def test_guidance_of_running_text_masks_what_is_given():
    calls, watch = watched()
    tokens, editable, visible = rows(source=0)
    editable[:, :4] = False
    run(text_config(), (tokens, editable, visible), network=Known(0, TABLE, watch), guidance=1.5, steps=1)
    jax.effects_barrier()
    (given, _, _), (bare, _, shown) = calls
    assert (given[:, :4] == tokens[:, :4]).all() and (bare == MASK).all() and shown.all()


def test_guidance_moves_samples_towards_the_prompt():
    greedy = {"sampler": "confidence", "temperature": 0.0, "steps": 1}
    config = config_of(process={"condition_dropout": 0.2})
    plain, strong = (np.asarray(run(config, guidance=scale, **greedy).tokens) for scale in (1.0, 5.0))
    tokens, _, visible = rows()
    network = Known(SOURCE, TABLE)
    masked = np.where(np.arange(9) < SOURCE, tokens, MASK)
    hidden = visible & (np.arange(9) >= SOURCE)
    c, u = (jax.nn.log_softmax(network(jnp.asarray(masked), jnp.ones(4), visible=jnp.asarray(seen), first=SOURCE))
            for seen in (visible, hidden))  # fmt: skip
    np.testing.assert_array_equal(plain[:, SOURCE:], c.argmax(-1))
    np.testing.assert_array_equal(strong[:, SOURCE:], (u + 5 * (c - u)).argmax(-1))
    assert (plain != strong).any()
