"""Who belongs to a run over several processes: flags, the environments of clusters as JAX reads them, and what is said
when the others are not there."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax._src.clusters import ClusterEnv, K8sCluster, cloud_tpu_cluster  # what an environment looks like to JAX

from dimba_jax import commandline, distributed, train
from dimba_jax.distributed import DistributedError

REPOSITORY = Path(train.__file__).parents[1]
CLUSTERS = ("JAX_", "SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_COMPLETION_")
ADDRESS = "10.0.0.1:1234"
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
}  # fmt: skip
OPEN_MPI_5 = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
OPEN_MPI = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
GKE = {
    "TPU_WORKER_HOSTNAMES": "localhost,127.0.0.2", "TPU_WORKER_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "",
    "MEGASCALE_NUM_SLICES": "", "MEGASCALE_SLICE_ID": "",
}  # fmt: skip
SLICES = GKE | {"MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Puts variables in the place of every variable of a cluster that this machine may have."""
    for name in list(os.environ):
        if name.startswith(CLUSTERS) and name != "JAX_PLATFORMS":
            monkeypatch.delenv(name)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: ("", 404))  # as a machine of GKE answers

    def set_to(variables, tpu=False):
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", tpu)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_to({})
    return set_to


@pytest.fixture
def joined(monkeypatch):
    """What JAX starts with, found by its own classes: (address, count, id), and the seconds it would wait."""
    calls = []

    def start(*, cluster_detection_method, initialization_timeout, **given):
        address = given["coordinator_address"] or os.environ.get("JAX_COORDINATOR_ADDRESS")
        found = ClusterEnv.auto_detect_unset_distributed_params(
            address, given["num_processes"], given["process_id"], None, cluster_detection_method, initialization_timeout
        )
        if None in found[:3]:
            raise ValueError("coordinator_address should be defined.")
        calls.append((found[:3], initialization_timeout))

    monkeypatch.setattr(jax.distributed, "initialize", start)
    return calls


def given(*arguments):
    define = commandline.Flags()
    define.distributed()
    return commandline.given_distributed(define.parse(["train", *arguments]))


def test_alone_unless_something_names_others(environment, joined):
    assert given() == {}
    assert distributed.initialize() is False
    # one task of an allocation of several, one local TPU, any pod of a Kubernetes cluster
    environment(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1", "TPU_WORKER_HOSTNAMES": "localhost"})
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"})
    assert distributed.initialize(**given()) is False
    assert joined == []


@pytest.mark.parametrize("flag", [[], ["--distributed"]])
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, ("node03:61447", 4, 3)),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, ("node03:99", 4, 3)),
        (OPEN_MPI, ("10.96.0.1:62624", 2, 1)),
        (GKE, ("localhost:8482", 2, 1)),
        (SLICES, ("localhost:8482", 4, 3)),
        ({"JAX_COORDINATOR_ADDRESS": ADDRESS, "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}, (ADDRESS, 3, 2)),
    ],
)
def test_environments_that_jax_recognises(environment, joined, variables, expected, flag):
    environment(variables, tpu="TPU_WORKER_ID" in variables)
    assert distributed.initialize(**given(*flag)) is True
    ((found, seconds),) = joined
    assert found == expected and seconds > distributed.TIMEOUT


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI, GKE, {"JAX_COORDINATOR_ADDRESS": ADDRESS}])
def test_nodistributed_stays_alone_in_any_of_them(environment, joined, variables):
    environment(variables, tpu=True)
    assert distributed.initialize(**given("--nodistributed")) is False and joined == []


def test_cloud_tpu_machines_need_the_flag(environment, joined, monkeypatch):
    environment({name: value for name, value in GKE.items() if name.startswith("MEGASCALE")}, tpu=True)
    answers = {"agent-worker-number": "1", "worker-network-endpoints": "::127.0.0.1,::127.0.0.2,::127.0.0.3"}
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (answers[key], 200))
    assert distributed.initialize() is False
    assert distributed.initialize(**given("--distributed")) is True
    assert joined[0][0] == ("127.0.0.1:8482", 3, 1)


def test_indexed_jobs_of_kubernetes_need_the_flag(environment, joined, monkeypatch):
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"})
    job = SimpleNamespace(metadata=SimpleNamespace(name="run", labels={}), spec=SimpleNamespace(parallelism=2))
    pod = SimpleNamespace(spec=SimpleNamespace(subdomain="pods"))
    answers = {"_job": job, "_pod": pod, "_controller": SimpleNamespace(kind="Job"), "is_env_present": True}
    for name, answer in answers.items():
        monkeypatch.setattr(K8sCluster, name, lambda answer=answer: answer)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.0.1")
    assert distributed.initialize() is False
    assert distributed.initialize(**given("--distributed")) is True
    assert joined[0][0] == ("run-0.pods:55527", 2, 1)


def test_flags_go_before_the_environment(environment, joined):
    environment(SLURM | {"JAX_COORDINATOR_ADDRESS": "elsewhere:1", "JAX_PROCESS_ID": "2"})
    flags = [f"--coordinator_address={ADDRESS}", "--num_processes=9", "--initialization_timeout=20"]
    assert distributed.initialize(**given(*flags)) is True
    ((found, seconds),) = joined
    assert found == (ADDRESS, 9, 2) and 20 < seconds < 100


@pytest.mark.parametrize(
    ("variables", "arguments", "expected"),
    [
        ({}, ["--distributed"], "supplies coordinator_address, num_processes, process_id: give --coordinator_address"),
        (
            {},
            [f"--coordinator_address={ADDRESS}", "--process_id=0"],
            "no cluster that JAX knows supplies num_processes:",
        ),
        ({}, ["--num_processes=2"], "supplies coordinator_address, process_id:"),
        ({"JAX_NUM_PROCESSES": "2"}, [], "supplies coordinator_address, process_id:"),
        ({"JAX_PROCESS_ID": "first"}, [], "JAX_PROCESS_ID=first: expected a number"),
        ({}, ["--coordinator_address=10.0.0.1"], "coordinator_address=10.0.0.1: expected HOST:PORT"),
        ({}, ["--num_processes=0"], "num_processes=0: must be at least 1"),
        ({}, ["--num_processes=2", "--process_id=2"], "process_id=2: expected 0 to num_processes - 1 = 1"),
        ({}, ["--process_id=-1"], "process_id=-1: expected 0"),
        ({}, ["--nodistributed", "--num_processes=2"], "--nodistributed, yet num_processes is given"),
        ({}, ["--nodistributed", "--cluster_detection_method=slurm"], "yet cluster_detection_method is given"),
        (OPEN_MPI_5, ["--cluster_detection_method=mpi4py"], "mpi4py"),
        (OPEN_MPI_5, [], "mpi4py"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [], "--nodistributed stays alone"),  # where there is no TPU
    ],
)
def test_what_is_missing_or_wrong_is_named(environment, joined, monkeypatch, variables, arguments, expected):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    environment(variables)
    with pytest.raises(DistributedError) as caught:
        distributed.initialize(**given(*arguments))
    assert expected in str(caught.value) and "\n" not in str(caught.value) and joined == []


def test_the_command_hands_the_flags_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "initialize", lambda **given: (_ for _ in ()).throw(DistributedError(f"{given}")))
    recipe = f"--config={REPOSITORY / 'configs' / 'quickstart.py'}:smoke"
    assert train.main(["train", recipe, f"--workdir={tmp_path}", "--nodistributed", "--process_id=3"]) == 2
    assert capsys.readouterr().err == "train: {'distributed': False, 'process_id': 3}\n"


@pytest.mark.parametrize("place", [0, 1])
def test_nobody_answers(place):
    """In a process of its own: it ends with one line, before JAX would end it with a stack trace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    call = f"initialize(coordinator_address={address!r}, num_processes=2, process_id={place}, initialization_timeout=1)"
    done = subprocess.run(
        [sys.executable, "-c", f"from dimba_jax.distributed import initialize; {call}"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'kernels'}"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    expected = [f"not all 2 processes have come to {address}", f"{address} does not answer"][place]
    assert line.startswith(f"distributed: {expected}") and "--initialization_timeout=SECONDS" in line
