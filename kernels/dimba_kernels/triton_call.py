"""How a Triton kernel is called from JAX: on a GPU, in Triton's interpreter, or only written down.

One adapter for both lines of jax-triton (0.3 says `out_shape=`, 0.4 says `out_type=`), with what it lacks: a rule for
`vmap`, and a way to run on a machine without a GPU. Triton's own switch chooses the interpreter: with
TRITON_INTERPRET=1 in the environment before Triton is first imported, kernels run in NumPy on the host, slowly and
exactly as written. Needs the `gpu` extra; nothing here is imported before a GPU kernel is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

HOPPER = 90  # compute capability that is compiled for where no GPU can be asked


@dataclass(frozen=True)
class Call:
    """One launch, as `recorded` writes it down."""

    kernel: Any
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    grid: tuple[int, ...]
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return self.kernel.__name__


_recorders = threading.local()


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """Every call traced inside is written down, and its outputs are zeros: use it under `jax.eval_shape`.

    JAX's caches are emptied before and after: what was traced before would not be traced again, and the zeros must
    not be found later.
    """
    calls: list[Call] = []
    before = getattr(_recorders, "calls", None)
    _recorders.calls = calls
    jax.clear_caches()
    try:
        yield calls
    finally:
        _recorders.calls = before
        jax.clear_caches()


def interpreting() -> bool:
    """Does Triton interpret its kernels in this process?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_call(
    kernel: Any,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, ...],
    constants: dict[str, Any],
    warps: int = 4,
    stages: int = 2,
    unfinished: Sequence[jax.Array] = (),
) -> tuple[jax.Array, ...]:
    """Launch a kernel whose parameters are pointers to `inputs`, pointers to `outputs`, then constants.

    Every value that is no array is a compile-time constant. Outputs start uninitialised: a kernel must write all
    that is read of them. Arrays are contiguous, last axis fastest. Under `vmap` the launches follow one another.

    Args:
        unfinished: the first outputs of an earlier launch, whose memory this one goes on to fill. The kernel has
            parameters for them between inputs and outputs, through which a program may read what it will write over.
        grid: programs along up to three axes.
        constants: by parameter name; `tl.constexpr` in the kernel.
        warps: of 32 threads, a program.
        stages: of software pipelining in the kernel's loops.
    """
    outputs = tuple(jax.ShapeDtypeStruct(output.shape, output.dtype) for output in outputs)
    given = [(value.shape, value.dtype) for value in unfinished]
    if given != [(output.shape, output.dtype) for output in outputs[: len(given)]]:
        raise ValueError(f"{kernel.__name__}: unfinished outputs are {given}, not the first of {outputs}")
    inputs = [*inputs, *unfinished]
    calls = getattr(_recorders, "calls", None)
    if calls is not None:
        avals = tuple(jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs)
        calls.append(Call(kernel, avals, outputs, grid, dict(constants), warps, stages))
        return tuple(jax.numpy.zeros(output.shape, output.dtype) for output in outputs)
    launch = _interpreted if interpreting() else _launched
    aliases = {len(inputs) - len(unfinished) + i: i for i in range(len(unfinished))}
    run = functools.partial(
        launch,
        kernel=kernel,
        outputs=outputs,
        grid=grid,
        constants=constants,
        warps=warps,
        stages=stages,
        aliases=aliases,
    )
    return jax.custom_batching.sequential_vmap(lambda *arrays: run(arrays))(*inputs)


def _launched(arrays, *, kernel, outputs, grid, constants, warps, stages, aliases) -> tuple[jax.Array, ...]:
    import jax_triton

    call = jax_triton.triton_call
    shape_argument = "out_type" if "out_type" in inspect.signature(call).parameters else "out_shape"
    return tuple(
        call(
            *arrays,
            kernel=kernel,
            grid=grid,
            num_warps=warps,
            num_stages=stages,
            name=kernel.__name__,
            input_output_aliases=aliases,
            compute_capability=None if jax.default_backend() in ("gpu", "cuda") else HOPPER,
            **{shape_argument: outputs},
            **constants,
        )
    )


_interpreter = threading.Lock()  # Triton's interpreter has one state for the whole process


def _interpreted(arrays, *, kernel, outputs, grid, constants, warps, stages, aliases) -> tuple[jax.Array, ...]:
    del warps, stages

    def run(*values: jax.Array) -> tuple[np.ndarray, ...]:
        ins = [np.ascontiguousarray(value) for value in values]
        outs = [_poison(output) for output in outputs]
        for source, target in aliases.items():
            outs[target] = ins[source] = ins[source].copy()
        with _interpreter:
            kernel[grid](*(_HostArray(value) for value in (*ins, *outs)), **constants)
        return tuple(outs)

    return jax.pure_callback(run, outputs, *arrays, vmap_method="sequential")


def _poison(output: jax.ShapeDtypeStruct) -> np.ndarray:
    """What an element that no program writes shows up as: NaN, or the least integer."""
    value = np.empty(output.shape, output.dtype)
    value.fill(np.iinfo(output.dtype).min if np.issubdtype(output.dtype, np.integer) else np.nan)
    return value


class _HostArray:
    """The few methods of a torch tensor by which Triton's interpreter reads and writes memory, over a NumPy array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.dtype = array.dtype.name

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def untyped_storage(self) -> _HostArray:
        return self

    def cpu(self) -> _HostArray:
        return self

    def copy_(self, other: _HostArray) -> None:
        """Nothing to copy: the interpreter has worked on this very memory."""

    def new_empty(self, size: int, device: str) -> _HostArray:
        del size, device
        return _HostArray(self._array)

    def set_(self, storage: _HostArray, offset: int, size: object, stride: object) -> None:
        del offset, size, stride
        self._array = storage._array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self._array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self._array.itemsize for step in self._array.strides)
