"""train.ar on two nodes of a real Slurm, two ranks each: preempted, requeued, finished, the same curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Cluster
from lab import Lab, wait_until

from hpc.models.ar import keys
from hpc.models.ar.presets import preset
from hpc.train.metrics import lines

STEPS = 12


def stages() -> dict[str, Any]:
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB"}
    ar = {"kind": "train.ar", "needs": "ids", "model": "ar-tiny", "steps": STEPS, "batch": 4, "shape": [3, 4, 4],
          "precision": "fp32", "readers": 0, "checkpoints": {"every": 4}, "layout": {"tensor": 2},
          "optimizer": {"rate": 3e-3, "warmup": 2}, "resources": resources}  # fmt: skip
    return {"ids": {"kind": "stages:Ids"}, "ar": ar}


def curve(file: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(file)] if file.exists() else []


def test_preempted_in_the_middle_it_ends_as_if_it_never_was(cluster: Cluster, tmp_path: Path) -> None:
    found = {}
    for name in ("whole", "preempted"):
        lab = Lab(cluster, tmp_path / name, stages(), ["a", "b"])
        lab.submit()
        file = Path(lab.output) / "ar@v1/training/metrics.jsonl"
        if name == "preempted":
            wait_until(lambda file=file: len(curve(file)) >= 5, "it trains", timeout=180, logs=lab.logs)
            task = f"{lab.jobs()['ar']}_0"
            assert lab.shown(task)["NumNodes"] == "2" and lab.shown(task)["NumTasks"] == "4"
            cluster.run("scancel", "--batch", "--signal=USR2", task)
            again = lambda lab=lab, task=task: lab.queue()[task] == "PENDING BeginTime"
            wait_until(again, "it is requeued", timeout=120, logs=lab.logs)
            assert 5 <= len(curve(file)) < STEPS, "it left in the middle"
            cluster.release_requeue(task)
        assert lab.finish(timeout=300) == "done"
        found[name] = curve(file)
        made = json.loads((Path(lab.output) / "ar@v1/000000.json").read_text())
        assert made["ranks"] == 4 and made["clips"] == 10
        weights = keys.Published(Path(lab.output) / "ar@v1/model/model.safetensors")
        keys.account(keys.rules(preset("ar-tiny")), weights, "the published names")
    assert [step for step, *_ in found["whole"]] == list(range(1, STEPS + 1))
    assert found["preempted"] == found["whole"]
