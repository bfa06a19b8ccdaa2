"""train.diffusion on two nodes of a real Slurm, two ranks each, which share frames in pairs: preempted, requeued,
finished, the same curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from conftest import Cluster
from lab import Lab, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_train_diffusion import SHAPE, write_latents

from hpc.models import dit_files
from hpc.train.metrics import lines

STEPS = 10


def stages() -> dict[str, Any]:
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB"}
    world = {"kind": "train.diffusion", "needs": "data", "model": "tiny-predict2", "steps": STEPS, "readers": 0,
             "shapes": [{**SHAPE, "batch": 4}], "mesh": {"dp_replicate": 2, "cp": 2}, "checkpoints": {"every": 4},
             "optimizer": {"rate": 3e-3, "warmup": 2}, "ema": [{"width": 0.1}], "resources": resources,
             "validation": {"share": 0.25, "by": "clip", "every": 5, "clips": 2}}  # fmt: skip
    return {"data": {"kind": "stages:Tar"}, "world": world}


def curve(file: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(file)] if file.exists() else []


def test_preempted_in_the_middle_it_ends_as_if_it_never_was(cluster: Cluster, tmp_path: Path) -> None:
    write_latents(tmp_path / "latents.tar")
    found = {}
    for name in ("whole", "preempted"):
        lab = Lab(cluster, tmp_path / name, stages(), ["a"])
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
