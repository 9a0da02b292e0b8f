"""Where the time of a training step or a sampling call goes, kernel by kernel, read from JAX's own profile of it.

    PYTHONPATH=.:kernels python experiments/throughput/where_time_goes.py --run "240m remat=kernels" --trace=trace
    PYTHONPATH=.:kernels python experiments/throughput/where_time_goes.py --call "diffutran unroll" --length 4096

On a GPU. Prints a table of what kind of work the kernels of a step do, and the longest ones. The folder --trace keeps
the profile for TensorBoard or Perfetto. Runs are those of training.py, calls those over a whole sequence of
decoding.py: systems of --size, one row. Command buffers are off while it runs (unless XLA_FLAGS speaks of them): they
hide where kernels come from. Steps and calls of many small kernels take longer without them.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if "xla_gpu_enable_command_buffer" not in os.environ.get("XLA_FLAGS", ""):  # read when jax is imported
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()
import jax  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from decoding import calls, config_of, network  # noqa: E402
from steps import Step  # noqa: E402
from training import settings  # noqa: E402

from dimba_jax.scale.hlo import Module  # noqa: E402

STEPS = 3
CALLS = 10  # of one program
# the first kind whose pattern is found in a kernel's name, its instruction and where that comes from
KINDS = (
    ("scans (ssd)", r"^(chunk_|decay|pass_|outputs|gradients|states)|chunk_outputs|chunk_states|chunk_gradients"),
    ("attention (cuDNN)", r"sdpa|cudnn|flash"),
    ("matrix multiplications", r"nvjet|gemm|cutlass|cublas|splitK|\bdot\b"),
    ("convolution and norms (Triton)", r"triton_kernel_call"),
    ("optimizer and average", r"jit\(train_step\)/(add|sub|mul|div|sqrt|select_n|pow|integer_pow|reduce_sum|jit)"),
    ("stacking and copying what layers keep", r"dynamic_(update_)?slice|broadcast_in_dim|Memcpy|Memset|loop_broadcast"),
    ("elementwise and reductions in layers", r"while/body"),
    ("loss over the vocabulary, embedding, the rest", r""),
)


class Work(NamedTuple):
    """What is profiled, compiled and run before."""

    name: str
    ms: float  # of one piece
    again: Callable[[], object]  # does all its pieces and waits for them
    pieces: int
    program: str


def training_steps(run: str, rows: int, length: int) -> Work:
    """Training steps of one of training.py's runs."""
    config, mesh = settings(run, rows, length)
    step = Step(config, 1, mesh)
    step.run(3)
    ms = step.run(5)[0]
    return Work(f"{run}, a step", ms, lambda: step.run(STEPS), STEPS, step.program.as_text() or "")


def sampling_calls(system: str, size: str, length: int) -> Work:
    """Calls over a whole sequence of one of decoding.py's systems, one after another in a program, as it times them."""
    config = config_of(size, system)
    graphdef, params = network(config)
    tokens = jax.random.randint(jax.random.key(0), (1, length), 0, config.tokenizer.vocab_size - 1)
    program = calls("full", config, graphdef, length, CALLS)[0].lower(params, tokens, None).compile()

    def again() -> None:
        program(params, tokens, None).block_until_ready()

    again()
    began = time.perf_counter()
    again()
    ms = 1e3 * (time.perf_counter() - began) / CALLS
    return Work(f"{size} {system}, a call of {length:,} positions", ms, again, CALLS, program.as_text() or "")


class Kernel(NamedTuple):
    """One that ran, its instruction of the program, what that makes ("bf16[3,8]") and what it was made from."""

    name: str
    instruction: str
    makes: str = ""
    origin: str = ""


def instructions(program: str) -> dict[str, tuple[str, str]]:
    """Of each instruction of a compiled program what it makes and what it was made from."""
    found = [made for computation in Module(program).computations.values() for made in computation.values()]
    return {made.name: (re.sub(r"\{[^}]*\}", "", made.shape), made.op_name) for made in found}


def kernels(work: Work, trace: Path) -> dict[Kernel, float]:
    """Milliseconds of a piece by kernel."""
    with jax.profiler.trace(str(trace)):
        work.again()
    known = instructions(work.program)
    (profile,) = trace.rglob("*.xplane.pb")
    found: dict[Kernel, float] = collections.defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(profile)).planes:
        for line in plane.lines if "GPU" in plane.name else ():
            if line.name.startswith("Stream"):
                for event in line.events:
                    instruction = str(dict(event.stats).get("hlo_op", ""))
                    kernel = Kernel(event.name, instruction, *known.get(instruction, ("", "")))
                    found[kernel] += event.duration_ns / 1e6 / work.pieces
    if not found:
        raise SystemExit("the profile holds no kernels: it is read from a GPU's")
    return found


def kind(kernel: Kernel) -> str:
    text = " ".join((kernel.name, kernel.instruction, kernel.origin))
    return next(name for name, pattern in KINDS if re.search(pattern, text))


def alike(found: dict[Kernel, float]) -> list[tuple[Kernel, int, float]]:
    """Kernels that differ by a number in their names, as those of like layers do, as one: how many, and their time."""
    together: dict[Kernel, list[float]] = collections.defaultdict(list)
    for kernel, ms in found.items():
        together[kernel._replace(name=_unnumbered(kernel.name), instruction=_unnumbered(kernel.instruction))].append(ms)
    return sorted(((kernel, len(ms), sum(ms)) for kernel, ms in together.items()), key=lambda one: -one[2])


def _unnumbered(name: str) -> str:
    return re.sub(r"([._]\d+)+$", "", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", default="240m remat=kernels", help="of training.py")
    which.add_argument("--call", help="of decoding.py instead: the system")
    parser.add_argument("--size", default="1b3", help="of a --call")
    parser.add_argument("--rows", type=int, default=16, help="of a --run")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--trace", type=Path, help="folder that keeps the profile")
    parser.add_argument(
        "--output", type=Path, help="gets the kinds and all kernels as JSON, and the compiled program beside it as .txt"
    )
    parser.add_argument("--longest", type=int, default=15)
    options = parser.parse_args()
    if options.call:
        work = sampling_calls(options.call, options.size, options.length)
    else:
        work = training_steps(options.run, options.rows, options.length)
    with tempfile.TemporaryDirectory() as folder:
        found = kernels(work, options.trace or Path(folder))
    totals: dict[str, float] = collections.defaultdict(float)
    for kernel, spent in found.items():
        totals[kind(kernel)] += spent
    print(f"{jax.devices()[0].device_kind}, {work.name}: {work.ms:.2f} ms, kernels {sum(totals.values()):.2f} ms\n")
    print("| kind | ms | share |\n|---|---|---|")
    for name, spent in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"| {name} | {spent:.2f} | {100 * spent / sum(totals.values()):.0f}% |")
    print("\n| ms | kernels | name | makes | from |\n|---|---|---|---|---|")
    for kernel, count, spent in alike(found)[: options.longest]:
        print(f"| {spent:.2f} | {count} | {kernel.name[:48]} | {kernel.makes[:40]} | {kernel.origin[-60:]} |")
    if options.output:
        ranked = sorted(found.items(), key=lambda item: -item[1])
        lines = [{"ms": spent} | kernel._asdict() for kernel, spent in ranked]
        values = {
            "run": work.name,
            "device": jax.devices()[0].device_kind,
            "ms": work.ms,
            "kinds": totals,
            "kernels": lines,
        }
        options.output.write_text(json.dumps(values, indent=1) + "\n")
        options.output.with_suffix(".txt").write_text(work.program)


if __name__ == "__main__":
    main()
