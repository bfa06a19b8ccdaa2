"""What earlier runs of the same stages took and wrote, from their plans and records: what a new one may be measured by.

    found = of(spec, Path("runs"))["clips"]     # none: {}
    found.longest, found.memory, found.written  # seconds of a task, bytes of a worker, bytes for each byte of input
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from hpc.batch import barrier, check, heartbeat, ledger, records, training
from hpc.batch.run import AttemptPlan, Run, StagePlan
from hpc.batch.spec import Spec
from hpc.data import storage

MOST = 20
"""Runs that count for each stage, the newest ones."""
LOOKED = 200
"""Run folders that are looked into: a person waits."""


class Earlier(msgspec.Struct):
    """One stage, in all runs that had it under the same name and of the same kind."""

    runs: list[str] = []
    same: bool = True
    """All with these settings."""
    tasks: int = 0
    longest: float = 0.0
    """Seconds of an array task."""
    shard: float = 0.0
    """Seconds of a shard, the longest one."""
    memory: float = 0.0
    """Bytes that a process has held."""
    short_of: tuple[str, ...] = ()
    """"timeout", "memory": what shards failed for."""
    source: float = 0.0
    """Bytes of input that what follows was made of."""
    bytes: float = 0.0
    files: int = 0
    step: float = 0.0
    """Seconds of a training's step, of the newest run."""
    ranks: int = 0
    """That took it."""

    @property
    def written(self) -> float | None:
        return self.bytes / self.source if self.source else None


def of(spec: Spec, base: Path) -> dict[str, Earlier]:
    """By stage, those that there is something of."""
    found: dict[str, Earlier] = {}
    sizes: dict[str, dict[str, float]] = {}
    for run in newest(base)[:LOOKED]:
        try:
            attempt = run.latest()
            plan = attempt.plan()
        except (OSError, ValueError):  # a damaged one, or of another version: the others tell
            continue
        for planned in plan.stages:
            stage = spec.stages.get(planned.name)
            if stage is None or stage.kind != planned.kind:
                continue
            one = found.setdefault(planned.name, Earlier())
            if len(one.runs) < MOST:
                _add(one, run, plan, planned, sizes, same=planned.settings == check.plain(stage.settings))
    return {name: one for name, one in found.items() if one.runs}


def newest(base: Path) -> list[Run]:
    """The run folders, those last that nobody has planned in for longest."""
    if not base.is_dir():
        return []
    plans = [path for path in base.glob("*/attempt-*/plan.json") if path.parent.name.removeprefix("attempt-").isdigit()]
    ages = {path.parents[1]: 0.0 for path in plans}
    for path in plans:
        ages[path.parents[1]] = max(ages[path.parents[1]], path.stat().st_mtime)
    return [Run(folder) for folder in sorted(ages, key=lambda folder: -ages[folder])]


def _add(one: Earlier, run: Run, plan: AttemptPlan, planned: StagePlan, sizes: dict[str, dict[str, float]],
         same: bool) -> None:  # fmt: skip
    fold = records.fold([run.records(planned.name)], None)
    if not fold.workers:
        return
    one.runs.append(run.id)
    one.same = one.same and same
    one.tasks += len(fold.workers)
    one.longest = max(one.longest, *(t - worker.t for worker, t in fold.workers.values()))
    said = [*fold.done.values(), *fold.failed.values()]
    one.shard = max([one.shard, *(record.seconds for record in fold.done.values())])
    one.memory = max([one.memory, *(record.memory for record in said)])
    failures = {record.failure for record in fold.failed.values()} & {"timeout", "memory"}
    one.short_of = tuple(sorted({*one.short_of, *failures}))
    if "gang" in planned.phases:
        path = training.metrics_file(barrier.frozen_stage(run.latest(), plan, planned.name))
        steps = training.tail(path) if path else []
        taken = [line["seconds"] for line in steps if isinstance(line.get("seconds"), float)]
        if taken and not one.step:
            one.step = sorted(taken)[len(taken) // 2]
            beats = heartbeat.newest(run.ranks(planned.name))  # with `least_nodes` they may be fewer than the plan's
            one.ranks = beats[0].ranks if beats else planned.resources.nodes * planned.resources.workers
    if plan.output not in sizes:
        try:
            book = ledger.load(plan.output)
            sizes[plan.output] = {shard.id: sum(i.size / i.parts for i in shard.items) for shard in book.shards}
        except (OSError, storage.StorageError):  # out of reach
            sizes[plan.output] = {}
    weights = sizes[plan.output]
    made = {shard: record for shard, record in fold.done.items() if record.objects}
    if made and weights:
        whole = planned.domain != "inputs"  # behind a barrier: of all inputs together
        one.source += sum(weights.values()) if whole else sum(weights.get(shard, 0.0) for shard in made)
        one.bytes += sum(sum(item.bytes for item in record.objects) for record in made.values())
        one.files += sum(len(record.objects) for record in made.values())
