"""Find the logs that matter: of a stage, or of what failed, with the last lines of each."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from hpc.batch import slurm, status
from hpc.batch.run import Run

MOST = 20
"""Logs shown at once."""


class Entry(msgspec.Struct):
    path: str
    why: str
    tail: list[str]


def collect(run: Run, stage: str | None, failed: bool, lines: int) -> list[Entry]:
    chosen: dict[Path, str] = {}
    if failed:
        gathered = status.gather(run)
        for name, fold in gathered.folds.items():
            if stage in (None, name):
                for shard, record in sorted(fold.failed.items()):
                    path = of_task(run, name, fold.where[shard].job)
                    if path:
                        chosen.setdefault(path, f"shard {shard}: {record.failure}: {record.detail[:120]}")
        stages = {j.job: j.stage for j in gathered.jobs}
        for task in gathered.tasks:
            if task.state.startswith(slurm.DONE) and not task.state.startswith("COMPLETED"):
                for index in task.indices or (-1,):
                    job = f"{task.job}_{index}" if index >= 0 else task.job
                    path = of_task(run, stages.get(task.job, ""), job)
                    if path and stage in (None, stages.get(task.job)):
                        chosen.setdefault(path, f"task {job}: {task.state}")
    else:
        folders = [run.logs(stage)] if stage else sorted((run.folder / "logs").glob("*"))
        found = [p for f in folders for p in f.glob("*") if p.suffix in (".out", ".err")]
        for path in sorted(found, key=lambda p: -p.stat().st_mtime):
            chosen[path] = path.parent.name
    return [Entry(str(p), why, tail(p, lines)) for p, why in list(chosen.items())[:MOST]]


def of_task(run: Run, stage: str, job: str) -> Path | None:
    """The log of an array task. Local tasks' logs are named by process, so the newest that speaks of the row is it."""
    local = re.fullmatch(r"local(\d+)_(\d+)", job)
    if local:
        logs = sorted(run.logs(stage).glob("*_log.out"), key=lambda p: -p.stat().st_mtime)
        words = f"row {local[2]} of {stage}"
        return next((p for p in logs if words in p.read_text(errors="replace")), logs[0] if logs else None)
    for name in (f"{job}.out", f"barrier-{job}.out"):
        if (run.logs(stage) / name).exists():
            return run.logs(stage) / name
    return None


def tail(path: Path, lines: int) -> list[str]:
    with path.open("rb") as f:
        f.seek(0, 2)
        f.seek(max(0, f.tell() - 400 * (lines + 1)))
        return f.read().decode(errors="replace").splitlines()[-lines:]
