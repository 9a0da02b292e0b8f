"""Progress on terminals and in logs; the figures of a run."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dimba_jax import progress as progress_module
from dimba_jax.plots import _settled, denoising_strip, loss_curve, strip_text
from dimba_jax.progress import progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_log_lines_every_ten_seconds():
    stream, clock = io.StringIO(), Clock()
    with progress(1000, "train", stream=stream, clock=clock) as bar:
        for step in range(100):
            clock.now += 1.0
            bar.update(10, loss=3.0 - step / 100, tokens_per_s=16384.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: starting, 0 of 1,000"
    assert lines[1] == "train: 100/1,000 (10%), loss 2.91, tokens/s 16.4k, 10 a second, 1:30 left"
    assert lines[-1] == "train: done: 1,000/1,000 (100%), loss 2.01, tokens/s 16.4k, 1:40"
    assert len(lines) == 12
    assert "\r" not in stream.getvalue()


def test_resumed_work_counts_on_but_its_rate_does_not():
    stream, clock = io.StringIO(), Clock()
    with progress(100, "train", 50, stream=stream, clock=clock) as bar:
        clock.now += 10.0
        bar.update(10)
    assert stream.getvalue().splitlines()[:2] == [
        "train: starting, 50 of 100",
        "train: 60/100 (60%), 1 a second, 0:40 left",
    ]


def test_interrupted_work_is_not_done():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), progress(10, "train", stream=stream) as bar:
        bar.update(3)
        raise RuntimeError
    assert stream.getvalue().splitlines()[-1].startswith("train: stopped: 3/10 (30%)")


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    stream = Terminal()
    with progress(10, "sample", stream=stream) as bar:
        bar.update(10, loss=np.float32(1.5))
        bar.write("a sample text")
    assert "\r" in stream.getvalue() and "10/10" in stream.getvalue() and "loss=1.5" in stream.getvalue()
    assert "a sample text\n" in stream.getvalue()


def test_no_bar_when_stdout_is_a_file(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    stream = Terminal()
    with progress(10, "sample", stream=stream) as bar:
        bar.update(10)
    assert "\r" not in stream.getvalue() and "sample: done: 10/10" in stream.getvalue()


def test_only_the_first_process_speaks(monkeypatch):
    monkeypatch.setattr(progress_module, "_is_first_process", lambda: False)
    for stream in (io.StringIO(), Terminal()):
        with progress(10, "train", stream=stream) as bar:
            bar.update(10)
            bar.write("text")
        assert stream.getvalue() == ""


def test_progress_does_not_start_the_backend():
    code = (
        "import sys\n"
        "from dimba_jax.progress import progress\n"
        "with progress(1, 'x') as bar: bar.update()\n"
        "from jax._src import xla_bridge\n"
        "sys.exit(xla_bridge.backends_are_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_unknown_total():
    stream, clock = io.StringIO(), Clock()
    with progress(None, "read", stream=stream, clock=clock) as bar:
        clock.now += 20
        bar.update(40)
    assert stream.getvalue().splitlines() == ["read: starting, 0", "read: 40, 2 a second", "read: done: 40, 0:20"]


def write_metrics(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def image(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def test_loss_curve_draws_the_losses(tmp_path):
    lines = [{"step": step, "loss": 3 - step / 1000} for step in range(50, 1050, 50)]
    loss_curve(write_metrics(tmp_path / "a.jsonl", lines), tmp_path / "a.png")
    lines += [{"step": 500, "valid_loss": 2.8}, {"step": 1000, "valid_loss": 2.2}, {"step": 1000, "text": "x"}]
    loss_curve(write_metrics(tmp_path / "b.jsonl", lines), tmp_path / "b.png")
    a, b = image(tmp_path / "a.png"), image(tmp_path / "b.png")
    assert a.shape[1] > 1000 and a.std() > 0.02
    assert a.shape == b.shape and not np.array_equal(a, b)


def test_a_resumed_run_overwrites_its_steps(tmp_path):
    first = [{"step": step, "loss": 3.0} for step in (10, 20, 30)]
    again = [{"step": step, "loss": 2.0} for step in (20, 30, 40)]
    loss_curve(write_metrics(tmp_path / "a.jsonl", first + again), tmp_path / "a.png")
    loss_curve(write_metrics(tmp_path / "b.jsonl", first[:1] + again), tmp_path / "b.png")
    assert np.array_equal(image(tmp_path / "a.png"), image(tmp_path / "b.png"))


def test_loss_curve_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="logs no 'loss'"):
        loss_curve(write_metrics(tmp_path / "a.jsonl", [{"step": 1, "other": 2}]), tmp_path / "a.png")
    (tmp_path / "b.jsonl").write_text('{"step": 1, "loss": 2}\n{"loss": 2}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl:2: expected a JSON object with a 'step'"):
        loss_curve(tmp_path / "b.jsonl", tmp_path / "b.png")
    with pytest.raises(FileNotFoundError):
        loss_curve(tmp_path / "none.jsonl", tmp_path / "b.png")


STAGES = [
    ("t = 1.00", "sun ⁇ my 漢 $x_1$ $ of of"),
    ("t = 0.50", "how do my i my $x_1$ ?"),
    ("t = 0.00", "how do i kill my rats ?"),
]


def test_strip_is_drawn_and_written(tmp_path):
    denoising_strip(STAGES, tmp_path / "strip.png", prompt="Is it $5 or $6?")
    text = (tmp_path / "strip.txt").read_text()
    assert text == strip_text(STAGES, prompt="Is it $5 or $6?")
    assert "t = 0.50  |  how do my i my $x_1$ ?\n" in text
    pixels = image(tmp_path / "strip.png")[..., :3].reshape(-1, 3)
    for color in ((0xD9, 0x89, 0x6A), (0x1B, 0x2A, 0x41)):
        assert (np.abs(pixels - np.array(color) / 255).max(-1) < 0.02).sum() > 100
    with pytest.raises(ValueError, match="no stages"):
        denoising_strip([], tmp_path / "none.png")


def test_words_are_final_once_they_stay():
    stages = _settled(["a x c", "z b c", "a b c"])
    assert stages == [
        [("a", False), ("x", False), ("c", True)],  # a is lost again, so it was not final
        [("z", False), ("b", True), ("c", True)],
        [("a", True), ("b", True), ("c", True)],
    ]


def test_long_noise_is_wrapped(tmp_path):
    denoising_strip([("t = 1", "word " * 60 + "x" * 200), ("t = 0", "word")], tmp_path / "long.png")
    denoising_strip([("t = 1", "word"), ("t = 0", "word")], tmp_path / "short.png")
    assert image(tmp_path / "long.png").shape[0] > image(tmp_path / "short.png").shape[0] + 200
    right = image(tmp_path / "long.png")[:, -40:, :3]
    assert right.min() > 0.99  # nothing runs off the page


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, dimba_jax.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
