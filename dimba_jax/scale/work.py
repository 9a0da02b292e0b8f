"""What one device does in a call of a compiled program: multiplications, and bytes through its memory.

XLA's own `cost_analysis` counts the body of a loop once and a Pallas kernel as nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dimba_jax.scale.hlo import FUSIONS, Array, Computation, Instruction, Module, Run
from dimba_jax.scale.kernels import KernelFlops

KERNEL = 'custom_call_target="tpu_custom_call"'
# on a GPU matmuls are calls of cuBLAS, whose second result is room to work in, and attention is cuDNN's
GEMM = 'custom_call_target="__cublas$'
TRITON = 'custom_call_target="triton_kernel_call"'
ATTENTION = 'custom_call_target="__cudnn$fmha'

# what moves nothing by itself: names of what is there (and the ends of what is counted where it starts, "...-done")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "async-update",
}  # fmt: skip
_VIEWS = ("bitcast", "reshape", "copy", "transpose", "convert")
_SLICES = ("dynamic-slice", "slice", "slice-start", "gather")
# custom calls that name a place in memory
_PLACES = tuple(
    f'custom_call_target="{target}"'
    for target in ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone")
)
_CHAIN = re.compile(r'chain_id="(\d+)"')  # of a gather that every fusion it runs beside shows again


@dataclass
class Work:
    """Of one device. kernels: how often each Pallas kernel runs, Triton's all under one name, which a program does not
    tell, and without their multiplications. estimated_cycles: the compiler's, without kernels."""

    matmul_flops: float = 0
    kernel_flops: float = 0
    bytes: float = 0
    kernel_bytes: float = 0
    estimated_cycles: int = 0
    flops_once: float = 0  # of matmuls, each loop's body counted once, as XLA counts
    bytes_once: float = 0

    def __post_init__(self) -> None:
        self.kernels: dict[str, int] = {}

    @property
    def flops(self) -> float:
        return self.matmul_flops + self.kernel_flops


def work_of(module: Module, kernel_flops: KernelFlops) -> Work:
    """Counted over all instructions of the program, times the trips of their loops."""
    work, chains = Work(), set()
    for run in module.runs():
        instruction = run.instruction
        chain = _CHAIN.search(instruction.line)
        if chain is not None and chain[1] not in chains:
            chains.add(chain[1])
            work.bytes += run.times * _hbm(instruction.arrays)
            work.bytes_once += _hbm(instruction.arrays)
        if instruction.opcode in _MATMULS or GEMM in instruction.line:
            flops = _MATMULS.get(instruction.opcode, _gemm)(run)
            work.matmul_flops += run.times * flops
            work.flops_once += flops
        if run.fused or _is_free(instruction):
            continue
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
        work.estimated_cycles += run.times * int(estimate[1]) if estimate else 0
        size = _moved(run, module)
        work.bytes += run.times * size
        work.bytes_once += size
        found = _kernel(run, kernel_flops)
        if found is not None:
            name, flops = found
            work.kernels[name] = work.kernels.get(name, 0) + run.times
            work.kernel_bytes += run.times * size
            work.kernel_flops += run.times * flops
    return work


def _is_free(instruction: Instruction) -> bool:
    named = instruction.opcode in _FREE or instruction.opcode.endswith("-done")
    return named or any(target in instruction.line for target in _PLACES)


def _kernel(run: Run, kernel_flops: KernelFlops) -> tuple[str, float] | None:
    """The name of the kernel that an instruction calls, and its multiplications; None: it calls none."""
    instruction = run.instruction
    if KERNEL in instruction.line:
        name = kernel_name(instruction)
        return name, kernel_flops.of(name, [array.sizes for array in instruction.arrays])
    if TRITON in instruction.line:
        return "triton", 0.0
    if ATTENTION in instruction.line:
        backward = "Backward" in instruction.line
        return "cudnn_attention" + "_backward" * backward, _attention(run, products=5 if backward else 2)
    return None


def kernel_name(call: Instruction) -> str:
    """That of its `pallas_call`; differentiated, JAX writes more around it."""
    part = call.op_name.removesuffix("/pallas_call").rpartition("/")[2]
    return re.sub(r"^(?:\w+\()+|\)+$", "", part) or call.name


def _dot(run: Run) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", run.instruction.line)
    sizes = run.operand(0).arrays[0].sizes
    inner = math.prod(sizes[int(place)] for place in contracted[1].split(",") if place) if contracted else 1
    return 2 * run.instruction.arrays[0].elements * inner


def _gemm(run: Run) -> float:
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^]]*)\]', run.instruction.line)
    sizes = run.operand(0).arrays[0].sizes
    inner = math.prod(sizes[int(place)] for place in re.findall(r"\d+", contracted[1])) if contracted else 1
    return 2 * run.instruction.arrays[0].elements * inner


def _attention(run: Run, products: int) -> float:
    """Products of (l, p) and (m, p) for each row and head; that a causal mask halves them is not looked at."""
    q, k = (run.operand(place).arrays[0] for place in (0, 1))  # (b, l, h, p), (b, m, h, p)
    return products * 2.0 * q.elements * k.sizes[1]


def _convolution(run: Run) -> float:
    """Matmuls are convolutions to XLA:TPU, whose windows are what is batched or contracted: padding counts nothing."""
    line = run.instruction.line
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    assert labels is not None, line
    left, right = (run.operand(place).arrays[0].sizes for place in (0, 1))
    out = run.instruction.arrays[0].sizes
    flops = 2.0 * math.prod(out[labels[3].index(name)] for name in "bf") * right[labels[2].index("i")]
    window = _window(line)
    for place, digit in enumerate(sorted(set(labels[3]) - {"b", "f"})):
        own = {key: values[place] for key, values in window.items()}
        flops *= _meetings(
            left[labels[1].index(digit)], right[labels[2].index(digit)], out[labels[3].index(digit)], own
        )
    return flops


def _window(line: str) -> dict[str, list[tuple[int, ...]]]:
    found = re.search(r"window=\{([^}]*)\}", line)
    settings = dict(part.split("=") for part in found[1].split()) if found else {}
    return {
        key: [tuple(map(int, size.split("_"))) for size in value.split("x")]
        for key, value in settings.items()
        if key in ("stride", "pad", "lhs_dilate", "rhs_dilate")
    }


def _meetings(length: int, kernel: int, out: int, window: Mapping[str, tuple[int, ...]]) -> int:
    """Pairs of a place of the kernel and one of the output that read an element, rather than padding or a hole."""
    stride, low = window.get("stride", (1,))[0], window.get("pad", (0,))[0]
    dilated, holes = window.get("lhs_dilate", (1,))[0], window.get("rhs_dilate", (1,))[0]
    total = 0
    for at in range(kernel):
        read = np.arange(out) * stride + at * holes - low
        total += int(np.sum((read >= 0) & (read % dilated == 0) & (read < (length - 1) * dilated + 1)))
    return total


_MATMULS = {"convolution": _convolution, "dot": _dot}


def _moved(run: Run, module: Module) -> float:
    """Bytes that an instruction reads from HBM and writes there."""
    instruction = run.instruction
    if instruction.opcode in FUSIONS:
        return _fused(run, module)
    written = instruction.arrays[:1] if GEMM in instruction.line else instruction.arrays
    if instruction.opcode.endswith("-start") and len(written) > (count := len(run.operand_arrays)):
        written = written[count : 2 * count]  # (operands, results, ...) of a copy or of collectives together
    if instruction.opcode in _SLICES:
        return _hbm(written) + sum(array.bytes for array in written if not run.operand_arrays[0].on_chip)
    if instruction.opcode == "dynamic-update-slice":
        update = run.operand(1).arrays
        return _hbm(update) + sum(array.bytes for array in update if not written[0].on_chip)
    return _hbm(written) + _hbm(run.operand_arrays)


def _fused(run: Run, module: Module) -> float:
    """Of what is only sliced inside, the slices; of what is updated in place, the update."""
    total = 0.0
    body = module.called(run.instruction)
    for place, outside in enumerate(run.instruction.operands):
        arrays = run.computation[outside].arrays
        if arrays and not arrays[0].on_chip:
            total += min(_read(body.parameters[place], body, module), sum(array.bytes for array in arrays))
    made = run.instruction.arrays
    if run.instruction.opcode == "fusion-start":  # ((operands), results, ...)
        made = tuple(array for result in _results(body) for array in result.arrays[:1])
    for array, inside in zip(made, _results(body), strict=False):
        if not array.on_chip:
            total += min(array.bytes, _written(inside, body, module))
    return total


def _read(made: Instruction, body: Computation, module: Module) -> float:
    """Bytes that a fusion needs of a value; infinite where it is all of them."""
    size = 0.0
    for reader in body.readers.get(made.name, []):
        if reader.opcode in _SLICES and reader.operands[0] == made.name:
            size += sum(array.bytes for array in reader.arrays)
        elif reader.opcode == "dynamic-update-slice" and reader.operands[0] == made.name:
            continue
        elif reader.opcode in ("bitcast", "reshape"):
            size += _read(reader, body, module)
        elif reader.opcode == "fusion":
            inner = module.called(reader)
            for place, name in enumerate(reader.operands):
                size += _read(inner.parameters[place], inner, module) if name == made.name else 0.0
        elif reader.opcode != "tuple":
            return math.inf
    return size


def _results(body: Computation) -> list[Instruction]:
    return [body[name] for name in body.root.operands] if body.root.opcode == "tuple" else [body.root]


def _written(made: Instruction, body: Computation, module: Module) -> float:
    """Bytes that a fusion writes of a result; infinite where it is all of them."""
    place = 0
    while made.opcode in _VIEWS or made.opcode == "get-tuple-element":
        if made.opcode == "get-tuple-element":
            place = int(made.attribute("index") or 0)
        made = body[made.operands[0]]
    if made.opcode == "fusion":
        inner = module.called(made)
        return _written(_results(inner)[place], inner, module)
    if made.opcode == "dynamic-update-slice":
        return sum(array.bytes for array in body[made.operands[1]].arrays)
    return 0.0 if made.opcode == "parameter" or _CHAIN.search(made.line) else math.inf


def _hbm(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if not array.on_chip)


def xla_counts(compiled: Any) -> dict[str, float]:
    """The compiler's own figures of a device, loops counted once and kernels as nothing."""
    costs = compiled.cost_analysis() or {}
    return {"flops": float(costs.get("flops", 0)), "bytes": float(costs.get("bytes accessed", 0))}
