"""Checkpoints: the training state, the data iterator, the config and the tokenizer together, one folder a step.

Layout below a workdir: `checkpoints/<step>/{params,ema,…}` (arrays, orbax), `{data,config,tokenizer,arrays}`
(JSON; the last lists names and shapes) and `digests.json`. orbax writes into a temporary folder and renames it, with
the digests in it, so a step that exists was whole; what is read is held against the digests first, so it still is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import PyTree

from dimba_jax import digests, leftovers, parallel, write_errors
from dimba_jax.errors import CheckpointError, UserError
from dimba_jax.intact import IntactSteps
from dimba_jax.leaves import differences, flat_parts, listed, placed, shapes, unflat
from dimba_jax.progress import announce

FOLDER = "checkpoints"
FORMAT = 2  # of what a step holds; a change that older versions would misread raises it
_PATIENCE = 30  # seconds for a write that other processes may have left; JAX takes 100 to find those dead


class Checkpoints:
    """The checkpoints of one workdir, the latest `keep` of them; a context manager, as closing waits for a write."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        self.folder = Path(workdir).absolute() / FOLDER
        self._keep = keep
        self._open: ocp.CheckpointManager | None = None
        self._writing: int | None = None  # the step that is being written
        self._first_save, self._failed = True, False
        self._intact = IntactSteps(self.folder)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # an error of the user's is that of all processes, or of a write here; behind another one the others may be gone
        if kind is not None and jax.process_count() > 1 and not issubclass(kind, UserError):
            self._close_in_time()
            return
        try:
            self.close()
        except CheckpointError as error:
            if kind is None:
                raise
            announce(f"besides: {error}")  # what ended the run goes on as it was raised

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

        Raises:
          CheckpointError: this or the step before could not be written.
        """
        if step == self.latest_step():
            return
        parts = flat_parts(state)
        items = {name: ocp.args.StandardSave(leaves) for name, leaves in parts.items()}
        items |= {
            "arrays": ocp.args.JsonSave({name: shapes(leaves) for name, leaves in parts.items()}),
            "data": ocp.args.JsonSave({"state": data_state}),
            "config": ocp.args.JsonSave({"format": FORMAT} | dict(config)),
            "tokenizer": ocp.args.JsonSave(dict(tokenizer)),
        }
        self.wait()
        if self._first_save and jax.process_index() == 0:
            leftovers.clear_unfinished(self.folder)  # of a run that was killed
        self._first_save, self._writing = False, step
        write_errors.forget()
        self._intact.forget(step)
        if not self._guarded(lambda: self._manager.save(step, args=ocp.args.Composite(**items))):
            raise CheckpointError(f"{self.folder} has a step after {step}, {self.latest_step()}: choose a new workdir")

    def latest_step(self) -> int | None:
        """The last step there is, damaged or not, or None."""
        return self._manager.latest_step() if self.folder.is_dir() else None

    def whole_step(self, step: int | None = None, parts: Collection[str] | None = None) -> int | None:
        """`step`, or else the latest one, if its files are as they were written; None if there is no step at all.

        Where the latest is damaged the one before it is taken, and that is said. `parts` are those that will be read
        (None: all). Of several processes the first one decides for all; each must ask.

        Raises:
          FileNotFoundError: there is no such step.
          CheckpointError: `step`, or every step, is damaged; or another process does not see it.
        """
        self.wait()
        found = leftovers.whole(self.folder)
        return self._intact.choose(found, step, parts)

    def resolve(self, step: int | None, parts: Collection[str]) -> int:
        """The step to read these parts from: `whole_step`, where there is one.

        Raises:
          FileNotFoundError: there is no checkpoint, or no such step.
          CheckpointError: as `whole_step`.
        """
        step = self.whole_step(step, parts)
        if step is None:
            command = f"python -m dimba_jax.train --config=… --workdir={self.folder.parent}"
            raise FileNotFoundError(f"{self.folder.parent} holds no checkpoint: train one with {command}")
        return step

    def set_aside_after(self, step: int) -> None:
        """Moves the steps after this one, which were found damaged, out of the way: a run writes them anew.

        They lie in `damaged` beside the others until that has been done.
        """
        later = [one for one in self._manager.all_steps() if one > step]
        if not later:
            return
        self.close()
        parallel.gather_json(later)  # all processes have looked
        if jax.process_index() == 0:
            leftovers.set_aside(self.folder, later)
        parallel.gather_json(later)

    def restore(self, step: int | None, target: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The parts of the state named in `target`, whose leaves give shape, dtype and sharding.

        A leaf without a sharding is put on the first device, whatever devices wrote it.

        Raises:
          FileNotFoundError: no such checkpoint.
          CheckpointError: the arrays on disk have other names, shapes or dtypes.
        """
        wanted = flat_parts(target)
        step = self.resolve(step, {"arrays", *wanted})
        self._check(step, wanted)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(placed(part)) for name, part in wanted.items()})
        found = self._manager.restore(step, args=args) if wanted else {}  # orbax warns where nothing is wanted
        return {name: unflat(part, found[name] if name in wanted else {}) for name, part in target.items()}

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
        """Waits until what was saved is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._open is None:
            return
        if jax.process_count() > 1:  # orbax would wait for the others first, which wait for this one
            while self._writing is not None and self._open.is_saving_in_progress():
                self.raise_failure()
                time.sleep(0.05)
            self.raise_failure()
        self._guarded(self._open.wait_until_finished)
        written, self._writing = self._writing, None
        if written is not None and jax.process_index() == 0:
            leftovers.forget_damaged(self.folder, written)

    def raise_failure(self) -> None:
        """Raises CheckpointError if a write has failed in this process; waits for none, so may be asked at any time."""
        if self._writing is None:
            return
        if jax.process_count() > 1:
            if error := write_errors.failure():
                raise self._refusal(error) from error
        elif not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        if self._open is not None:
            if self._alone:
                return
            try:
                self.wait()
            finally:
                if not self._alone:
                    self._open.close()
                self._open = None
                if not self._failed:  # what fails after the first failure is logged later still
                    write_errors.loud_again()

    @property
    def _alone(self) -> bool:
        """Whether a write failed here and not in the other processes: orbax would wait for them, and they for this."""
        return self._failed and jax.process_count() > 1

    def _close_in_time(self) -> None:
        """Closes, but waits only a while for a write, which ends when all processes have done their part."""

        def close() -> None:
            with contextlib.suppress(Exception):  # said already, or told by the first error
                self.close()

        if not self._failed:
            closing = threading.Thread(target=close, daemon=True)
            closing.start()
            closing.join(_PATIENCE)

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._open is None:
            write_errors.quieten()
            self._open = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep,
                    create=True,
                    lightweight_initialize=True,  # it would read files that may be damaged
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
                ),
            )
        return self._open

    def _write_digests(self) -> None:
        """Called by orbax in the first process, when all files are written and before the folder is renamed."""
        (folder,) = leftovers.unfinished(self.folder, self._writing)
        digests.write_digests(folder)

    def _guarded(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except Exception as error:
            raise self._refusal(error) from error

    def _refusal(self, error: BaseException) -> CheckpointError:
        """What is raised of a write that failed; clears what it left."""
        step, self._writing, self._failed = self._writing, None, True
        if jax.process_index() == 0:
            leftovers.clear_unfinished(self.folder, step)  # it takes the room that may be what is missing
        last = max(leftovers.whole(self.folder), default=None)
        left = "there is none from before" if last is None else f"step {last} is the last whole one"
        what = f"the checkpoint of step {step} could not be written below {self.folder}"
        why, advice = write_errors.reason(error), write_errors.advice(error)
        return CheckpointError(f"{what} ({why}); {left}. {advice}")

    def _read_json(self, name: str, step: int | None) -> dict[str, Any]:
        step = self.resolve(step, {name})  # before the manager, which creates the folder, is asked for
        return self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]

    def _check(self, step: int, wanted: Mapping[str, dict[str, Any]]) -> None:
        """Compares names, shapes and dtypes before anything is read: orbax's own report is long and partial."""
        stored = self._read_json("arrays", step)
        for name, leaves in wanted.items():
            if differ := differences(stored.get(name, {}), shapes(leaves)):
                what = f"{self.folder / str(step) / name} is of another model ({len(differ)} arrays differ)"
                raise CheckpointError(f"{what}: use the config it was trained with\n  {listed(differ)}")
