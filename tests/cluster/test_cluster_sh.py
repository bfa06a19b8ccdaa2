"""The test cluster behaves as a site's Slurm does, in what the other tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import CLUSTER_SH, Cluster, own_cluster


def test_nodes_are_machines_of_their_own_with_gpus(cluster: Cluster, tmp_path: Path) -> None:
    shown = cluster.run(
        "srun",
        "--nodes=4",
        "--gpus-per-node=h100:8",
        "sh",
        "-c",
        "echo $(hostname) $(getent hosts n3) $CUDA_VISIBLE_DEVICES",
    ).stdout.splitlines()
    assert sorted(shown) == [f"{node} 127.0.0.1 n3 0,1,2,3,4,5,6,7" for node in cluster.nodes]
    refused = cluster.run("sbatch", "--gpus-per-node=9", "--wrap=true", check=False, cwd=tmp_path)
    assert refused.returncode != 0


def test_partitions(cluster: Cluster, tmp_path: Path) -> None:
    shown = cluster.run("sinfo", "--noheader", "--format=%P %D %p %s").stdout.split("\n")
    assert {line.split()[0] for line in shown if line} == {"main*", "preempt", "small"}
    job = cluster.sbatch("--partition=small", "--nodes=2", "--wrap=true", cwd=tmp_path)
    reason = cluster.run("squeue", "--noheader", "--format=%T %r", f"--jobs={job}").stdout
    cluster.run("scancel", job)
    assert reason.startswith("PENDING Partition")  # accepted, but never to run: EnforcePartLimits=NO, Slurm's default


def test_arrays_end_in_squeue_and_in_the_accounting(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.sbatch(
        "--array=0-5%3", "--comment=hpc", "--output=%a.out", '--wrap=echo $WORD; exit $((SLURM_ARRAY_TASK_ID == 4))',
        cwd=tmp_path, env={"WORD": "given"},
    )  # fmt: skip
    states = cluster.wait(job, states=("COMPLETED", "FAILED"))
    assert states == {f"{job}_{i}": "FAILED" if i == 4 else "COMPLETED" for i in range(6)}
    assert (tmp_path / "5.out").read_text() == "given\n"
    rows = cluster.run("sacct", "-nXP", "-j", f"{job}_4", "-o", "State,ExitCode,Comment").stdout
    assert rows == "FAILED|1:0|hpc\n"
    assert "WORD=given" in cluster.run("sacct", "-j", f"{job}_0", "--env-vars").stdout


def test_the_array_limit_can_be_set_and_two_clusters_live_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.run("scontrol", "show", "config").stdout
    assert "MaxArraySize            = 1001" in first
    with own_cluster(CLUSTER_MAX_ARRAY="11") as other:
        assert other.run("sbatch", "--array=0-11", "--wrap=true", check=False, cwd=tmp_path).returncode != 0
        theirs = other.sbatch("--array=0-10", "--wrap=true", cwd=tmp_path)
        ours = cluster.sbatch("--array=0-11", "--wrap=true", cwd=tmp_path)
        assert set(other.wait(theirs).values()) == {"COMPLETED"}
        assert set(cluster.wait(ours).values()) == {"COMPLETED"}
        state = other.state
        assert state.exists()
    assert not state.exists()
    marks = [p for p in Path("/proc").glob("[0-9]*/environ") if str(state).encode() in readable(p)]
    assert not marks


def readable(file: Path) -> bytes:
    """b"" for a process that has gone, or a zombie."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_a_requeued_job_starts_again(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.sbatch(
        "--requeue", "--open-mode=append", "--output=log",
        "--wrap=echo start ${SLURM_RESTART_COUNT:-0}; [ -n \"${SLURM_RESTART_COUNT:-}\" ] || sleep 600", cwd=tmp_path,
    )  # fmt: skip
    wait_for_text(tmp_path / "log", "start 0")
    cluster.run("scontrol", "requeue", job)
    cluster.release_requeue(job)
    assert cluster.wait(job) == {job: "COMPLETED"}
    assert "start 1" in (tmp_path / "log").read_text()


def wait_for_text(file: Path, text: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < deadline, f"{text!r} is not in {file} after {timeout:g} s"
        time.sleep(0.1)


def test_a_lost_node_requeues_its_job_which_lives_on_as_a_zombie(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.sbatch(
        "--nodelist=n4", "--requeue", "--output=log", "--wrap=echo $$ >pid; exec sleep 600", cwd=tmp_path
    )
    wait_for_text(tmp_path / "pid", "\n")
    pid = int((tmp_path / "pid").read_text())
    cluster.kill_slurmd("n4")
    cluster.run("scontrol", "update", "NodeName=n4", "State=down", "Reason=test")
    cluster.wait(job, states=("PENDING",))
    os.kill(pid, 0)  # still there
    assert cluster.node_states()["n4"].startswith("down")
    cluster.run("scancel", job)
    assert cluster.wait(job) == {job: "CANCELLED"}
    cluster.node_up("n4")
    assert cluster.run("srun", "--nodelist=n4", "hostname").stdout == "n4\n"
    deadline = time.monotonic() + 30
    while readable(Path(f"/proc/{pid}/cmdline")):
        assert time.monotonic() < deadline, "the zombie outlived its node's return"
        time.sleep(0.1)


def test_preemption_requeues(cluster: Cluster, tmp_path: Path) -> None:
    low = cluster.sbatch(
        "--partition=preempt", "--nodes=4", "--exclusive", "--requeue", "--wrap=sleep 600", cwd=tmp_path
    )
    cluster.wait(low, states=("RUNNING",))
    high = cluster.sbatch("--nodes=4", "--exclusive", "--wrap=true", cwd=tmp_path)
    assert cluster.wait(high) == {high: "COMPLETED"}
    assert cluster.states()[low] == "PENDING"
    cluster.run("scancel", low)
    cluster.wait(low)


def test_a_test_that_leaves_jobs_fails_and_they_are_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((CLUSTER_SH.parents[1] / "conftest.py").read_text())
    (tmp_path / "test_leaves.py").write_text(
        "def test_leaves(cluster, tmp_path):\n    cluster.sbatch('--wrap=sleep 600', cwd=tmp_path)\n"
        "def test_skips_nothing(cluster):\n    assert not cluster.jobs_left()\n"
    )
    env = {**os.environ, "HPC_TEST_CLUSTER": str(cluster.state)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout
    assert "the test ended with jobs in Slurm (cancelled now)" in done.stdout
    assert "2 passed, 1 error" in done.stdout
    assert not cluster.jobs_left()
