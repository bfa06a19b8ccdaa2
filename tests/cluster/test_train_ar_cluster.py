"""train.ar on two nodes of a real Slurm, two ranks each: preempted, requeued, finished; the same curve as of four ranks
that nobody disturbs, here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from conftest import Cluster
from lab import Lab, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from ar_runs import run

from hpc.batch import check
from hpc.models.ar import keys
from hpc.models.ar.presets import preset
from hpc.train.metrics import lines
from hpc.train.settings import TrainAr

STEPS = 10
AR: dict[str, Any] = {"model": "ar-tiny", "steps": STEPS, "batch": 4, "shape": [3, 4, 4], "precision": "fp32",
                      "readers": 0, "checkpoints": {"every": 4}, "layout": {"tensor": 2},
                      "optimizer": {"rate": 3e-3, "warmup": 2}}  # fmt: skip


def curve(file: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(file)] if file.exists() else []


def test_preempted_in_the_middle_it_ends_as_if_it_never_was(cluster: Cluster, tmp_path: Path) -> None:
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB"}
    stages = {"ids": {"kind": "stages:Ids"},
              "ar": AR | {"kind": "train.ar", "needs": "ids", "resources": resources}}  # fmt: skip
    lab = Lab(cluster, tmp_path / "lab", stages, ["a", "b"])
    lab.submit()
    file = Path(lab.output) / "ar@v1/training/metrics.jsonl"
    wait_until(lambda: len(curve(file)) >= 3, "it trains", timeout=180, logs=lab.logs)
    task = f"{lab.jobs()['ar']}_0"
    assert lab.shown(task)["NumNodes"] == "2" and lab.shown(task)["NumTasks"] == "4"
    cluster.run("scancel", "--batch", "--signal=USR2", task)
    wait_until(lambda: lab.queue()[task] == "PENDING BeginTime", "it is requeued", timeout=120, logs=lab.logs)
    assert 3 <= len(curve(file)) < STEPS, "it left in the middle"
    cluster.release_requeue(task)
    assert lab.finish(timeout=300) == "done"

    made = json.loads((Path(lab.output) / "ar@v1/000000.json").read_text())
    assert made["ranks"] == 4 and made["clips"] == 10
    weights = keys.Published(Path(lab.output) / "ar@v1/model/model.safetensors")
    keys.account(keys.rules(preset("ar-tiny")), weights, "the published names")
    tokens = [{path.suffix: str(path) for path in Path(lab.output, "ids@v1").glob(f"{shard}.*")}
              for shard in ("000000", "000001")]  # fmt: skip
    run(4, tmp_path / "whole", msgspec.convert(AR, TrainAr, dec_hook=check.unit), tokens)
    whole = curve(tmp_path / "whole/metrics.jsonl")
    assert [step for step, *_ in whole] == list(range(1, STEPS + 1))
    assert curve(file) == whole
    undisturbed = keys.Published(tmp_path / "whole/model/model.safetensors")
    assert all((undisturbed[name] == weights[name]).all() for name in undisturbed)
