"""What the GPU kernels compile to, without a GPU: registers, spills, shared memory, instructions.

    python -m dimba_kernels.gpu_cost [--op ssd] [--shapes 8x2048xH60] [--dtype float32] [--sass DIR]

Triton compiles each kernel for Hopper (sm_90a), as it does on an H200, and NVIDIA's assembler counts. A kernel that
Triton cannot compile for its target fails here, on any Linux machine with the `gpu` extra. Shapes are those of
`python -m dimba_kernels.bench --list`; every kernel of a forward and a backward pass is listed once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

import dimba_kernels
from dimba_kernels.triton_call import HOPPER, Call, recorded

_TYPES = {"float32": "*fp32", "float64": "*fp64", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32"}
_TYPES |= {"int8": "*i8", "bool": "*i1"}
_PIPES = {"MUFU": r"\bMUFU", "FFMA": r"\bF(FMA|MUL|ADD)\b", "HGMMA": r"\b(HGMMA|HMMA)", "SHFL": r"\bSHFL"}
_PIPES |= {"LDS/STS": r"\b(LDS|STS|LDSM|STSM)", "LDG/STG": r"\b(LDG|STG|LDGSTS)", "BAR": r"\bBAR\b"}


@dataclass(frozen=True)
class Compiled:
    """registers a thread; bytes spilled a thread; bytes of shared memory a program; instructions by pipe; the SASS."""

    registers: int
    spilled: int
    shared: int
    instructions: dict[str, int]
    sass: str


def compile_call(call: Call) -> Compiled:
    """Compile one recorded call for sm_90a.

    Raises:
        RuntimeError and Triton's own errors: the kernel does not compile.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = call.kernel.arg_names
    arrays = (*call.inputs, *call.outputs)
    signature = {name: _TYPES[array.dtype.name] for name, array in zip(names, arrays, strict=False)}
    signature |= {name: "constexpr" for name in call.constants}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(arrays))}
    source = ASTSource(call.kernel, signature, constexprs=dict(call.constants), attrs=aligned)
    options = {"num_warps": call.warps, "num_stages": call.stages}
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope():
        knobs.cache.dir = cache  # jax-triton leaves it without one
        kernel = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=options)

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        sass = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    text = usage.stdout + usage.stderr
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    counts = {pipe: len(re.findall(pattern, sass)) for pipe, pattern in _PIPES.items()}
    return Compiled(found["REG"], found["STACK"] + found["LOCAL"], kernel.metadata.shared, counts, sass)


def occupancy(warps: int, compiled: Compiled) -> int:
    """Programs that a multiprocessor of an H100 or H200 holds: 64 warps, 32 programs, 64k registers (given out by 256
    to a warp), 227 KiB of shared memory with 1 KiB kept for each program."""
    registers = -(-compiled.registers * 32 // 256) * 256 * warps
    return min(64 // warps, 32, 65536 // registers, 227 * 1024 // (compiled.shared + 1024))


def kernels(operation: str, shape: str, dtype: str) -> list[Call]:
    """The launches of a forward and a backward pass, each kernel as often as it differs."""
    from dimba_kernels.bench.cases import KINDS, forward, forward_backward

    kind = KINDS[operation]
    arrays = jax.eval_shape(lambda key: kind.draw(kind.shapes[shape], jnp.dtype(dtype), key), jax.random.key(0))
    dy = jax.eval_shape(forward(kind, "xla"), arrays, None)
    with dimba_kernels.target("gpu"), recorded() as calls:
        jax.eval_shape(forward_backward(kind, "gpu"), arrays, dy)
    return list({repr(call): call for call in calls}.values())


def main(arguments: list[str] | None = None) -> int:
    from dimba_kernels.bench.cases import KINDS

    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m dimba_kernels.gpu_cost", description=__doc__, formatter_class=plain)
    parser.add_argument("--op", nargs="*", default=list(KINDS), choices=list(KINDS), help="operations; all by default")
    parser.add_argument("--shapes", nargs="*", help="names of shapes; the first of each operation by default")
    parser.add_argument("--dtype", nargs="*", default=["bfloat16"], choices=["bfloat16", "float32"])
    parser.add_argument("--sass", type=Path, metavar="DIR", help="write the machine code of each kernel there")
    options = parser.parse_args(arguments)
    columns = ["registers", "spilled", "shared", "programs/SM", *_PIPES]
    print("| operation | shape | dtype | kernel | programs x warps | " + " | ".join(columns) + " |")
    print("|" + "---|" * (5 + len(columns)))
    bad = 0
    for operation in options.op:
        known = KINDS[operation].shapes
        for shape in [name for name in known if name in options.shapes] if options.shapes else [*known][:1]:
            for dtype in options.dtype:
                start = f"| {operation} | {shape} | {dtype} |"
                try:
                    calls = kernels(operation, shape, dtype)
                except Exception as error:  # one operation's failure is reported beside the others' figures
                    print(f"{start} {_short(error)} |" + " |" * (1 + len(columns)), flush=True)
                    bad += 1
                    continue
                for number, call in enumerate(calls):
                    bad += not _row(f"{start} {call.name}", call, options.sass, f"{operation}-{shape}-{dtype}-{number}")
    return 1 if bad else 0


def _row(start: str, call: Call, sass: Path | None, name: str) -> bool:
    """Print the figures of a kernel. False if it does not compile, or spills."""
    size = "x".join(str(axis) for axis in call.grid) + f" x {call.warps}"
    try:
        found = compile_call(call)
    except Exception as error:
        print(f"{start} | {size} | {_short(error)} |" + " |" * (3 + len(_PIPES)), flush=True)
        return False
    figures = [found.registers, found.spilled, found.shared, occupancy(call.warps, found), *found.instructions.values()]
    print(f"{start} | {size} | " + " | ".join(str(figure) for figure in figures) + " |", flush=True)
    if sass is not None:
        sass.mkdir(parents=True, exist_ok=True)
        (sass / f"{name}-{call.name}.sass").write_text(found.sass)
    return found.spilled == 0


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:120].replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
