"""Operations over a mesh: rows, heads and sequences are split, and every device runs the kernels on its share.

XLA cannot partition a kernel's call. Inside `sharding`, every operation is a `shard_map` over the mesh, with a
derivative of its own: the gradient of what a device shares with others is summed over them once, and nothing else is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.interpreters.ad import Zero
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str, ...]
Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class _Layout:
    mesh: Mesh
    batch: Axes
    heads: Axes
    sequence: str | None


_layout = jax.make_user_context(None)  # part of the key of JAX's caches


@contextlib.contextmanager
def sharding(
    mesh: Mesh,
    *,
    batch: str | Sequence[str] | None = None,
    heads: str | Sequence[str] | None = None,
    sequence: str | None = None,
) -> Iterator[None]:
    """Inside, every operation traced splits its rows over the mesh axes `batch` and its heads over `heads`.

    `sequence` splits positions too, at the price of a second pass or product (`dimba_kernels.context_parallel`).

    Heads are those of `ssd`, and the channels of `selective_scan` and `causal_conv1d`. Groups of B and C are split with
    their heads, or every device has them all. What an axis does not divide is not split over it: every device
    computes the whole. Inside a `shard_map` over the mesh this does nothing, since what is there is a share already.

    Example:
        with dimba_kernels.sharding(mesh, batch="data", heads="model"):
            loss, grads = jax.jit(jax.value_and_grad(loss_of))(params, rows)

    Raises:
        ValueError: an axis that the mesh does not have, or one named twice.
    """
    split = _names(batch), _names(heads)
    named = [*split[0], *split[1], *_names(sequence)]
    if len(set(named)) != len(named) or not set(named) <= set(mesh.axis_names):
        raise ValueError(
            f"sharding: batch={batch!r}, heads={heads!r}, sequence={sequence!r} are no different axes of "
            f"{mesh.axis_names}"
        )
    with _layout(_Layout(mesh, *split, sequence)):
        yield


def split_rows(x: jax.Array) -> jax.Array:
    """x (b, l, ...), its rows and positions split over the devices as operations are, all else whole.

    What lies between operations is placed by XLA's partitioner, which may prefer to split features, as the parameters
    are, and then sums whole activations over the devices. Does nothing outside `sharding` and inside a `shard_map`.
    """
    layout: _Layout | None = _layout.value
    if layout is None or layout.mesh.size == 1:
        return x
    if set(jax.sharding.get_abstract_mesh().manual_axes) & set(layout.mesh.axis_names):
        return x
    split = _split(layout, {"b": x.shape[0], "l": x.shape[1]})
    spec = PartitionSpec(split["b"] or None, split.get("l") or None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))


def splits_positions() -> bool:
    """Whether positions are split over several devices here."""
    layout: _Layout | None = _layout.value
    return layout is not None and layout.sequence is not None and layout.mesh.shape[layout.sequence] > 1


def splits_heads() -> bool:
    """Whether operations traced now split their heads over several devices."""
    layout: _Layout | None = _layout.value
    return layout is not None and math.prod(layout.mesh.shape[axis] for axis in layout.heads) > 1


def _names(axes: str | Sequence[str] | None) -> Axes:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def run_sharded(
    operation: str,
    run: Callable[..., Any],
    arguments: Mapping[str, Any],
    axes: Mapping[str, str],
    results: tuple[str, ...],
    *,
    pointwise: bool = False,
) -> Any:
    """`run(**arguments)`, split as the context says.

    Args:
        operation: its name, and in `context_parallel` that of what runs it over a split sequence.
        run: an implementation, by whose module that one calls it.
        axes: the axes of every array among the arguments, such as "b l h p"; b is split over the batch axes; h and d
            over those of the heads, and g where its groups can follow the heads; l over that of the sequence.
        results: the axes of each result.
        pointwise: no position needs another, so that a part of the sequence is run like the whole.
    """
    layout: _Layout | None = _layout.value
    if layout is None or layout.mesh.size == 1:
        return run(**arguments)
    if set(jax.sharding.get_abstract_mesh().manual_axes) & set(layout.mesh.axis_names):
        return run(**arguments)

    arrays = {name: arguments[name] for name in axes if arguments.get(name) is not None}
    rest = {name: value for name, value in arguments.items() if name not in arrays}
    lengths = {
        letter: length
        for name, array in arrays.items()
        for letter, length in zip(axes[name].split(), array.shape, strict=True)
    }
    split = _split(layout, lengths)

    def spec(letters: str) -> PartitionSpec:
        return PartitionSpec(*(split.get(letter) or None for letter in letters.split()))

    local = run
    if split.get("l") and not pointwise:
        over_parts = getattr(importlib.import_module("dimba_kernels.context_parallel"), operation)
        implementation = run.__module__.rpartition(".")[2]
        local = functools.partial(over_parts, axis_name=layout.sequence, implementation=implementation)
    if lengths.get("g", 1) > 1 and split.get("h") and not split.get("g"):
        local = _with_own_group(local, axes, split["h"], lengths["g"])
    single = len(results) == 1
    outputs = _differentiable(
        lambda arrays: (local(**arrays, **rest),) if single else local(**arrays, **rest),
        layout.mesh,
        arrays,
        {name: spec(axes[name]) for name in arrays},
        tuple(spec(letters) for letters in results),
    )
    return outputs[0] if single else outputs


def _split(layout: _Layout, lengths: Mapping[str, int]) -> dict[str, Axes]:
    """Over which mesh axes each letter is split; not over any if they do not divide it."""
    sizes = layout.mesh.shape
    rows, ways = (math.prod(sizes[axis] for axis in axes) for axes in (layout.batch, layout.heads))
    split = {"b": layout.batch if lengths["b"] % rows == 0 else ()}
    parts = sizes[layout.sequence] if layout.sequence else 1
    if layout.sequence and lengths["l"] % parts == 0 and lengths["l"] // parts >= lengths.get("k", 1) - 1:
        split |= {"l": (layout.sequence,)}
    if "d" in lengths:
        return split | {"d": layout.heads if lengths["d"] % ways == 0 else ()}
    if "g" not in lengths:
        return split
    groups = lengths["g"]
    if lengths["h"] % ways or (groups % ways and ways % groups):  # a device's heads would be parts of several groups
        return split
    return split | {"h": layout.heads, "g": layout.heads if groups % ways == 0 else ()}


def _with_own_group(run: Callable[..., Any], axes: Mapping[str, str], heads: Axes, groups: int) -> Callable[..., Any]:
    """`run` on a device that has all groups, and heads of one of them."""

    def local(**arguments: Any) -> Any:
        group = jax.lax.axis_index(heads) * groups // jax.lax.axis_size(heads)
        for name, letters in axes.items():
            if "g" in letters.split():
                place = letters.split().index("g")
                arguments[name] = jax.lax.dynamic_slice_in_dim(arguments[name], group, 1, place)
        return run(**arguments)

    return local


def _differentiable(
    local: Callable[[Arrays], tuple[jax.Array, ...]],
    mesh: Mesh,
    arrays: Arrays,
    specs: dict[str, PartitionSpec],
    outputs: tuple[PartitionSpec, ...],
) -> tuple[jax.Array, ...]:
    """`local` on every device's share of the arrays.

    The derivative is outside of the `shard_map`: its own rule would also sum gradients over axes of the mesh that the
    operation is not split over (jax issue 21855). What nobody differentiates, such as a final state in most training,
    stays a zero by its type, for which implementations leave work out.
    """
    floats = {name for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.inexact)}
    used = [axis for axis in mesh.axis_names if any(axis in _flat(spec) for spec in specs.values())]
    per_device = PartitionSpec(tuple(used) or None)  # of the leading axis that what stays on a device is given

    def shard_map(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def parts(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return ({k: v for k, v in values.items() if k in floats}, {k: v for k, v in values.items() if k not in floats})

    in_specs = parts(specs)

    @jax.custom_vjp
    def operation(moving: Arrays, fixed: Arrays) -> Any:
        return shard_map(lambda moving, fixed: local(moving | fixed), in_specs, outputs)(moving, fixed)

    def forward(moving: Any, fixed: Any) -> tuple[Any, Any]:
        def share(moving: Arrays, fixed: Arrays) -> tuple[Any, Any]:
            result, pull = jax.vjp(lambda moving: local(moving | fixed), moving)
            return result, jax.tree.map(lambda kept: jnp.asarray(kept)[None], pull)

        moving, fixed = ({name: primal.value for name, primal in part.items()} for part in (moving, fixed))
        return shard_map(share, in_specs, (outputs, per_device))(moving, fixed)

    def backward(pull: Any, cotangents: Any) -> tuple[Arrays, None]:
        known = {i: value for i, value in enumerate(cotangents) if not isinstance(value, SymbolicZero)}

        def share(pull: Any, known: dict[int, jax.Array]) -> Arrays:
            def of_result(i: int, spec: PartitionSpec) -> Any:
                if i in known:  # of a result that several devices have, the derivative of one of them
                    return _on_one(known[i], set(used) - _flat(spec))
                size = NamedSharding(mesh, spec).shard_shape(cotangents[i].shape)
                return Zero(ShapedArray(size, cotangents[i].dtype))

            pull = jax.tree.map(lambda kept: kept[0], pull)
            (gradients,) = pull(tuple(of_result(i, spec) for i, spec in enumerate(outputs)))
            return {name: _sum(value, set(used) - _flat(specs[name])) for name, value in gradients.items()}

        in_use = {i: outputs[i] for i in known}
        return shard_map(share, (per_device, in_use), in_specs[0])(pull, known), None

    operation.defvjp(forward, backward, symbolic_zeros=True)
    return operation(*parts(arrays))


def _flat(spec: PartitionSpec) -> set[str]:
    return {axis for axes in spec if axes is not None for axis in _names(axes)}


def _on_one(value: jax.Array, axes: set[str]) -> jax.Array:
    return jnp.where(jax.lax.axis_index(tuple(sorted(axes))) == 0, value, 0) if axes else value


def _sum(value: jax.Array, axes: set[str]) -> jax.Array:
    return jax.lax.psum(value, tuple(sorted(axes))) if axes else value
