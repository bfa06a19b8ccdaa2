"""Several ranks make a shard together: here as processes; on several nodes in tests/cluster/test_training.py."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import runs

from hpc.batch.run import Run
from hpc.train.metrics import lines

GANG: dict[str, Any] = {"kind": "stages:Gang", "needs": "echo", "resources": {"cpus": 1, "workers": 2, "time": "60s"}}


def stages(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"echo": runs.ECHO, "train": GANG | {"flags": str(folder)} | settings}


def made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/train@v1/000000.json").read_text())


def test_ranks_work_together_and_the_first_one_publishes(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(3), stages(tmp_path))
    runs.hpc("run", spec)
    assert made(tmp_path) == {"total": 60, "steps": 20, "ranks": 2, "rows": ["000000", "000001", "000002"]}
    said = list(lines(tmp_path / "out/train@v1/metrics.jsonl"))
    assert [line["step"] for line in said] == list(range(1, 21)) and said[-1]["total"] == 60
    assert (tmp_path / "out/train@v1/checkpoints/latest").read_text() == "step_000000020"
    assert "nothing to do" in runs.hpc("run", spec).stdout


def test_a_rank_that_dies_takes_the_others_along_and_all_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "kill-1").touch()
    runs.hpc("run", runs.spec(tmp_path, runs.numbered(1), stages(tmp_path)))
    assert made(tmp_path)["total"] == 60, "tried again at once"


def test_a_rank_that_fails_is_an_error_of_the_code(tmp_path: Path) -> None:
    """The others are not left waiting, the record says what it said, and the log has its traceback."""
    (tmp_path / "fail-1").touch()
    spec = runs.spec(tmp_path, runs.numbered(1), stages(tmp_path))
    said = runs.hpc("run", spec, code=1).stdout
    assert "failed: train 000000" in said and "rank 1: RuntimeError: rank 1 was told to fail" in said
    logs = "".join(p.read_text() for p in (tmp_path / "runs").glob("*/logs/train/*.out"))
    assert "Traceback" in logs


def test_a_warning_makes_them_save_and_leave_and_the_next_start_goes_on(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(1), stages(tmp_path, steps=400))
    prepared = runs.planned(spec)
    runs.finish(runs.worker(prepared))
    runs.finish(runs.worker(prepared, "train", "barrier"))
    file = tmp_path / "out/train@v1/metrics.jsonl"
    for _ in range(2):
        worker = runs.worker(prepared, "train")
        runs.until(lambda before=len(file.read_text()) if file.exists() else 0:
                   file.exists() and len(file.read_text()) > before + 200)  # fmt: skip
        worker.send_signal(signal.SIGUSR2)
        assert worker.wait(30) == runs.REQUEUE
        step = [line["step"] for line in lines(file)][-1]
        newest = (tmp_path / "out/train@v1/checkpoints/latest").read_text()
        assert newest == f"step_{step:09}", "saved at the very step at which they left"
    runs.finish(runs.worker(prepared, "train"))
    assert made(tmp_path)["total"] == 1200
    assert [line["step"] for line in lines(file)] == list(range(1, 401))
    fold = runs.fold(Run(prepared.run.folder), "train")
    assert list(fold.done) == ["000000"] and not fold.failed
