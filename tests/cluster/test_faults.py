"""What a cluster does to running tasks: preemption, nodes that fail, processes that are killed. Nothing is lost, and
nothing is made twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conftest import Cluster
from lab import Lab, stage_of, wait_until, worker_of

NOTE = {"kind": "stages:Note", "needs": "echo"}
JOIN = {"kind": "stages:Join", "needs": "echo", "lines": 2}


@contextlib.contextmanager
def undisturbed(lab: Lab) -> Iterator[Callable[[], dict[str, str]]]:
    """Makes the same on this machine, in peace and meanwhile; gives its digests."""
    calm = lab.folder / "calm"
    with ThreadPoolExecutor(1) as background:
        run = background.submit(lab.hpc, "run", lab.spec, f"output={calm}", "--runs", lab.folder / "calm-runs")
        yield lambda: run.result() and lab.digests(output=calm)


def test_a_preempted_task_goes_on_where_it_was(cluster: Cluster, tmp_path: Path) -> None:
    echo = {"kind": "stages:Echo", "flags": str(tmp_path), "resources": {"cpus": 16}}
    inputs = ["a", "wait go", "b", "c", "wait go", "d"]
    preset = {"partition": "preempt", "stages": {"report": {"partition": "main"}}}
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "note": NOTE}, inputs, per_task=3, preset=preset)
    jobs = lab.submit()
    lab.wait_for("echo", "start", shards=4)
    other = cluster.sbatch("--nodes=4", "--exclusive", "--wrap=true", cwd=tmp_path)
    assert cluster.wait(other) == {other: "COMPLETED"}
    tasks = {f"{jobs['echo']}_0", f"{jobs['echo']}_1"}
    assert [state.split()[0] for job, state in lab.queue().items() if job in tasks] == ["PENDING", "PENDING"]
    (tmp_path / "go").touch()
    with undisturbed(lab) as calm:
        assert lab.finish() == "done"
        assert lab.digests() == calm()
    done = {r["shard"]: r["restart"] for r in lab.records("echo") if r.get("state") == "done"}
    assert done == {"000000": 0, "000001": 1, "000002": 1, "000003": 0, "000004": 1, "000005": 1}
    lab.exactly_once()
    lab.exactly_once("note")


def test_a_lost_node_leaves_a_worker_that_lives_on_beside_its_twin(cluster: Cluster, tmp_path: Path) -> None:
    echo = {"kind": "stages:Echo", "flags": str(tmp_path), "resources": {"memory": "30GiB"}}  # two tasks on a node
    inputs = ["a", "wait go", "b", "wait last", "d", "wait go", "e", "f"]
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "join": JOIN}, inputs, per_task=4)
    job = lab.submit()["echo"]
    tasks = [f"{job}_{i}" for i in (0, 1)]
    lab.wait_for("echo", "start", shards=4)
    [node] = {r["node"] for r in lab.records("echo")}
    orphans = [worker_of(task) for task in tasks]
    cluster.kill_slurmd(node)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=down", "Reason=test")
    # One orphan goes on at the same time as its twin. The other sleeps in the middle of a shard, and wakes when all is
    # done, compacted and reported.
    sleeper = stage_of(orphans[1])
    os.kill(sleeper, signal.SIGSTOP)
    again = lambda: {r["job"] for r in lab.records("echo") if r.get("state") == "start" and r["restart"] == 1}
    wait_until(lambda: lab.hurried() and again() == set(tasks), "the twins have begun", logs=lab.logs)
    (tmp_path / "go").touch()
    # a task with nothing left to do would make the sleeper's shard a third time, and end it
    second = {f"{i:06}" for i in range(4, 8)}
    wait_until(lambda: second <= lab.states("echo", "done").keys(), "the second row is done", logs=lab.logs)
    (tmp_path / "last").touch()
    with undisturbed(lab) as calm:
        assert lab.finish() == "done"
        assert alive(orphans[1])
        before = lab.digests()
        assert before == calm()
    os.kill(sleeper, signal.SIGCONT)
    wait_until(lambda: not any(map(alive, orphans)), "the orphans have ended", logs=lab.logs)

    done = [(r["shard"], r["objects"]) for r in lab.records("echo") if r.get("state") == "done"]
    assert {shard for shard, _ in done} == {f"{i:06}" for i in range(8)}
    assert len({str(objects) for _, objects in done}) == 8  # whoever made a shard, it is the same
    by = {r["restart"] for r in lab.records("echo") if r.get("state") == "done" and r["job"] == tasks[0]}
    assert by == {0, 1}
    assert lab.digests() == before
    assert sorted(before) == [f"{i:06}.jsonl" for i in range(8)]
    assert "nothing to do" in lab.hpc("retry", lab.run)
    cluster.node_up(node)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_may_be_killed_at_any_moment(cluster: Cluster, tmp_path: Path) -> None:
    moments = random.Random(1)
    echo = {"kind": "stages:Echo", "seconds": 0.6, "resources": {"cpus": 1}}
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "note": NOTE}, map(str, range(24)), per_task=3)
    job = lab.submit()["echo"]
    # the workers of tasks 0 to 4 are killed, and in tasks 5 and 6 the processes that run the stage
    plan = {f"{job}_{i}": moments.uniform(0.0, 1.5) for i in range(7)}
    killed: set[str] = set()
    begun: dict[str, float] = {}
    deadline = time.monotonic() + 60
    while len(killed) < len(plan):
        assert time.monotonic() < deadline, f"killed only {killed}\n{lab.logs()}"
        for task in plan.keys() - killed:
            with contextlib.suppress(AssertionError, ValueError, ProcessLookupError, FileNotFoundError):
                worker = worker_of(task)  # AssertionError: there is none yet
                begun.setdefault(task, time.monotonic())
                if time.monotonic() >= begun[task] + plan[task]:
                    os.kill(worker if int(task[-1]) < 5 else stage_of(worker), signal.SIGKILL)
                    killed.add(task)
        time.sleep(0.02)
    assert lab.finish() == "incomplete"
    states = cluster.wait(job)
    assert [states[f"{job}_{i}"] for i in range(8)] == ["FAILED"] * 5 + ["COMPLETED"] * 3
    assert not lab.states("echo", "failed")  # a stage process that dies is started again
    lost = 24 - lab.states("echo", "done").total()
    assert 0 < lost <= 15
    lab.retry()
    with undisturbed(lab) as calm:
        assert lab.finish() == "done"
        assert lab.digests() == calm()
    assert next(group["shards"] for group in lab.plan()["groups"]) == lost
    lab.exactly_once()
    lab.exactly_once("note")
