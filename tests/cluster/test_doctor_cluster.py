"""hpc doctor on a real Slurm: on the login node, and over two nodes of an allocation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cluster
from lab import CHECKOUT


def doctor(cluster: Cluster, folder: Path, *before: str, code: int, **preset: Any) -> dict[str, dict[str, str]]:
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump({"partition": "main", "scratch": str(folder)} | preset))
    command = [*before, sys.executable, "-m", "hpc.cli", "doctor", "--cluster", str(file), "--json"]
    env = {"PYTHONPATH": str(CHECKOUT), "HPC_RUNS": str(folder / "runs")}
    done = cluster.run(*command, cwd=folder, env=env, check=False, timeout=180)
    assert done.returncode == code, done.stdout + done.stderr
    return {row["what"]: row for row in json.loads(done.stdout[done.stdout.index("[") :])}


def test_on_a_login_node(cluster: Cluster, tmp_path: Path) -> None:
    rows = doctor(cluster, tmp_path, code=0, gpus_per_node=8, gpu_type="h100")
    assert rows["Slurm limits"]["found"] == "arrays up to 1001 tasks" and rows["accounting"]["verdict"] == "ok"
    assert rows["partition main"]["found"].startswith("4 nodes, ") and rows["GPUs of the preset"]["verdict"] == "ok"
    assert rows["nodes"]["verdict"] == "unknown" and rows["nodes"]["next"].startswith("salloc --nodes=2")
    bad = doctor(cluster, tmp_path, code=1, partition="nowhere", gpu_type="a100")
    assert bad["partition nowhere"]["verdict"] == bad["GPUs of the preset"]["verdict"] == "bad"


def test_a_node_that_is_drained(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "nodename=n4", "state=drain", "reason=test")
    try:
        row = doctor(cluster, tmp_path, code=0)["partition main"]
        assert row["verdict"] == "warn" and "4 nodes, 1 away" in row["found"] and "sinfo -R" in row["next"]
    finally:
        cluster.run("scontrol", "update", "nodename=n4", "state=resume")


@pytest.mark.parametrize(("expected", "verdict"), [(1e-6, "ok"), (1e6, "warn")])
def test_inside_of_an_allocation(cluster: Cluster, tmp_path: Path, expected: float, verdict: str) -> None:
    allocation = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "--mem=4000", "--time=5")
    rows = doctor(cluster, tmp_path, *allocation, code=0, all_reduce=expected)
    assert rows["nodes"]["found"].startswith("2 of 2 answered: n") and rows["clocks"]["verdict"] == "ok"
    named = [what for what in rows if what.startswith("node n")]
    assert len(named) == 2
    assert "2 ranks" in rows["all-reduce"]["found"] and rows["all-reduce"]["verdict"] == verdict
