"""Measures how far Fast-dLLM's cached calls are from whole passes, for one checkpoint of a masked language model.

    python experiments/fast_dllm/measure.py --checkpoint=W [--rows=16] [--output=deviation.jsonl]

Texts are written from nothing, blocks from left to right, a quarter of a block's positions a call or all above a
threshold. Appends one JSON line for each setting and prints them as a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from dimba_jax.sampling.discrete.deviation import cache_deviation
from dimba_jax.sampling.load import load

BLOCKS = (16, 32, 64)
COLUMNS = ("mean_difference", "max_difference", "argmax_changed", "full_calls", "window_calls", "positions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="workdir of a masked language model without blocks")
    parser.add_argument("--rows", type=int, default=16, help="texts")
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS, help="block sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON line for each setting, appended")
    options = parser.parse_args()
    model = load(options.checkpoint)
    length = model.config.data.target_length
    tokens = jnp.zeros((options.rows, length), jnp.int32)
    everywhere = jnp.ones(tokens.shape, bool)
    keys = jax.random.split(jax.random.key(options.seed), options.rows)
    print("| network | cache | block | threshold | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |")
    print("|" + "---|" * (4 + len(COLUMNS)))
    for block in options.blocks:
        for threshold in (0.0, 0.9):
            for cache in ("prefix", "dual"):
                settings = dataclasses.replace(
                    model.config.sampling, sampler="confidence", block_size=block, cache=cache, threshold=threshold,
                    steps=block if threshold else block // 4, temperature=1.0,
                )  # fmt: skip
                found = cache_deviation(
                    model.denoiser, model.process, tokens, everywhere, everywhere, keys, settings, config=model.config
                )  # fmt: skip
                name = {"config": model.config.name, "step": model.step, "length": length, "rows": options.rows}
                line = name | {"cache": cache, "block_size": block, "threshold": threshold} | found
                cells = [model.config.name, cache, str(block), f"{threshold:g}", *(f"{found[c]:.4g}" for c in COLUMNS)]
                print(f"| {' | '.join(cells)} |", flush=True)
                if options.output is not None:  # at once: a run may be cut short
                    with options.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
