"""A checkpoint that fails to be written ends the run with one line and leaves the others alone."""

import errno
import json
import logging
import resource
import sys
import time

import pytest
from saved_steps import save, train_tiny

from dimba_jax import digests, write_errors
from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.training import loop


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
    # a logger of its own: threads of the writes that failed above may still log their errors to orbax's
    monkeypatch.setattr(write_errors, "_quiet", write_errors._Quiet())
    monkeypatch.setattr(write_errors, "_LOGGERS", ("test_failed_writes",))
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    hook, logger = sys.unraisablehook, logging.getLogger("test_failed_writes")
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
        assert train_tiny(recipe, tmp_path / "run", "--config.training.steps=2000") == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("train: the checkpoint of step 10 could not be written") and "No space left" in last
    assert "step 5 is the last whole one" in last and "Traceback" not in said
    assert steps[-1] < 500  # and not at the next checkpoint or the end
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["5"]
    assert train_tiny(recipe, tmp_path / "run", "--config.training.steps=12") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 12]
