"""What a workdir says about the run in it: `run.json`, and which settings may change when it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dimba_jax.config import ConfigError, RunConfig, from_config_dict, to_dict
from dimba_jax.environment import environment

RUN_FILE = "run.json"

# Settings that a run may change when it goes on: none of them alters what has been learned so far or what
# the stored arrays mean. A group's name stands for all of it; paths because a workdir may move machines (teachers are
# compared by what is in them).
MAY_CHANGE = (
    "name", "sampling", "mesh", "model.implementation",
    "training.steps", "training.log_every", "training.sample_every", "training.checkpoint_every",
    "training.keep_checkpoints", "training.valid_every", "training.valid_batches", "training.max_skipped_steps",
    "data.path", "data.workers", "tokenizer.model", "training.teachers",
)  # fmt: skip


def check_unchanged(stored: Mapping[str, Any], config: RunConfig, workdir: Path) -> None:
    """Compares the config of a checkpoint with the one it would go on with.

    Raises:
      ConfigError: settings differ that must not; each is shown with both values.
    """
    stored = to_dict(from_config_dict(stored))  # with the defaults of settings that an earlier version did not have
    before, now = _leaves(json.loads(json.dumps(stored))), _leaves(json.loads(json.dumps(to_dict(config))))
    differ = [
        f"config.{key}: {json.dumps(before.get(key))} in the checkpoint, {json.dumps(now.get(key))} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _may_change(key)
    ]
    if differ:
        raise ConfigError(
            f"{workdir} holds a run with other settings; put these back, or choose a new workdir:\n  "
            + "\n  ".join(differ)
            + f"\nWhat may change when a run goes on: {', '.join(MAY_CHANGE)}"
        )


def write_run_file(workdir: Path, config: RunConfig, command: Sequence[str], from_step: int) -> None:
    """Writes run.json: the config, and for each start of the run when, how and where it ran."""
    path = workdir / RUN_FILE
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() and from_step else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    starts.append({"time": now, "from_step": from_step} | environment(command))
    text = json.dumps({"name": config.name, "config": to_dict(config), "starts": starts}, indent=2, ensure_ascii=False)
    draft = path.with_suffix(".draft")
    draft.write_text(text + "\n", encoding="utf-8")
    os.replace(draft, path)  # a run that is killed here leaves the file as it was


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in MAY_CHANGE)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _leaves(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
