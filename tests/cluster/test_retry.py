"""Retries on a real Slurm: what is missing, densely packed, with what each failure asks for; by hand and unattended."""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import Cluster
from lab import Lab, held, read_lines, webhook, worker_of

NOTE = {"kind": "stages:Note", "needs": "echo"}


@pytest.mark.parametrize("count", [1_000, pytest.param(5_000, marks=pytest.mark.long)])
def test_scattered_failures_and_a_single_one(cluster: Cluster, tmp_path: Path, count: int) -> None:
    shards = 2 * count
    failing = set(random.Random(1).sample(range(shards), count))
    texts = [f"fail {1 + (i == min(failing))}" if i in failing else "a" for i in range(shards)]
    echo = {"kind": "stages:Echo", "flags": str(tmp_path)}
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo}, texts, preset={"max_tasks": 20})
    lab.submit()
    assert lab.finish(timeout=180) == "failed"
    names = {f"{i:06}" for i in failing}
    assert lab.states("echo", "failed") == dict.fromkeys(names, 1)

    lab.retry()
    rows = read_lines(lab.attempts()[-1] / "plan.jsonl")
    assert [number for number, _ in rows] == list(range(len(rows))) and 5 <= len(rows) <= 20
    assert [shard for _, shards in rows for shard, _ in shards] == sorted(names)
    script = lab.attempts()[-1] / "submit.sh"
    assert re.findall(r"--array=(\S+)", script.read_text()) == [f"0-{len(rows) - 1}"]
    assert lab.finish(timeout=180) == "failed"
    assert len(lab.states("echo", "done")) == shards - 1

    lab.retry()
    [[number, [[shard, _]]]] = read_lines(lab.attempts()[-1] / "plan.jsonl")
    assert (number, shard) == (0, f"{min(failing):06}")
    assert lab.finish() == "done"
    lab.exactly_once()


def test_each_failure_gets_its_remedy(cluster: Cluster, tmp_path: Path) -> None:
    # two tasks of this size fill a node, so they spread over four
    echo = {"kind": "stages:Echo", "flags": str(tmp_path), "resources": {"cpus": 1, "memory": "30GiB"}}
    inputs = ["a", "oom 2", "disk 2", "fail 1", "bad", "wait go"]
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "note": NOTE}, inputs)
    jobs = lab.submit()
    lab.wait_for("echo", "start", job=f"{jobs['echo']}_5")
    cluster.run("scancel", f"{jobs['note']}_5")
    (tmp_path / "go").touch()
    assert lab.finish() == "failed"
    echo_row, note_row = lab.status()["stages"]
    assert echo_row["failures"] == {"memory": 1, "node": 1, "code": 1} and echo_row["quarantined"] == 1
    assert note_row["failures"] == {"upstream": 3} and note_row["missing"] == 1
    logs = lab.hpc("logs", lab.run, "--failed", "--stage=echo")
    for shard, why in ((1, "memory"), (2, "node"), (3, "code")):
        assert f"shard {shard:06}: {why}: " in logs

    [bad_node] = {r["node"] for r in lab.records("echo") if r.get("failure") == "node"}
    with held(cluster):
        lab.retry()
        groups = [(group["stages"], group["shards"], group["memory"]) for group in lab.plan()["groups"]]
        assert groups == [(["echo", "note"], 2, 1.0), (["echo", "note"], 1, 2.0), (["note"], 1, 1.0)]
        asked = [(job["stage"], shown["MinMemoryNode"], shown["ExcNodeList"])
                 for job in lab.submitted() for shown in [lab.shown(job["job"])]]  # fmt: skip
        assert asked == [
            ("echo", "30G", bad_node), ("note", "4G", "(null)"), ("echo", "60G", bad_node), ("note", "8G", "(null)"),
            ("note", "4G", "(null)"), ("report", "2G", "(null)"),
        ]  # fmt: skip
    assert lab.finish() == "done"
    assert bad_node not in {r["node"] for r in lab.records("echo") if r.get("attempt") == 2}
    for stage in ("echo", "note"):
        assert lab.states(stage, "done") == {f"{i:06}": 1 for i in range(6)}
    assert sum(map(len, lab.lines().values())) == 5
    # the input that can never work is not tried again
    assert "nothing to do" in lab.hpc("retry", lab.run)


def test_unattended_retries(cluster: Cluster, tmp_path: Path) -> None:
    echo = {"kind": "stages:Echo", "flags": str(tmp_path)}
    told = {"secrets": ["HOOK"], "notify": {"webhook": "HOOK"}}
    with webhook() as (url, posted):
        labs = {}
        for name, retries, text in [
            ("once", 1, "oom 2"), ("code", 2, "fail"), ("vain", 3, "oom"), ("lost", 1, "wait go")
        ]:  # fmt: skip
            (tmp_path / f"flags-{name}").mkdir()
            stages = {"echo": echo | {"flags": str(tmp_path / f"flags-{name}")}, "note": NOTE}
            labs[name] = Lab(cluster, tmp_path / name, stages, ["a", text], name=name, retries=retries, **told)
            labs[name].submit(env={"HOOK": url})
        lost = labs["lost"]
        task = f"{lost.jobs()['echo']}_1"
        lost.wait_for("echo", "start", job=task)
        os.kill(worker_of(task), signal.SIGKILL)
        (tmp_path / "flags-lost" / "go").touch()

        assert {name: lab.finish() for name, lab in labs.items()} == {
            "once": "done", "code": "failed", "vain": "failed", "lost": "done"
        }  # fmt: skip
        assert {name: len(lab.attempts()) for name, lab in labs.items()} == {
            "once": 2,  # and done
            "code": 1,  # a person has to look at it
            "vain": 2,  # the second attempt got nothing done
            "lost": 2,
        }
        assert Counter((call["run"][:4], call["state"]) for call in posted) == {
            ("once", "done"): 1, ("code", "failed"): 1, ("vain", "failed"): 1, ("lost", "done"): 1,
        }  # fmt: skip
        assert [lab.plan()["groups"][0]["memory"] for lab in labs.values()] == [2.0, 1.0, 2.0, 1.0]
    for name in ("once", "lost"):
        labs[name].exactly_once()
        labs[name].exactly_once("note")
