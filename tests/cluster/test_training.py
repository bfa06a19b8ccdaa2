"""Ranks on several nodes of a real Slurm make one shard together: they are warned, killed and requeued, and go on."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from conftest import Cluster
from lab import Lab, held, wait_until

from hpc.batch import rank, slurm
from hpc.train.metrics import lines


def test_a_training_over_two_nodes_goes_on_whatever_happens(cluster: Cluster, tmp_path: Path) -> None:
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "64MiB"}
    gang: dict[str, Any] = {"kind": "stages:Gang", "needs": "echo", "steps": 400, "flags": str(tmp_path)}
    stages = {"echo": {"kind": "stages:Echo"}, "train": gang | {"resources": resources}}
    lab = Lab(cluster, tmp_path / "lab", stages, ["a", "b"])
    lab.submit()
    folder = Path(lab.output) / "train@v1"

    def step() -> int:
        file = folder / "metrics.jsonl"
        return max((line["step"] for line in lines(file)), default=0) if file.exists() else 0

    wait_until(lambda: step() > 20, "it trains", logs=lab.logs)
    task = f"{lab.jobs()['train']}_0"
    assert lab.shown(task)["NumNodes"] == "2" and lab.shown(task)["NumTasks"] == "4"

    # warned: all ranks save at one step and leave, the job requeues itself
    cluster.run("scancel", "--batch", "--signal=USR2", task)
    wait_until(lambda: lab.queue()[task] == "PENDING BeginTime", "it is requeued", logs=lab.logs)
    saved = (folder / "checkpoints/latest_checkpoint.txt").read_text()
    assert saved == f"iter_{step():09}" and step() < 400
    cluster.release_requeue(task)
    wait_until(lambda: step() > int(saved[5:]) + 20, "it goes on", logs=lab.logs)

    # a rank on the second node is killed: the others are ended, and all go on from the last checkpoint
    (tmp_path / "kill-3").touch()
    wait_until(lambda: lab.states("train", "stopped").get("000000", 0) >= 2, "a rank was killed", logs=lab.logs)
    [last] = [r for r in lab.records("train") if r.get("state") == "stopped" and r.get("failure")]
    assert last["failure"] == "lost" and "a rank was killed" in last["detail"]

    assert lab.finish() == "done"
    made = json.loads((folder / "000000.json").read_text())
    assert made == {"total": 400 * 10, "steps": 400, "ranks": 4, "rows": ["000000", "000001"]}
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(1, 401))
    assert lab.states("train", "done") == {"000000": 1} and not lab.states("train", "failed")
    assert slurm.starts(task) == ["REQUEUED", "COMPLETED"], "each start has its state, in order"


def test_ranks_that_hang_are_requeued_and_finish(cluster: Cluster, tmp_path: Path) -> None:
    """A rank on the second node sleeps for ever in its step: all say where they are, the job starts again by itself."""
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "64MiB", "patience": "3s"}
    gang: dict[str, Any] = {"kind": "stages:Gang", "needs": "echo", "steps": 60, "flags": str(tmp_path)}
    (tmp_path / "hang-3").touch()
    lab = Lab(cluster, tmp_path / "lab", {"echo": {"kind": "stages:Echo"}, "train": gang | {"resources": resources}},
              ["a"])  # fmt: skip
    lab.submit()
    wait_until(lambda: lab.states("train", "stopped").get("000000"), "it is found out", 120, lab.logs)
    [hung] = [r for r in lab.records("train") if r.get("state") == "stopped"]
    task = f"{lab.jobs()['train']}_0"
    nodes = lab.shown(task)["NodeList"]
    assert hung["failure"] == "hang" and hung["detail"].startswith("rank 3: no rank got on for ")
    assert hung["node"] in cluster.nodes and f"behind: rank 3 on {hung['node']}" in hung["detail"], nodes
    [start] = (lab.run / "ranks/train").iterdir()
    stacks = {path.stem: path.read_text() for path in start.glob("*.stacks")}
    assert sorted(stacks) == ["00000", "00001", "00002", "00003"]
    assert [rank for rank, text in stacks.items() if "in for_ever" in text] == ["00003"]
    assert sorted(rank for rank, text in stacks.items() if "all_reduce" in text) == ["00000", "00001", "00002"]

    assert lab.finish() == "done"
    assert json.loads((Path(lab.output) / "train@v1/000000.json").read_text())["total"] == 60 * 10
    assert slurm.starts(task) == ["REQUEUED", "COMPLETED"]
    [log] = (lab.run / "logs/train").glob(f"{task}.out")
    assert "in for_ever" in log.read_text() and "shard 000000: hang" in log.read_text()


def test_ranks_whose_port_is_taken_meet_at_another_one(cluster: Cluster, tmp_path: Path) -> None:
    resources = {"nodes": 2, "workers": 1, "cpus": 1, "memory": "64MiB"}
    gang: dict[str, Any] = {"kind": "stages:Gang", "needs": "echo", "steps": 5, "resources": resources}
    lab = Lab(cluster, tmp_path / "lab", {"echo": {"kind": "stages:Echo"}, "train": gang}, ["a"])
    with held(cluster):
        lab.submit()
        job = int(lab.jobs()["train"])
        ports = [rank.port(number, step) for number in (job, job + 1) for step in range(3)]
        assert len(set(ports)) == 6 and 20000 <= min(ports) and max(ports) < 32768
        taken = socket.create_server(("", rank.port(job, 1)))  # its first step looks whether the nodes are fit for work
    with taken:
        assert lab.finish() == "done"
    assert "EADDRINUSE" in lab.logs() and lab.states("train", "start") == {"000000": 1}
