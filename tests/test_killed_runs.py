"""Runs that are killed or told to stop at any moment go on, and end with the bits of one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from processes import environment
from tiny_recipe import tiny_recipe

from dimba_jax.sampling.load import load

STEPS = 120


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    for split in ("train", "valid"):
        lines = [json.dumps({"src": f"q{i}", "trg": f"{i}a"}) for i in range(10)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "recipe.py"
    path.write_text(
        tiny_recipe(
            folder,
            process={"timesteps": 10, "timestep_sampling": "importance", "schedule": "learned"},
            training={"steps": 200, "log_every": 20, "checkpoint_every": 4, "valid_batches": 1},
        )
    )
    return path


@pytest.fixture(scope="module")
def compiled(recipe):
    """Where the programs of all runs lie, so that a run that starts again need not compile."""
    return recipe.parent / "compiled"


@pytest.fixture(scope="module")
def whole(recipe, compiled):
    """A run that was left alone."""
    return finished(recipe, recipe.parent / "whole", STEPS, compiled)


def finished(recipe, workdir, steps, compiled):
    life = Life(recipe, workdir, steps, compiled)
    assert life.finish() == 0, life.said()
    return workdir


class Life:
    """One process of a run, whose stderr goes to a file."""

    def __init__(self, recipe, workdir, steps, compiled, **more):
        cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-m", "dimba_jax.train", f"--config={recipe}:{steps}", f"--workdir={workdir}"]
        self.checkpoints = workdir / "checkpoints"
        self._log = workdir.with_suffix(".log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment() | cache | more, stderr=log)
        self._give_up = time.monotonic() + 300

    def said(self):
        return self._log.read_text()

    def wait_for(self, condition, pause=0.02):
        """Until it holds, or the process has ended; which of the two."""
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < self._give_up, self.said()
            time.sleep(pause)
        return False

    def finish(self):
        try:
            code = self.process.wait(timeout=300)
        finally:
            self.process.kill()
        return code

    def steps(self):
        return {int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()}

    def writes(self):
        return list(self.checkpoints.glob("*.orbax-checkpoint-tmp*"))


def same_end(one, other, steps):
    """Parameters, averages, what was logged and what lies in the folder."""
    for ema in (False, True):
        models = [load(folder, ema=ema) for folder in (one, other)]
        assert [model.step for model in models] == [steps, steps]
        leaves = [jax.tree.leaves(nnx.state(model.denoiser)) for model in models]
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_array_equal(a, b)
    traces = [
        [
            {name: value for name, value in json.loads(line).items() if not name.endswith("_per_s")}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    assert traces[0] == traces[1]
    kept = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (one, other)]
    assert kept[0] == kept[1] == sorted([str(steps - 4), str(steps)])
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    assert names[0] == names[1]


def killed_often(recipe, whole, compiled, killed, kills, steps, seed):
    """Kills a run so many times and lets it end; returns how many kills fell into the write of a checkpoint."""
    draw = random.Random(seed)
    inside = 0
    for number in range(kills):
        life = Life(recipe, killed, steps, compiled)
        before = life.steps()
        match number % 3:
            case 0:  # while a checkpoint is written, at any stage of it
                begun = life.wait_for(lambda life=life, before=before: life.steps() - before)
                begun = begun and life.wait_for(life.writes, pause=0.0005)
                time.sleep(draw.uniform(0.0, 0.03))
            case 1:  # some steps after the first new checkpoint
                begun = life.wait_for(lambda life=life, before=before: life.steps() - before)
                time.sleep(draw.uniform(0.0, 0.5))
            case _:  # at any moment, its start included
                begun = True
                time.sleep(draw.uniform(0.0, 5.0))
        life.process.kill()
        code = life.process.wait()
        assert code == -signal.SIGKILL, f"kill {number} came after the end ({code}): {life.said()}"
        assert begun
        inside += bool(life.writes())
    last = Life(recipe, killed, steps, compiled)
    assert last.finish() == 0, last.said()
    assert "going on from step" in last.said()
    same_end(whole, killed, steps)
    return inside


def test_a_run_killed_three_times_ends_as_one_left_alone(recipe, whole, compiled, tmp_path):
    killed_often(recipe, whole, compiled, tmp_path / "killed", kills=3, steps=STEPS, seed=1)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_one_left_alone(recipe, compiled, tmp_path):
    began = time.monotonic()
    whole = finished(recipe, tmp_path / "whole", 800, compiled)
    inside = killed_often(recipe, whole, compiled, tmp_path / "killed", kills=20, steps=800, seed=2)
    print(f"20 kills, {inside} of them while a checkpoint was written, in {time.monotonic() - began:.0f} s")
    assert inside >= 3


@pytest.mark.parametrize("moment", ["compiling", "first step", pytest.param("later", marks=pytest.mark.slow)])
def test_sigterm_saves_first_and_loses_nothing(recipe, whole, compiled, tmp_path, moment):
    # a cold compilation takes long enough to be hit
    life = Life(recipe, tmp_path / "told", STEPS, tmp_path / "cold" if moment == "compiling" else compiled)
    signs = {"compiling": "parameters on", "first step": "compiled the training step", "later": ": starting, 0 of"}
    assert life.wait_for(lambda: signs[moment] in life.said(), pause=0.001)
    life.process.send_signal(signal.SIGTERM)
    assert life.finish() == 0, life.said()
    assert "SIGTERM: " in life.said() and "the same command goes on from there" in life.said()
    saved = life.steps()
    if moment == "compiling":
        assert not saved and "before step 1, with nothing to save" in life.said()
    else:
        assert saved or "nothing to save" in life.said()
    again = Life(recipe, tmp_path / "told", STEPS, compiled)
    assert again.finish() == 0, again.said()
    assert f"going on from step {max(saved)}" in again.said() if saved else "starting" in again.said()
    same_end(whole, tmp_path / "told", STEPS)
