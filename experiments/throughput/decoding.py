"""Network calls of sampling: the whole sequence at once, block by block with a cache, token by token.

    PYTHONPATH=.:kernels python experiments/throughput/decoding.py --output=decoding.jsonl
    PYTHONPATH=.:kernels JAX_PLATFORMS=cpu python experiments/throughput/decoding.py --size tiny --lengths 64 128

Random weights of the 1.3B class, bfloat16, batch 1 unless --rows says otherwise; "diffumamba unroll" has its layers one
by one instead of a scan over them. Timed are

  full      a denoising call over all L positions, without the head (logits of one position)
  block     a call over a block of 32 positions behind a cache of L - 32, with the head; for masked models, whose cache
            is then exact (block diffusion)
  token     the same for one position of an autoregressive Transformer
  refresh   Fast-dLLM on a model trained without blocks: a call over all L positions that keeps what a window needs
  window    and the calls over the window of 32 that follow it

Some calls follow one another in one program, each depending on the one before, so that what the host does is not in the
times. Tokens a second follow from them and are an extrapolation (report.py): a whole sample of L tokens is not drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dimba_jax.config import RunConfig
from dimba_jax.models.build import make_denoiser
from dimba_jax.models.prepared import merge_prepared
from dimba_jax.models.token_denoiser import Cache
from dimba_jax.recipes import autoregressive

sys.path.insert(0, str(Path(__file__).parents[1]))
from recipe_files import recipe  # noqa: E402

BLOCK = 32
SYSTEMS = {
    "diffumamba": ("", ("full", "block")),
    "diffumamba-h": ("-h", ("full", "block")),
    "diffutran": ("-tran", ("full", "block", "refresh", "window")),
    "ar": ("ar", ("token",)),
}


def config_of(size: str, system: str) -> RunConfig:
    """The config of a system, "unroll" behind its name or not."""
    name, *changes = system.split()
    if name not in SYSTEMS or changes not in ([], ["unroll"]):
        raise SystemExit(f"--systems {system!r} is unknown; there are {', '.join(SYSTEMS)}, and each with unroll")
    variant, _ = SYSTEMS[name]
    base: RunConfig = recipe("diffumamba").SIZES[size]
    if variant == "ar":
        config = autoregressive(base, "ar", pattern=("attention",), mlp_ratio=4.0)
    else:
        config = recipe("diffumamba").VARIANTS[f"{size}{variant}"]
    return replace(config, model=replace(config.model, dtype="bfloat16", scan_layers=not changes))


def network(config: RunConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """A random network with its matmuls' weights and tables in the compute dtype."""
    dtype = jnp.dtype(config.model.dtype)

    @jax.jit
    def make() -> Any:
        state = nnx.state(make_denoiser(config, config.tokenizer.vocab_size, nnx.Rngs(0)), nnx.Param)

        def cast(path: tuple, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path[-2:], simple=True, separator="/")
            return leaf.astype(dtype) if "kernel" in name or "table" in name else leaf

        return jax.tree_util.tree_map_with_path(cast, state)

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make_denoiser(config, config.tokenizer.vocab_size, nnx.Rngs(0))))
    return graphdef, make()


def calls(
    kind: str, config: RunConfig, graphdef: nnx.GraphDef, length: int, count: int, rows: int = 1
) -> tuple[Callable[..., Any], Any]:
    """A program of `count` calls in a row, (params, tokens, cache) -> number, and its cache."""
    size = {"full": length, "refresh": length, "token": 1}.get(kind, BLOCK)
    mask = config.tokenizer.vocab_size

    def one(denoiser: Any, tokens: jax.Array, cache: Any) -> jax.Array:
        t = jnp.full((rows,), 0.5)
        if kind == "full":
            return denoiser(tokens, t, first=length - 1)
        if kind == "refresh":
            logits, kept = denoiser.refresh(tokens, t, length - 2 * BLOCK, size=BLOCK, first=length - 1)
            return logits + sum(
                jnp.sum(leaf[..., :1].astype(jnp.float32)) * 1e-9 for leaf in jax.tree.leaves(kept.layers)
            )
        if kind == "window":
            return denoiser.window(tokens, t, cache)
        return denoiser.extend(tokens, t, cache)[0]

    def run(params: Any, tokens: jax.Array, cache: Any) -> jax.Array:
        denoiser = merge_prepared(graphdef, params, rows * size)

        def step(tokens: jax.Array, _: None) -> tuple[jax.Array, None]:
            logits = one(denoiser, tokens, cache)
            best = jnp.argmax(logits[:, -1], axis=-1).astype(tokens.dtype)
            return (tokens + best[:, None]) % mask, None  # the next call waits for this one

        return jax.lax.scan(step, tokens, None, length=count)[0]

    def context(params: Any) -> Any:
        denoiser: Any = nnx.merge(graphdef, params)
        if kind == "window":
            kept = denoiser.refresh(
                jnp.zeros((rows, length), jnp.int32), jnp.full((rows,), 0.5), length - 2 * BLOCK, size=BLOCK
            )
            return kept[1]
        cache = denoiser.empty_cache(rows, length)
        keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(cache))))
        filled = jax.tree.map(
            lambda leaf: (
                jax.random.normal(next(keys), leaf.shape, leaf.dtype)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else jnp.ones_like(leaf)
                if leaf.dtype == bool
                else jnp.full_like(leaf, length - size)
            ),
            cache.layers,
        )
        return Cache(filled, jnp.int32(length - size))

    return jax.jit(run), (jax.jit(context) if kind in ("block", "token", "window") else None)


def measure(
    kind: str, config: RunConfig, graphdef: Any, params: Any, length: int, samples: int, rows: int
) -> dict[str, Any]:
    """Milliseconds a call."""
    size = {"full": length, "refresh": length, "token": 1}.get(kind, BLOCK)
    tokens = jax.random.randint(jax.random.key(0), (rows, size), 0, config.tokenizer.vocab_size - 1)
    count = 10 if rows * size <= 8192 else 3 if rows * size <= 16384 else 1
    run, context = calls(kind, config, graphdef, length, count, rows)
    cache = None if context is None else context(params)
    began = time.monotonic()
    program = run.lower(params, tokens, cache).compile()
    compile_seconds = time.monotonic() - began
    began = time.perf_counter()
    program(params, tokens, cache).block_until_ready()
    times = []
    for _ in range(samples if time.perf_counter() - began < 1.0 else 2):
        began = time.perf_counter()
        program(params, tokens, cache).block_until_ready()
        times.append(1e3 * (time.perf_counter() - began) / count)
    temporary = program.memory_analysis().temp_size_in_bytes
    return {
        "kind": kind, "length": length, "ms": statistics.median(times), "least": min(times), "most": max(times),
        "compile_seconds": compile_seconds, "temporary_bytes": temporary,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1b3", help="of configs/diffumamba.py")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), help=f"{', '.join(SYSTEMS)}; each with unroll")
    parser.add_argument("--kinds", nargs="*", default=["full", "block", "token", "refresh", "window"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[1024, 4096, 16384, 65536, 131072])
    parser.add_argument("--rows", type=int, default=1, help="the batch")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--output", type=Path, help="gets a line of JSON each; what it has is not repeated")
    options = parser.parse_args()

    configs = {system: config_of(options.size, system) for system in options.systems}
    device = jax.devices()[0].device_kind
    done = set()
    if options.output and options.output.exists():
        lines = [json.loads(line) for line in options.output.read_text().splitlines()]
        lines = [line for line in lines if (line["size"], line["rows"]) == (options.size, options.rows)]
        done = {(line["system"], line["kind"], line["length"]) for line in lines}
    print(f"{device}, jax {metadata.version('jax')}, batch {options.rows}\n")
    print("| system | call | L | ms (least-most) | compile s | temporary GiB |")
    print("|" + "---|" * 6, flush=True)
    for system, config in configs.items():
        _, kinds = SYSTEMS[system.split()[0]]
        graphdef, params = network(config)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        for kind in (kind for kind in kinds if kind in options.kinds):
            for length in options.lengths:
                if (system, kind, length) in done:
                    continue
                try:
                    line = measure(kind, config, graphdef, params, length, options.samples, options.rows)
                    shown = (
                        f"{line['ms']:.3f} ({line['least']:.3f}-{line['most']:.3f}) | {line['compile_seconds']:.0f} "
                        f"| {line['temporary_bytes'] / 2**30:.1f}"
                    )
                except jax.errors.JaxRuntimeError as error:  # out of memory: others may fit
                    line = {"kind": kind, "length": length, "error": str(error)[:300]}
                    shown = f"{str(error)[:80]} | |"
                print(f"| {system} ({count / 1e6:.0f}M) | {kind} | {length:,} | {shown} |", flush=True)
                if options.output:
                    known = {"system": system, "size": options.size, "rows": options.rows}
                    known |= {"device": device, "jax": metadata.version("jax")}
                    with options.output.open("a") as file:
                        file.write(json.dumps(known | {"parameters": count} | line) + "\n")


if __name__ == "__main__":
    main()
