"""Several ranks make a shard together: here as processes; on several nodes in tests/cluster/test_training.py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import runs

from hpc.batch import gang, records, script
from hpc.batch.cluster import LOCAL
from hpc.batch.prepare import Prepared
from hpc.batch.run import Run
from hpc.train.metrics import lines

GANG: dict[str, Any] = {"kind": "stages:Gang", "needs": "echo", "resources": {"cpus": 1, "workers": 2, "time": "10m"}}


def stages(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"echo": runs.ECHO, "train": GANG | {"flags": str(folder)} | settings}


def begun(folder: Path, starts: int = 3, **settings: Any) -> Prepared:
    """Up to the ranks' first start."""
    file = runs.spec(folder, runs.numbered(1), stages(folder, starts=starts, **settings))
    prepared = runs.planned(file)
    runs.finish(runs.worker(prepared))
    runs.finish(runs.worker(prepared, "train", "barrier"))
    return prepared


def states(folder: Path) -> list[str]:
    """What was recorded of the ranks' shard, in order."""
    found = [line for path in folder.glob("runs/*/records/train/*.jsonl") for line in records.read(path)]
    told = [line for line in found if isinstance(line, records.Record) and line.state != "progress"]
    return [line.state for line in sorted(told, key=lambda line: line.t)]


def made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/train@v1/000000.json").read_text())


def test_ranks_work_together_and_the_first_one_publishes(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(3), stages(tmp_path))
    runs.hpc("run", spec)
    assert made(tmp_path) == {"total": 60, "steps": 20, "ranks": 2, "rows": ["000000", "000001", "000002"]}
    said = list(lines(tmp_path / "out/train@v1/metrics.jsonl"))
    assert [line["step"] for line in said] == list(range(1, 21)) and said[-1]["total"] == 60
    assert (tmp_path / "out/train@v1/checkpoints/latest_checkpoint.txt").read_text() == "iter_000000020"
    assert "nothing to do" in runs.hpc("run", spec).stdout


def test_a_rank_that_dies_takes_the_others_along_and_all_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "kill-1").touch()
    runs.hpc("run", runs.spec(tmp_path, runs.numbered(1), stages(tmp_path)))
    assert made(tmp_path)["total"] == 60, "tried again at once"


def test_ranks_that_die_again_and_again_go_on_as_long_as_they_save(tmp_path: Path) -> None:
    """Four starts: each dies 7 steps after it began, and saves after 5."""
    (tmp_path / "doom-1").write_text("7")
    file = runs.spec(tmp_path, runs.numbered(1), stages(tmp_path))
    runs.hpc("run", file)
    assert made(tmp_path)["total"] == 60
    assert states(tmp_path) == ["start", "stopped"] * 3 + ["start", "done"]


def test_ranks_that_die_again_and_again_before_they_save_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "doom-0").write_text("3")
    file = runs.spec(tmp_path, runs.numbered(1), stages(tmp_path))
    said = runs.hpc("run", file, code=1).stdout
    assert "3 starts in a row came to no checkpoint (starts: 3); the last one: lost: a rank was killed" in said
    assert "checkpoint more often, or give it more time" in said
    assert states(tmp_path) == ["start", "stopped"] * 2 + ["start", "failed"]
    (tmp_path / "doom-0").unlink()
    runs.hpc("retry", "t", cwd=tmp_path)
    assert made(tmp_path)["total"] == 60


def test_only_starts_since_the_newest_checkpoint_count(tmp_path: Path) -> None:
    """Two starts come to a checkpoint each, then a bad step is reached: two more may try it."""
    (tmp_path / "kill-1").touch()
    (tmp_path / "doom-1").write_text("7")
    prepared = begun(tmp_path, starts=2)
    folder, file = tmp_path / "out/train@v1/checkpoints", tmp_path / "doom-1"
    worker = runs.worker(prepared, "train")
    # the second start has ended: its checkpoint is there, and told of
    runs.until(lambda: (folder / "iter_000000010").exists() and states(tmp_path).count("stopped") >= 2)
    file.write_text("0")
    runs.finish(worker)
    said = states(tmp_path)
    assert said[-1] == "failed" and said.count("start") in (4, 5)
    [failed] = runs.fold(prepared.run, "train").failed.values()
    assert failed.failure == "stuck"
    assert failed.detail.startswith("2 starts in a row came to no checkpoint after iter_000000010 (starts: 2)")


def test_starts_that_were_taken_away_do_not_count(tmp_path: Path) -> None:
    """A step takes for ever. TERM is what Slurm sends to make room; a worker that just vanishes may be to blame. Of a
    short time limit little is left to ranks that do not leave."""
    prepared = begun(tmp_path, starts=2, seconds=600, resources=GANG["resources"] | {"time": "60s"})
    for _ in range(2):
        worker = runs.worker(prepared, "train")
        runs.until(lambda before=len(states(tmp_path)): len(states(tmp_path)) > before)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 128 + signal.SIGTERM
    for _ in range(2):
        worker = runs.worker(prepared, "train")
        runs.until(lambda before=len(states(tmp_path)): len(states(tmp_path)) > before)
        worker.kill()
        worker.wait()
        runs.until(lambda: not runs.processes(str(tmp_path)))  # no rank goes on beside those of the next start
    assert states(tmp_path) == ["start", "stopped"] * 2 + ["start"] * 2
    runs.finish(runs.worker(prepared, "train"))
    [failed] = runs.fold(prepared.run, "train").failed.values()
    assert failed.failure == "stuck" and failed.detail == (
        "2 starts in a row came to no checkpoint (starts: 2); the last one: its worker vanished, or was killed"
    )


def test_what_slurm_says_of_starts_that_vanished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [records.Record("start", "000000", float(i), checkpoint=name) for i, name in enumerate("aabb")]
    fold = records.Fold()
    for restart, line in enumerate(lines):
        worker = records.Worker(0.0, "r", 1, "train", "f", "7_0", restart, 0, "n")
        ended = [records.End(9.0, "time limit")] if restart == 0 else []
        records.fold_lines(fold, [worker, line, *ended], "f", None)
    sacct = tmp_path / "sacct"
    sacct.write_text('#!/bin/sh\necho "$@" >> ' + f"{tmp_path}/asked\ncat {tmp_path}/says\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    says = tmp_path / "says"
    words = ("|REQUEUED", "|PREEMPTED", ".batch|CANCELLED", "|NODE_FAIL", "|PREEMPTED by 3", "|RUNNING")
    says.write_text("".join(f"7_0{one}\n" for one in words))
    assert gang.counted(fold, "7_0", 4, True) == {"000000": ["a", "b"]}, "the first one requeued itself, out of time"
    assert "--jobs 7_0 " in (tmp_path / "asked").read_text()
    says.write_text("7_0|PREEMPTED\n7_0|RUNNING\n")
    assert gang.counted(fold, "7_0", 4, True) == {"000000": ["a", "a", "b", "b"]}, "which is which?"
    assert gang.counted(fold, "7_0", 4, False) == {"000000": ["a", "a", "b", "b"]}


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
        assert worker.wait(120) == runs.REQUEUE
        step = [line["step"] for line in lines(file)][-1]
        newest = (tmp_path / "out/train@v1/checkpoints/latest_checkpoint.txt").read_text()
        assert newest == f"iter_{step:09}", "saved at the very step at which they left"
    runs.finish(runs.worker(prepared, "train"))
    assert made(tmp_path)["total"] == 1200
    assert [line["step"] for line in lines(file)] == list(range(1, 401))
    fold = runs.fold(Run(prepared.run.folder), "train")
    assert list(fold.done) == ["000000"] and not fold.failed


def test_of_the_nodes_that_slurm_gives_so_many_work_as_can_share_the_batch(tmp_path: Path) -> None:
    shape = {"frames": 13, "height": 64, "width": 48, "batch": 8}
    world = {"kind": "train.diffusion", "needs": "echo", "model": "tiny-predict2", "steps": 9, "shapes": [shape],
             "optimizer": {"warmup": 1}, "resources": {"nodes": 4, "least_nodes": 1, "workers": 2}}  # fmt: skip
    all_stages = {"echo": runs.ECHO, "world": world}
    prepared = runs.planned(runs.spec(tmp_path, runs.numbered(1), all_stages))
    assert prepared.plan
    stage = prepared.plan.stage("world")
    flags = script.resource_flags(stage, LOCAL)
    assert "--nodes=1-4" in flags and "--mincpus=4" in flags and not any("ntasks" in flag for flag in flags)
    for given, taken in ((4, 4), (3, 2), (2, 2), (1, 1)):  # 8 samples / 6 ranks are not equally many
        assert gang.nodes(stage, given) == taken
        assert f"--ntasks={2 * taken}" in gang.command(stage, on_slurm=True, given=given)
    for wrong, words in (({"nodes": 2, "least_nodes": 3}, "least_nodes: 3 is more than the 2 of `nodes`"),
                         ({"nodes": 4, "least_nodes": 3, "workers": 1}, "8 samples / (3 ranks / cp 1 = 3) = 2.667")):
        said = runs.hpc("check", runs.spec(tmp_path, runs.numbered(1), all_stages | {
            "world": world | {"resources": wrong}}), code=2).stderr  # fmt: skip
        assert words in said
