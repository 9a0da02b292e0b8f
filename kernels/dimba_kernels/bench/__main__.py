"""Measures the operations: first whether they are right, then how fast they are.

    python -m dimba_kernels.bench                                       every operation, every shape, bfloat16
    python -m dimba_kernels.bench --op ssd --shapes 8x2048xH60 --peer torch --peer xla --output results.jsonl
    python -m dimba_kernels.bench --op ssd --shapes 8x2048xH60 --tune outputs.warps outputs.stages
    python -m dimba_kernels.bench --list                                the operations and their shapes

Right means: outputs and gradients within tolerance of the float64 reference on a reduced shape, and of the "xla"
implementation on the real one. What is not right is not timed, and the program ends with status 1.

A time is the median of several samples. A sample is many runs in a row, on inputs that are not in the cache. Beside it
stand its shares of what this machine can do at most, measured in this same run: the fewest bytes (every input read
once, every output written once) of a copy's speed; operations of a bfloat16 matmul's; exponentials of a kernel that
takes nothing but exponentials. The memory is what the compiler has planned, inputs and outputs included.

Peers: `torch` runs mamba_ssm's and causal_conv1d's kernels, where they can be imported, in a process of their own
(--peer-python, --peer-path); `xla` and `reference` are implementations of this package.

--kernels prints beside each time how long every kernel of a run took, by the profiler, in the order of their launch.

--tune halves and doubles the numbers of the operation's `gpu_tiles.py`, one at a time, and prints what is best for
that shape. Copy it there.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

TORCH = "torch"


def parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    made = argparse.ArgumentParser(
        "python -m dimba_kernels.bench",
        description="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--op", nargs="*", help="operations; all by default")
    made.add_argument("--shapes", nargs="*", help="names of shapes; all but tiny by default")
    made.add_argument("--implementation", nargs="*", default=["best"], help="best, gpu, tpu, xla, reference")
    made.add_argument("--direction", nargs="*", default=["fwd", "fwd+bwd"], choices=["fwd", "fwd+bwd"])
    made.add_argument("--dtype", nargs="*", default=["bfloat16"], choices=["bfloat16", "float32"])
    made.add_argument("--peer", nargs="*", action="extend", default=[], help="torch, xla or reference; may be repeated")
    made.add_argument("--peer-python", default=sys.executable, help="the Python that has torch")
    made.add_argument("--peer-path", default="", help="put before its PYTHONPATH")
    made.add_argument("--peer-chunks", nargs="*", type=int, help="of mamba_ssm's ssd, the best counts; 64 128 256")
    made.add_argument("--output", type=Path, help="a file that gets a line of JSON for each measurement")
    made.add_argument("--tune", nargs="*", metavar="FIELD", help="search for tiles; of these fields, or of all")
    made.add_argument("--kernels", action="store_true", help="print the time of each kernel (NVIDIA GPUs)")
    made.add_argument("--samples", type=int, default=9, help="of a time; 5 or more")
    made.add_argument("--unchecked", action="store_true", help="time without checking")
    made.add_argument("--list", action="store_true", help="list operations and shapes")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if TORCH in options.peer:  # leave them some of the memory: by default JAX takes three quarters of it
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".55")
    from dimba_kernels.bench.cases import KINDS

    if options.list:
        for name, kind in KINDS.items():
            print(name, *kind.shapes)
        return 0
    unknown = set(options.op or ()) - set(KINDS)
    if unknown:
        print(f"unknown operations {sorted(unknown)}; there are {', '.join(KINDS)}", file=sys.stderr)
        return 2
    from dimba_kernels.bench.session import Session

    session = Session(options)
    print(session.heading(), flush=True)
    plan = session.plan()
    if not plan:
        print("no operation has a shape of that name; --list shows them")
        return 2
    if options.tune is not None:
        session.tune(plan)
        return 0
    session.measure(plan)
    print("\n" + session.table())
    return 1 if session.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
