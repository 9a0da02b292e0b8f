"""What the operations share: the choice of an implementation and the check of their shapes.

An operation has a folder with one module for each implementation. `gpu.py` and `tpu.py` need packages that a CPU does
without: they are imported when their platform is the target, or when they are asked for by name. Each has, beside the
operations, `unsupported(**arguments) -> str | None`: why it cannot run with these arguments.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from dimba_kernels.sharding import run_sharded

Implementation = Literal["reference", "xla", "gpu", "tpu"]
Platform = Literal["cpu", "gpu", "tpu"]
_EXTRAS = {"gpu": "jax-triton and the CUDA plugin of JAX (Linux)", "tpu": "libtpu"}

CAPABILITY = "9.0"  # of the GPUs that kernels are written and compiled for
CUDA_PLUGINS = ("xla_cuda13", "xla_cuda12")
_TPUS = ("TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")

_target = jax.make_user_context(None)  # part of the key of JAX's caches: what was traced for another is not found


@contextlib.contextmanager
def target(platform: Platform) -> Iterator[None]:
    """Inside, implementation=None chooses for `platform`, whatever runs here: to lower ahead of time for it.

    Raises:
        ValueError: another platform than "cpu", "gpu" and "tpu".
    """
    if platform not in get_args(Platform):
        raise ValueError(f"target: platform={platform!r} is unknown; pass one of {get_args(Platform)}")
    with _target(platform):
        yield


def cuda_plugin() -> str | None:
    """The name of JAX's CUDA plugin, which compiles for a GPU that need not be there; None where none is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return None
    return next((name for name in CUDA_PLUGINS if importlib.util.find_spec(f"jax_plugins.{name}") is not None), None)


def target_platform() -> str:
    """What operations traced now will run on: "cpu", "gpu", "tpu", or another name of a JAX backend."""
    device = jax.config.values.get("jax_default_device")
    return _target.value or getattr(device, "platform", device) or jax.default_backend()


def call(
    operation: str,
    package: str,
    implementation: str | None,
    arguments: dict[str, Any],
    axes: Mapping[str, str],
    results: tuple[str, ...],
) -> Any:
    """Run `operation`, by the implementation of this name in `package`, on the arguments of its signature.

    None is the implementation for the target platform if there is one that supports the arguments, else "xla". With
    `dimba_kernels.sharding` every device of the mesh runs it on its share; for that, `axes` names the axes of every
    array among the arguments, and `results` those of each result (see `run_sharded`).

    Raises:
        NotImplementedError: the implementation asked for cannot run here, or not with these arguments.
        ValueError: an unknown name.
    """
    run = choose(operation, package, implementation, arguments)
    return run_sharded(operation, run, arguments, axes, results)


def choose(
    operation: str,
    package: str,
    implementation: str | None,
    arguments: Mapping[str, Any],
    function: str | None = None,
) -> Callable[..., Any]:
    """What `call` runs: the function of that name, by default the operation's, in the module of the implementation."""
    if implementation is None:
        implementation = _best(package, arguments)
    if implementation not in get_args(Implementation):
        names = ", ".join(repr(name) for name in get_args(Implementation))
        raise ValueError(
            f"{operation}: implementation={implementation!r} is unknown; pass one of {names}, or None for the best "
            "that can run"
        )
    if implementation in _EXTRAS:
        why = obstacle(implementation, package) or _unsupported(package, implementation, arguments)
        if why is not None:
            raise NotImplementedError(
                f"{operation} cannot run as implementation={implementation!r}: {why}; pass implementation=None for the "
                "best that can run here"
            )
    return getattr(importlib.import_module(f"{package}.{implementation}"), function or operation)


def _best(package: str, arguments: Mapping[str, Any]) -> str:
    name = target_platform()
    if name not in _EXTRAS or _interprets(name):
        return "xla"
    missing = _missing(package, name)
    if missing is not None:
        _warn_once(f"{package} runs without its {name} kernels: {missing}")
        return "xla"
    return "xla" if _unsupported(package, name, arguments) else name


def obstacle(name: str, package: str = "dimba_kernels.ssd") -> str | None:
    """Why an implementation cannot run here, whatever it is given; None if it can."""
    if name not in _EXTRAS:
        return None
    platform = target_platform()
    if platform != name and not _interprets(name):
        how = {
            "gpu": "set TRITON_INTERPRET=1 before Python starts to run it slowly in Triton's interpreter",
            "tpu": "trace it inside `dimba_kernels.tpu_call.interpreted()` to run it slowly in the TPU interpreter",
        }[name]
        return (
            f"it runs on a {name.upper()}, and the platform is {platform!r}. To lower it for one, trace it inside "
            f"`dimba_kernels.target({name!r})`; {how}"
        )
    return _missing(package, name)


def _interprets(name: str) -> bool:
    """Are kernels of this implementation run by an interpreter now? Only a test wants that: None never chooses it."""
    if name == "tpu":  # a module that nobody has imported is in no such context
        module = sys.modules.get("dimba_kernels.tpu_call")
    else:
        module = importlib.import_module("dimba_kernels.triton_call")
    return module is not None and module.interpreting()


@functools.cache
def _missing(package: str, name: str) -> str | None:
    """Why the module of an implementation cannot be imported, None if it can."""
    other = _other_hardware(name)
    if other is not None:
        return other
    try:
        importlib.import_module(f"{package}.{name}")
        if name == "gpu" and not _interprets(name):  # Triton comes with other packages too, without jax-triton
            importlib.import_module("jax_triton")
    except (ImportError, AttributeError) as error:  # AttributeError: versions that do not go together
        return f"{error} (it needs {_EXTRAS[name]}: install the `{name}` extra)"
    return None


def _other_hardware(name: str) -> str | None:
    """Why the kernels are not for the accelerator of this process, None if they are or it has none."""
    if jax.default_backend() != name:
        return None
    device = jax.local_devices()[0]
    if name == "tpu" and device.device_kind not in _TPUS:
        return f"its kernels are compiled for {', '.join(_TPUS)} and this is a {device.device_kind}"
    if name == "gpu" and "rocm" in device.client.platform_version.lower():
        return "its kernels are written and measured for NVIDIA GPUs"
    # others have less shared memory, or have not been tried
    if name == "gpu" and str(device.compute_capability) != CAPABILITY:
        found = device.compute_capability
        return f"its kernels are for compute capability {CAPABILITY} (H100, H200), and this GPU has {found}"
    return None


def _unsupported(package: str, name: str, arguments: Mapping[str, Any]) -> str | None:
    return importlib.import_module(f"{package}.{name}").unsupported(**arguments)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=6)


def check_shapes(operation: str, **arrays: tuple[jax.Array | None, tuple[int, ...]]) -> None:
    """Compare each named array (None passes) with the shape it must have.

    Raises:
        ValueError: naming the operation, the argument, its shape and the expected one.
    """
    for name, (array, expected) in arrays.items():
        if array is not None and array.shape != expected:
            raise ValueError(f"{operation}: {name} has shape {array.shape}, expected {expected}")


def check_rank(operation: str, name: str, array: jax.Array, letters: str) -> tuple[int, ...]:
    """The shape of an array whose axes are named by `letters`, such as "b l d".

    Raises:
        ValueError: the number of axes differs.
    """
    if array.ndim != len(letters.split()):
        raise ValueError(f"{operation}: {name} has shape {array.shape}, expected axes ({letters})")
    return array.shape


def check_visibility(
    operation: str, mask: jax.Array | None, segments: jax.Array | None, shape: tuple[int, int]
) -> None:
    """mask is bool and segments are integers, both of shape (b, l) or None.

    Raises:
        ValueError: naming what they are instead.
    """
    check_shapes(operation, mask=(mask, shape), segments=(segments, shape))
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(f"{operation}: mask is {mask.dtype}, expected bool")
    if segments is not None and not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(f"{operation}: segments are {segments.dtype}, expected integers")


def unmasked(mask: jax.Array | None, *values: jax.Array) -> tuple[jax.Array, ...]:
    """The values (b, l, ...) with zeros where the mask (b, l) is False, so that nothing there counts: dt = 0 alone
    would let NaN through, since NaN times zero is NaN."""
    if mask is None:
        return values
    return tuple(jnp.where(mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), value, 0) for value in values)


def runs(segments: jax.Array) -> jax.Array:
    """(b, l) ids -> (b, l) int32 numbers 0, 1, ... of the runs of equal ids: a later run of an id is another."""
    changes = segments[:, 1:] != segments[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def resets(segments: jax.Array, reverse: bool) -> jax.Array:
    """(b, l) bool: does a position's id differ from that of the one before it in the direction of the scan?

    Never at the first position of the scan, where the state that comes in belongs to it.
    """
    changes = segments[:, 1:] != segments[:, :-1]
    return jnp.pad(changes, ((0, 0), (0, 1) if reverse else (1, 0)))
