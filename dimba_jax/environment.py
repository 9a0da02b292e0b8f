"""What a figure needs beside it to be had again: the command, the code, the packages, the devices, the config."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dimba_jax.config import RunConfig, to_dict

PACKAGES = ("dimba-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment(command: Sequence[str], *, devices: bool = True) -> dict[str, Any]:
    """JSON-ready: command, python, platform, versions, devices, git_commit, git_dirty.

    There is no time in it: the same command on the same machine gives the same.

    Args:
      devices: False where nothing was computed on any, and JAX need not be imported.
    """
    commit, dirty = checkout()
    return {
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": _devices() if devices else None,
        "git_commit": commit,
        "git_dirty": dirty,
    }


def of_checkpoint(command: Sequence[str], config: RunConfig, checkpoint: str, step: int) -> dict[str, Any]:
    """What an output of a checkpoint says of where it comes from."""
    return {
        "config": config.name,
        "checkpoint": str(checkpoint),
        "step": int(step),
        "settings": to_dict(config),
        "environment": environment(command),
    }


def checkout() -> tuple[str | None, bool | None]:
    """The commit of the checkout this code runs from, and whether its files differ from it.

    (None, None) without git, and for an installed package, be it inside of another project's checkout.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    """What git says in this folder; None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _devices() -> dict[str, Any]:
    import jax

    found = jax.devices()
    return {"kind": found[0].device_kind, "count": len(found), "processes": jax.process_count()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
