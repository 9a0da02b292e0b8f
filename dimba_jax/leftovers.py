"""What lies in the folders of a run: whole steps, steps that were being written when it was killed, damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a step that is being written
DAMAGED = "damaged"  # beside the checkpoints: steps that a run found damaged, until it has written them anew


def whole(folder: Path) -> list[int]:
    """The steps on disk, of which orbax may believe one more while it is being written."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def unfinished(folder: Path, step: int | None = None) -> list[Path]:
    """The folders of a step that is not whole yet, or of all such steps."""
    return sorted(folder.glob(f"{'*' if step is None else step}{UNFINISHED}*"))


def clear_unfinished(folder: Path, step: int | None = None) -> None:
    for path in unfinished(folder, step):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, steps: Collection[int]) -> None:
    """Moves steps out of the way of those that will be written under their numbers."""
    aside = folder.parent / DAMAGED
    aside.mkdir(exist_ok=True)
    for step in steps:
        shutil.rmtree(aside / str(step), ignore_errors=True)
        (folder / str(step)).rename(aside / str(step))


def forget_damaged(folder: Path, written: int) -> None:
    """Removes what was set aside, up to a step that has been written whole."""
    aside = folder.parent / DAMAGED
    if not aside.is_dir():
        return
    for path in aside.iterdir():
        if path.name.isdigit() and int(path.name) <= written:
            shutil.rmtree(path, ignore_errors=True)
    if not any(aside.iterdir()):
        aside.rmdir()
