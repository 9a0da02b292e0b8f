"""The trace of a run on disk, and the estimate of its work."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from dimba_jax.data.examples import DataError
from dimba_jax.training.figures import flops_per_row, mean_figures, peak_flops
from dimba_jax.training.metrics import Metrics, drop_after


def test_lines_and_restart(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.scalars(1, {"loss": 2.0})
        metrics.scalars(2, {"loss": float("nan")})
        metrics.texts(2, [("a | b", "c\nd")])
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
    ]
    with Metrics(tmp_path, after_step=1) as metrics:
        metrics.scalars(2, {"loss": 1.5})
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2.0, 1.5]
    assert any(b"a \\| b" in file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())


def test_only_the_first_process_writes(tmp_path):
    with Metrics(tmp_path, enabled=False) as metrics:
        metrics.scalars(1, {"loss": 2.0})
        metrics.texts(1, [("a", "b")])
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_short_goes_and_another_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    drop_after(path, 5)
    assert path.read_text() == '{"step": 1}\n'
    path.write_text('oops\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 1"):
        drop_after(path, 5)
    drop_after(tmp_path / "none", 5)


def test_validation_means_weigh_positions():
    from dimba_jax.training.figures import RowFigures

    def batch(loss, positions):
        return RowFigures(jnp.float32(loss), dict.fromkeys(("mse", "ce", "prior"), jnp.float32(1.0)), *map(
            jnp.float32, (1.0, positions, positions)
        ))  # fmt: skip

    means = mean_figures([batch(6.0, 3.0), batch(2.0, 1.0)])
    assert means == pytest.approx({"loss": 2.0, "mse": 0.5, "ce": 0.5, "prior": 0.5, "accuracy": 0.5})


def test_work_of_a_row():
    kernel = {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}
    params = {
        "stack": {"mixer": kernel, "norm": {"modulation": kernel}},
        "time": {"out": kernel},
        "table": np.zeros((9, 2)),
    }
    params["prompt"] = {"pool": kernel, "encoder": kernel}
    # once each: modulation, time, pool; the encoder at the source's positions, the mixer at all
    work = 3 * 12 + 5 * 12 + 8 * 12
    assert flops_per_row(params, source=5, backbone=8) == 6 * work
    assert flops_per_row(params, source=5, backbone=8, tied=18, forwards=0.5) == 7 * (work + 8 * 18)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_peak_of_a_device(kind, peak):
    assert peak_flops(type("Device", (), {"device_kind": kind})()) == peak
