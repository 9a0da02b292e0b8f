"""The leaves of a tree by their paths: what a checkpoint holds of it, whatever classes it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree


def placed(leaves: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes with their shardings; the first device for a leaf that has none."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first)
        for name, leaf in leaves.items()
    }


def shapes(leaves: Mapping[str, Any]) -> dict[str, str]:
    """As in float32[2,3]."""
    return {name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in leaves.items()}


def flat(tree: PyTree) -> dict[str, Any]:
    """Leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def flat_parts(parts: Mapping[str, PyTree]) -> dict[str, dict[str, Any]]:
    """The leaves of each part that has any."""
    return {name: leaves for name, part in parts.items() if (leaves := flat(part))}


def unflat(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The inverse of `flat`, in the form of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in flat(tree)])


def listed(lines: Sequence[str], shown: int = 5) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"… and {len(lines) - shown} more"] * (len(lines) > shown)
    return "\n  ".join([*lines[:shown], *more])


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """A line for each leaf whose shape or dtype on disk is not the one expected."""
    return [
        f"{key}: {there.get(key, 'nothing')} on disk, {here.get(key, 'nothing')} expected"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
