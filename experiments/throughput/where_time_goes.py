"""Where the time of a training step goes, kernel by kernel, read from JAX's own profile of it.

    PYTHONPATH=.:kernels python experiments/throughput/where_time_goes.py --run "240m remat=kernels" --trace=trace

On a GPU. Prints a table of what kind of work the kernels of a step do, and the longest ones. The folder --trace keeps
the profile for TensorBoard or Perfetto. Runs are those of training.py.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from steps import Step  # noqa: E402
from training import settings  # noqa: E402

STEPS = 3
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


def kernels(run: str, rows: int, length: int, trace: Path) -> tuple[dict[tuple[str, str, str], float], float]:
    """Milliseconds a step by kernel, instruction and origin; and those of a whole step."""
    config, mesh = settings(run, rows, length)
    step = Step(config, 1, mesh)
    step.run(3)
    ms = step.run(5)[0]
    with jax.profiler.trace(str(trace)):
        step.run(STEPS)
    origins = dict(re.findall(r'%?([\w.\-]+) = .*?op_name="([^"]*)"', step.program.as_text() or ""))
    (profile,) = trace.rglob("*.xplane.pb")
    found: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(profile)).planes:
        for line in plane.lines if "GPU" in plane.name else ():
            if line.name.startswith("Stream"):
                for event in line.events:
                    instruction = str(dict(event.stats).get("hlo_op", ""))
                    key = event.name, instruction, origins.get(instruction, "")
                    found[key] += event.duration_ns / 1e6 / STEPS
    if not found:
        raise SystemExit("the profile holds no kernels: it is read from a GPU's")
    return found, ms


def kind(key: tuple[str, str, str]) -> str:
    text = " ".join(key)
    return next(name for name, pattern in KINDS if re.search(pattern, text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="240m remat=kernels")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--trace", type=Path, help="folder that keeps the profile")
    parser.add_argument("--output", type=Path, help="gets the kinds and all kernels as JSON")
    parser.add_argument("--longest", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, ms = kernels(options.run, options.rows, options.length, options.trace or Path(folder))
    totals = collections.Counter()
    for key, spent in found.items():
        totals[kind(key)] += spent
    print(f"{jax.devices()[0].device_kind}, {options.run}: {ms:.1f} ms a step, kernels {sum(totals.values()):.1f} ms\n")
    print("| kind | ms | share |\n|---|---|---|")
    for name, spent in totals.most_common():
        print(f"| {name} | {spent:.1f} | {100 * spent / sum(totals.values()):.0f}% |")
    print("\n| ms | kernel | instruction | from |\n|---|---|---|---|")
    ranked = sorted(found.items(), key=lambda item: -item[1])
    for (name, instruction, origin), spent in ranked[: options.longest]:
        print(f"| {spent:.2f} | {name[:48]} | {instruction[:32]} | {origin[-60:]} |")
    if options.output:
        lines = [{"ms": spent, "kernel": key[0], "instruction": key[1], "from": key[2]} for key, spent in ranked]
        values = {
            "run": options.run,
            "device": jax.devices()[0].device_kind,
            "ms": ms,
            "kinds": totals,
            "kernels": lines,
        }
        options.output.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
