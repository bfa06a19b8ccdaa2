"""What tests of all trainings do: compare curves, tear checkpoints, kill a rank in its worker."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import runs
import yaml

from hpc.batch.prepare import Prepared
from hpc.train.metrics import CLOCKS, lines


def timeless(said: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics without what two equal trainings have otherwise."""
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in said]


def curve(folder: Path) -> list[dict[str, Any]]:
    return timeless(lines(folder / "metrics.jsonl"))


def torn(training: Path, folder: Path) -> None:
    """In the folder: the checkpoint of step 3, two of step 6 that are not whole, and all metrics."""
    kept, there = folder / "checkpoints", training / "checkpoints"
    shutil.copytree(there / "iter_000000003", kept / "iter_000000003")
    shutil.copytree(there / "iter_000000006", kept / "iter_000000006.part")
    shutil.copytree(there / "iter_000000006", kept / "iter_000000006")
    (kept / "iter_000000006/complete").unlink()
    shutil.copy(training / "metrics.jsonl", folder)


def loses_a_rank(
    prepared: Prepared, stage: str, ready: Callable[[], bool], within: float = 90, ends: float = 120
) -> None:
    """Runs a training in its worker, kills the last rank once it is ready, and waits for the end. Both in seconds."""
    worker = runs.worker(prepared, stage)
    runs.until(ready, timeout=within)
    [gang] = runs.children(worker.pid)
    os.kill(runs.children(gang)[-1], signal.SIGKILL)
    runs.finish(worker, timeout=ends)
    stopped = [r for r in runs.lines(prepared.run, stage) if getattr(r, "failure", "") == "lost"]
    assert len(stopped) == 1, "it was killed while it trained"


def resumed(folder: Path, tar: Path, name: str, stage: dict[str, Any]) -> Path:
    """What a training of two ranks over a tar wrote, of which one was killed after a few steps, begun as by `hpc run`:
    it is tried again at once, from the newest checkpoint. Its folder."""
    spec = folder / "t.yaml"
    both = {"data": {"kind": "stages:Tar"},
            name: stage | {"needs": "data", "resources": {"workers": 2, "cpus": 1}}}  # fmt: skip
    spec.write_text(yaml.safe_dump({"name": "t", "inputs": str(tar), "output": "out", "stages": both}))
    prepared = runs.planned(spec)
    runs.finish(runs.worker(prepared, "data"))
    runs.finish(runs.worker(prepared, name, "barrier"))
    file = folder / f"out/{name}@v1/training/metrics.jsonl"
    loses_a_rank(prepared, name, lambda: file.exists() and len(list(lines(file))) >= 4)
    return file.parent
