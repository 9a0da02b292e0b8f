"""The same operations in PyTorch, by the packages that people use: timed, and held to our results.

    python peers.py JOBS.json RESULTS.jsonl

A program of its own, so that PyTorch and JAX do not share a process. It needs torch and what it is to measure, and
nothing of this package. JOBS.json is a list of {operation, shape, sizes, dtype, directions, chunks, check}; check is an
.npz of inputs ("input x"), a cotangent ("dy") and our y and gradients on them, or null. A peer that cannot be imported,
or fails, says so in its line of the results.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # no dependency of this package

Tensors = dict[str, torch.Tensor]
CHUNKS = (64, 128, 256)


def ssd_inputs(sizes: dict[str, int], dtype: torch.dtype) -> Tensors:
    b, l, h, p, n, g = (sizes[name] for name in "blhpng")
    return {
        "x": _normal(b, l, h, p).to(dtype),
        "dt": torch.exp(torch.empty(b, l, h, device="cuda").uniform_(np.log(1e-3), np.log(1e-1))),
        "A": -torch.empty(h, device="cuda").uniform_(1.0, 16.0),
        "B": _normal(b, l, g, n).to(dtype),
        "C": _normal(b, l, g, n).to(dtype),
        "D": _normal(h),
    }


def ssd(chunk: int) -> Callable[[Tensors], torch.Tensor]:
    """dt after its softplus, as ours."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # pyright: ignore

    def run(t: Tensors) -> torch.Tensor:
        return mamba_chunk_scan_combined(t["x"], t["dt"], t["A"], t["B"], t["C"], chunk, D=t["D"])

    return run


def selective_scan_inputs(sizes: dict[str, int], dtype: torch.dtype) -> Tensors:
    """In the layout that the kernel takes: channels before positions. Ours has positions before channels."""
    b, l, d, n = (sizes[name] for name in "bldn")
    steps = torch.exp(torch.empty(d, device="cuda").uniform_(np.log(1e-3), np.log(1e-1)))
    return {
        "u": _normal(b, d, l).to(dtype),
        "dt": (0.5 * _normal(b, d, l)).to(dtype),
        "A": -torch.arange(1.0, n + 1, device="cuda").repeat(d, 1),
        "B": _normal(b, n, l).to(dtype),
        "C": _normal(b, n, l).to(dtype),
        "D": _normal(d),
        "z": _normal(b, d, l).to(dtype),
        "dt_bias": torch.log(torch.expm1(steps)),
    }


def selective_scan(_: int) -> Callable[[Tensors], torch.Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_cuda, selective_scan_fn  # pyright: ignore

    if selective_scan_cuda is None:
        raise ImportError("selective_scan_cuda (mamba_ssm's CUDA extension)")

    def run(t: Tensors) -> torch.Tensor:
        return selective_scan_fn(
            t["u"], t["dt"], t["A"], t["B"], t["C"], t["D"], t["z"], delta_bias=t["dt_bias"], delta_softplus=True
        )

    return run


def causal_conv1d_inputs(sizes: dict[str, int], dtype: torch.dtype) -> Tensors:
    b, l, d, k = (sizes[name] for name in "bldk")
    return {"x": _normal(b, l, d).to(dtype), "w": _normal(d, k), "bias": _normal(d)}


def causal_conv1d(_: int) -> Callable[[Tensors], torch.Tensor]:
    """Channels last, as ours."""
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore

    def run(t: Tensors) -> torch.Tensor:
        x = t["x"]
        y = causal_conv1d_fn(x.transpose(1, 2), t["w"].to(x.dtype), t["bias"].to(x.dtype), activation="silu")
        return y.transpose(1, 2)

    return run


# name; inputs; the function for a variant; variants; which of our axes are swapped in the peer's layout
PEERS = {
    "ssd": ("mamba_chunk_scan_combined", ssd_inputs, ssd, CHUNKS, ()),
    "selective_scan": (
        "selective_scan_cuda", selective_scan_inputs, selective_scan, (0,), ("u", "dt", "B", "C", "z", "y"),
    ),
    "causal_conv1d": ("causal_conv1d_fn", causal_conv1d_inputs, causal_conv1d, (0,), ()),
}  # fmt: skip


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda")


def forward(run: Callable[[Tensors], torch.Tensor], t: Tensors, dy: torch.Tensor) -> Any:
    with torch.no_grad():
        return run(t)


def forward_backward(run: Callable[[Tensors], torch.Tensor], t: Tensors, dy: torch.Tensor) -> Any:
    y = run(t)
    return y, dict(zip(t, torch.autograd.grad(y, list(t.values()), dy, allow_unused=True), strict=True))


DIRECTIONS = {"fwd": forward, "fwd+bwd": forward_backward}


def timed(go: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds: launched one by one, and replayed from a CUDA graph, which waits for no Python.

    Between two runs of the first kind the L2 cache is flushed (`do_bench`).
    """
    import triton.testing

    def bench(go: Callable[[], Any]) -> list[float]:
        times: Any = triton.testing.do_bench(go, warmup=50, rep=200, return_mode="all")
        return times

    go()
    times = bench(go)
    found: dict[str, Any] = {"eager": statistics.median(times), "least": min(times), "most": max(times)}
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            go()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            go()
        times = bench(graph.replay)
        graphed = {"graph": statistics.median(times), "least": min(times), "most": max(times)}
        found |= graphed if graphed["graph"] < found["eager"] else {"graph": graphed["graph"]}
    except Exception as error:
        torch.cuda.synchronize()
        found["no_graph"] = str(error).splitlines()[0]
    return found | {"ms": min(found["eager"], found.get("graph", found["eager"]))}


def check(job: dict[str, Any], peer: tuple, run: Callable[[Tensors], torch.Tensor]) -> dict[str, float]:
    """Relative differences to our outputs and gradients on the same inputs."""
    swapped, dtype = peer[4], getattr(torch, job["dtype"])
    with np.load(job["check"], allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]).cuda() for name in data.files}

    def ours(name: str, value: torch.Tensor) -> torch.Tensor:
        return value.transpose(1, 2).contiguous() if name in swapped else value.contiguous()

    made = peer[1](job["sizes"] | {"b": 1, "l": 64}, dtype)  # for the dtype of each
    t = {
        name: ours(name, arrays[f"input {name}"]).to(made[name].dtype).requires_grad_(True)
        for name in made
    }  # fmt: skip
    dy = ours("y", arrays["dy"]).to(dtype)
    y, gradients = forward_backward(run, t, dy)
    pairs = {"output 0": (y, ours("y", arrays["output 0"]))}
    pairs |= {f"gradient {name}": (value, ours(name, arrays[f"gradient {name}"])) for name, value in gradients.items()}
    return {
        name: float((a.double() - b.double()).norm() / b.double().norm())
        for name, (a, b) in pairs.items()
        if a is not None
    }


def compile_together() -> None:
    """Have Triton's autotuner compile all candidates of a kernel at once, on all cores, before it times the first.

    The choice is unchanged. One after the other, mamba_ssm's fourteen kernels take minutes to compile.
    """
    from triton.runtime._async_compile import AsyncCompileMode
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs
    executor = ThreadPoolExecutor(os.cpu_count())

    def prune_and_compile(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        configs = prune(self, kwargs)
        rest = {name: value for name, value in kwargs.items() if name not in ("grid", "warmup")}
        with contextlib.suppress(Exception), AsyncCompileMode(executor, ignore_errors=True):
            for config in configs:
                self.fn.warmup(*self.nargs.values(), grid=(1,), **rest, **config.all_kwargs())
        return configs

    Autotuner.prune_configs = prune_and_compile


def measure(job: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each direction, of the fastest variant."""
    variants = PEERS[job["operation"]][3]
    if variants == CHUNKS:
        variants = job.get("chunks") or CHUNKS
    best: dict[str, dict[str, Any]] = {}
    failed: list[Exception] = []
    for variant in variants:
        try:
            lines = measure_variant(job, variant)
        except ImportError:
            raise
        except Exception as error:  # out of memory, say: another variant may fit
            traceback.print_exc()
            failed.append(error)
            continue
        for direction, line in lines.items():
            if direction not in best or line["ms"] < best[direction]["ms"]:
                best[direction] = line
    if failed and not best:
        raise failed[0]
    return [{"direction": direction} | line for direction, line in best.items()]


def measure_variant(job: dict[str, Any], variant: int) -> dict[str, dict[str, Any]]:
    peer, dtype = PEERS[job["operation"]], getattr(torch, job["dtype"])
    run = peer[2](variant)
    difference = check(job, peer, run) if job["check"] else {}
    t = {name: value.requires_grad_(True) for name, value in peer[1](job["sizes"], dtype).items()}
    with torch.no_grad():
        dy = torch.randn_like(run(t))
    lines = {}
    for direction in job["directions"]:
        go = partial(DIRECTIONS[direction], run, t, dy)
        go()  # autotuning, and what it allocates, stay out of the memory
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        go()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        lines[direction] = {"peak_bytes": peak, "variant": variant, "difference": difference} | timed(go)
    del t, dy
    torch.cuda.empty_cache()
    return lines


def main(jobs_file: str, results_file: str) -> None:
    with open(jobs_file) as file:
        jobs = json.load(file)
    with contextlib.suppress(ImportError, AttributeError):  # of another Triton: it compiles one after the other
        compile_together()
    with open(results_file, "w") as file:
        for job in jobs:
            began = time.monotonic()
            known = {name: job[name] for name in ("operation", "shape", "dtype")} | {"peer": PEERS[job["operation"]][0]}
            try:
                lines = measure(job)
            except ImportError as error:
                lines = [{"error": f"cannot be imported: {error}"}]
            except Exception as error:
                traceback.print_exc()
                lines = [{"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}]
            for line in lines:
                more = {"torch": torch.__version__, "seconds": round(time.monotonic() - began)}
                file.write(json.dumps(known | line | more) + "\n")
                file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
