"""Nodes that are not fit for work, on a real Slurm: tasks start again elsewhere, and slurmd drains them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Cluster, own_cluster
from lab import Lab, read_lines, wait_until

SCRIPT = Path(__file__).parents[2] / "sbatch" / "health.sh"
BROKEN = """#!/bin/bash
case $SLURMD_NODENAME in n1) echo "0, 4, No, 0" ;; *) echo "0, 0, No, 0" ;; esac
"""


def lab_of(cluster: Cluster, folder: Path, stages: dict[str, Any], **more: Any) -> Lab:
    """...where the GPU of n1 has had memory errors."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(BROKEN)
    tool.chmod(0o755)
    path = f"{tool.parent}:/usr/local/bin:/usr/bin:/bin"
    return Lab(cluster, folder / "lab", stages, ["a"], preset={"env": {"PATH": path}}, **more)


def ends(lab: Lab, stage: str) -> list[str]:
    return [r["why"] for r in lab.records(stage) if r["type"] == "end"]


def test_a_task_on_a_bad_node_starts_again_on_another(cluster: Cluster, tmp_path: Path) -> None:
    lab = lab_of(cluster, tmp_path, {"echo": {"kind": "stages:Echo"}})
    task = f"{lab.submit()['echo']}_0"
    wait_until(lambda: lab.queue().get(task) == "PENDING BeginTime", "it is requeued", logs=lab.logs)
    wait_until(lambda: lab.shown(task)["ExcNodeList"] == "n1", "it is kept away from the node", 10, lab.logs)
    assert lab.finish() == "done"
    assert ends(lab, "echo") == ["bad node", "row finished"]
    assert [r["node"] for r in lab.records("echo") if r.get("state") == "done"] != ["n1"]
    [told] = read_lines(lab.run / "bad-nodes.jsonl")
    assert told["node"] == "n1" and told["words"] == ["GPU 0: 4 uncorrected memory errors"] and told["job"] == task
    lab.exactly_once()


def test_ranks_do_not_start_where_one_node_of_several_is_bad(cluster: Cluster, tmp_path: Path) -> None:
    resources = {"nodes": 2, "workers": 1, "cpus": 1, "memory": "64MiB"}
    stages: dict[str, Any] = {"echo": {"kind": "stages:Echo"},
                              "train": {"kind": "stages:Gang", "needs": "echo", "resources": resources}}  # fmt: skip
    lab = lab_of(cluster, tmp_path, stages)
    task = f"{lab.submit()['train']}_0"
    assert lab.finish(150) == "done"
    assert ends(lab, "train") == ["bad node", "row finished"] and "n1" not in lab.shown(task)["NodeList"]
    assert json.loads((Path(lab.output) / "train@v1/000000.json").read_text())["ranks"] == 2
    assert {line["node"] for line in read_lines(lab.run / "bad-nodes.jsonl")} == {"n1"}


def test_slurmd_drains_a_bad_node_by_itself(tmp_path: Path) -> None:
    """As HealthCheckProgram, behind a script of an admin's that says what to look at."""
    with own_cluster() as cluster:
        program = tmp_path / "check"
        program.write_text(f"#!/bin/bash\nexport SLURM_CONF={cluster.conf}\n"
                           'if [ "$SLURMD_NODENAME" = n2 ]; then export HPC_HEALTH_FOLDERS=/proc; fi\n'
                           f"exec {SCRIPT}\n")  # fmt: skip
        program.chmod(0o755)
        with cluster.conf.open("a") as conf:
            conf.write(f"HealthCheckProgram={program}\nHealthCheckInterval=3\n")
        env = {"SLURM_CONF": str(cluster.conf)}
        cluster.run("scontrol", "reconfigure", env=env)
        shown = lambda: cluster.run("scontrol", "show", "node", "n2", env=env).stdout
        wait_until(lambda: "DRAIN" in shown(), "n2 is drained", 60)
        assert "Reason=hpc health: /proc: cannot be written to" in shown()
        states = cluster.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T", env=env).stdout
        assert "n1 idle" in states
