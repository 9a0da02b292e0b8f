"""Checkpoints: the training state, the data iterator, the config and the tokenizer together, one folder a step.

Layout below a workdir: `checkpoints/<step>/{params,ema,…}` (arrays, orbax) and `{data,config,tokenizer,arrays}`
(JSON; the last lists names and shapes). orbax writes into a temporary folder and renames it, so a step that
exists is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import PyTree

from dimba_jax.errors import UserError

FOLDER = "checkpoints"
FORMAT = 1  # of what a step holds; a change that older versions would misread raises it


class CheckpointError(UserError, ValueError):
    """A checkpoint that does not fit what it is read into."""


class Checkpoints:
    """The checkpoints of one workdir; `keep` is how many of the latest stay on disk.

    Close it (it is a context manager) to wait for the last write.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        self.folder = Path(workdir).absolute() / FOLDER
        self._keep = keep
        self._open: ocp.CheckpointManager | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Mapping[str, PyTree],
        *,
        data_state: Any,
        config: Mapping[str, Any],
        tokenizer: Mapping[str, Any],
    ) -> None:
        """Writes one step; a step already there is left alone. Returns while the files are still being written.

        `state` holds the parts of the training state by name, "params" and "ema" among them;
        `data_state`, `config` and `tokenizer` are JSON-able.
        """
        if step == self.latest_step():
            return
        parts = {name: flat for name, part in state.items() if (flat := _flat(part))}
        items = {name: ocp.args.StandardSave(flat) for name, flat in parts.items()}
        items |= {
            "arrays": ocp.args.JsonSave({name: _shapes(flat) for name, flat in parts.items()}),
            "data": ocp.args.JsonSave({"state": data_state}),
            "config": ocp.args.JsonSave({"format": FORMAT} | dict(config)),
            "tokenizer": ocp.args.JsonSave(dict(tokenizer)),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))

    def latest_step(self) -> int | None:
        """The last whole step, or None."""
        return self._manager.latest_step() if self.folder.is_dir() else None

    def restore(self, step: int | None, target: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The parts of the state named in `target`, whose leaves give shape, dtype and sharding.

        A leaf without a sharding is put on the first device, whatever devices wrote it.

        Raises:
          FileNotFoundError: no such checkpoint.
          CheckpointError: the arrays on disk have other names, shapes or dtypes.
        """
        step = self._resolve(step)
        wanted = {name: flat for name, part in target.items() if (flat := _flat(part))}
        self._check(step, wanted)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(_placed(part)) for name, part in wanted.items()})
        found = self._manager.restore(step, args=args) if wanted else {}  # orbax warns where nothing is wanted
        return {name: _unflat(part, found[name] if name in wanted else {}) for name, part in target.items()}

    def read_params(self, step: int | None = None, *, ema: bool = True, abstract: PyTree) -> PyTree:
        """The network's parameters alone (averaged, or as trained) in the form of `abstract`.

        `abstract` is an `nnx.State` or a nested dict, with `jax.ShapeDtypeStruct` leaves.

        Raises:
          FileNotFoundError, CheckpointError: as `restore`.
        """
        name = "ema" if ema else "params"
        if isinstance(abstract, nnx.State):
            pure = self.restore(step, {name: nnx.to_pure_dict(abstract)})[name]
            state = jax.tree.map(lambda leaf: leaf, abstract)
            nnx.replace_by_pure_dict(state, pure)
            return state
        return self.restore(step, {name: abstract})[name]

    def read_config(self, step: int | None = None) -> dict[str, Any]:
        """The config as `config.from_config_dict` takes it.

        Raises:
          FileNotFoundError: no such checkpoint.
          CheckpointError: a later version of this library wrote it.
        """
        config = self._read_json("config", step)
        found = config.pop("format", 1)  # the first checkpoints had no number
        if found != FORMAT:
            raise CheckpointError(
                f"{self.folder} has the format {found!r}, and this version of dimba_jax reads {FORMAT}: "
                "install the version that wrote it (run.json names it), or a newer one"
            )
        return config

    def read_tokenizer(self, step: int | None = None) -> dict[str, Any]:
        return self._read_json("tokenizer", step)

    def read_data_state(self, step: int | None = None) -> Any:
        return self._read_json("data", step)["state"]

    def wait(self) -> None:
        """Waits until what was saved is on disk; raises what went wrong while writing."""
        if self._open is not None:
            self._open.wait_until_finished()

    def close(self) -> None:
        if self._open is not None:
            self._open.wait_until_finished()
            self._open.close()
            self._open = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._open is None:
            self._open = ocp.CheckpointManager(
                self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
            )
        return self._open

    def _resolve(self, step: int | None) -> int:
        found = self._manager.all_steps() if self.folder.is_dir() else []
        if not found:
            raise FileNotFoundError(
                f"{self.folder.parent} holds no checkpoint: train one with "
                f"python -m dimba_jax.train --config=… --workdir={self.folder.parent}"
            )
        if step is None:
            return max(found)
        if step not in found:
            raise FileNotFoundError(f"{self.folder.parent} has no step {step}; it has {', '.join(map(str, found))}")
        return step

    def _read_json(self, name: str, step: int | None) -> dict[str, Any]:
        step = self._resolve(step)  # before the manager, which creates the folder, is asked for
        return self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]

    def _check(self, step: int, wanted: Mapping[str, dict[str, Any]]) -> None:
        """Compares names, shapes and dtypes before anything is read: orbax's own report is long and partial."""
        stored = self._read_json("arrays", step)
        for name, leaves in wanted.items():
            here, there = _shapes(leaves), stored.get(name, {})
            differ = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
            if differ:
                lines = [
                    f"{key}: {there.get(key, 'nothing')} on disk, {here.get(key, 'nothing')} expected"
                    for key in differ[:5]
                ] + [f"… and {len(differ) - 5} more"] * (len(differ) > 5)
                raise CheckpointError(
                    f"{self.folder / str(step) / name} is of another model ({len(differ)} arrays differ): "
                    "use the config it was trained with\n  " + "\n  ".join(lines)
                )


def _placed(leaves: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first)
        for name, leaf in leaves.items()
    }


def _shapes(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in leaves.items()}


def _flat(tree: PyTree) -> dict[str, Any]:
    """Leaves by path: independent of the classes a state is made of."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflat(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in _flat(tree)])
