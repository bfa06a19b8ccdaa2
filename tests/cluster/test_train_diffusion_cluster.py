"""train.diffusion on two nodes of a real Slurm, two ranks each: preempted, requeued, finished, the same curve; or a
node is lost, and it is requeued on the one that is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cluster
from lab import Lab, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_train_diffusion import SHAPE, write_latents

from hpc.batch import slurm
from hpc.models import dit_files
from hpc.train.checkpoint import complete
from hpc.train.metrics import lines

STEPS = 10


def stages(mesh: dict[str, int], steps: int = STEPS, **nodes: int) -> dict[str, Any]:
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB", **nodes}
    world = {"kind": "train.diffusion", "needs": "data", "model": "tiny-predict2", "steps": steps, "readers": 0,
             "shapes": [{**SHAPE, "batch": 4}], "mesh": mesh, "checkpoints": {"every": 4},
             "optimizer": {"rate": 3e-3, "warmup": 2}, "ema": [{"width": 0.1}], "resources": resources,
             "validation": {"share": 0.25, "by": "clip", "every": 5, "clips": 2}}  # fmt: skip
    return {"data": {"kind": "stages:Tar"}, "world": world}


def curve(file: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(file)] if file.exists() else []


def test_preempted_in_the_middle_it_ends_as_if_it_never_was(cluster: Cluster, tmp_path: Path) -> None:
    write_latents(tmp_path / "latents.tar")
    found = {}
    for name in ("whole", "preempted"):
        lab = Lab(cluster, tmp_path / name, stages({"dp_replicate": 2, "cp": 2}), ["a"])
        lab.submit(f"inputs={tmp_path / 'latents.tar'}")
        file = Path(lab.output) / "world@v1/training/metrics.jsonl"
        if name == "preempted":
            wait_until(lambda file=file: len(curve(file)) >= 3, "it trains", timeout=180, logs=lab.logs)
            task = f"{lab.jobs()['world']}_0"
            assert lab.shown(task)["NumNodes"] == "2" and lab.shown(task)["NumTasks"] == "4"
            cluster.run("scancel", "--batch", "--signal=USR2", task)
            again = lambda lab=lab, task=task: lab.queue()[task] == "PENDING BeginTime"
            wait_until(again, "it is requeued", timeout=120, logs=lab.logs)
            assert 3 <= len(curve(file)) < STEPS, "it left in the middle"
            cluster.release_requeue(task)
        assert lab.finish(timeout=300) == "done"
        found[name] = curve(file)
        made = json.loads((Path(lab.output) / "world@v1/000000.json").read_text())
        assert made["ranks"] == 4 and made["clips"] == {"trained_on": 9, "held_out": 3}
        dit_files.load(Path(lab.output) / "world@v1/model/ours")
    assert [step for step, *_ in found["whole"]] == list(range(1, STEPS + 1))
    assert found["preempted"] == found["whole"]


@pytest.fixture
def two_nodes(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """No others take jobs."""
    one, other, *away = cluster.nodes
    away_too = ",".join(away)
    cluster.run("scontrol", "update", f"NodeName={away_too}", "State=drain", "Reason=test")
    try:
        yield one, other
    finally:
        cluster.run("scontrol", "update", f"NodeName={away_too}", "State=resume")


def test_a_node_is_lost_and_it_goes_on_with_half_the_ranks(
    cluster: Cluster, two_nodes: tuple[str, str], tmp_path: Path
) -> None:
    """The samples are the same ones, and the curve is that of an undisturbed training, but for rounding."""
    write_latents(tmp_path / "latents.tar")
    found, steps = {}, 2 * STEPS
    for name in ("whole", "lost"):
        lab = Lab(cluster, tmp_path / name, stages({}, steps, least_nodes=1), ["a"])
        lab.submit(f"inputs={tmp_path / 'latents.tar'}")
        training = Path(lab.output) / "world@v1/training"
        file = training / "metrics.jsonl"
        ranks = 4
        if name == "lost":
            saved = lambda folder=training: complete(folder / "checkpoints")
            wait_until(saved, "there is a checkpoint to go on from", timeout=180, logs=lab.logs)
            task = f"{lab.jobs()['world']}_0"
            assert lab.shown(task)["NumNodes"] == "2"
            node = two_nodes[1]
            cluster.kill_slurmd(node)
            cluster.run("scontrol", "update", f"NodeName={node}", "State=down", "Reason=test")
            again = lambda lab=lab, task=task: lab.queue()[task] == "PENDING BeginTime"
            wait_until(again, "it is requeued", timeout=120, logs=lab.logs)
            assert 4 <= len(curve(file)) < steps, "it was in the middle"
            ranks = 2
        assert lab.finish(timeout=300) == "done"
        found[name] = list(lines(file))
        made = json.loads((Path(lab.output) / "world@v1/000000.json").read_text())
        assert made["ranks"] == ranks and made["steps"] == steps
        if name == "lost":
            assert slurm.starts(task) == ["NODE_FAIL", "COMPLETED"]
            cluster.node_up(node)
    whole, lost = found["whole"], found["lost"]
    assert [line["step"] for line in lost] == [line["step"] for line in whole] == list(range(1, steps + 1))
    for a, b in zip(whole, lost, strict=True):
        assert a.keys() == b.keys()
        for what in a.keys() & {"loss", "grad_norm", "held_out", "ema_held_out"}:
            assert b[what] == pytest.approx(a[what], rel=2e-4), (a["step"], what)
