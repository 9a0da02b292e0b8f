"""The start of a run over several processes: who they are, and how long they wait for one another.

JAX knows Slurm, Open MPI, Kubernetes and TPU pods, and asks them for what it is not told (`jax.distributed.initialize`,
whose arguments have the same names here). What is added is when to ask, and errors that say what to do.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

import jax

from dimba_jax.errors import UserError

TIMEOUT = 300  # seconds, as jax.distributed has it
_MARGIN = 60  # seconds by which JAX waits longer than we do
_LAST = 5  # seconds that process 0, without which JAX ends all others, leaves those that have the same error to say
_GAVE_UP = 2  # exit status of commands whose user can mend something

# JAX reads the first of them itself; for what it does not find there it asks the cluster
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


class DistributedError(UserError, RuntimeError):
    """Processes that cannot find one another; the message says what is missing or wrong."""


def initialize(
    distributed: bool | None = None,
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    cluster_detection_method: str | None = None,
    initialization_timeout: int = TIMEOUT,
) -> bool:
    """Joins the other processes of the run, if it has any, and returns whether it has; call before any other JAX call.

    With `distributed=True` there must be such a run; with False this process stays alone; with None, the default, it
    joins if an argument below or the environment says that there are others: JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES or JAX_PROCESS_ID; a Slurm step or an `mpirun` of several tasks; a TPU pod on GKE. Kubernetes and
    Cloud TPU VMs say nothing of the sort in their environment and need True.

    Args:
      coordinator_address: HOST:PORT on which process 0 listens; this and the next two are taken from the variables
        named above or else from the cluster.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      cluster_detection_method: as JAX's, to name the cluster in place of finding it: "mpi4py" for Open MPI 5.
      initialization_timeout: seconds after which this process ends, with a line that says so and status 2, if not all
        processes are there. JAX would end it too, with a stack trace of C++ in place of an exception.

    Raises:
      DistributedError: arguments that are missing (and that no cluster supplies), wrong or at odds.
    """
    given = _Processes(coordinator_address, num_processes, process_id)
    named = given.named() + ["cluster_detection_method"] * (cluster_detection_method is not None)
    if distributed is False:
        if named:
            raise DistributedError(f"--nodistributed, yet {named[0]} is given: leave one of them out")
        return False
    if jax.distributed.is_initialized():
        return True
    if not (distributed or named or _environment_names_several()):
        return False
    known = given.with_environment()
    known.check()
    with _patience(known, initialization_timeout):
        try:
            jax.distributed.initialize(
                **known._asdict(),
                cluster_detection_method=cluster_detection_method,
                initialization_timeout=initialization_timeout + _MARGIN,
            )
        except (ValueError, RuntimeError, ImportError) as error:
            raise DistributedError(_explained(known, error)) from error
    return True


def leave(status: int) -> NoReturn:
    """Ends this process at once, with an error that the others do not have; JAX then ends them.

    Python's own way out waits for the others, which wait for this one.
    """
    print(
        "distributed: this process ends, and JAX ends the others within some 100 s. Mend what is named above, or in "
        "what another process says, and start all of them again: the run goes on from its last checkpoint",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_LAST)
    os._exit(status)


class _Processes(NamedTuple):
    """What each process has to know; None is left to JAX, which asks the cluster."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None

    def named(self) -> list[str]:
        return [name for name, value in self._asdict().items() if value is not None]

    def with_environment(self) -> _Processes:
        """With the variables of _VARIABLES in the place of what is None."""
        address, count, place = self
        return _Processes(
            address or os.environ.get(_VARIABLES["coordinator_address"]) or None,
            _variable("num_processes") if count is None else count,
            _variable("process_id") if place is None else place,
        )

    def check(self) -> None:
        address, count, place = self
        if address is not None:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise DistributedError(f"coordinator_address={address}: expected HOST:PORT, as in 10.0.0.1:1234")
        if count is not None and count < 1:
            raise DistributedError(f"num_processes={count}: must be at least 1")
        if place is not None and (place < 0 or (count is not None and place >= count)):
            most = "" if count is None else f" to num_processes - 1 = {count - 1}"
            raise DistributedError(f"process_id={place}: expected 0{most}; every process has its own")


def _environment_names_several() -> bool:
    read = os.environ.get
    return (
        any(read(name) for name in _VARIABLES.values())
        # of the step, not of the job: in a batch script without srun there is one process, whatever was allocated
        or _number(read("SLURM_STEP_NUM_TASKS")) > 1
        or _number(read("OMPI_COMM_WORLD_SIZE")) > 1
        or any("," in read(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
        or _number(read("MEGASCALE_NUM_SLICES")) > 1
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _variable(name: str) -> int | None:
    text = os.environ.get(_VARIABLES[name])
    if not text:
        return None
    if not text.isdigit():
        raise DistributedError(f"{_VARIABLES[name]}={text}: expected a number")
    return int(text)


def _explained(known: _Processes, error: Exception) -> str:
    missing = [name for name, value in known._asdict().items() if value is None]
    if isinstance(error, ValueError) and missing:
        mpi = ""
        if "OMPI_COMM_WORLD_SIZE" in os.environ:
            mpi = ". Open MPI 5 is found by the package mpi4py alone, with --cluster_detection_method=mpi4py"
        return (
            f"no cluster that JAX knows supplies {', '.join(missing)}: give --coordinator_address=HOST:PORT "
            "--num_processes=N --process_id=I to each process, or start them by srun, mpirun or on a TPU pod; "
            f"--nodistributed stays alone{mpi}"
        )
    port = ": is its port free?" if known.process_id == 0 else ""
    at = f" at {known.coordinator_address}{port}" if known.coordinator_address else ""
    return f"the processes cannot be joined{at} (JAX says: {' '.join(str(error).split())})"


@contextmanager
def _patience(known: _Processes, seconds: int) -> Iterator[None]:
    """Ends this process if what is done inside takes longer: JAX's own end of it cannot be caught."""
    address = known.coordinator_address or "the coordinator"
    if known.process_id == 0:
        what = f"not all {known.num_processes or ''} processes have come to {address}".replace("  ", " ")
        advice = "start the others, with the same --coordinator_address and --num_processes and a --process_id each"
    else:
        what = f"{address} does not answer, or not all processes have come to it"
        advice = "see that process 0 runs there, that its port can be reached from here and that all others run"

    def give_up() -> None:
        text = f"distributed: {what} within {seconds} s: {advice}; --initialization_timeout=SECONDS waits longer"
        print(text, file=sys.stderr, flush=True)
        os._exit(_GAVE_UP)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
