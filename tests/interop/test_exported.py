"""An exported folder is the model: it samples the same, tells nothing of the machine, and refuses what is not whole."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from dimba_jax import evaluate, export, sample
from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.config import from_config_dict, to_dict
from dimba_jax.data.pieces import SentencePieceTokenizer, train_sentencepiece
from dimba_jax.data.tokenizers import ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.diffusion.gaussian import make_gaussian
from dimba_jax.interop.exported import NO_PLACE
from dimba_jax.models.build import make_denoiser
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.load import load

MODEL = {"d_model": 16, "layers": 2, "head_dim": 8, "state_dim": 4, "chunk": 4, "expand": 1, "dtype": "bfloat16"}
DATA = {"source_length": 6, "target_length": 5, "normalize": "none", "path": "/home/somebody/data"}
GAUSSIAN = from_config_dict({
    "data": DATA, "model": MODEL | {"embedding_dim": 8, "prompt_encoder": "mixer", "pooled_prompt": True},
    "process": {"timesteps": 10, "schedule": "learned"}, "sampling": {"steps": 3, "batch_size": 2},
})  # fmt: skip
MASKED = from_config_dict({
    "data": DATA,
    "model": MODEL | {
        "pattern": ["mamba", "attention"], "modulation": "adaln_zero", "self_conditioning": False, "head": "untied",
    },
    "process": {"kind": "masked", "schedule": "log_linear"},
    "sampling": {"sampler": "confidence", "steps": 3, "batch_size": 2, "temperature": 1.0},
})  # fmt: skip
TEXTS = ["how do i learn to swim ?", "where can i learn how to swim well ?", "who was the first to swim so far ?"] * 9
PROMPTS = ["swim", "how far ?"]


def saved(folder, config, tokenizer):
    """The workdir of a run that was not trained."""
    network = make_denoiser(config, tokenizer.vocab_size, nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    process = make_process(config.process, tokenizer.vocab_size)
    if config.process.kind == "gaussian":
        t = jnp.linspace(0.01, 1.0, 500, dtype=jnp.float32)
        process = make_gaussian(config.process).update(t, t**3)
    with Checkpoints(folder) as checkpoints:
        state = {"params": jax.tree.map(lambda leaf: 1.5 * leaf, params), "ema": params, "process": process}
        checkpoints.save(7, state, data_state=None, config=to_dict(config), tokenizer=tokenizer.to_dict())
    return folder


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    pieces = SentencePieceTokenizer(train_sentencepiece(TEXTS, 60))
    return saved(tmp_path_factory.mktemp("gaussian"), GAUSSIAN, pieces)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("masked"), MASKED, ByteTokenizer())


@pytest.fixture(scope="module")
def folder(masked, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported") / "model"
    assert run(f"--checkpoint={masked}", f"--output={place}") == 0
    return place


def run(*options):
    return export.main(["export", *map(str, options)])


def texts(place, **how):
    model = load(place, **how)
    return [made.texts for made in generate(model, PROMPTS, model.config.sampling, seed=1)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gaussian", "masked"])
def test_it_samples_the_same(kind, dtype, request, tmp_path, capsys):
    workdir = request.getfixturevalue(kind)
    assert run(f"--checkpoint={workdir}", f"--output={tmp_path / 'model'}", f"--dtype={dtype}") == 0
    names = {"model.safetensors", "config.json", "README.md"} | ({"tokenizer.model"} if kind == "gaussian" else set())
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    assert "step 7" in capsys.readouterr().out
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "model", moved)
    there, here = load(workdir), load(moved)
    assert here.step == 7
    if dtype == "float32":
        leaves = zip(*(jax.tree.leaves(nnx.state(m.denoiser, nnx.Param)) for m in (there, here)), strict=True)
        assert all(bool(jnp.array_equal(a, b)) for a, b in leaves)
    process = zip(jax.tree.leaves(there.process), jax.tree.leaves(here.process), strict=True)
    assert all(bool(jnp.array_equal(a, b)) for a, b in process)
    assert texts(moved) == texts(workdir)


def test_halves_take_less_room_and_only_where_nothing_changes(masked, tmp_path, capsys):
    sizes = []
    for dtype in ("float32", "bfloat16"):
        assert run(f"--checkpoint={masked}", f"--output={tmp_path / dtype}", f"--dtype={dtype}") == 0
        sizes.append((tmp_path / dtype / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]
    whole = from_config_dict(to_dict(MASKED) | {"model": to_dict(MASKED)["model"] | {"dtype": "float32"}})
    saved(tmp_path / "run", whole, ByteTokenizer())
    assert run(f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'x'}", "--dtype=bfloat16") == 2
    assert "computes in float32" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_parameters_as_trained(masked, tmp_path):
    assert run(f"--checkpoint={masked}", f"--output={tmp_path / 'raw'}", "--noema") == 0
    assert texts(tmp_path / "raw") == texts(masked, ema=False) != texts(masked)
    with pytest.raises(CheckpointError, match="parameters as trained, without their average"):
        load(tmp_path / "raw", ema=True)
    assert run(f"--checkpoint={tmp_path / 'raw'}", f"--output={tmp_path / 'again'}") == 0
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "raw" / "config.json").read_text()
    assert "as trained" in (tmp_path / "again" / "README.md").read_text()


def test_a_model_can_be_exported_again(folder, tmp_path):
    assert run(f"--checkpoint={folder}", f"--output={tmp_path / 'again'}") == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_commands_take_it(folder, tmp_path, capsys):
    assert sample.main(["sample", f"--checkpoint={folder}", "--prompt=swim"]) == 0
    (tmp_path / "test.jsonl").write_text(json.dumps({"src": "swim", "trg": "far"}) + "\n")
    output = tmp_path / "eval.json"
    options = [f"--checkpoint={folder}", f"--data_path={tmp_path}", f"--output={output}", "--nounseen"]
    assert evaluate.main(["evaluate", *options]) == 0
    capsys.readouterr()
    again = tmp_path / "again"
    assert run(f"--checkpoint={folder}", f"--output={again}", f"--reports={output}", "--license=other") == 0
    card = (again / "README.md").read_text(encoding="utf-8")
    assert "license: other" in card and "BLEU-src" in card and "copy" in card


def test_nothing_of_the_machine_is_in_it(folder):
    for path in folder.iterdir():
        assert b"somebody" not in path.read_bytes(), path
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| started from | random weights |" in card
    assert card.startswith("---\nlibrary_name: dimba_jax\n") and "license:" not in card
    assert "Masked (absorbing) diffusion on a bidirectional (untied) Mamba and attention network: 2 layers" in card
    assert f"--checkpoint={folder.name} " in card


def test_the_card_tells_of_pretrained_weights(tmp_path):
    values = to_dict(MASKED)
    values["training"] |= {"init_from": "/home/somebody/mamba2"}
    saved(tmp_path / "run", from_config_dict(values), ByteTokenizer())
    for source, place in (("run", "model"), ("model", "again")):
        assert run(f"--checkpoint={tmp_path / source}", f"--output={tmp_path / place}") == 0
        text = (tmp_path / place / "README.md").read_text()
        assert "pretrained weights, whose terms apply too" in text and "somebody" not in text


def test_the_card_tells_of_teachers(tmp_path):
    """Their terms apply, too; and where they lay stays on the machine they taught on."""
    values = to_dict(MASKED)
    values["training"] |= {"teachers": "/home/somebody/a,/home/somebody/b"}
    values["process"] |= {"distillation": 0.5}
    saved(tmp_path / "run", from_config_dict(values), ByteTokenizer())
    for source, place in (("run", "model"), ("model", "again")):
        assert run(f"--checkpoint={tmp_path / source}", f"--output={tmp_path / place}") == 0
        text = (tmp_path / place / "README.md").read_text()
        assert "| learned from | its data, and trained models, whose terms apply too |" in text
        assert all(b"somebody" not in path.read_bytes() for path in (tmp_path / place).iterdir())
    assert load(tmp_path / "again").config.process.distillation == 0.5


def test_scores_of_several_models_are_not_on_the_card_of_one(masked, tmp_path, capsys):
    for made in ({"ensemble": [["b", 3]]}, {"samples": ["a.examples.jsonl", "b.examples.jsonl"]}):
        report = {"metadata": made, "split": "test", "rows": 1, "systems": {}, "unseen": None}
        (tmp_path / "report.json").write_text(json.dumps(report))
        flags = (f"--checkpoint={masked}", f"--output={tmp_path / 'model'}", f"--reports={tmp_path / 'report.json'}")
        assert run(*flags) == 2
        assert "report.json scores several models together, and the card is of one" in capsys.readouterr().err


def test_a_step_that_is_not_there(folder):
    assert load(folder, step=7).step == 7
    with pytest.raises(FileNotFoundError, match="holds step 7 alone, and not step 3"):
        load(folder, step=3)


def test_nothing_is_overwritten(masked, folder, tmp_path, capsys):
    before = (folder / "model.safetensors").read_bytes()
    assert run(f"--checkpoint={masked}", f"--output={folder}") == 2
    assert "is there already" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("x")
    assert run(f"--checkpoint={masked}", f"--output={tmp_path / 'file'}") == 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert run(f"--checkpoint={masked}", f"--output={tmp_path / 'link'}") == 2
    assert run(f"--checkpoint={masked}", f"--output={tmp_path / 'empty'}") == 0


def edit(place, change):
    values = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(change(values)))


def weights(place, change):
    found = load_file(place / "model.safetensors")
    save_file(change(found), place / "model.safetensors")


NAME = "params/head/kernel"
DAMAGES = {
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "holds no model.safetensors"),
    "a cut file": (
        lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:-9]),
        "cannot be read as safetensors",
    ),
    "an array less": (lambda at: weights(at, lambda w: {k: v for k, v in w.items() if k != NAME}), NAME),
    "another shape": (lambda at: weights(at, lambda w: w | {NAME: np.ones((3, 3), np.float32)}), NAME),
    "another model": (lambda at: edit(at, lambda v: v | {"config": to_dict(GAUSSIAN)}), "not of the model"),
    "an unknown setting": (lambda at: edit(at, lambda v: v | {"config": {"modell": {}}}), "modell"),
    "a later format": (lambda at: edit(at, lambda v: v | {"format": 2}), "install a newer one"),
    "another library's": (lambda at: edit(at, lambda v: {"model_type": "bert"}), "is not what"),
    "no step": (lambda at: edit(at, lambda v: v | {"step": "x"}), "expected a whole number"),
    "no word of averages": (lambda at: edit(at, lambda v: v | {"averaged": "no"}), "expected true or false"),
    "no JSON": (lambda at: (at / "config.json").write_text("{"), "not JSON"),
    "no tokenizer": (lambda at: edit(at, lambda v: v | {"tokenizer": "sentencepiece"}), "tokenizer.model is missing"),
    "a strange tokenizer": (lambda at: edit(at, lambda v: v | {"tokenizer": ["x"]}), "expected 'sentencepiece'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_refused(damage, folder, tmp_path, capsys):
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    spoil, message = DAMAGES[damage]
    spoil(place)
    with pytest.raises(CheckpointError, match=message):
        load(place)
    assert sample.main(["sample", f"--checkpoint={place}", "--prompt=swim"]) == 2


def test_a_tokenizer_elsewhere_is_not_followed(gaussian, tmp_path):
    place = tmp_path / "model"
    assert run(f"--checkpoint={gaussian}", f"--output={place}") == 0
    shutil.move(place / "tokenizer.model", tmp_path / "tokenizer.model")
    (place / "tokenizer.model").symlink_to(tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match="is a link to .* outside of the folder"):
        load(place)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--checkpoint is missing"),
        (["--checkpoint=W"], "--output is missing"),
        (["--checkpoint=W", "--output=x", "--dtype=float16"], "float16"),
        (["--checkpoint=W", "--output=x", "--reports=nowhere.json"], "nowhere.json: no such file"),
        (["--checkpoint=W", "--output=x", "--license=a: b"], "give an identifier"),
        (["--checkpoint=nowhere", "--output=x"], "holds no checkpoint"),
    ],
)
def test_wrong_options(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*options) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_a_report_of_something_else(folder, tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps({"task": "likelihood"}))
    assert run(f"--checkpoint={folder}", f"--output={tmp_path / 'x'}", f"--reports={tmp_path / 'r.json'}") == 2
    assert "is no report of evaluate" in capsys.readouterr().err


def test_its_layers_may_run_one_by_one(folder):
    scanned, unrolled = load(folder), load(folder, scan_layers=False)
    assert scanned.config.model.scan_layers and not unrolled.config.model.scan_layers
    assert scanned.denoiser.stack.scan_layers and not unrolled.denoiser.stack.scan_layers


def test_the_config_is_that_of_the_run(folder):
    config = load(folder).config
    assert config.data.path == NO_PLACE
    assert dataclasses.replace(config, data=dataclasses.replace(config.data, path=DATA["path"])) == MASKED


def test_data_that_stayed_behind_is_not_replaced_by_other_data(tmp_path, capsys):
    """A model of text without a path reads the standard library's source."""
    values = to_dict(MASKED)
    values["data"] |= {"source": "text", "source_length": 0, "target_length": 8}
    saved(tmp_path / "run", from_config_dict(values), ByteTokenizer())
    assert run(f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'model'}") == 0
    options = [f"--checkpoint={tmp_path / 'model'}", "--task=likelihood", "--draws=1"]
    assert evaluate.main(["evaluate", *options]) == 2
    assert NO_PLACE in capsys.readouterr().err
