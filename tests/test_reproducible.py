"""--seed fixes all that is drawn, through the commands; and what is written says what it was made with."""

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dimba_jax import environment, evaluate, parallel, sample, train
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.config import from_config_dict
from dimba_jax.sampling.load import load

RECIPE = """
from dimba_jax.config import from_config_dict, to_config_dict

def get_config(arg=None):
    return to_config_dict(from_config_dict({
        "data": {"path": DATA, "source_length": 4, "target_length": 4},
        "tokenizer": {"kind": "bytes"},
        "model": {
            "embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8, "dropout": 0.1,
        },
        "process": {"timesteps": 10},
        "sampling": {"steps": 2, "batch_size": 4, "num_samples": 2, "clamp_from": 0.0},
        "training": {"steps": 3, "batch_size": 8, "log_every": 1, "valid_batches": 1},
    }))
"""
TIMINGS = {"tokens_per_s", "pairs_per_s"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("seeds")
    rows = [json.dumps({"src": f"q{i}", "trg": f"{i}a"}) + "\n" for i in range(9)]
    for split in ("train", "valid", "test"):
        (place / f"{split}.jsonl").write_text("".join(rows))
    (place / "recipe.py").write_text(RECIPE.replace("DATA", repr(str(place))))
    make_mesh = parallel.make_mesh
    with pytest.MonkeyPatch.context() as patch:  # one device: programs of eight take longer to compile
        patch.setattr(parallel, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        for name, seed in {"one": 1, "again": 1, "two": 2}.items():
            command = ["train", f"--config={place}/recipe.py", f"--workdir={place}/{name}", f"--seed={seed}"]
            assert train.main(command) == 0
    return place


def trained(workdir: Path) -> tuple[list[np.ndarray], list[dict]]:
    """Parameters and averages, and all figures but the speeds."""
    leaves = [
        leaf for ema in (True, False) for leaf in jax.tree.leaves(nnx.state(load(workdir, ema=ema).denoiser, nnx.Param))
    ]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [np.asarray(leaf) for leaf in leaves], [
        {name: value for name, value in line.items() if name not in TIMINGS} for line in lines
    ]


def test_training(place):
    (one, said), (again, repeated), (two, other) = (trained(place / name) for name in ("one", "again", "two"))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True)) and said == repeated
    assert not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True) if a.size > 8)
    assert said != other and len(said) >= 3


def test_the_flag_takes_the_place_of_the_setting(place):
    seeds = {name: Checkpoints(place / name).read_config()["seed"] for name in ("one", "two")}
    assert seeds == {"one": 1, "two": 2}  # the recipe's is 0


def test_a_run_says_what_it_was_made_with(place):
    record = json.loads((place / "one" / "run.json").read_text())
    assert from_config_dict(record["config"]).seed == 1
    (start,) = record["starts"]
    assert start["command"] == ["train", f"--config={place}/recipe.py", f"--workdir={place}/one", "--seed=1"]
    check_environment(start)
    assert start["devices"] == {"kind": "cpu", "count": 8, "processes": 1}


def check_environment(found: dict) -> None:
    assert found["versions"]["jax"] and found["python"] and found["platform"]
    assert (found["git_commit"], found["git_dirty"]) == environment.checkout()


def test_samples(place):
    output = place / "out.jsonl"

    def written(seed: int) -> tuple[bytes, bytes]:
        arguments = [f"--checkpoint={place}/one", f"--input={place}/test.jsonl", f"--output={output}", f"--seed={seed}"]
        assert sample.main(["sample", *arguments]) == 0
        return output.read_bytes(), output.with_name("out.run.json").read_bytes()

    first = written(5)
    assert written(5) == first and written(6)[0] != first[0]
    made = json.loads(first[1])
    assert made["seed"] == 5 and made["step"] == 3 and made["sampling"]["num_samples"] == 2
    check_environment(made["environment"])


def test_evaluations(place):
    output = place / "eval.json"

    def written(seed: int) -> tuple[bytes, bytes]:
        arguments = [f"--checkpoint={place}/one", "--mbr=2", f"--output={output}", f"--seed={seed}"]
        assert evaluate.main(["evaluate", *arguments]) == 0
        return output.read_bytes(), output.with_name("eval.examples.jsonl").read_bytes()

    first = written(5)
    assert written(5) == first and written(6)[1] != first[1]
    metadata = json.loads(first[0])["metadata"]
    assert metadata["seed"] == 5 and from_config_dict(metadata["settings"]).seed == 1
    assert metadata["environment"]["command"][-1] == "--seed=5"
    check_environment(metadata["environment"])


def test_the_copy_baseline_says_so_too(place):
    output = place / "copy.json"
    assert evaluate.main(["evaluate", "--system=copy", f"--config={place}/recipe.py", f"--output={output}"]) == 0
    metadata = json.loads(output.read_text())["metadata"]
    assert metadata["environment"]["devices"] is None and metadata["settings"]["name"] == "dimba"
    check_environment(metadata["environment"])


def test_changed_files_are_told_from_the_commit(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "environment.py").write_text("")
    assert environment.checkout() == (None, None)
    git("init", "--quiet")
    assert environment.checkout() == (None, None)  # in a checkout, and no part of it: an installed package
    git("add", "environment.py"), git("commit", "--quiet", "--message=a")
    assert environment.checkout() == (git("rev-parse", "HEAD"), False)
    (tmp_path / "runs").write_text("untracked")
    assert environment.checkout()[1] is False
    (tmp_path / "environment.py").write_text("changed")
    assert environment.checkout() == (git("rev-parse", "HEAD"), True)
