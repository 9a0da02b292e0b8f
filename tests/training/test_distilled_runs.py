"""Runs beside a teacher, from its workdir: on several devices, gone on with, sampled without it, and refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from saved_models import save_model, saved_config

from dimba_jax import parallel
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import ConfigError, MeshConfig, from_config_dict
from dimba_jax.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, train_sentencepiece
from dimba_jax.sampling.generate import generate
from dimba_jax.sampling.load import load
from dimba_jax.training.loop import train
from dimba_jax.training.teachers import load_teachers

STEPS = 4


def run_config(data, teachers, steps=STEPS, **groups):
    """A student of the teachers, of rows in `data`; half of its loss is theirs."""
    settings = {
        "data": {"path": str(data)},
        "process": {"distillation": 0.5},
        "training": {
            "teachers": ",".join(map(str, teachers)), "steps": steps, "log_every": 1, "checkpoint_every": 2,
            "valid_batches": 1,
        },
        # a gradient near 0 would be blown up to a full step by the smallest epsilon, rounding and all
        "optimizer": {"warmup_steps": 1, "learning_rate": 1e-2, "epsilon": 1e-6, "schedule": "constant"},
    }  # fmt: skip
    for name, more in groups.items():
        settings[name] = settings.get(name, {}) | more
    return saved_config(**settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, two teachers of unlike layers, and the workdir of a student of both, trained on one device."""
    place = tmp_path_factory.mktemp("distilled")
    rows = [json.dumps({"src": f"q{i}", "trg": f"{i}a"}) + "\n" for i in range(16)]
    for split in ("train", "valid"):
        (place / f"{split}.jsonl").write_text("".join(rows))
    save_model(place / "a", saved_config(), seed=1, step=3)
    save_model(place / "b", saved_config(model={"pattern": ("attention", "attention"), "layers": 2}), seed=2)
    one_device(place, run_config(place, [place / "a", place / "b"]), place / "whole")
    return place


def one_device(place, config, workdir):
    make = parallel.make_mesh
    with pytest.MonkeyPatch.context() as patch:  # programs of eight take longer to compile
        patch.setattr(parallel, "make_mesh", lambda config: make(config, jax.devices()[:1]))
        return train(config, workdir)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def figures(workdir, name="loss"):
    return [line[name] for line in lines_of(workdir) if name in line]


def parameters(workdir):
    return leaves(load(workdir, ema=False).denoiser)


def leaves(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))]


def test_a_run_on_eight_devices_is_that_on_one(place, tmp_path):
    config = run_config(place, [place / "a", place / "b"], mesh={"data": 4, "fsdp": 2})
    teacher = load_teachers(config, ByteTokenizer(), parallel.make_mesh(config.mesh), tmp_path / "run").teacher
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(teacher.params))
    train(config, tmp_path / "run")
    losses = figures(place / "whole")
    assert figures(tmp_path / "run") == pytest.approx(losses, rel=1e-5) and len(set(losses)) == len(losses) >= STEPS
    for a, b in zip(parameters(tmp_path / "run"), parameters(place / "whole"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_run_goes_on_with_its_teachers_wherever_they_are(place, tmp_path):
    for name in "ab":
        shutil.copytree(place / name, tmp_path / name)
    teachers = [tmp_path / "a", tmp_path / "b"]
    one_device(place, run_config(place, teachers, steps=2), tmp_path / "run")
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="config.training.teachers: .*a holds no checkpoint"):
        one_device(place, run_config(place, teachers), tmp_path / "run")
    with pytest.raises(ConfigError, match="config.process.distillation: 0.5 in the checkpoint, 0.3 now"):
        one_device(place, run_config(place, [teachers[1]], process={"distillation": 0.3}), tmp_path / "run")
    one_device(place, run_config(place, [tmp_path / "moved", teachers[1]]), tmp_path / "run")
    for a, b in zip(parameters(tmp_path / "run"), parameters(place / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert figures(tmp_path / "run") == figures(place / "whole")


def test_a_run_goes_on_with_what_it_learned_from(place, tmp_path, capsys):
    """A teacher that has been trained on since is read at its old step; another one, or fewer, are refused."""
    for name in "ab":
        shutil.copytree(place / name, tmp_path / name)
    teachers = [tmp_path / "a", tmp_path / "b"]
    one_device(place, run_config(place, teachers, steps=2), tmp_path / "run")
    assert f"learning from {teachers[0]}, step 3 of 1" in capsys.readouterr().err
    save_model(tmp_path / "a", saved_config(), seed=7, step=9)
    one_device(place, run_config(place, teachers, steps=3), tmp_path / "run")
    assert figures(tmp_path / "run")[:3] == figures(place / "whole")[:3]
    save_model(tmp_path / "other", saved_config(), seed=7, step=3)
    for named, message in (
        ([tmp_path / "other", teachers[1]], "these are not the networks that this run has learned from"),
        (teachers[:1], "has learned from 2 teachers up to now"),
        ([tmp_path / "run", teachers[1]], "is the workdir of this run, which cannot learn from itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            one_device(place, run_config(place, named), tmp_path / "run")
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    one_device(place, run_config(place, teachers, steps=3), tmp_path / "run")  # nothing to train, nobody to learn from
    assert "nothing to train" in capsys.readouterr().err


def test_teachers_are_learned_from(place, tmp_path):
    """Each of them; without any, what differs is the training loss and then the parameters."""
    plain = run_config(place, [], process={"distillation": 0.0}, training={"teachers": "", "steps": 1})
    one_device(place, plain, tmp_path / "plain")
    one_device(place, run_config(place, [place / "a"], steps=1), tmp_path / "one")
    losses = [figures(workdir)[0] for workdir in (tmp_path / "plain", tmp_path / "one", place / "whole")]
    assert all(abs(a - b) > 1e-3 for a, b in zip(losses, losses[1:] + losses[:1], strict=True))
    bounds = [figures(workdir, "nelbo")[0] for workdir in (tmp_path / "plain", tmp_path / "one", place / "whole")]
    assert bounds == pytest.approx([bounds[0]] * 3, rel=1e-6)  # of the first step, whose parameters are the same


def test_a_distilled_model_needs_no_teacher(place, tmp_path):
    shutil.copytree(place / "whole", tmp_path / "whole")
    model = load(tmp_path / "whole")
    found = generate(model, ["q1"], model.config.sampling)[0]
    kept = {name: place / name for name in "ab"}
    for path in kept.values():
        path.rename(path.with_suffix(".away"))
    try:
        model = load(tmp_path / "whole")
        assert generate(model, ["q1"], model.config.sampling)[0] == found and found.network_calls == 2
    finally:
        for path in kept.values():
            path.with_suffix(".away").rename(path)


def test_the_mean_of_the_teachers_averaged_parameters_teaches(place):
    """Each as its own config samples: with averaged parameters unless that says otherwise; of its latest step."""
    mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    config = run_config(place, [f" {place / 'b'}", f"{place / 'a'} "])
    teacher, by = load_teachers(config, ByteTokenizer(), mesh, place / "run")
    assert by["steps"] == [1, 3]
    networks = nnx.merge(teacher.graph, teacher.params).networks
    for name, found in zip("ba", networks, strict=True):
        for leaf, wanted, other in zip(
            leaves(found), *(leaves(load(place / name, ema=ema).denoiser) for ema in (True, False)), strict=True
        ):
            np.testing.assert_array_equal(leaf, wanted)
            assert (leaf != other).any()
    plain = run_config(place, [], process={"distillation": 0.0}, training={"teachers": ""})
    assert load_teachers(plain, ByteTokenizer(), mesh, place / "run") == (None, None)


@pytest.mark.parametrize(
    "kind, groups, message",
    [
        ("blocks", {}, r"refused \(blocks of 2\): distributions are averaged and learned from"),
        ("autoregressive", {}, r"refused \(autoregressive\): distributions"),
        ("gaussian", {}, r"refused \(gaussian\): distributions"),
        ("masked", {"data": {"target_length": 6}}, "refused has data.target_length=6, this run 4"),
        ("masked", {"process": {"schedule": "cosine"}}, "refused has process.schedule='cosine', this run 'log_linear'"),
        ("masked", {"process": {"condition_dropout": 0.1}}, "refused has process.condition_dropout > 0=True"),
        ("masked", {"pieces": {}}, "refused and this run have different tokenizers: train on the same data"),
    ],
)
def test_a_teacher_of_something_else_is_refused_before_the_first_step(place, tmp_path, kind, groups, message):
    tokenizer = None
    if "pieces" in groups:
        groups = {}
        tokenizer = SentencePieceTokenizer(train_sentencepiece([f"this is number {i}?" for i in range(99)], 40))
    save_model(tmp_path / "refused", saved_config(kind, **groups), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=message) as error:
        one_device(place, run_config(place, [place / "a", tmp_path / "refused"]), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert Checkpoints(tmp_path / "run").latest_step() is None and not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("again", ["{place}/a", "{place}/b/../a", "{place}/a/"])
def test_a_teacher_that_is_named_twice(place, tmp_path, again):
    with pytest.raises(ConfigError, match="config.training.teachers=.*: one is named twice"):
        one_device(place, run_config(place, [place / "a", again.format(place=place)]), tmp_path / "run")
    assert Checkpoints(tmp_path / "run").latest_step() is None


def test_a_teacher_that_is_not_there(place, tmp_path):
    with pytest.raises(ConfigError, match="config.training.teachers: .*none holds no checkpoint"):
        one_device(place, run_config(place, [place / "a", tmp_path / "none"]), tmp_path / "run")
    assert not (tmp_path / "none").exists() and Checkpoints(tmp_path / "run").latest_step() is None


def test_the_config_of_a_distilled_run_comes_back(place):
    stored = from_config_dict(Checkpoints(place / "whole").read_config())
    assert stored.process.distillation == 0.5 and stored.training.teachers == f"{place / 'a'},{place / 'b'}"
