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
        if step is not None and step in found and self._known(step, parts):
            return step
        if jax.process_count() == 1:
            return self._look(found, step, parts)
        answer: dict[str, Any] = {"found": sorted(found)}
        if jax.process_index() == 0:
            try:
                answer["chosen"] = self._look(found, step, parts)
            except (FileNotFoundError, CheckpointError) as error:
                answer["error"], answer["missing"] = str(error), isinstance(error, FileNotFoundError)
        answers = parallel.gather_json(answer)
        if "error" in answers[0]:
            raise (FileNotFoundError if answers[0]["missing"] else CheckpointError)(answers[0]["error"])
        chosen = answers[0]["chosen"]
        for number, other in enumerate(answers):
            if chosen is not None and chosen not in other["found"]:
                raise CheckpointError(
                    f"process {number} sees no step {chosen} in {self.folder}, as process 0 does: "
                    "give all processes one workdir that they share"
                )
        if chosen is not None:
            self._note(chosen, parts)
        return chosen

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
        if wrong is None:
            self._note(step, parts)
        return wrong

    def _known(self, step: int, parts: Collection[str] | None) -> bool:
        whole = self._whole.get(step, set())
        return None in whole or (parts is not None and whole.issuperset(parts))

    def _note(self, step: int, parts: Collection[str] | None) -> None:
        self._whole.setdefault(step, set()).update([None] if parts is None else parts)
