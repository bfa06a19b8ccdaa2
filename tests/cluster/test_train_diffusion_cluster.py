"""train.diffusion on two nodes of a real Slurm, two ranks each: a node is lost, and it is requeued on the one that is
left; or it is preempted, requeued, finished: the same curve as of ranks that nobody disturbs, here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cluster
from lab import Lab, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from diffusion_runs import SHAPE, write_latents
from forks import together

from hpc.batch import check, slurm
from hpc.models import dit_files
from hpc.train.checkpoint import complete
from hpc.train.metrics import lines
from hpc.train.samples import listed
from hpc.train.settings import TrainDiffusion

STEPS = 20


def settings(mesh: dict[str, int]) -> dict[str, Any]:
    return {"model": "tiny-predict2", "steps": STEPS, "readers": 0, "shapes": [{**SHAPE, "batch": 4}], "mesh": mesh,
            "checkpoints": {"every": 4}, "optimizer": {"rate": 3e-3, "warmup": 2}, "ema": [{"width": 0.1}],
            "validation": {"share": 0.25, "by": "clip", "every": 5, "clips": 2}}  # fmt: skip


def laboratory(cluster: Cluster, folder: Path, mesh: dict[str, int], **nodes: int) -> Lab:
    write_latents(folder / "latents.tar")
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB", **nodes}
    world = settings(mesh) | {"kind": "train.diffusion", "needs": "data", "resources": resources}
    lab = Lab(cluster, folder / "lab", {"data": {"kind": "stages:Tar"}, "world": world}, ["a"])
    lab.submit(f"inputs={folder / 'latents.tar'}")
    return lab


def _train(mesh: dict[str, int], data: str, folder: Path) -> None:
    import torch.distributed as dist

    from hpc.train import diffusion, ranks

    given = msgspec.convert(settings(mesh), TrainDiffusion, dec_hook=check.unit)
    diffusion.train(given, listed(data), folder, ranks.start(), lambda: None)
    dist.barrier()
    dist.destroy_process_group()


def undisturbed(lab: Lab, count: int, mesh: dict[str, int], folder: Path) -> list[dict[str, Any]]:
    """What so many ranks tell that train on the same data, without Slurm and to the end."""
    for one in together(count, _train, mesh, str(Path(lab.output) / "data@v1"), folder):
        one.join(180)
        assert one.exitcode == 0
    said = list(lines(folder / "metrics.jsonl"))
    assert [line["step"] for line in said] == list(range(1, STEPS + 1))
    return said


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
    lab = laboratory(cluster, tmp_path, {}, least_nodes=1)
    training = Path(lab.output) / "world@v1/training"
    file = training / "metrics.jsonl"
    saved = lambda: complete(training / "checkpoints")
    wait_until(saved, "there is a checkpoint to go on from", timeout=180, logs=lab.logs)
    task = f"{lab.jobs()['world']}_0"
    assert lab.shown(task)["NumNodes"] == "2"
    node = two_nodes[1]
    cluster.kill_slurmd(node)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=down", "Reason=test")
    again = lambda: lab.queue()[task] == "PENDING BeginTime"
    wait_until(again, "it is requeued", timeout=120, logs=lab.logs)
    assert 4 <= len(list(lines(file))) < STEPS, "it was in the middle"
    assert lab.finish(timeout=300) == "done"
    made = json.loads((Path(lab.output) / "world@v1/000000.json").read_text())
    assert made["ranks"] == 2 and made["steps"] == STEPS
    assert slurm.starts(task) == ["NODE_FAIL", "COMPLETED"]
    cluster.node_up(node)
    for a, b in zip(undisturbed(lab, 1, {}, tmp_path / "whole"), lines(file), strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for what in a.keys() & {"loss", "grad_norm", "held_out", "ema_held_out"}:
            assert b[what] == pytest.approx(a[what], rel=2e-4), (a["step"], what)


@pytest.mark.long
def test_preempted_in_the_middle_it_ends_as_if_it_never_was(cluster: Cluster, tmp_path: Path) -> None:
    mesh = {"dp_replicate": 2, "cp": 2}
    lab = laboratory(cluster, tmp_path, mesh)
    file = Path(lab.output) / "world@v1/training/metrics.jsonl"
    curve = lambda said: [(line["step"], line["loss"], line["grad_norm"]) for line in said]
    reached = lambda: file.exists() and len(list(lines(file))) >= 3
    wait_until(reached, "it trains", timeout=180, logs=lab.logs)
    task = f"{lab.jobs()['world']}_0"
    assert lab.shown(task)["NumNodes"] == "2" and lab.shown(task)["NumTasks"] == "4"
    cluster.run("scancel", "--batch", "--signal=USR2", task)
    wait_until(lambda: lab.queue()[task] == "PENDING BeginTime", "it is requeued", timeout=120, logs=lab.logs)
    assert 3 <= len(list(lines(file))) < STEPS, "it left in the middle"
    cluster.release_requeue(task)
    assert lab.finish(timeout=300) == "done"
    made = json.loads((Path(lab.output) / "world@v1/000000.json").read_text())
    assert made["ranks"] == 4 and made["clips"] == {"trained_on": 9, "held_out": 3}
    dit_files.load(Path(lab.output) / "world@v1/model/ours")
    assert curve(lines(file)) == curve(undisturbed(lab, 4, mesh, tmp_path / "whole"))
