"""Files of a study's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """A JSON document, or of *.jsonl the values of its lines.

    Raises SystemExit if there is no such file.
    """
    if not path.exists():
        raise SystemExit(f"{path} is not there yet: the scripts beside it make it, its README.md has the commands")
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
