"""From prompts to texts, around a network whose answers are known."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from dimba_jax.sampling.generate import generate

PROMPTS = ["one", "Two", "three", "a b", "x"]


def test_texts_calls_and_stages(make_model):
    model = make_model("dad")
    found = generate(model, PROMPTS, model.config.sampling, stages=3)
    assert [of.prompt for of in found] == PROMPTS
    assert {of.texts for of in found} == {("dad",)}
    assert {of.network_calls for of in found} == {5}
    assert all(len(of.trajectory) == 3 and of.trajectory[-1] == "dad" != of.trajectory[0] for of in found)
    assert generate(model, [], model.config.sampling) == []


def settings_of(model, **more):
    return dataclasses.replace(model.config.sampling, sampler="ddpm", clamp_from=0.0, **more)


def test_texts_do_not_depend_on_the_batch_size_or_on_other_prompts(make_model):
    model = make_model(pull=1.0, sampling={"steps": 1})  # at t=1 it answers with the noise: each text is its row's own
    found = {
        size: generate(model, PROMPTS, settings_of(model, batch_size=size, num_samples=3), seed=5)
        for size in (1, 4, 64)
    }
    assert found[1] == found[4] == found[64]
    texts = [text for of in found[4] for text in of.texts]
    assert len(set(texts)) == 15
    assert generate(model, PROMPTS[:2], settings_of(model, batch_size=4, num_samples=3), seed=5) == found[4][:2]
    fewer = generate(model, PROMPTS, settings_of(model, batch_size=4, num_samples=2), seed=5)
    assert [of.texts for of in fewer] == [of.texts[:2] for of in found[4]]
    assert generate(model, PROMPTS, settings_of(model, batch_size=4, num_samples=3), seed=6) != found[4]


def test_a_key_is_folded_from_seed_prompt_and_sample(make_model):
    starts = []
    model = make_model(watch=lambda z, t, x0: starts.append((float(t[0]), np.asarray(z))))
    generate(model, ["a", "b"], dataclasses.replace(model.config.sampling, num_samples=2, steps=1), seed=3)
    jax.effects_barrier()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 0)  # prompt 1, sample 0: row 2
    noise = jax.random.normal(jax.random.fold_in(key, 0), (14, 16))
    np.testing.assert_array_equal(starts[0][1][2, 8:], noise[8:])
    # and each row has its own prompt's source, samples of a prompt side by side
    sources = starts[0][1][:, :8]
    expected = model.denoiser.table()[np.asarray([[3 + ord(letter), 1, *[0] * 6] for letter in "aabb"])]
    np.testing.assert_array_equal(sources, expected)


def test_the_last_batch_does_not_compile_anew(make_model):
    traces = []
    model = make_model(on_trace=lambda shape: traces.append(shape))
    generate(model, PROMPTS, dataclasses.replace(model.config.sampling, batch_size=3))
    assert traces == [(3, 14, 16)]
    generate(model, PROMPTS[:1], dataclasses.replace(model.config.sampling, batch_size=64))  # no larger than needed
    assert traces[1:] == [(1, 14, 16)]


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_an_error(make_model, prompt):
    model = make_model()
    with pytest.raises(ValueError, match="prompt 2 of 2 is empty"):
        generate(model, ["a", prompt], model.config.sampling)


def test_settings_must_fit_the_model(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="steps=21: the model's process has 20"):
        generate(model, ["a"], dataclasses.replace(model.config.sampling, steps=21))
    with pytest.raises(ValueError, match="guidance=2.0 needs a model trained with process.condition_dropout"):
        generate(model, ["a"], dataclasses.replace(model.config.sampling, guidance=2.0))
    model = make_model(process={"condition_dropout": 0.1})
    assert generate(model, ["a"], dataclasses.replace(model.config.sampling, guidance=2.0))[0].network_calls == 10


def test_a_long_prompt_is_cut_with_a_warning(make_model, caplog):
    model = make_model()
    with caplog.at_level(logging.WARNING):
        generate(model, ["1234567", "1234567890"], model.config.sampling)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 prompts cut to the 7 tokens that fit the source; the longest has 10 and lost its last 3"
    ]


def test_progress_is_shown_if_asked_for(make_model, capsys):
    model = make_model()
    generate(model, PROMPTS, model.config.sampling)
    assert capsys.readouterr().err == ""
    generate(model, PROMPTS, model.config.sampling, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_a_masked_model_of_pairs(make_model, monkeypatch):
    import dimba_jax.sampling.generate as module
    from dimba_jax.sampling.discrete.loop import TokenSample

    masked = {"kind": "masked", "schedule": "log_linear"}
    model = make_model(process=masked, model={"self_conditioning": False}, sampling={"sampler": "confidence"})
    seen = []

    def sample_tokens(denoiser, process, tokens, editable, visible, keys, settings, *, config, stages=0):
        seen.append((np.asarray(tokens), np.asarray(editable), np.asarray(visible), keys))
        answer = np.asarray([*model.tokenizer.encode("dad"), 1, 0, 0])
        found = np.where(editable, np.concatenate([np.zeros(8, int), answer]), tokens)
        masks = np.where(np.asarray(editable), process.mask_id, tokens)
        return TokenSample(found, np.int32(7 + len(seen)), np.stack([masks, found]))

    monkeypatch.setattr(module, "sample_tokens", sample_tokens)
    found = generate(model, PROMPTS, dataclasses.replace(model.config.sampling, num_samples=2), seed=3, stages=2)
    assert {of.texts for of in found} == {("dad", "dad")}
    assert found[0].trajectory == ("▯" * 6, "dad") and found[0].steps == 5
    assert [of.network_calls for of in found] == [8, 8, 9, 9, 10]  # of the batches of 4 that its rows were in
    tokens, editable, visible, keys = seen[0]
    assert editable[:, 8:].all() and not editable[:, :8].any()
    np.testing.assert_array_equal(tokens[2, :5], [*model.tokenizer.encode("two"), 1, 0])
    assert visible[2].tolist() == [True] * 4 + [False] * 4 + [True] * 6  # target padding is seen, the source's not
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 0)
    assert (jax.random.key_data(keys[2]) == jax.random.key_data(expected)).all()
    with pytest.raises(ValueError, match="early_exit=2 is for Gaussian"):
        generate(model, PROMPTS, dataclasses.replace(model.config.sampling, early_exit=2))
