"""Compiles a recipe's training step and sampling step for devices that are not there, and prints what they take.

    python -m dimba_jax.aot --config=configs/diffumamba.py:1b3 --topology=v5e:16x16 --config.mesh.fsdp=256 …

libtpu (the `tpu` extra, any Linux machine) holds the compiler of a TPU, JAX's CUDA plugin (the `gpu` extra) that of an
NVIDIA GPU. What is printed is of one chip: memory by kind, FLOPs, bytes, kernels and collectives of the compiled
program, and the times and the utilisation that they would come to at the rates that the chip's maker publishes:
predictions, not measurements. Topologies: v5e, v5p and v6e slices such as v5e:16x16, v5p:8x8x8, v6e:16x16; h200:8, GPUs
of a host, for whose program nothing is timed as it would be on one (some matmuls may take another form there), and
whose Triton kernels' multiplications are not counted; and cpu:8, eight devices of a host, whose partitioned program and
collectives are those that any eight devices start from. The exit status is 1 if a program does not fit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from absl import flags

from dimba_jax import commandline
from dimba_jax.config import ConfigError, from_config_dict

PARTS = ("train", "sample")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = sys.argv if argv is None else argv
    return commandline.run("aot", __doc__, _parse, _run, argv)


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    define = commandline.Flags()
    define.config("recipe, as in configs/diffumamba.py:1b3", argv)
    define.text("topology", None, "what to compile for, as v5e:16x16, h200:8 or cpu:8")
    define.listing("parts", list(PARTS), "which of train and sample")
    define.text("output", None, "JSON lines file to add a row to for each part")
    options = define.parse(argv)
    if options.help:
        return options
    for name in ("config", "topology"):
        if options[name].value is None:
            raise flags.Error(f"--{name} is missing: python -m dimba_jax.aot --config=RECIPE --topology=v5e:16x16")
    for part in options.parts:
        if part not in PARTS:
            raise flags.Error(f"--parts={part} is unknown: expected {' or '.join(PARTS)}")
    return options


def _run(options: flags.FlagValues) -> int:
    config = from_config_dict(options.config)
    generation, _, count = options.topology.partition(":")
    if generation == "cpu" and count.isdigit() and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        _add_xla_flags(f"--xla_force_host_platform_device_count={count}")
    from dimba_jax.scale.chips import GPUS, target_of
    from dimba_jax.scale.gpu import FLAGS

    if generation in GPUS:
        _add_xla_flags(*FLAGS)

    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs, so that no accelerator of this machine is taken
    from dimba_jax.scale.programs import compile_part
    from dimba_jax.scale.report import describe, lines

    target = target_of(options.topology)
    fits = True
    for part in options.parts:
        row = describe(compile_part(part, config, target), config, target)
        print("\n".join(lines(row)), flush=True)
        fits = fits and row.get("fits", True)
        if options.output is not None:
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"commit": program()}) + "\n")
    return 0 if fits else 1


def _add_xla_flags(*options: str) -> None:
    """To XLA's, which it reads when JAX first looks for devices; the last of two counts."""
    given = os.environ.get("XLA_FLAGS", "")
    if given.strip() and not given.lstrip().startswith("-"):
        raise ConfigError(f"XLA_FLAGS={given} names a file, to which {' '.join(options)} cannot be added: unset it")
    os.environ["XLA_FLAGS"] = f"{given} {' '.join(options)}".strip()


def program() -> str | None:
    """The commit that this code is, with a plus if its files differ from it; None where git does not know it."""
    from dimba_jax.environment import checkout

    commit, differs = checkout()
    return None if commit is None else commit[:7] + ("+" if differs else "")


if __name__ == "__main__":
    sys.exit(main())
