"""Compiles the kernels for GPUs and TPUs on a machine that has neither; a process of its own for each kind.

    python tests/kernels/lowering.py gpu|slow|tpu OPERATION

Triton must not interpret here. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dimba_kernels import (
    causal_conv1d,
    causal_conv1d_pair,
    gated_rms_norm,
    modulated_rms_norm,
    selective_scan,
    ssd,
    ssd_bidirectional,
    ssd_pair,
    target,
)
from dimba_kernels.causal_conv1d import arg_specs as conv
from dimba_kernels.gated_norm import arg_specs as norm
from dimba_kernels.modulated_norm import arg_specs as modulated
from dimba_kernels.selective_scan import arg_specs as s6
from dimba_kernels.ssd import arg_specs as duality
from dimba_kernels.tpu_compile import GENERATIONS
from jax.experimental import topologies

Avals = dict[str, jax.ShapeDtypeStruct]
_DUALITY = {"ssd": ssd, "ssd_bidirectional": ssd_bidirectional, "ssd_pair": ssd_pair}


def cases(operation: str, large: bool) -> Iterator[tuple[str, Callable[..., Any], Avals]]:
    """Name, function and arguments; those named "issue" are the shapes that speed is measured at."""
    for dtype in (jnp.bfloat16, jnp.float32):
        kind = jnp.dtype(dtype).name
        if operation == "causal_conv1d":
            shape = conv.SHAPES["long"] if large else conv.Shape(b=2, l=300, d=256)
            yield f"issue {kind}", partial(causal_conv1d, activation="silu"), avals(conv, shape, dtype)
            yield f"seen {kind}", partial(causal_conv1d, reverse=True, **seen(shape)), avals(conv, shape, dtype)
        elif operation == "causal_conv1d_pair":
            sizes = (1920, 128, 128) if large else (256, 128, 128)
            shape = conv.Shape(b=16, l=1024, d=sum(sizes)) if large else conv.Shape(b=2, l=300, d=sum(sizes))
            run = partial(causal_conv1d_pair, sizes=sizes, activation="silu")
            yield f"issue {kind}", run, avals(conv, shape, dtype, "pair_arguments")
            mask = seen(shape)["mask"]
            yield f"seen {kind}", partial(run, mask=mask), avals(conv, shape, dtype, "pair_arguments")
        elif operation == "gated_rms_norm":
            shape = norm.SHAPES["small"] if large else norm.Shape(r=2, b=2, l=8, i=96)
            yield f"issue {kind}", gated_rms_norm, avals(norm, shape, dtype)
            yield f"long {kind}", gated_rms_norm, avals(norm, norm.SHAPES["long"], dtype)
        elif operation == "modulated_rms_norm":
            run = partial(modulated_rms_norm, dtype=dtype)
            yield f"issue {kind}", run, avals(modulated, modulated.SHAPES["small"], dtype)
            yield f"issue {kind} first", run, avals(modulated, modulated.SHAPES["first"], dtype)
            yield f"issue {kind} large", run, avals(modulated, modulated.SHAPES["large"], dtype)
            yield f"long {kind}", run, avals(modulated, modulated.SHAPES["long"], dtype)
        elif operation == "selective_scan":
            shape = s6.SHAPES["long"] if large else s6.Shape(b=2, l=300, d=256, n=16)
            arguments = avals(s6, shape, dtype, "raw_arguments")
            yield f"issue {kind}", partial(selective_scan, dt_softplus=True), arguments
            plain = avals(s6, shape, dtype)
            yield f"seen {kind}", partial(selective_scan, reverse=True, **seen(shape)), plain
        else:
            issue = duality.SHAPES["long"] if large else duality.Shape(b=2, l=512, h=8, p=64, n=128)
            other = duality.Shape(b=1, l=300, h=4, p=32, n=256, g=2)
            for name, shape in ((f"issue {kind}", issue), (f"seen {kind}", other)):
                rest: dict[str, Any] = seen(shape) if shape is other else {}
                arguments = avals(duality, shape, dtype, "pair_arguments" if operation == "ssd_pair" else "arguments")
                if operation == "ssd":
                    rest["reverse"] = shape is other
                if operation == "ssd_bidirectional":
                    del arguments["h0"]
                yield name, partial(_DUALITY[operation], **rest), arguments


def avals(specs: Any, shape: Any, dtype: Any, make: str = "arguments") -> Avals:
    """Of the shape's arguments, which are not drawn."""
    ones = {name: 1 for name in vars(shape) if name != "branch"}
    tiny = getattr(specs, make)(replace(shape, **ones), dtype)  # names, ranks and dtypes
    return {name: jax.ShapeDtypeStruct(_size(name, value, shape, make), value.dtype) for name, value in tiny.items()}


def _size(name: str, value: jax.Array, shape: Any, make: str) -> tuple[int, ...]:
    if isinstance(shape, norm.Shape):
        r, b, l, i = vars(shape).values()
        return {"y": (r, b, l, i), "z": (b, l, r * i), "scale": (r, i)}[name]
    if isinstance(shape, modulated.Shape):
        rows = shape.b if shape.rows is None else shape.rows
        sizes = {"weight": (shape.d,)} | dict.fromkeys(("scale", "shift", "gate"), (rows, 1, shape.d))
        return sizes.get(name, (shape.b, shape.l, shape.d))
    letters = {
        "x": "blhp" if hasattr(shape, "p") else "bld", "dt": "blh" if hasattr(shape, "p") else "bld", "u": "bld",
        "z": "bld", "w": "dk", "bias": "d", "dt_bias": "d", "D": "h" if hasattr(shape, "p") else "d",
        "A": "h" if hasattr(shape, "p") else "dn", "B": "blgn" if hasattr(shape, "p") else "bln",
        "C": "blgn" if hasattr(shape, "p") else "bln", "h0": "bhpn" if hasattr(shape, "p") else "bdn", "tail": "btd",
        "x_back": "bld", "tail_back": "btd",
    }[name]  # fmt: skip
    sizes = vars(shape) | {"t": getattr(shape, "k", 1) - 1}
    size = tuple(sizes[letter] for letter in letters)
    if isinstance(shape, conv.Shape) and make == "pair_arguments" and name not in ("w", "bias"):
        return size
    return (2, *size) if make == "pair_arguments" else size


def seen(shape: Any) -> dict[str, jax.Array]:
    return {"mask": jnp.ones((shape.b, shape.l), bool), "segments": jnp.zeros((shape.b, shape.l), jnp.int32)}


def forward_and_backward(function: Callable[..., Any]) -> Callable[[Avals], Any]:
    def run(arrays: Avals) -> Any:
        outputs, pull = jax.vjp(lambda arrays: function(**arrays), arrays)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    return run


def rematerialised_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **arrays: jax.vmap(jax.checkpoint(lambda row: function(**row)))(arrays)


# their gradients take the compiler ten times as long as those in bfloat16, and are the same kernel
_SLOW_ON_A_GPU = {"ssd": ("issue float32",)} | dict.fromkeys(
    ("ssd_bidirectional", "ssd_pair"), ("issue float32", "seen float32")
)


def for_gpu(operation: str, slow: bool = False) -> dict[str, Any]:
    """Registers and spills of every kernel, by case and name; and whether JAX lowers a call of it."""
    from dimba_kernels.gpu_cost import compile_call
    from dimba_kernels.triton_call import recorded

    compiled: dict[Any, Any] = {}
    found = {}
    for case, function, arguments in cases(operation, large=True):
        if slow != (case in _SLOW_ON_A_GPU.get(operation, ())):
            continue
        with target("gpu"), recorded() as calls:
            jax.eval_shape(forward_and_backward(partial(function, implementation="gpu")), arguments)
        for place, call in enumerate(calls):
            types = tuple(value.dtype.name for value in (*call.inputs, *call.outputs))
            key = call.name, types, tuple(sorted(call.constants.items())), call.warps, call.stages
            if key not in compiled:
                result = compile_call(call)
                compiled[key] = {"registers": result.registers, "spilled": result.spilled, "shared": result.shared}
            found[f"{case} {place} {call.name}"] = compiled[key]
    _, function, arguments = next(cases(operation, large=False))
    with target("gpu"):
        traced = jax.jit(forward_and_backward(partial(function, implementation="gpu"))).trace(arguments)
        found["lowered"] = "triton_kernel_call" in traced.lower(lowering_platforms=("cuda",)).as_text()
    return found


def for_tpu(operation: str) -> dict[str, Any]:
    """How many kernels a compiled program has, by generation and case."""
    found = {}
    for generation in GENERATIONS:
        for case, function, arguments in cases(operation, large=False):
            # what differs between generations is sizes; all kinds of arguments are compiled for the first of them
            if case == "issue bfloat16" or (case == "seen float32" and generation == "v5e"):
                run = partial(function, implementation="tpu")
                forms = {case: (run, arguments)}
                if generation == "v5e" and case == "issue bfloat16":  # the TPU interpreter takes neither
                    twice = {name: jax.ShapeDtypeStruct((2, *a.shape), a.dtype) for name, a in arguments.items()}
                    forms["vmap of remat"] = (rematerialised_rows(run), twice)
                for name, (form, arrays) in forms.items():
                    compiled = compiled_for_tpu(generation, forward_and_backward(form), arrays)
                    found[f"{generation} {name}"] = compiled.count("tpu_custom_call")
    return found


def compiled_for_tpu(generation: str, function: Callable[..., Any], arguments: Avals) -> str:
    """As `dimba_kernels.tpu_compile.compile_for`, whose schedules take libtpu five times as long."""
    topology = topologies.get_topology_desc(GENERATIONS[generation], platform="tpu")
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("core",))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    with target("tpu"):
        return jax.jit(mapped).trace(arguments).lower(lowering_platforms=("tpu",)).compile().as_text() or ""


if __name__ == "__main__":
    kind, operation = sys.argv[1:]
    print(json.dumps(for_tpu(operation) if kind == "tpu" else for_gpu(operation, kind == "slow")))
