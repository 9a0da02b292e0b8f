"""A damaged checkpoint is found out before it is read, and the one before it is used, aloud."""

import errno
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from saved_steps import save, state, train_tiny

from dimba_jax import digests
from dimba_jax.checkpoint import CheckpointError, Checkpoints
from dimba_jax.sampling.load import load

HARMLESS = "commit_success.txt"  # says that a folder got its name; never read


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


def test_a_run_goes_on_from_the_step_before_and_comes_out_the_same(recipe, tmp_path, capsys):
    assert train_tiny(recipe, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    flip(largest(tmp_path / "broken", "training", 15))
    assert load(tmp_path / "broken").step == 15  # what sampling reads is whole
    assert train_tiny(recipe, tmp_path / "broken") == 0
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
