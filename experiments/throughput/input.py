"""How long the host takes for a batch: read by the recipe's own pipeline, and placed on the device.

    PYTHONPATH=.:kernels JAX_PLATFORMS=cpu python experiments/throughput/input.py --data=WIKITEXT --rows 16 512
    PYTHONPATH=.:kernels JAX_PLATFORMS=cpu python experiments/throughput/input.py --recipe=qqp --data=QQP --rows 2048

Beside it stands a step's time (training.py) for the same rows: the host reads the next batch while a step runs, so that
it delays none as long as it takes less. Tokens are bytes: how a text was cut into tokens before does not matter here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax

from dimba_jax import parallel
from dimba_jax.config import MeshConfig, RunConfig, TokenizerConfig, from_config_dict
from dimba_jax.data.pipeline import train_iterator
from dimba_jax.data.tokenizers import make_tokenizer
from dimba_jax.training.feed import Feed

sys.path.insert(0, str(Path(__file__).parents[1]))
from recipe_files import recipe  # noqa: E402

BATCHES = 200


def measure(config: RunConfig, rows: int) -> list[float]:
    """Milliseconds of each batch, the first ones left out."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(config, Path(folder))
    source = train_iterator(config.data, tokenizer, rows, config.seed)
    feed = Feed(source, parallel.make_mesh(MeshConfig(), jax.devices()[:1]))
    times = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        batch, _ = feed.take()
        jax.block_until_ready(batch)
        times.append(1e3 * (time.perf_counter() - began))
    feed.close()
    return times[BATCHES // 10 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="wikitext2", help="a file of configs/")
    parser.add_argument("--data", required=True, help="config.data.path")
    parser.add_argument("--rows", nargs="*", type=int, default=[16])
    parser.add_argument("--length", type=int, help="positions of a row of text; the recipe's own unless given")
    parser.add_argument("--workers", nargs="*", type=int, default=[0], help="config.data.workers")
    options = parser.parse_args()

    print(
        f"{jax.devices()[0].device_kind}\n\n| recipe | batch | workers | ms a batch: median (least-most) | tokens/s |"
    )
    print("|---|---|---|---|---|", flush=True)
    base = from_config_dict(recipe(options.recipe).get_config())
    for workers in options.workers:
        data = replace(base.data, path=options.data, workers=workers)
        if options.length:
            data = replace(data, target_length=options.length)
        config = replace(base, data=data, tokenizer=TokenizerConfig(kind="bytes"))
        length = data.source_length + data.target_length
        for rows in options.rows:
            times = measure(config, rows)
            ms = statistics.median(times)
            print(
                f"| {options.recipe} | {rows} x {length} | {workers} | {ms:.2f} ({min(times):.2f}-{max(times):.2f}) "
                f"| {rows * length / ms * 1e3:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
