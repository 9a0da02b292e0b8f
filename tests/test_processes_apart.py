"""Two processes of which one fails, or sees other files than the other: both end, and nothing is lost."""

import subprocess
import sys
import textwrap

import pytest
from processes import environment, free_port

from dimba_jax import commandline, distributed, train
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.errors import CheckpointError

# Each process saves steps of a state that lies on both; what differs stands in the tests.
SCRIPT = """
import sys, time
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dimba_jax import digests, distributed
from dimba_jax.checkpoint import Checkpoints
from dimba_jax.errors import CheckpointError

number, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, heartbeat_timeout_seconds=10)
where = NamedSharding(Mesh(jax.devices(), ("x",)), PartitionSpec("x"))

def save(checkpoints, step):
    values = jax.jit(lambda: jax.random.normal(jax.random.key(step), (40, 50)), out_shardings=where)()
    state = {name: {"w": values} for name in ("params", "ema", "training")} | {"process": ()}
    checkpoints.save(step, state, data_state={}, config={"name": "x"}, tokenizer={})

"""


def run(folder, body, workdirs):
    script, port = folder / "script.py", free_port()
    script.write_text(SCRIPT + textwrap.dedent(body))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(number), str(port), workdir],
            env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, workdir in enumerate(workdirs)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = ["".join(line for line in out.splitlines(keepends=True) if "[Gloo]" not in line) for out, _ in said]
    return [process.returncode for process in processes], outputs, [err for _, err in said]


def steps(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("noticed", ["between steps", "at the end"])
def test_a_write_that_fails_in_one_ends_both(tmp_path, noticed):
    body = f"""
        import resource
        try:
            with Checkpoints(workdir) as checkpoints:
                save(checkpoints, 1)
                checkpoints.wait()
                if number == 1:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
                save(checkpoints, 2)
                for _ in range({3000 if noticed == "between steps" else 0}):
                    checkpoints.raise_failure()
                    time.sleep(0.02)
        except CheckpointError as error:
            print(error, flush=True)
            distributed.leave(2)
    """
    codes, out, err = run(tmp_path, body, [tmp_path, tmp_path])
    assert codes[1] == 2, err[1]
    assert "the checkpoint of step 2 could not be written" in out[1] and "(File too large)" in out[1]
    assert "step 1 is the last whole one" in out[1] and "start all of them again" in err[1]
    assert "Traceback" not in err[1]
    assert codes[0] != 0  # JAX ended it, or orbax noticed that the other one is gone
    assert out[0] == "" or "Another process has not done its part" in out[0]
    assert steps(tmp_path) == ["1"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.whole_step() == 1


def test_one_process_chooses_the_step_for_all(tmp_path):
    body = """
        with Checkpoints(workdir) as checkpoints:
            save(checkpoints, 1)
            save(checkpoints, 2)
        if number == 1:  # it need not look, and would see something else
            digests.damage = lambda *_: 1 / 0
        with Checkpoints(workdir) as checkpoints:
            file = next((checkpoints.folder / "2" / "training" / "d").iterdir())
            before = file.read_bytes()
            print(checkpoints.whole_step(2, ("params",)), checkpoints.whole_step(2, ("params",)))
            from dimba_jax import parallel
            parallel.gather_json(0)
            if number == 0:
                file.write_bytes(before[:-1])
            parallel.gather_json(0)
            print(checkpoints.whole_step())
            try:
                checkpoints.whole_step(2)
            except CheckpointError as error:
                print(error)
            try:
                checkpoints.whole_step(3)
            except FileNotFoundError as error:
                print(error)
    """
    codes, out, err = run(tmp_path, body, [tmp_path, tmp_path])
    assert codes == [0, 0], err
    lines = out[0].splitlines()
    assert lines[:2] == ["2 2", "1"] and "2 is damaged: training/" in lines[2] and "has no step 3" in lines[3]
    assert out[1] == out[0]
    assert "step 1 is used instead" in err[0] and "instead" not in err[1]


def test_a_workdir_that_is_not_shared_is_found_out(tmp_path):
    body = """
        from pathlib import Path
        def look(*folders):
            try:
                print(Checkpoints(folders[number]).whole_step())
            except CheckpointError as error:
                print(error)

        folder = Path(workdir)
        look(folder / "a", folder / "b")
        look(folder / "a", folder / "a")
        with Checkpoints(folder) as checkpoints:
            save(checkpoints, 1)
        look(folder, folder / "b")
        look(folder / "b", folder)
    """
    codes, out, err = run(tmp_path, body, [tmp_path, tmp_path])
    assert codes == [0, 0], err
    for text in out:
        lines = text.splitlines()
        assert [line == "None" for line in lines] == [False, True, False, False]
        assert all("one workdir that they share" in lines[i] for i in (0, 2, 3))
        assert "process 1 sees another folder" in lines[0] and "process 1 sees steps [1]" in lines[3]
    assert not list((tmp_path / "a").iterdir())


def test_a_process_that_fails_waits_for_none(monkeypatch, tmp_path, capsys):
    """Of several; one alone leaves as Python programs do."""
    ended = []

    class Left(BaseException):
        pass

    def leave(status):
        ended.append(status)
        raise Left

    def fails(*_, **__):
        raise error

    error = CheckpointError("no room")
    monkeypatch.setattr(distributed, "leave", leave)
    monkeypatch.setattr("dimba_jax.training.loop.train", fails)
    command = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'w'}"]
    assert train.main(command) == commandline.USER_ERROR and not ended
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(Left):
        train.main(command)
    assert ended == [commandline.USER_ERROR]
    error = ZeroDivisionError("a fault of ours")
    with pytest.raises(Left):
        train.main(command)
    said = capsys.readouterr().err
    assert ended[1] == 1 and "train: no room" in said and "ZeroDivisionError: a fault of ours" in said
