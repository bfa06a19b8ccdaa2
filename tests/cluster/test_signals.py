"""Time limits on a real Slurm: a task that is warned finishes or gives up its shard, and requeues itself alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from conftest import Cluster
from lab import GIB, Lab, wait_until

NOTE = {"kind": "stages:Note", "needs": "echo"}


def test_tasks_that_are_warned_requeue_themselves_and_no_other(cluster: Cluster, tmp_path: Path) -> None:
    echo = {"kind": "stages:Echo", "flags": str(tmp_path)}
    rows = [
        ["wait go", "a", "a", "a"],  # is never warned
        ["sleep 2", "b", "b", "b"],  # finishes its shard when it is warned
        ["wait go2", "c", "c", "c"],  # gives it up
        ["wait never", "d", "wait later", "d"],  # again and again: until another shard gets its turn
    ]
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "note": NOTE}, itertools.chain(*rows), per_task=4)
    lab.hpc("plan", lab.spec)
    lab.patch("hpc/batch/worker.py", "FINISH_SHARE = 0.5", "FINISH_SHARE = 0.04")  # 5 s instead of a minute
    cluster.run("bash", lab.run / "attempt-1" / "submit.sh")
    jobs = lab.jobs()
    tasks = [f"{jobs['echo']}_{i}" for i in range(4)]
    for task in tasks:
        lab.wait_for("echo", "start", job=task)
    assert [lab.shown(task)["JobId"] == jobs["echo"] for task in tasks] == [False, False, False, True]

    for task in tasks[1:]:
        warn(cluster, task)
    for task in tasks[1:]:
        wait_until(lambda task=task: lab.queue()[task] == "PENDING BeginTime", f"{task} is requeued", logs=lab.logs)
    queue = lab.queue()
    assert queue[tasks[0]] == "RUNNING None"
    assert {queue[f"{jobs['note']}_{i}"] for i in range(4)} == {"PENDING Dependency"}
    assert [lab.shown(task)["Restarts"] for task in tasks] == ["0", "1", "1", "1"]
    assert lab.states("echo", "done") == {"000004": 1}
    assert lab.states("echo", "stopped") == {"000008": 1, "000012": 1}
    assert {r["why"] for r in lab.records("echo") if r["type"] == "end"} == {"time limit"}

    (tmp_path / "go2").touch()
    for task in tasks[1:]:
        cluster.release_requeue(task)
    lab.wait_for("echo", "start", job=tasks[3], restart=1)
    warn(cluster, tasks[3])
    cluster.release_requeue(tasks[3])
    lab.wait_for("echo", "start", job=tasks[3], restart=2, shards=2)
    assert lab.states("echo", "failed") == {"000012": 1}  # twice in vain is enough
    warn(cluster, tasks[3])
    wait_until(lambda: lab.queue()[tasks[3]] == "PENDING BeginTime", "requeued for the third time", logs=lab.logs)
    (tmp_path / "later").touch()
    (tmp_path / "go").touch()
    assert lab.finish() == "failed"

    begun = [(r["shard"], r["restart"]) for r in lab.records("echo") if r.get("state") == "start"]
    assert [restart for shard, restart in sorted(begun) if shard == "000012"] == [0, 1]
    assert sorted(lab.states("echo", "done")) == [f"{i:06}" for i in range(16) if i != 12]
    [failed] = [r for r in lab.records("echo") if r.get("state") == "failed"]
    assert failed["failure"] == "timeout" and "not finished in 2 starts" in failed["detail"]
    assert lab.states("note", "failed") == {"000012": 1}

    # a retry gives it twice the time
    (tmp_path / "never").touch()
    job = lab.retry()["echo"]
    assert lab.shown(job)["TimeLimit"] == "08:00:00"
    assert lab.finish() == "done"
    lab.exactly_once()
    lab.exactly_once("note")


def warn(cluster: Cluster, task: str) -> None:
    """As Slurm does ahead of the time limit."""
    cluster.run("scancel", "--batch", "--signal=USR2", task)


@pytest.mark.long
def test_an_input_that_takes_much_longer_than_the_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    parts, each = 24, 4.0
    echo = {"kind": "stages:Echo", "seconds": each, "resources": {"time": "1m"}}
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "note": NOTE}, ["long"], per_task=parts)
    listed = {"uri": "in/000000.txt", "size": parts * GIB, "etag": "1"}
    (lab.folder / "in.jsonl").write_text(json.dumps(listed) + "\n")
    jobs = lab.submit()
    assert lab.finish(timeout=600) == "done"
    assert lab.states("echo", "done") == {f"{i:06}": 1 for i in range(parts)}
    seen = [line for lines in lab.lines().values() for line in lines]
    assert sorted((line["part"], line["parts"]) for line in seen) == [(i, parts) for i in range(parts)]
    starts = {r["restart"] for r in lab.records("echo")}
    assert len(starts) >= 3 and {r["job"] for r in lab.records("echo")} == {f"{jobs['echo']}_0"}
    # no start was killed at its time limit, and what was begun was finished
    ends = [r["why"] for r in lab.records("echo") if r["type"] == "end"]
    assert len(ends) == len(starts) and set(ends) <= {"time limit", "row finished"}
    assert not lab.states("echo", "stopped") and not lab.states("echo", "failed")
    assert lab.states("note", "done").total() == parts
