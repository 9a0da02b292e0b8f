"""Trained models that write together: their calls, what they write, and models that cannot be averaged."""

import json

import jax
import numpy as np
import pytest
from known_network import SOURCE, TABLE, Known, config_of, rows, run, watched
from saved_models import save_model, saved_config
from tiny_denoisers import tiny_model

from dimba_jax import sample
from dimba_jax.config import ConfigError
from dimba_jax.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, train_sentencepiece
from dimba_jax.models.ensemble import Ensemble
from dimba_jax.sampling.ensemble import check_alike, with_others
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.load import LoadedModel, load


def knowing(watch, count):
    """An ensemble of networks with tables of their own."""
    tables = [np.random.default_rng(seed).normal(size=TABLE.shape) for seed in range(count)]
    return Ensemble([Known(SOURCE, table, watch) for table in tables])


@pytest.mark.parametrize(
    "settings, calls_of_each",
    [
        ({"sampler": "confidence", "steps": 3}, 3),
        ({"sampler": "confidence", "steps": 3, "guidance": 2.0}, 6),
        ({"sampler": "confidence", "steps": 3, "length": "first"}, 4),
        ({"sampler": "ancestral", "steps": 40, "reuse_logits": True}, None),
        ({"sampler": "low_confidence", "steps": 4, "guidance": 2.0}, 8),
    ],
    ids=lambda case: ",".join(map(str, case.values())) if isinstance(case, dict) else "",
)
def test_calls_are_those_of_all_networks(settings, calls_of_each, networks=3):
    calls, watch = watched()
    config = config_of(process={"condition_dropout": 0.2})
    found = run(config, network=knowing(watch, networks), **settings)
    jax.effects_barrier()
    assert int(found.network_calls) == len(calls)
    assert len(calls) == networks * calls_of_each if calls_of_each else len(calls) % networks == 0 < len(calls)
    tokens, editable, _ = rows()
    np.testing.assert_array_equal(np.asarray(found.tokens)[~editable], tokens[~editable])


def test_a_network_and_its_copy_write_what_it_writes():
    config = config_of()
    for settings in ({"sampler": "confidence", "temperature": 0.0}, {"sampler": "ancestral"}):
        alone = run(config, network=Known(SOURCE, TABLE), **settings)
        pair = run(config, network=Ensemble([Known(SOURCE, TABLE), Known(SOURCE, TABLE)]), **settings)
        np.testing.assert_array_equal(alone.tokens, pair.tokens)
        assert 2 * int(alone.network_calls) == int(pair.network_calls)


@pytest.mark.parametrize(
    "more, settings",
    [
        ({}, {"block_size": 3}),
        ({}, {"cache": "dual", "block_size": 3}),
        ({}, {"cache": "prefix", "block_size": 3}),
        ({"model": {"direction": "causal"}}, {"block_size": 3}),
        ({"process": {"block_size": 2}}, {}),
    ],
)
def test_an_ensemble_writes_whole_rows_alone(more, settings):
    with pytest.raises(ConfigError, match="an ensemble writes the whole row at once: set block_size=0 and cache="):
        run(config_of(**more), network=knowing(None, 2), **settings)


def test_logits_are_not_reused_if_any_network_is_told_the_time():
    """Logits of a step whose tokens are the last one's are the same only without t, which the first model may lack."""
    untimed, _, config = tiny_model(source=SOURCE, target=6, vocab=9, time_conditioning=False)
    timed, _, _ = tiny_model(source=SOURCE, target=6, vocab=9, seed=1)
    settings = {"sampler": "ancestral", "steps": 4, "reuse_logits": True}
    with pytest.raises(ConfigError, match="reuse_logits needs networks .*time_conditioning=False"):
        run(config, network=Ensemble([untimed, timed]), **settings)
    found = run(config_of(), network=knowing(None, 2), **settings)
    assert int(found.network_calls) in range(2, 9, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Workdirs of models of which each pair can be averaged (a, b, and n with other layers), and of others."""
    place = tmp_path_factory.mktemp("models")
    config = saved_config()
    save_model(place / "a", config, step=3, says={"k": 0.5, "m": 0.4})
    save_model(place / "b", config, seed=1, step=5, says={"z": 0.5, "m": 0.4})
    mamba = {"pattern": ("mamba2",), "state_dim": 4, "mlp_ratio": 0.0, "chunk": 4}
    save_model(place / "n", saved_config(model=mamba), step=2, says={"m": 0.4, "q": 0.5})
    for kind in ("blocks", "autoregressive", "gaussian"):
        save_model(place / kind, saved_config(kind))
    save_model(place / "longer", saved_config(data={"target_length": 6}))
    save_model(place / "source", saved_config(data={"source_length": 5}))
    save_model(place / "lower", saved_config(data={"normalize": "lower"}))
    save_model(place / "cosine", saved_config(process={"schedule": "cosine"}))
    save_model(place / "hidden", saved_config(process={"condition_dropout": 0.1}))
    words = [[f"{word} is number {i}?" for i in range(99)] for word in ("this", "that")]
    for name, texts in zip(("pieces", "others"), words, strict=True):
        pieces = SentencePieceTokenizer(train_sentencepiece(texts, 40))
        save_model(place / name, saved_config(), tokenizer=pieces)
    return place


def test_models_of_two_workdirs_write_with_their_mean(place):
    alone = load(place / "a")
    pair = with_others(alone, place / "a", [place / "b"])
    assert pair.others == ((str(place / "b"), 5),) and alone.others == ()
    assert pair.step == 3 and pair.config == alone.config and pair.denoiser.calls == 2
    one, both = (generate(model, ["ab", "c"], alone.config.sampling)[0] for model in (alone, pair))
    assert (one.texts, one.network_calls) == (("kkkk",), 2)
    assert (both.texts, both.network_calls) == (("mmmm",), 4)  # what neither thinks the most probable
    three = with_others(alone, place / "a", [place / "b", str(place / "n")])
    assert three.others == ((str(place / "b"), 5), (str(place / "n"), 2))
    assert generate(three, ["ab"], alone.config.sampling)[0].network_calls == 6
    for scan_layers in (True, False):
        other = with_others(alone, place / "a", [place / "b"], scan_layers=scan_layers).denoiser.networks[1]
        assert other.stack.scan_layers is scan_layers


def test_a_model_and_its_copy_in_another_folder(place, tmp_path):
    lively = [save_model(tmp_path / name, saved_config(), seed=4) for name in "xy"]
    alone = load(lively[0])
    pair = with_others(alone, lively[0], lively[1:])
    for prompt in ("ab", "hello"):
        assert generate(pair, [prompt], alone.config.sampling)[0].texts == generate(
            alone, [prompt], alone.config.sampling
        )[0].texts  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": {"text": {"layout": "padded"}}}, "data.text.layout='padded', one 'packed'"),
        ({"process": {"loss_on_padding": False}}, "process.loss_on_padding=False, one True"),
    ],
)
def test_models_of_text_that_read_padding_in_another_way(change, message):
    text = {"source": "text", "source_length": 0}
    one = saved_config(data=text)
    other = saved_config(data=text | change.get("data", {}), process=change.get("process", {}))
    check_alike(LoadedModel(None, None, ByteTokenizer(), one, 1), "two", one, ByteTokenizer(), "one")
    with pytest.raises(ConfigError, match=f"two has {message}: they must have the same"):
        check_alike(LoadedModel(None, None, ByteTokenizer(), other, 1), "two", one, ByteTokenizer(), "one")


@pytest.mark.parametrize(
    "first, other, message",
    [
        ("a", "a", "{a} is named twice: an ensemble is of different models"),
        ("a", "b/../a", "is named twice"),
        ("a", "gaussian", "{gaussian} (gaussian): distributions are averaged and learned from over whole rows of"),
        ("gaussian", "a", "{gaussian} (gaussian): distributions are averaged"),
        ("a", "autoregressive", "{autoregressive} (autoregressive): distributions are averaged"),
        ("a", "blocks", "{blocks} (blocks of 2): distributions are averaged"),
        ("a", "longer", "{longer} has data.target_length=6, {a} 4: they must have the same"),
        ("a", "source", "{source} has data.source_length=5, {a} 4: they must have the same"),
        ("a", "lower", "{lower} has data.normalize='lower', {a} 'none': they must have the same"),
        ("a", "cosine", "{cosine} has process.schedule='cosine', {a} 'log_linear': they must have the same"),
        ("a", "hidden", "{hidden} has process.condition_dropout > 0=True, {a} False: they must have the same"),
        ("a", "pieces", "{pieces} and {a} have different tokenizers: train on the same data with the same config"),
        ("pieces", "others", "{others} and {pieces} have different tokenizers"),
    ],
)
def test_models_that_cannot_be_averaged(place, capsys, first, other, message):
    message = message.replace("{", str(place) + "/").replace("}", "")
    with pytest.raises(ConfigError) as error:
        with_others(
            load(place / first), place / first, [place / "b", place / other] if first == "a" else [place / other]
        )
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sample.main(["sample", f"--checkpoint={place / first}", f"--ensemble={place / other}", "--prompt=q"]) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.splitlines()) == 1 and said.out == ""


def test_others_must_be_named_and_be_there(place):
    model = load(place / "a")
    with pytest.raises(ConfigError, match="an ensemble needs further models"):
        with_others(model, place / "a", [])
    with pytest.raises(FileNotFoundError, match="none holds no checkpoint"):
        with_others(model, place / "a", [place / "none"])
    assert not (place / "none").exists()


@pytest.mark.parametrize("way", ["--ensemble={b},{n}", "--ensemble={b} {n}", "--ensemble={b} --ensemble={n}"])
def test_the_command_samples_with_several(place, tmp_path, way):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"src": "ab"}\n')
    names = {name: place / name for name in "bn"}
    given = [part.format(**names) for part in way.split(" ")]
    flags = [f"--checkpoint={place / 'a'}", f"--input={source}", f"--output={output}"]
    assert sample.main(["sample", *flags, *given]) == 0
    (line,) = (json.loads(text) for text in output.read_text().splitlines())
    assert line == {"src": "ab", "samples": ["mmmm"], "network_calls": 6}
    made = json.loads((tmp_path / "out.run.json").read_text())
    assert made["ensemble"] == [[str(place / "b"), 5], [str(place / "n"), 2]]
    assert (made["checkpoint"], made["step"]) == (str(place / "a"), 3)


@pytest.mark.parametrize("flag, scanned", [([], True), (["--noscan_layers"], False)])
def test_the_command_has_the_layers_of_all_models_as_it_is_told(place, monkeypatch, flag, scanned):
    found = []

    def spy(model, *given, **more):
        found.extend(network.stack.scan_layers for network in model.denoiser.networks)
        return generate(model, *given, **more)

    monkeypatch.setattr("dimba_jax.sampling.generate.generate", spy)
    models = [f"--checkpoint={place / 'a'}", f"--ensemble={place / 'b'}"]
    assert sample.main(["sample", *models, "--prompt=ab", *flag]) == 0
    assert found == [scanned] * 2


def test_the_command_says_what_it_cannot_do(place, tmp_path, capsys):
    a, b = place / "a", place / "b"
    for flags, message in (
        ([f"--ensemble={b}", "--prompt=q"], "--checkpoint=WORKDIR is missing"),
        ([f"--checkpoint={a}", "--ensemble=", "--prompt=q"], "an ensemble needs further models"),
        ([f"--checkpoint={a}", f"--ensemble={b}", "--prompt=q", "--block_size=2"], "set block_size=0 and cache='none'"),
        ([f"--checkpoint={a}", f"--ensemble={place / 'none'}", "--prompt=q"], "none holds no checkpoint"),
    ):
        assert sample.main(["sample", *flags]) == 2
        said = capsys.readouterr()
        assert message in said.err and len(said.err.splitlines()) == 1 and said.out == ""
    source = tmp_path / "in.jsonl"
    source.write_text('{"src": "ab"}\n')
    alone = [f"--checkpoint={a}", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}"]
    assert sample.main(["sample", *alone]) == 0
    assert "ensemble" not in json.loads((tmp_path / "out.run.json").read_text())
