"""How long imports and --help take: each in fresh interpreters, the median in seconds.

python experiments/startup/measure.py [--runs=5]
"""

import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import dimba_jax": ["-c", "import dimba_jax"],
    "import dimba_kernels": ["-c", "import dimba_kernels"],
    "import dimba_jax; dimba_jax.load": ["-c", "import dimba_jax; dimba_jax.load"],
    "python -m dimba_jax.train --help": ["-m", "dimba_jax.train", "--help"],
    "python -m dimba_jax.sample --help": ["-m", "dimba_jax.sample", "--help"],
    "python -m dimba_jax.evaluate --help": ["-m", "dimba_jax.evaluate", "--help"],
}


def measure(arguments: list[str], runs: int) -> tuple[float, float]:
    """Medians of (elapsed, processor) seconds; one more run, not counted, brings the files into memory."""
    elapsed, used = [], []
    for _ in range(runs + 1):
        since, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        elapsed.append(time.perf_counter() - since)
        after = os.times()
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(elapsed[1:]), statistics.median(used[1:])


if __name__ == "__main__":
    runs = int(sys.argv[1].removeprefix("--runs=")) if len(sys.argv) > 1 else 5
    print("| | elapsed, s | processor, s |\n|---|---|---|")
    for name, arguments in COMMANDS.items():
        print("| `{}` | {:.2f} | {:.2f} |".format(name, *measure(arguments, runs)), flush=True)
