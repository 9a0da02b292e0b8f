"""What orbax and TensorStore say of a write that fails, which is raised in one line: the rest is kept quiet."""

from __future__ import annotations

import logging
import os
import re
import traceback

_LOGGERS = ("absl", "asyncio")
_SYSTEM = re.compile(r"os_error_code='(\d+)'")


def of_the_disk(error: BaseException) -> bool:
    """Whether the system refused a write."""
    return isinstance(error, OSError) or bool(_SYSTEM.search(str(error)))


def reason(error: BaseException) -> str:
    """On one line; of TensorStore's long reports what the system said."""
    text = " ".join(str(error).split())
    if system := _SYSTEM.search(text):
        return os.strerror(int(system[1]))
    return text[:300] if isinstance(error, OSError) and text else f"{type(error).__name__}: {text[:300]}"


def quieten() -> None:
    """Drops the tracebacks that are logged of an error in orbax's threads: that error is raised, too."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_news)


def loud_again() -> None:
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    return not any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
