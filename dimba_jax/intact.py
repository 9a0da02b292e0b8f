"""Which steps of a run are as they were written: held against their digests, once each, by one process for all."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from dimba_jax import digests, parallel
from dimba_jax.errors import CheckpointError
from dimba_jax.progress import announce


class IntactSteps:
    """Chooses the step to read among those in `folder`; looks at each part of a step once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._whole: dict[int, set[str | None]] = {}  # the parts of steps that were found whole; None: all
        self._said: set[int] = set()  # steps that were spoken of

    def choose(self, found: Collection[int], step: int | None, parts: Collection[str] | None) -> int | None:
        """`step`, or else the latest of the steps `found`, if it is whole; None if there is none at all.

        Of several processes the first one looks, and all of them get its answer: each must call this with the same
        `step` and `parts`.

        Raises:
          FileNotFoundError, CheckpointError: as `Checkpoints.whole_step`.
        """
        if jax.process_count() == 1:
            if step is None or step not in found or not self._known(step, parts):
                step = self._look(found, step, parts)
        elif step is None or not self._known(step, parts):
            step = self._agree(found, step, parts)
        if step is not None:
            self._note(step, parts)
        return step

    def _agree(self, found: Collection[int], step: int | None, parts: Collection[str] | None) -> int | None:
        """What the first process finds, on all of them."""
        all_found = parallel.gather_json(sorted(found))  # first, so that none waits for long in its first exchange
        for number, other in enumerate(all_found):
            if other != all_found[0]:
                raise CheckpointError(self._not_shared(number, f"steps {other}", all_found[0]))
        if not all_found[0]:
            self._check_shared()
            return None
        answer: dict[str, Any] = {}
        if jax.process_index() == 0:
            try:
                answer["chosen"] = self._look(found, step, parts)
            except (FileNotFoundError, CheckpointError) as error:
                answer["error"], answer["missing"] = str(error), isinstance(error, FileNotFoundError)
        answer = parallel.gather_json(answer)[0]
        if "error" in answer:
            raise (FileNotFoundError if answer["missing"] else CheckpointError)(answer["error"])
        return answer["chosen"]

    def _check_shared(self) -> None:
        """Before the first step: a file of the first process, which all must see."""
        sign = self.folder.parent / ".seen-by-all-processes"
        if jax.process_index() == 0:
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.touch()
        parallel.gather_json(0)
        seen = parallel.gather_json(sign.exists())
        if jax.process_index() == 0:
            sign.unlink()
        if not all(seen):
            raise CheckpointError(self._not_shared(seen.index(False), "another folder", "its own"))

    def _not_shared(self, number: int, sees: str, first: Any) -> str:
        return (
            f"process {number} sees {sees} at {self.folder.parent}, and process 0 {first}: "
            "give all processes one workdir that they share"
        )

    def forget(self, step: int) -> None:
        """What was known of a step that is about to be written."""
        self._whole.pop(step, None)

    def _look(self, found: Collection[int], step: int | None, parts: Collection[str] | None) -> int | None:
        steps = sorted(found, reverse=True)
        if step is not None and steps:
            if step not in steps:
                shown = ", ".join(map(str, reversed(steps)))
                raise FileNotFoundError(f"{self.folder.parent} has no step {step}; it has {shown}")
            steps = [step]
        damaged: dict[int, str] = {}
        for one in steps:
            wrong = self._damage(one, parts)
            if wrong is None:
                for other in sorted(damaged.keys() - self._said):
                    announce(f"{self.folder / str(other)} is damaged ({damaged[other]}): step {one} is used instead")
                self._said |= damaged.keys()
                return one
            damaged[one] = wrong
        if step is not None and damaged:
            place = self.folder / str(step)
            raise CheckpointError(f"{place} is damaged: {damaged[step]}; leave --step out, or choose another")
        if damaged:
            what = "; ".join(f"{self.folder / str(one)}: {wrong}" for one, wrong in damaged.items())
            what = f"every checkpoint of {self.folder.parent} is damaged: {what}"
            raise CheckpointError(f"{what}. Put one back from a copy, or choose a new workdir")
        return None

    def _damage(self, step: int, parts: Collection[str] | None) -> str | None:
        if self._known(step, parts):
            return None
        folder = self.folder / str(step)
        try:
            wrong = digests.damage(folder, parts)
        except FileNotFoundError:
            if not folder.is_dir():
                return "it is gone: a run may have removed it meanwhile"
            wrong = f"{digests.FILE} is missing"
        return wrong

    def _known(self, step: int, parts: Collection[str] | None) -> bool:
        whole = self._whole.get(step, set())
        return None in whole or (parts is not None and whole.issuperset(parts))

    def _note(self, step: int, parts: Collection[str] | None) -> None:
        self._whole.setdefault(step, set()).update([None] if parts is None else parts)
