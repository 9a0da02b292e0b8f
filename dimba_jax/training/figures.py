"""The figures of a run: sums kept on the device between two log lines, and what is printed of them."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

BUCKETS = 10  # of the time the network is told: bucket i holds (i/10, (i+1)/10]; the same noise throughout training

# Dense bfloat16 FLOPs a second of one device, by the start of its `device_kind` (vendors' data sheets).
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
    "TPU v2": 45e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowFigures:
    """What one pass says about each of its rows, float32: sums over the row's counted positions.

    Summed over a batch, the same of the whole (each a scalar).
    """

    loss: Float[Array, "*b"]  # of all terms with the config's weights, not with those of how t was drawn
    terms: dict[str, Float[Array, "*b"]]  # the process's, by name
    correct: Float[Array, "*b"]  # predicted positions whose own token has the largest logit
    predicted: Float[Array, "*b"]  # counted positions whose token could not be seen
    positions: Float[Array, "*b"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """Sums since the last log line. Part of the training state, so an interrupted run logs the same lines."""

    steps: Int[Array, ""]
    loss: Float[Array, ""]  # the objective, weighted
    grad_norm: Float[Array, ""]
    terms: dict[str, Float[Array, " k"]]  # per bucket, as all below
    bucket_loss: Float[Array, " k"]
    correct: Float[Array, " k"]
    predicted: Float[Array, " k"]
    positions: Float[Array, " k"]

    @classmethod
    def zero(cls, terms: Sequence[str]) -> Totals:
        """No steps yet; `terms` are the names of the process's losses."""

        def bucket() -> Float[Array, " k"]:
            return jnp.zeros(BUCKETS, jnp.float32)  # a buffer each: one shared could not be donated

        return cls(
            steps=jnp.int32(0),
            loss=jnp.float32(0.0),
            grad_norm=jnp.float32(0.0),
            terms={name: bucket() for name in terms},
            bucket_loss=bucket(),
            correct=bucket(),
            predicted=bucket(),
            positions=bucket(),
        )

    def add(
        self, t: Float[Array, " b"], loss: Float[Array, ""], grad_norm: Float[Array, ""], rows: RowFigures
    ) -> Totals:
        """The sums with one more step."""
        index = jnp.clip(jnp.ceil(t * BUCKETS - 1e-4).astype(jnp.int32) - 1, 0, BUCKETS - 1)
        bucket = jax.nn.one_hot(index, BUCKETS, dtype=jnp.float32)
        return Totals(
            steps=self.steps + 1,
            loss=self.loss + loss,
            grad_norm=self.grad_norm + grad_norm,
            terms={name: self.terms[name] + rows.terms[name] @ bucket for name in self.terms},
            bucket_loss=self.bucket_loss + rows.loss @ bucket,
            correct=self.correct + rows.correct @ bucket,
            predicted=self.predicted + rows.predicted @ bucket,
            positions=self.positions + rows.positions @ bucket,
        )


class StepReport(NamedTuple):
    """What a step says of itself, the same on every process."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    row_loss: Float[Array, " b"]  # a mean over the row's counted positions
    skipped_in_a_row: Int[Array, ""]  # steps up to this one whose loss or gradient was not finite; 0: it was taken


class Usual:
    """What losses are usual: the median of the last 100, and their spread around it.

    The spread is 1.4826 times the median distance from the median: the standard deviation of a normal distribution,
    whatever a few outliers are. Nothing is far from the first 30.
    """

    LAST, ENOUGH, DEVIATIONS, LEAST = 100, 30, 10.0, 0.1

    def __init__(self, losses: Iterable[float] = ()):
        self.losses = deque(losses, self.LAST)

    def spike(self, loss: float) -> tuple[float, float] | None:
        """Takes one more loss; median and spread before it if it lies above both by far, else None.

        By far: ten spreads above the median, and a tenth of it, so that losses that hardly move are not spikes.
        """
        known = sorted(self.losses)
        self.losses.append(loss)
        if len(known) < self.ENOUGH:
            return None
        middle = statistics.median(known)
        spread = 1.4826 * statistics.median(abs(value - middle) for value in known)
        return (middle, spread) if loss - middle > max(self.DEVIATIONS * spread, self.LEAST * abs(middle)) else None


def summary(totals: Totals) -> dict[str, float]:
    """Means over the summed steps, by the names that are logged; a bucket that saw no row is left out.

    Of no step at all, as where all were skipped, there is a loss of NaN alone.
    """
    host = jax.tree.map(np.asarray, totals)
    steps, positions = int(host.steps), host.positions
    if not steps:
        return {"loss": math.nan}
    whole = max(float(positions.sum()), 1.0)
    out = {"loss": float(host.loss) / steps}
    out |= {name: float(value.sum()) / whole for name, value in host.terms.items()}
    out["grad_norm"] = float(host.grad_norm) / steps
    out["accuracy"] = float(host.correct.sum()) / max(float(host.predicted.sum()), 1.0)
    for i in np.flatnonzero(positions):
        label = f"t{i / BUCKETS:.1f}-{(i + 1) / BUCKETS:.1f}"
        out[f"loss_by_t/{label}"] = float(host.bucket_loss[i] / positions[i])
        out[f"accuracy_by_t/{label}"] = float(host.correct[i] / max(host.predicted[i], 1.0))
    return out


def mean_figures(batches: Sequence[RowFigures]) -> dict[str, float]:
    """Means a position over batches whose figures are summed, by the names that are logged."""
    total = jax.tree.map(lambda *parts: float(sum(np.asarray(part) for part in parts)), *batches)
    count = max(total.positions, 1.0)
    terms = {name: value / count for name, value in total.terms.items()}
    return {"loss": total.loss / count} | terms | {"accuracy": total.correct / max(total.predicted, 1.0)}


def flops_per_row(
    params: PyTree, *, source: int, backbone: int, head: int = 0, tied: int = 0, forwards: float = 0.0
) -> float:
    """Floating-point operations of one training step for one row.

    Every weight of a matmul (a leaf named `kernel`) takes 6 for each position it meets, 2 forward and 4
    backward, plus 2 for each further forward pass without gradient (self-conditioning: its probability).
    The modulation, the time's MLP and the pooled prompt meet a row once, the prompt encoder `source`
    positions, a token model's head `head` (0: as all else), all else `backbone`. `tied` is the size of
    the table where the head multiplies by it, else 0. The
    scans' and attention's own products and what remat repeats are not counted.
    """
    head = head or backbone
    total = tied * head
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if names[-1] != "kernel":
            continue
        once = "modulation" in names or names[0] == "time" or names[:2] == ["prompt", "pool"]
        positions = 1 if once else {"prompt": source, "head": head}.get(names[0], backbone)
        total += math.prod(leaf.shape) * positions
    return (6.0 + 2.0 * forwards) * total


def peak_flops(device: Any) -> float | None:
    """The device's peak, or None if it is a CPU or not in the table."""
    kinds = sorted(PEAK_FLOPS, key=len, reverse=True)
    return next((PEAK_FLOPS[kind] for kind in kinds if device.device_kind.startswith(kind)), None)
