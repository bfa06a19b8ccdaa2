"""Stages in containers on a real Slurm: the code of the run, mounts, variables, ranks, requeue without scontrol.

Where the cluster has pyxis (`srun --help` lists --container-image), the containers are real: a root file system that
the test makes, nearly empty, in which the host's /usr and this Python are mounted. Elsewhere an srun that drops pyxis's
options stands before the real one, so that all else of the same tests runs: scripts, steps, signals, requeue.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cluster, own_cluster
from lab import TESTS, Lab, wait_until

ECHO: dict[str, Any] = {"kind": "stages:Echo"}
LOOK: dict[str, Any] = {"kind": "stages:Look"}
WITHOUT = """#!/bin/bash
words=()
for word in "$@"; do
    case $word in --container-* | --no-container-*) ;; *) words+=("$word") ;; esac
done
exec {srun} "${{words[@]}}"
"""


def has_pyxis(cluster: Cluster) -> bool:
    return "--container-image" in cluster.run("srun", "--help").stdout


@pytest.fixture(scope="module")
def containers(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The session's cluster; one of its own where HPC_TEST_PYXIS is the path of spank_pyxis.so, and enroot in PATH."""
    if plugin := os.environ.get("HPC_TEST_PYXIS"):
        with own_cluster(CLUSTER_SPANK=f"required {plugin}") as made:
            yield made
    else:
        yield request.getfixturevalue("session_cluster")


@pytest.fixture
def preset(containers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a site whose image is made here."""
    mksquashfs = shutil.which("mksquashfs")
    if mksquashfs is None:
        pytest.skip("mksquashfs is not installed (Debian: squashfs-tools)")
    root = tmp_path / "rootfs"
    for folder in ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "root", "var"):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/image").write_text("made by the test\n")
    path = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
    (root / "etc/environment").write_text(f"NCCL_DEBUG=OF_IMAGE\nOF_IMAGE=yes\nPYTHONPATH=/of/image\n{path}\n")
    image = tmp_path / "test.sqsh"
    subprocess.run([mksquashfs, root, image, "-noappend", "-all-root", "-quiet"], check=True, stdout=subprocess.DEVNULL)
    if not has_pyxis(containers):
        folder = tmp_path / "bin"
        folder.mkdir()
        sbatch, srun = (shutil.which(name) for name in ("sbatch", "srun"))
        (folder / "sbatch").symlink_to(str(sbatch))
        (folder / "srun").write_text(WITHOUT.format(srun=srun))
        (folder / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    mounts = ["/usr:/usr:ro", str(tmp_path), str(TESTS)]
    for place in dict.fromkeys((sys.prefix, sys.base_prefix)):
        if not place.startswith("/usr"):
            mounts.append(f"{place}:{place}:ro")
    return {"image": str(image), "mounts": mounts, "env": {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "lo"}}


def test_a_chain_runs_in_containers(containers: Cluster, preset: dict[str, Any], tmp_path: Path) -> None:
    stages = {"echo": ECHO, "join": {"kind": "stages:Join", "needs": "echo"},
              "gpu": LOOK | {"resources": {"gpus": 1}}, "plain": LOOK | {"image": "none"}}  # fmt: skip
    lab = Lab(containers, tmp_path / "lab", stages, ["a", "b"], preset=preset, secrets=["TOKEN"])
    lab.submit(env={"TOKEN": "t0ken"})
    assert lab.finish() == "done", lab.logs()
    lab.exactly_once()
    inside, outside = (json.loads((Path(lab.output) / f"{name}@v1/000000.json").read_text())
                       for name in ("gpu", "plain"))  # fmt: skip
    env, code = inside["env"], lab.attempts()[-1] / "code"
    wanted = {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "lo", "TOKEN": "t0ken", "NVIDIA_VISIBLE_DEVICES": "all",
              "NVIDIA_DRIVER_CAPABILITIES": "compute,utility,video", "PYTHONPATH": str(code), "HPC_CONTAINED": "1",
              "SLURM_JOB_NAME": f"{lab.run.name}/gpu"}  # fmt: skip
    assert {name: env.get(name) for name in wanted} == wanted and env["CUDA_VISIBLE_DEVICES"].isdigit()
    assert inside["code"] == str(code / "hpc/__init__.py") and inside["cwd"] == str(lab.run)
    assert "HPC_CONTAINED" not in outside["env"] and not outside["image"] and outside["code_is_writable"]
    if has_pyxis(containers):
        assert inside["image"] == "made by the test\n" and env["OF_IMAGE"] == "yes"
        assert not inside["code_is_writable"] and inside["own_copy"]


def test_a_task_that_is_out_of_time_is_requeued_from_outside(
    containers: Cluster, preset: dict[str, Any], tmp_path: Path
) -> None:
    lab = Lab(containers, tmp_path / "lab", {"echo": ECHO | {"flags": str(tmp_path)}},
              ["a", "wait go", "b", "sleep 1", "wait go", "c"], per_task=3, preset=preset)  # fmt: skip
    lab.hpc("plan", lab.spec)
    lab.patch("hpc/batch/worker.py", "FINISH_SHARE = 0.5", "FINISH_SHARE = 0.02")
    containers.run("bash", lab.run / "attempt-1" / "submit.sh")
    tasks = [f"{lab.jobs()['echo']}_{i}" for i in range(2)]
    lab.wait_for("echo", "start", job=tasks[0], shards=2)
    lab.wait_for("echo", "start", job=tasks[1], shards=2)
    containers.run("scancel", "--signal=USR2", tasks[1])  # as Slurm warns steps ahead of the time limit
    wait_until(lambda: lab.queue()[tasks[1]] == "PENDING BeginTime", "it is requeued", logs=lab.logs)
    assert lab.queue()[tasks[0]] == "RUNNING None", "another task of the array was requeued too"
    assert lab.shown(tasks[1])["Restarts"] == "1" and lab.shown(tasks[0])["Restarts"] == "0"
    (tmp_path / "go").touch()
    assert lab.finish() == "done"
    lab.exactly_once()


def test_a_preempted_task_is_there_when_slurm_requeues_it(
    containers: Cluster, preset: dict[str, Any], tmp_path: Path
) -> None:
    """In a grace Slurm tells steps to leave, here the worker among them; it requeues what has not ended by then."""
    preset |= {"partition": "preempt", "stages": {"report": {"partition": "main"}}}
    lab = Lab(containers, tmp_path / "lab", {"echo": ECHO | {"flags": str(tmp_path), "resources": {"cpus": 16}}},
              ["a", "wait go", "b"], per_task=3, preset=preset)  # fmt: skip
    task = f"{lab.submit()['echo']}_0"
    lab.wait_for("echo", "start", shards=2)
    other = containers.sbatch("--nodes=4", "--exclusive", "--wrap=true", cwd=tmp_path)
    assert containers.wait(other) == {other: "COMPLETED"}
    assert lab.shown(task)["Restarts"] == "1"
    (tmp_path / "go").touch()
    assert lab.finish() == "done"
    lab.exactly_once()


def test_ranks_in_containers_find_each_other(containers: Cluster, preset: dict[str, Any], tmp_path: Path) -> None:
    train = {"kind": "stages:Gang", "needs": "echo",
             "resources": {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB"}}  # fmt: skip
    lab = Lab(containers, tmp_path / "lab", {"echo": ECHO, "train": train}, ["a", "b"], preset=preset)
    lab.submit()
    assert lab.finish(timeout=180) == "done", lab.logs()
