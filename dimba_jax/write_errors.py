"""What orbax and TensorStore say of a write that fails, which is raised in one line: the rest is kept quiet."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax

_LOGGERS = ("absl", "asyncio")
_SYSTEM = re.compile(r"os_error_code='(\d+)'")


def of_the_disk(error: BaseException) -> bool:
    """Whether the system refused a write."""
    return (isinstance(error, OSError) and error.errno is not None) or bool(_SYSTEM.search(str(error)))


def advice(error: BaseException) -> str:
    if of_the_disk(error):
        return "Make room or mend the disk, and start again"
    if isinstance(error, TimeoutError) and jax.process_count() > 1:  # orbax's, at a barrier
        return "Another process has not done its part: see what it says"
    return "This is no fault of the disk: please report it"


def reason(error: BaseException) -> str:
    """On one line; of TensorStore's long reports what the system said."""
    text = " ".join(str(error).split())
    if system := _SYSTEM.search(text):
        return os.strerror(int(system[1]))
    return text[:300] if isinstance(error, OSError) and text else f"{type(error).__name__}: {text[:300]}"


def quieten() -> None:
    """Drops the tracebacks of an error in orbax's threads, logged or printed: that error is raised, too.

    Until `loud_again` has been called as often.
    """
    _quiet.asked += 1
    if _quiet.hook is None:
        _quiet.hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_quiet)


def loud_again() -> None:
    _quiet.asked -= 1
    if _quiet.asked:
        return
    if sys.unraisablehook is _unraisable and _quiet.hook is not None:  # otherwise somebody's hook stands before it
        _quiet.hook, sys.unraisablehook = None, _quiet.hook
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(_quiet)


def failure() -> BaseException | None:
    """The first error in orbax's threads since `forget`.

    Of several processes orbax raises it once all have come to the end of the write, and those whose part did not fail
    never do; only its log has it before.
    """
    return _quiet.failure


def _unraisable(what: sys.UnraisableHookArgs, /) -> None:
    """TensorStore's other writes end when the event loop that one of them failed in is closed already."""
    if isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed":
        return
    assert _quiet.hook is not None  # `quieten` sets both
    _quiet.hook(what)


def forget() -> None:
    _quiet.failure = None


class _Quiet(logging.Filter):
    asked: int = 0
    failure: BaseException | None = None
    hook: Callable[[sys.UnraisableHookArgs], Any] | None = None  # the one before

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or not record.exc_info[1]:
            return True
        ours = any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(record.exc_info[2]))
        if ours and self.failure is None and record.levelno >= logging.ERROR:  # others are of errors it dealt with
            self.failure = record.exc_info[1]
        return not ours


_quiet = _Quiet()
