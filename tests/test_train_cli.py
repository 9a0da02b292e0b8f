"""python -m dimba_jax.train: its errors are one line, and a signal ends it with a checkpoint."""

import json
import signal
import subprocess
import sys
import time

import pytest
from processes import environment

from dimba_jax import train

RECIPE = """
from dimba_jax.config import from_config_dict, to_config_dict

def get_config(arg=None):
    return to_config_dict(from_config_dict({
        "name": arg or "plain",
        "data": {"path": DATA, "source_length": 4, "target_length": 4},
        "tokenizer": {"kind": "bytes"},
        "model": {"embedding_dim": 4, "d_model": 8, "layers": 1, "pattern": ("attention",), "head_dim": 8},
        "training": {"steps": 1000000, "batch_size": 4, "log_every": 1},
    }))
"""


@pytest.fixture
def recipe(tmp_path, write_pairs):
    write_pairs(tmp_path, 8)
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.replace("DATA", repr(str(tmp_path))))
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workdir=w"], "--config is missing"),
        (["--config=RECIPE"], "--workdir is missing"),
        (["--config=nowhere.py", "--workdir=w"], "nowhere.py"),
        (["--config=RECIPE", "--workdir=w", "--config.training.stps=3"], 'Did you mean "steps"'),
        (["--config=RECIPE", "--workdir=w", "--config.trainig.steps=3"], 'Did you mean "training"'),
        (["--config=RECIPE", "--workdir=w", "--config.training.steps=many"], "config.training.steps"),
        (
            ["--config=RECIPE", "--workdir=w", "--config.training.steps=0"],
            "config.training.steps=0: must be at least 1",
        ),
        (["--config=RECIPE", "--workdir=w", "--config.process.schedule=cos"], "choose one of 'cosine'"),
        (["--config=RECIPE", "--workdir=w", "--wrkdir=w"], "wrkdir"),
        (["--config=RECIPE", "--workdir=w", "more"], "unexpected argument 'more'"),
        (
            ["--config=RECIPE", "--workdir=WORKDIR", "--config.training.batch_size=8", "--config.data.path=/no/such"],
            "/no/such",
        ),
        (["--config=RECIPE", "--workdir=WORKDIR", "--config.mesh.data=3"], "config.mesh (data=3"),
        (
            ["--config=RECIPE", "--workdir=WORKDIR", "--config.mesh.sequence=8", "--config.data.target_length=5"],
            "= 9 positions are not divisible by config.mesh.sequence=8: use a multiple of 8",
        ),
        (
            ["--config=RECIPE", "--workdir=WORKDIR", "--config.training.batch_size=8", "--config.model.head_dim=3"],
            "config.model.head_dim=3: attention needs an even divisor",
        ),
        (["--config", "nowhere.py", "--workdir=w"], "no such file"),
        (
            ["--config=RECIPE", "--workdir=w", "--config.training.valid_batches=0"],
            "valid_batches=0: must be at least 1",
        ),
        (
            ["--config=RECIPE", "--workdir=w", "--config.model.implementation=tpu"],
            "its kernels run on a TPU, and the platform is 'cpu'",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(recipe, tmp_path, capsys, arguments, expected):
    places = {"RECIPE": str(recipe), "WORKDIR": str(tmp_path / "run")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert train.main(["train", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("train: ") and expected in error and "Traceback" not in error


def test_help(capsys):
    assert train.main(["train", "--help"]) == 0
    assert "--workdir" in capsys.readouterr().out


def test_sigterm_saves_and_ends_well(recipe, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "dimba_jax.train", f"--config={recipe}:named", f"--workdir={workdir}"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        metrics, give_up = workdir / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert process.poll() is None and time.monotonic() < give_up, process.communicate()[1]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "SIGTERM: saving after this step, if one has begun" in said and "the same command goes on from there" in said
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert steps == [last]
    assert json.loads((workdir / "run.json").read_text())["name"] == "named"
