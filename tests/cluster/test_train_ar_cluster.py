"""train.ar on two nodes of a real Slurm, two ranks each: preempted, requeued, finished; the same curve as of four ranks
that nobody disturbs, here. Preemption comes to the ranks alone, with a time of grace: what the batch machinery makes of
that whenever it comes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from conftest import Cluster
from lab import Lab, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from ar_runs import run

from hpc.batch import check, slurm
from hpc.models.ar import keys
from hpc.models.ar.presets import preset
from hpc.train.metrics import lines
from hpc.train.settings import TrainAr

STEPS = 16
AR: dict[str, Any] = {"model": "ar-tiny", "steps": STEPS, "batch": 4, "shape": [3, 4, 4], "precision": "fp32",
                      "readers": 1, "checkpoints": {"every": 4}, "layout": {"tensor": 2},
                      "optimizer": {"rate": 3e-3, "warmup": 2}}  # fmt: skip
GANG: dict[str, Any] = {"kind": "stages:Gang", "needs": "echo",
                        "resources": {"nodes": 2, "workers": 2, "cpus": 1, "memory": "64MiB"}}  # fmt: skip


def curve(file: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(file)] if file.exists() else []


def preemptable(cluster: Cluster, folder: Path, stages: dict[str, Any], inputs: list[str], file: str, old: str,
                new: str) -> Lab:  # fmt: skip
    """Submitted, with `old` in a file of its code changed."""
    lab = Lab(cluster, folder / "lab", stages, inputs, preset={"stages": {"train": {"partition": "preempt"}}})
    lab.hpc("plan", lab.spec)
    lab.patch(file, old, new)
    cluster.run("bash", lab.run / "attempt-1/submit.sh")
    return lab


@contextlib.contextmanager
def taken(cluster: Cluster, folder: Path) -> Iterator[None]:
    """A job of a higher partition has all nodes."""
    go = folder / "go"
    wait = f"--wrap=for i in {{1..600}}; do [ -e {go} ] && exit; sleep 0.2; done"
    other = cluster.sbatch("--nodes=4", "--exclusive", wait, cwd=folder)
    cluster.wait(other, states=("RUNNING",), timeout=120)
    yield
    go.touch()
    assert cluster.wait(other) == {other: "COMPLETED"}


def test_preempted_in_the_middle_it_ends_as_if_it_never_was(cluster: Cluster, tmp_path: Path) -> None:
    resources = {"nodes": 2, "workers": 2, "cpus": 1, "memory": "1GiB"}
    stages = {"ids": {"kind": "stages:Ids"},
              "train": AR | {"kind": "train.ar", "needs": "ids", "resources": resources}}  # fmt: skip
    # on a quick machine too it is in the middle when Slurm comes
    look = "                leave, due = agreed("
    slower = f"                time.sleep(1)\n{look}"
    lab = preemptable(cluster, tmp_path, stages, ["a", "b"], "hpc/train/ar.py", look, slower)
    file = Path(lab.output) / "train@v1/training/metrics.jsonl"
    wait_until(lambda: len(curve(file)) >= 6, "it trains", timeout=300, logs=lab.logs)
    task = f"{lab.jobs()['train']}_0"
    assert lab.shown(task)["NumNodes"] == "2" and lab.shown(task)["NumTasks"] == "4"
    with taken(cluster, tmp_path):
        assert lab.queue()[task].startswith("PENDING"), lab.logs()
        assert 6 <= len(curve(file)) < STEPS, "it left in the middle"
    begun = lambda: [r["checkpoint"] for r in lab.records("train") if r.get("state") == "start" and r["restart"] == 1]
    wait_until(lambda: lab.hurried() and begun(), "it starts again", timeout=300, logs=lab.logs)
    assert begun()[0].startswith("iter_"), "from its checkpoint"
    assert lab.finish(timeout=300) == "done", lab.logs()
    assert slurm.starts(task) == ["PREEMPTED", "COMPLETED"]

    made = json.loads((Path(lab.output) / "train@v1/000000.json").read_text())
    assert made["ranks"] == 4 and made["clips"] == 10
    weights = keys.Published(Path(lab.output) / "train@v1/model/model.safetensors")
    keys.account(keys.rules(preset("ar-tiny")), weights, "the published names")
    tokens = [{path.suffix: str(path) for path in Path(lab.output, "ids@v1").glob(f"{shard}.*")}
              for shard in ("000000", "000001")]  # fmt: skip
    run(4, tmp_path / "whole", msgspec.convert(AR, TrainAr, dec_hook=check.unit), tokens)
    whole = curve(tmp_path / "whole/metrics.jsonl")
    assert [step for step, *_ in whole] == list(range(1, STEPS + 1))
    assert curve(file) == whole
    undisturbed = keys.Published(tmp_path / "whole/model/model.safetensors")
    assert all((undisturbed[name] == weights[name]).all() for name in undisturbed)


def test_ranks_that_have_left_do_not_keep_their_nodes_for_a_long_grace(cluster: Cluster, tmp_path: Path) -> None:
    stages = {"echo": {"kind": "stages:Echo"}, "train": GANG | {"steps": 400}}
    lab = preemptable(cluster, tmp_path, stages, ["a"], "hpc/batch/worker.py", "GRACE_SECONDS = 60",
                      "GRACE_SECONDS = 1")  # fmt: skip
    folder = Path(lab.output) / "train@v1"
    steps = lambda: [line["step"] for line in lines(folder / "metrics.jsonl")]
    saved = folder / "checkpoints/latest_checkpoint.txt"
    wait_until(saved.exists, "it trains", timeout=300, logs=lab.logs)
    task = f"{lab.jobs()['train']}_0"
    cluster.run("scontrol", "update", "PartitionName=preempt", "GraceTime=600")
    try:
        with taken(cluster, tmp_path):
            assert lab.queue()[task].startswith("PENDING"), lab.logs()
            assert saved.read_text() == f"iter_{steps()[-1]:09}" and len(steps()) < 400
    finally:
        cluster.run("scontrol", "update", "PartitionName=preempt", "GraceTime=5")
    assert lab.finish(timeout=300) == "done", lab.logs()
    assert slurm.starts(task) == ["REQUEUED", "COMPLETED"]
    assert steps() == list(range(1, 401))


def test_preempted_before_the_ranks_listen(cluster: Cluster, tmp_path: Path) -> None:
    """TERM ends them as it ends any process, which says nothing about the stage."""
    main = "def main(arguments: list[str]) -> None:\n"
    late = f"    if 'SLURM_RESTART_COUNT' not in os.environ:\n        open('{tmp_path}/up', 'w')\n        import time\n"
    stages = {"echo": {"kind": "stages:Echo"}, "train": GANG}
    lab = preemptable(cluster, tmp_path, stages, ["a"], "hpc/batch/rank.py", main,
                      f"{main}{late}        time.sleep(60)\n")  # fmt: skip
    wait_until((tmp_path / "up").exists, "the ranks are about to start", timeout=300, logs=lab.logs)
    with taken(cluster, tmp_path):
        assert not lab.states("train", "failed"), lab.logs()
    assert lab.finish(timeout=300) == "done", lab.logs()
    assert slurm.starts(f"{lab.jobs()['train']}_0") == ["PREEMPTED", "COMPLETED"]
