"""A damaged checkpoint is found out before it is read, and the one before it is used, aloud; one that fails to be
written ends the run and leaves the others alone."""

import errno
import json
import logging
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_recipe import tiny_recipe

from dimba_jax import digests, parallel, train, write_errors
from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.sampling.load import load
from dimba_jax.training import loop

HARMLESS = "commit_success.txt"  # says that a folder got its name; never read


def state(step):
    big = jax.random.normal(jax.random.key(step), (40, 50))  # noise: what can be compressed has fewer bytes to flip
    return {
        "params": {"w": big},
        "ema": {"w": big + 1.0},
        "process": (),
        "training": {"moments": (big, jnp.int32(step))},
    }


def save(checkpoints, step):
    checkpoints.save(step, state(step), data_state={"place": step}, config={"name": "x"}, tokenizer={"k": 1})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with steps 1 and 2."""
    folder = tmp_path_factory.mktemp("written")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
    return folder


@pytest.fixture
def workdir(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"\n\0")


def files_of(workdir, step=2):
    folder = workdir / "checkpoints" / str(step)
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / HARMLESS]


def largest(workdir, part, step=2):
    return max(files_of(workdir, step), key=lambda path: path.stat().st_size * (part in path.parts))


@pytest.mark.parametrize(
    "harm", [flip, truncate, grow, lambda path: path.unlink()], ids=["flip", "truncate", "grow", "remove"]
)
def test_damage_to_any_file_is_found(workdir, harm):
    folder = workdir / "checkpoints" / "2"
    assert digests.damage(folder) is None
    files = files_of(workdir)
    kinds = {path.name for path in files}
    assert {"digests.json", "manifest.ocdbt", "_METADATA", "metadata", "_CHECKPOINT_METADATA"} <= kinds
    assert {path.relative_to(folder).parts[0] for path in files} >= {"params", "ema", "training", "config", "data"}
    for path in files:
        content = path.read_bytes()
        harm(path)
        if path.name == "digests.json" and not path.exists():
            with pytest.raises(FileNotFoundError):
                digests.damage(folder)
        else:
            found = digests.damage(folder)
            assert found is not None and path.name in found, path
        path.write_bytes(content)
    assert digests.damage(folder) is None


@pytest.mark.parametrize("part", ["params", "training", "data", "_CHECKPOINT_METADATA", "digests.json"])
def test_the_step_before_is_used_aloud(workdir, part, capsys):
    flip(largest(workdir, part))
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.whole_step() == 1
        said = capsys.readouterr().err
        assert f"{workdir}/checkpoints/2 is damaged (" in said and "step 1 is used instead" in said
        found = checkpoints.restore(checkpoints.whole_step(), jax.eval_shape(lambda: state(1)))
        jax.tree.map(np.testing.assert_array_equal, found, state(1))
        assert capsys.readouterr().err == ""  # once is enough
        with pytest.raises(CheckpointError, match=r"checkpoints/2 is damaged: .*; leave --step out"):
            checkpoints.whole_step(2)
        assert (workdir / "checkpoints" / "2").is_dir()  # reading moves nothing


def test_a_file_that_cannot_be_read_is_damaged(workdir, monkeypatch, capsys):
    bad, read = largest(workdir, "params"), Path.open

    def broken(self, *arguments, **options):
        if self == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", broken)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.whole_step() == 1
    assert f"{bad} cannot be read (Input/output error)" in capsys.readouterr().err


def test_reading_checks_by_itself(workdir):
    truncate(largest(workdir, "ema"))
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(CheckpointError, match="2 is damaged: ema/.* bytes, where .* were written"):
            checkpoints.read_params(2, abstract=jax.eval_shape(lambda: state(1)["params"]))
        assert checkpoints.read_params(abstract=jax.eval_shape(lambda: state(1)["params"]))["w"].shape == (40, 50)
        assert checkpoints.read_config(2) == {"name": "x"}


def test_what_is_not_read_may_be_damaged(workdir, capsys):
    flip(largest(workdir, "training"))
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.resolve(None, ("config", "ema")) == 2
        assert checkpoints.whole_step() == 1


def test_if_all_are_damaged_nothing_is_guessed(workdir):
    for step in (1, 2):
        flip(largest(workdir, "params", step))
    with Checkpoints(workdir) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.whole_step()
    assert "every checkpoint of" in str(error.value) and "checkpoints/1: params" in str(error.value)
    assert "checkpoints/2: params" in str(error.value) and "\n" not in str(error.value)


def test_a_step_without_digests_is_damaged(workdir, capsys):
    (workdir / "checkpoints" / "2" / digests.FILE).unlink()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.whole_step() == 1
        assert "digests.json is missing" in capsys.readouterr().err


def test_a_damaged_step_is_written_anew(workdir):
    flip(largest(workdir, "training"))
    aside = workdir / "damaged" / "2"
    with Checkpoints(workdir) as checkpoints:
        checkpoints.set_aside_after(1)
        assert checkpoints.latest_step() == 1 and aside.is_dir()
        save(checkpoints, 2)
        assert aside.is_dir()  # until the new one is whole
        checkpoints.wait()
        assert not aside.exists() and checkpoints.whole_step(2) == 2
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints"]


def test_what_a_killed_write_left_is_cleared(workdir):
    leftover = workdir / "checkpoints" / "2.orbax-checkpoint-tmp" / "params"
    leftover.mkdir(parents=True)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.whole_step() == 2  # and reading leaves it alone: a run may be writing it
        assert leftover.is_dir()
        save(checkpoints, 3)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]


@pytest.fixture
def small_files():
    """No file may grow past 4 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if on else before[0], before[1]))

    yield limit
    limit(False)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # of TensorStore's other writes
@pytest.mark.parametrize("noticed", ["wait", "close", "save", "look"])
def test_a_write_that_fails_is_never_swallowed(workdir, small_files, noticed, capfd):
    checkpoints = Checkpoints(workdir)
    small_files(True)
    with pytest.raises(
        CheckpointError, match=r"step 3 could not be .*\(File too large\); step 2 is the last whole one"
    ):
        save(checkpoints, 3)
        match noticed:
            case "wait":
                checkpoints.wait()
            case "close":
                checkpoints.close()
            case "save":
                save(checkpoints, 4)
            case "look":
                until = time.monotonic() + 60
                while time.monotonic() < until:
                    checkpoints.raise_failure()
                    time.sleep(0.01)
    small_files(False)
    assert "Traceback" not in capfd.readouterr().err
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    assert checkpoints.whole_step() == 2
    save(checkpoints, 3)
    checkpoints.close()
    with Checkpoints(workdir) as again:
        assert again.whole_step() == 3


def test_only_errors_in_orbax_are_failures_and_its_quiet_ends(workdir, monkeypatch):
    """What it dealt with itself is logged below the level of errors."""
    place = compile("def fail(): raise ValueError('x')", "orbax/somewhere.py", "exec")
    names = {}
    exec(place, names)
    monkeypatch.setattr(write_errors, "_quiet", write_errors._Quiet())  # others' failures leave theirs behind
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    for name in write_errors._LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    hook, logger = sys.unraisablehook, logging.getLogger("absl")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    with Checkpoints(workdir) as checkpoints, Checkpoints(workdir) as other:
        checkpoints.whole_step()
        for one in (checkpoints, other):
            one.read_config()
        assert sys.unraisablehook is not hook
        other.close()
        assert sys.unraisablehook is not hook  # the other one is open still
        try:
            names["fail"]()
        except ValueError as error:
            logger.warning("dealt with", exc_info=True)
            assert write_errors.failure() is None
            logger.error("not dealt with", exc_info=True)
            assert write_errors.failure() is error
        save(checkpoints, 3)
        assert write_errors.failure() is None
    assert sys.unraisablehook is hook


@pytest.fixture
def recipe(tmp_path, write_pairs, monkeypatch):
    make = parallel.make_mesh
    monkeypatch.setattr(parallel, "make_mesh", lambda config: make(config, jax.devices()[:1]))
    write_pairs(tmp_path, 8)
    path = tmp_path / "recipe.py"
    path.write_text(
        tiny_recipe(tmp_path, training={"steps": 15, "log_every": 5, "checkpoint_every": 5, "valid_batches": 1})
    )
    return path


def run(recipe, workdir, *more):
    return train.main(["train", f"--config={recipe}", f"--workdir={workdir}", *more])


def test_a_run_goes_on_from_the_step_before_and_comes_out_the_same(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    flip(largest(tmp_path / "broken", "training", 15))
    assert load(tmp_path / "broken").step == 15  # what sampling reads is whole
    assert run(recipe, tmp_path / "broken") == 0
    said = capsys.readouterr().err
    assert "checkpoints/15 is damaged (training/" in said and "step 10 is used instead" in said
    assert "going on from step 10" in said
    assert sorted(path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()) == ["10", "15"]
    assert not (tmp_path / "broken" / "damaged").exists()
    for ema in (False, True):
        one, other = (load(tmp_path / name, step=15, ema=ema) for name in ("whole", "broken"))
        jax.tree.map(np.testing.assert_array_equal, nnx.state(one.denoiser), nnx.state(other.denoiser))
    flip(largest(tmp_path / "broken", "ema", 15))
    assert load(tmp_path / "broken").step == 10
    with pytest.raises(CheckpointError, match="15 is damaged: ema/"):
        load(tmp_path / "broken", step=15)


def test_a_full_disk_ends_a_run_in_one_line(recipe, tmp_path, monkeypatch, capsys):
    write = digests.write_digests

    def full(folder):
        if folder.name.startswith("10."):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        write(folder)

    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(digests, "write_digests", full)
        add = loop.Watch.add
        patch.setattr(
            loop.Watch, "add", lambda self, step, *rest: (steps.append(step), add(self, step, *rest), time.sleep(0.02))
        )
        assert run(recipe, tmp_path / "run", "--config.training.steps=2000") == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("train: the checkpoint of step 10 could not be written") and "No space left" in last
    assert "step 5 is the last whole one" in last and "Traceback" not in said
    assert steps[-1] < 500  # and not at the next checkpoint or the end
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["5"]
    assert run(recipe, tmp_path / "run", "--config.training.steps=12") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 12]
