"""What every test has: a clean environment; and, for those that ask for `cluster`, a real Slurm.

The Slurm is the one that tests/run.sh has started (HPC_TEST_CLUSTER is its folder), else one of our own for this
session, if we are root and Slurm is installed. Where neither is so, its tests are skipped; or fail, with CI=true or
HPC_TEST_REQUIRE_SLURM=1, since a skip there would hide that nothing was tested.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CLUSTER_SH = Path(__file__).parent / "cluster" / "cluster.sh"
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
CALLERS = ("HPC_", "SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SUBMITIT_")
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # counts when Triton is imported, which any test may cause
    # counts when torch is imported: tests run beside each other, and threads that wait for each other's turn take three
    # times the CPU seconds of one
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# kernels are tested by Triton's interpreter; without Triton (pip install triton) there is nothing to run them
collect_ignore = [] if importlib.util.find_spec("triton") else ["kernels"]
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: minutes of waiting; runs with HPC_LONG=1 (tests/run.sh --long)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("HPC_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: set HPC_LONG=1, or use tests/run.sh --long"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the home, or the Slurm and hpc settings, of whoever runs it."""
    for name in list(os.environ):
        if name in RENDEZVOUS or (name.startswith(CALLERS) and not name.startswith("HPC_TEST_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


class Cluster:
    """A running test cluster. Its Slurm commands run in the environment of the test, so that a test may change it."""

    nodes = ("n1", "n2", "n3", "n4")
    """16 CPUs and 8 GPUs each, in the partitions main (the default), preempt (requeues for main), small (one node)."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.conf = state / "etc" / "slurm.conf"
        self.killed: set[str] = set()
        """Nodes whose slurmd was killed, and not started again."""

    def run(
        self,
        *command: str | Path,
        timeout: float = 30,
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command against this cluster; `env` adds to the test's environment, `timeout` is in seconds."""
        full = {**os.environ, "SLURM_CONF": str(self.conf), **(env or {})}
        done = subprocess.run(
            [str(c) for c in command], timeout=timeout, cwd=cwd, env=full, input=input, capture_output=True, text=True
        )
        if check and done.returncode:
            words = " ".join(str(c) for c in command)
            raise AssertionError(f"exit status {done.returncode}: {words}\n{done.stdout}{done.stderr}")
        return done

    def sbatch(self, *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """Submits from the folder `cwd`, where the job's output goes if the arguments don't say; the job id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, env=env).stdout.strip().split(";")[0]

    def states(self) -> dict[str, str]:
        """{"7": "RUNNING", "8_0": "PENDING"}: all jobs and array tasks, but those that ended more than 300 s ago."""
        listed = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").stdout
        return dict(line.split() for line in listed.splitlines())

    def accounted(self, jobs: Collection[str]) -> dict[str, str]:
        """The same of these jobs from the accounting, which forgets nothing but is a moment late."""
        # asked for a task, sacct does not find it among those that were cancelled together
        rows = self.run("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State",
                        f"--jobs={','.join(sorted(set(map(array_of, jobs))))}").stdout  # fmt: skip
        states = dict(row.split("|") for row in rows.splitlines())
        return {task: state.split()[0] for job, state in states.items() for task in tasks_of(job)
                if {task, array_of(task)} & set(jobs)}  # fmt: skip

    def wait(self, jobs: str | Collection[str], states: Collection[str] = ENDED, timeout: float = 60) -> dict[str, str]:
        """Waits until all of these jobs (an array: all of its tasks) are in one of these states; {job: state}.

        A job that ended in another state fails the test at once. An end is waited for in the accounting too, so that
        sacct tells the same afterwards.
        """
        wanted = {jobs} if isinstance(jobs, str) else set(jobs)
        deadline = time.monotonic() + timeout
        while True:
            now = {job: state for job, state in self.states().items() if {job, array_of(job)} & wanted}
            missing = wanted - now.keys() - {array_of(job) for job in now}
            if missing:
                now |= self.accounted(missing)
                missing = wanted - now.keys() - {array_of(job) for job in now}
            ended = {job: state for job, state in now.items() if state in ENDED}
            if not missing and all(state in states for state in now.values()):
                if not ended or ended.items() <= self.accounted(ended.keys()).items():
                    return now
            bad = {job: state for job, state in ended.items() if state not in states}
            if bad or time.monotonic() > deadline:
                why = f"ended as {bad}" if bad else f"not so after {timeout:g} s"
                details = self.run("scontrol", "show", "job", next(iter(bad or now or wanted)), check=False).stdout
                raise AssertionError(f"waited for {sorted(states)}, {why}; the jobs: {now or wanted}\n{details}")
            time.sleep(0.2)

    def release_requeue(self, job: str, timeout: float = 30) -> None:
        """Lets a requeued job or array task start in 2 s: Slurm makes it wait two minutes after a requeue."""
        deadline = time.monotonic() + timeout
        waiting = ("squeue", "--noheader", "--array", "--format=%T %r", f"--jobs={job}")
        while self.run(*waiting).stdout.strip() != "PENDING BeginTime":
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} was not requeued in {timeout:g} s: {self.states().get(job)}")
            time.sleep(0.2)
        # a start within the second of the requeue fails: "Job credential revoked", which is why Slurm waits at all
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def kill_slurmd(self, node: str) -> None:
        """kill -9: to Slurm the node is lost (within 30 s, or at once by `scontrol update nodename=N state=down`);
        the processes of its jobs live on, like zombies, until node_up."""
        self.run(CLUSTER_SH, "node-kill", node, env={"CLUSTER_STATE": str(self.state)})
        self.killed.add(node)

    def node_up(self, node: str, timeout: float = 30) -> None:
        """Brings a node back into service, whatever had happened to it."""
        self.run(CLUSTER_SH, "node-up", node, env={"CLUSTER_STATE": str(self.state)})
        self.killed.discard(node)
        deadline = time.monotonic() + timeout
        while (state := self.node_states()[node]) not in ("idle", "mixed", "allocated", "completing", "planned"):
            if time.monotonic() > deadline:
                raise AssertionError(f"{node} is {state} {timeout:g} s after its slurmd was started")
            if state in ("down", "drained"):
                self.run("scontrol", "update", f"NodeName={node}", "State=resume", check=False)
            time.sleep(0.2)

    def node_states(self) -> dict[str, str]:
        """{"n1": "idle", "n2": "down*", ...}"""
        listed = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").stdout
        return dict(line.split() for line in listed.splitlines())

    def jobs_left(self) -> dict[str, str]:
        """The jobs and array tasks that have not ended."""
        return {job: state for job, state in self.states().items() if state not in ENDED and state != "COMPLETING"}


def array_of(job: str) -> str:
    """ "8_0" -> "8"; "32+1" -> "32" (a part of a heterogeneous job); "7" -> "7"."""
    return job.split("_")[0].split("+")[0]


def tasks_of(job: str) -> list[str]:
    """ "8_[0-2,5%2]" -> ["8_0", "8_1", "8_2", "8_5"], as sacct calls tasks cancelled together; others stay."""
    array, _, indices = job.partition("_[")
    out = []
    for part in indices.rstrip("]").split("%")[0].split(",") if indices else ():
        first, _, last = part.partition("-")
        out += [f"{array}_{i}" for i in range(int(first), int(last or first) + 1)]
    return out or [job]


@contextmanager
def own_cluster(**settings: str) -> Iterator[Cluster]:
    """A cluster of one's own, for other settings than the session's: own_cluster(CLUSTER_MAX_ARRAY="11"). 6 s."""
    state = Path(tempfile.mkdtemp(prefix="hpc-slurm-"))
    state.chmod(0o755)
    env = {**os.environ, **settings, "CLUSTER_STATE": str(state)}
    try:
        up = subprocess.run([CLUSTER_SH, "up"], env=env, capture_output=True, text=True, timeout=180)
        assert up.returncode == 0, up.stderr
        yield Cluster(state)
    finally:
        subprocess.run([CLUSTER_SH, "wipe"], env=env, check=True, capture_output=True, timeout=180)


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    running = os.environ.get("HPC_TEST_CLUSTER")
    if running:
        yield Cluster(Path(running))
    elif os.geteuid() == 0 and shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin"):
        with own_cluster() as cluster:
            yield cluster
    else:
        reason = "needs a real Slurm: run tests/run.sh, or pytest as root where Slurm is installed"
        if os.environ.get("CI") == "true" or os.environ.get("HPC_TEST_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def cluster(session_cluster: Cluster, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, for one test: which must end all of its jobs. SLURM_CONF is set, and python3 is this Python."""
    monkeypatch.setenv("SLURM_CONF", str(session_cluster.conf))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield session_cluster
    left = session_cluster.jobs_left()
    if left:
        session_cluster.run("scancel", *set(map(array_of, left)))
        session_cluster.wait(left, timeout=30)
    for node, state in session_cluster.node_states().items():
        if node in session_cluster.killed or state.startswith(("down", "drain", "unknown")):
            session_cluster.node_up(node)
    assert not left, f"the test ended with jobs in Slurm (cancelled now): {left}"


@pytest.fixture(scope="session")
def code_of_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers copies the code of models to, and imports it from: one folder for all tests, since Python
    remembers where a package is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def device() -> Any:
    """Where kernels run: a GPU, or the CPU under Triton's interpreter."""
    import torch

    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """The command takes over the environment that a spec declares; here it lives on when the command is done."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
