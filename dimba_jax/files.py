"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(contents: Mapping[Path, str | bytes]) -> None:
    """Writes drafts beside the places, then moves them there: what stood there stays, or is replaced whole."""
    drafts = {path.with_name(f".{path.name}.{os.getpid()}.partial"): path for path in contents}
    try:
        for draft, path in drafts.items():
            content = contents[path]
            draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        for draft, path in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
