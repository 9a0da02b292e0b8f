"""A run of two processes, through real collectives on this machine, is the run of one process with as many devices."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from processes import environment, free_port

from dimba_jax.sampling.load import load

STEPS = 4
RECIPE = """
from dimba_jax.config import from_config_dict, to_config_dict

def get_config(arg=None):
    return to_config_dict(from_config_dict({
        "data": {"path": DATA, "source_length": 4, "target_length": 4},
        "tokenizer": {"kind": "bytes"},
        "model": {"embedding_dim": 4, "d_model": 16, "layers": 2, "pattern": ("attention", "mamba2"), "head_dim": 8,
                  "state_dim": 4},
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-3, "warmup_steps": 0},
        "training": {"steps": STEPS, "batch_size": 8, "log_every": 1, "valid_every": 2, "valid_batches": 1,
                     "checkpoint_every": 2},
    }))
"""


@pytest.fixture
def recipe(tmp_path, write_pairs):
    write_pairs(tmp_path, 24)
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.replace("DATA", repr(str(tmp_path))).replace("STEPS", str(STEPS)))
    return path


def start(recipe, workdir, devices, flags):
    command = [sys.executable, "-m", "dimba_jax.train", f"--config={recipe}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, env=environment(devices), stderr=subprocess.PIPE, text=True)


def finish(processes):
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        (record["step"], name): record[name] for record in records for name in ("loss", "valid_loss") if name in record
    }


@pytest.mark.parametrize("devices", [2, 1], ids=["two devices each", "one device each"])
def test_two_processes_are_one(recipe, tmp_path, devices):
    mesh = ["--config.mesh.fsdp=2"]  # and data=devices; of two devices each process holds a row of the mesh
    finish([start(recipe, tmp_path / "one", 2 * devices, mesh)])
    port = free_port()
    joined = ["--distributed", f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    both = [start(recipe, tmp_path / "two", devices, [*mesh, *joined, f"--process_id={number}"]) for number in range(2)]
    said = finish(both)
    assert f"parameters on {2 * devices} x cpu" in said[0] and "samples at step 4" in said[0]
    assert "parameters" not in said[1] and "samples" not in said[1]  # one process speaks
    checkpoint = tmp_path / "two" / "checkpoints" / str(STEPS)
    for part in ("params", "ema", "training"):  # each process writes its own share
        files = [(checkpoint / part / f"ocdbt.process_{number}" / "d").iterdir() for number in (0, 1)]
        shares = [sum(file.stat().st_size for file in of_one) for of_one in files]
        assert min(shares) > sum(shares) / 4
    lines = [json.loads(line)["step"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert lines.count(1) == 1 and len(list((tmp_path / "two").rglob("events.*"))) == 1
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == STEPS + 2 and two == pytest.approx(one, rel=1e-5)

    def parameters(name):
        model = load(tmp_path / name, ema=False)
        assert model.step == STEPS
        return jax.tree.leaves(nnx.state(model.denoiser))

    for leaf, other in zip(*(parameters(name) for name in ("one", "two")), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-7)
