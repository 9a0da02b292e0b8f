"""Stopping a run from outside: SIGTERM and Ctrl-C become a request that the loop honours between two steps."""

from __future__ import annotations

import signal
import sys
import threading

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While open, the first SIGTERM or SIGINT sets `signal`; a second one acts as it would without this.

    Python hears a signal when a call of XLA's compiler has returned.

    Of several processes each may be told at another moment, so there JAX's own preemption notice, which
    agrees on a step, is asked instead and SIGTERM is left to it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        # Python allows handlers in the main thread only; elsewhere the caller's own stay in force
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def early(self) -> bool:
        """Whether the run is to stop before its first step. Several processes are asked after that, together."""
        return jax.process_count() == 1 and self.signal is not None

    def requested(self, step: int) -> bool:
        """Whether the run is to save and stop after this step."""
        if jax.process_count() == 1:
            return self.signal is not None
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _heard(self, number: int, _frame: object) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        print(
            f"{self.signal.name}: saving after this step, if one has begun, then stopping", file=sys.stderr, flush=True
        )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}
