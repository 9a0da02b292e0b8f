"""One run of the benchmark: its options, what it found, and the files it writes."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import subprocess
import tempfile
import time
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dimba_kernels.bench import cases, checks, report, timing, tune
from dimba_kernels.bench.cases import DIRECTIONS, KINDS, Arrays, Kind
from dimba_kernels.bench.kernel_times import kernel_times
from dimba_kernels.dispatch import choose

Case = tuple[str, str, str]  # operation, name of the shape, dtype
_VERSIONS = ("jax", "jaxlib", "triton", "jax-triton", "libtpu")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _drawing(operation: str, shape: str, dtype: str) -> Any:
    """Arguments and a cotangent of y, from a key."""
    kind = KINDS[operation]

    def draw(key: jax.Array) -> tuple[Arrays, jax.Array]:
        arrays = kind.draw(kind.shapes[shape], jnp.dtype(dtype), key)
        y = jax.eval_shape(cases.forward(kind, "xla"), arrays, None)
        return arrays, jax.random.normal(jax.random.fold_in(key, 1), y.shape).astype(y.dtype)

    return jax.jit(draw)


def _inputs(case: Case, seed: int) -> tuple[Arrays, jax.Array]:
    return _drawing(*case)(jax.random.key(seed))


class Session:
    """Measurements, in order; `ours` and `peers` are lines of the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.ours: list[report.Line] = []
        self.peers: list[report.Line] = []
        self.wrong: list[str] = []
        self._checked: dict[tuple[str, str, str | None], dict[str, float]] = {}
        self._machine = {
            "device": jax.devices()[0].device_kind,
            "versions": {name: version for name in _VERSIONS if (version := _version(name))},
        }
        self._ceilings = timing.ceilings()
        self._write({"ceilings": dataclasses.asdict(self._ceilings)})

    def heading(self) -> str:
        """The machine and its ceilings."""
        versions = ", ".join(f"{name} {version}" for name, version in self._machine["versions"].items())
        exps = f", exp {self._ceilings.exps / 1e12:.2f} T/s" if self._ceilings.exps else ""
        return (
            f"{self._machine['device']}; {versions}; copy {self._ceilings.copy / 1e12:.2f} TB/s, "
            f"matmul {self._ceilings.matmul / 1e12:.0f} TFLOP/s{exps}"
        )

    def plan(self) -> list[Case]:
        """The cases that the options name."""
        options = self._options
        return [
            (operation, shape, dtype)
            for operation in options.op or KINDS
            for shape in KINDS[operation].shapes
            if (shape in options.shapes if options.shapes else shape != "tiny")
            for dtype in options.dtype
        ]

    def measure(self, plan: list[Case]) -> None:
        """Check and time every case, then the peers."""
        names = [None if name == "best" else name for name in self._options.implementation]
        for case in plan:
            for name in names:
                self.ours += self._case(case, name)
            for name in self._options.peer:
                if name not in ("torch", *names) and not any(_is(line, case, name) for line in self.ours):
                    self.peers += [line | {"peer": name} for line in self._case(case, name)]
        if "torch" in self._options.peer:
            self._torch(plan, names[0])

    def table(self) -> str:
        """The report."""
        relations = {name: kind.instead_of for name, kind in KINDS.items() if kind.instead_of}
        parts = [report.table(self.ours, self.peers, dataclasses.asdict(self._ceilings))]
        parts += [report.instead(self.ours, relations)]
        parts += [f"WRONG, not timed: {line}" for line in self.wrong]
        return "\n\n".join(part for part in parts if part)

    def tune(self, plan: list[Case]) -> None:
        """Search the tiles of every case and print the best."""
        fields = set(self._options.tune) or None
        direction = self._options.direction[-1]
        for case in plan:
            operation, shape, dtype = case
            kind = KINDS[operation]
            arrays, dy = _inputs(case, 0)
            run = DIRECTIONS[direction](kind, "gpu")
            start = tune.chosen(operation, lambda run=run, arrays=arrays, dy=dy: jax.eval_shape(run, arrays, dy))
            expected = jax.block_until_ready(jax.jit(run)(arrays, dy))

            def measure(case=case, kind=kind, inputs=(arrays, dy), expected=expected) -> float:
                run = DIRECTIONS[direction](kind, "gpu")  # another function, so that nothing traced before is found
                errors = checks.differences(jax.jit(run)(*inputs), expected)
                if found := checks.failures(errors, case[2], slack=2):
                    raise AssertionError(f"not the same result: {', '.join(found)}")
                return timing.timed(run, partial(_inputs, case), samples=5).ms

            def show(trial: tune.Trial) -> None:
                cost = f"{trial.ms:9.4f} ms" if trial.ms is not None else f"  not run: {trial.why}"
                print(f"  {cost}  {trial.change}", flush=True)

            print(f"{operation} {shape} {dtype} {direction}: {start}", flush=True)
            best = tune.search(operation, start, measure, show, fields)
            print(f"best: {best.ms and f'{best.ms:.4f}'} ms\n{best.tiles}", flush=True)
            found = {"operation": operation, "shape": shape, "dtype": dtype, "direction": direction}
            self._write(found | {"tiles": repr(best.tiles), "ms": best.ms, "start": repr(start)})

    def _case(self, case: Case, implementation: str | None) -> list[report.Line]:
        operation, shape, dtype = case
        kind = KINDS[operation]
        sizes = kind.shapes[shape]
        arrays, dy = _inputs(case, 0)
        name = implementation or self._chosen(operation, kind, arrays)
        where = f"{operation} {shape} {dtype} {name}"
        print(f"{where} ...", flush=True)
        try:
            compiled = jax.jit(cases.forward_backward(kind, name)).lower(arrays, dy).compile()
            errors = {} if self._options.unchecked else self._check(case, kind, arrays, dy, name, compiled)
        except Exception as error:  # a kernel that does not compile must not keep the others from being measured
            compiled = errors = None
            self._wrong(f"{where}: {type(error).__name__}: {str(error)[:300]}")
        if compiled is None or errors is None:
            return []
        lines = []
        for direction in self._options.direction:
            run = DIRECTIONS[direction](kind, name)
            try:
                time_ = timing.timed(run, partial(_inputs, case), self._options.samples)
            except Exception as error:
                self._wrong(f"{where} {direction}: {type(error).__name__}: {str(error)[:300]}")
                continue
            backward = direction != "fwd"
            work = kind.work(sizes, backward)
            line = dict(zip(("operation", "shape", "dtype"), case, strict=True), sizes=sizes, direction=direction)
            peak = timing.peak_bytes(compiled) if backward else None
            line |= {"implementation": name, **dataclasses.asdict(time_), "peak_bytes": peak, "errors": errors}
            line |= {"least_bytes": cases.least_bytes(arrays, dy, backward), **dataclasses.asdict(work)}
            print(f"  {direction} {time_.ms:.4f} ms ({time_.least:.4f}-{time_.most:.4f})", flush=True)
            if self._options.kernels:
                line["kernels"] = self._kernels(run, arrays, dy)
            self._write(line)
            lines.append(line)
        return lines

    def _kernels(self, run: Any, arrays: Arrays, dy: jax.Array) -> list[tuple[str, float]]:
        """The time of each kernel, also printed."""
        compiled = jax.jit(run).lower(arrays, dy).compile()
        times = kernel_times(lambda: compiled(arrays, dy))
        for name, ms in times:
            print(f"    {ms:9.4f} ms  {name}", flush=True)
        return times

    def _wrong(self, what: str) -> None:
        print(f"  WRONG {what}", flush=True)
        self.wrong.append(what)

    def _chosen(self, operation: str, kind: Kind, arrays: Arrays) -> str:
        """The implementation that None stands for."""
        names = _defaults(kind) | arrays | kind.statics
        return choose(operation, tune.package(operation), None, names).__module__.rsplit(".", 1)[-1]

    def _check(
        self, case: Case, kind: Kind, arrays: Arrays, dy: jax.Array, name: str, compiled: Any
    ) -> dict[str, float] | None:
        """The errors of both checks, or None if one is out of bounds."""
        operation, shape, dtype = case
        key = operation, dtype, name
        if key not in self._checked:
            self._checked[key] = checks.against_float64(kind, dtype, name)
        errors = dict(self._checked[key])
        found = checks.failures(errors, dtype)
        if name not in ("xla", "reference"):
            against = checks.against_xla(kind, arrays, dy, compiled(arrays, dy))
            # both round: twice the tolerance
            found += [f"{line} from xla" for line in checks.failures(against, dtype, slack=2)]
            errors |= {f"{label} from xla": error for label, error in against.items()}
        print("  " + ", ".join(f"{label} {error:.0e}" for label, error in errors.items()), flush=True)
        if found:
            self._wrong(f"{' '.join(case)} {name}: {', '.join(found)}")
            return None
        return errors

    def _torch(self, plan: list[Case], implementation: str | None) -> None:
        """Run the peers' program on the same cases."""
        with tempfile.TemporaryDirectory() as directory:
            jobs, saved = [], {}
            for operation, shape, dtype in plan:
                if operation not in ("ssd", "selective_scan", "causal_conv1d"):
                    continue
                kind = KINDS[operation]
                if (operation, dtype) not in saved and not self._options.unchecked:
                    path = saved[operation, dtype] = f"{directory}/{operation}-{dtype}.npz"
                    checks.save_for_peer(path, kind, dtype, implementation)
                job = {"operation": operation, "shape": shape, "sizes": kind.shapes[shape], "dtype": dtype}
                job |= {"directions": self._options.direction, "chunks": self._options.peer_chunks}
                jobs.append(job | {"check": saved.get((operation, dtype))})
            jobs_file, results = Path(directory, "jobs.json"), Path(directory, "results.jsonl")
            jobs_file.write_text(json.dumps(jobs))
            path = os.pathsep.join(part for part in (self._options.peer_path, os.environ.get("PYTHONPATH")) if part)
            program = Path(__file__).with_name("peers.py")
            command = [self._options.peer_python, str(program), str(jobs_file), str(results)]
            # jax-triton has emptied the variable, and without a folder for its cache the peer's Triton compiles nothing
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR" or value}
            environment["PYTHONPATH"] = path
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
            if ended.returncode:
                last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
                print(f"the peers' program failed ({' '.join(command[:1])}): {last[0]}", flush=True)
                missing = {"peer": "torch", "error": f"did not run: {last[0]}"}
                done = {(line["operation"], line["shape"], line["dtype"]) for line in lines}
                rest = [{key: job[key] for key in ("operation", "shape", "dtype")} for job in jobs]
                lines += [job | missing for job in rest if (job["operation"], job["shape"], job["dtype"]) not in done]
            for line in lines:
                found = checks.failures(line.get("difference", {}), line["dtype"], slack=3)
                if found:
                    print(f"  {line['peer']} {line['shape']} differs from ours: {', '.join(found)}", flush=True)
                if "error" in line:
                    print(f"  {line['peer']} {line['shape']} {line['error']}", flush=True)
                self._write(line)
            self.peers += lines

    def _write(self, line: dict[str, Any]) -> None:
        if self._options.output:
            stamp = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            with self._options.output.open("a") as file:
                file.write(json.dumps(stamp | self._machine | line) + "\n")


def _defaults(kind: Kind) -> dict[str, Any]:
    """The operation's optional arguments."""
    parameters = inspect.signature(kind.function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "implementation"}


def _is(line: report.Line, case: Case, implementation: str) -> bool:
    return (line["operation"], line["shape"], line["dtype"], line["implementation"]) == (*case, implementation)
