"""What a run has come to, from its records, with at most one squeue and one sacct call."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from hpc.batch import barrier, ledger, prepare, records, slurm
from hpc.batch.run import Attempt, AttemptPlan, Job, Run, StagePlan
from hpc.data import storage


class StageStatus(msgspec.Struct):
    stage: str
    kind: str
    folder: str
    shards: int
    planned: bool = True
    """False: a barrier has still to plan its shards."""
    done: int = 0
    failed: int = 0
    running: int = 0
    missing: int = 0
    fraction: float = 0.0
    """Done, with the parts of the shards in flight."""
    failures: dict[str, int] = {}
    """Class -> shards."""
    quarantined: int = 0
    """Inputs that can never work."""
    counts: dict[str, float] = {}
    tasks: dict[str, int] = {}
    """Slurm's state words -> array tasks of the latest attempt."""
    reasons: dict[str, int] = {}
    """Why tasks are pending."""
    worker_seconds: float = 0.0
    cpu_seconds_held: float = 0.0
    gpu_seconds: float = 0.0
    gpu: dict[str, float] = {}
    """What NVML said of the GPUs, summed as in records: {"seconds", "busy", "joules"}."""
    bytes_written: float = 0.0
    """Of all objects of the shards that are done."""
    eta_seconds: float = 0.0
    last: float = 0.0
    """Time of the last record."""


class Status(msgspec.Struct):
    run: str
    folder: str
    attempt: int
    state: str
    """done, running, waiting, failed, incomplete"""
    stages: list[StageStatus]
    jobs: list[str]
    active: bool
    """Slurm still has jobs of the latest attempt."""
    slurm_calls: int = 0


class Gathered(msgspec.Struct):
    """Everything read, for those who print more of it."""

    status: Status
    plan: AttemptPlan
    attempt: Attempt
    folds: dict[str, records.Fold]
    stages: dict[str, StagePlan]
    scopes: dict[str, list[str]]
    tasks: list[slurm.Task]
    jobs: list[Job]
    accounted: list[slurm.Task] = []
    """What the accounting says of the jobs of all attempts, a Task for each start; only with `history`."""


def gather(run: Run, ask_slurm: bool = True, *, history: bool = False, told: Told | None = None) -> Gathered:
    """history: ask also for jobs of earlier attempts, and all their starts. told: what Slurm has said already, of more
    runs than this one; nothing is asked then."""
    attempt = run.latest()
    plan = attempt.plan()
    os.environ.update(plan.env)
    jobs = attempt.jobs()
    folds, stages, scopes, rows = {}, {}, {}, []
    asking, since = jobs, plan.created
    if history:
        asking = [j for n in run.attempts() for j in run.attempt(n).jobs()]
        since = min(since, (run.attempt(run.attempts()[0]).folder / "plan.json").stat().st_mtime)
    with ThreadPoolExecutor(1) as pool:  # Slurm answers while the records are read
        asked = pool.submit(slurm_tasks, asking, since, history) if ask_slurm and told is None else None
        try:
            runs, _ = ledger.runs(plan.output)
        except (OSError, storage.StorageError):  # the store is out of reach: what this run knows is still worth showing
            runs = []
        if run.folder.resolve() not in runs:  # moved since, or copied to be kept
            runs.append(run.folder)
        for planned in plan.stages:
            stage = stages[planned.name] = barrier.frozen_stage(attempt, plan, planned.name)
            frozen = stage.domain == "inputs" or bool(stage.folder)
            folds[stage.name] = prepare.fold_stage(runs, stage.name, stage.fingerprint) if frozen else records.Fold()
            scopes[stage.name] = scope_of(attempt, plan, stages, stage)
        told = told or (asked.result() if asked else Told())
    latest, every = {j.job for j in jobs}, {j.job for j in asking}
    tasks = [t for t in told.tasks if t.job in latest]
    reports = {j.job for j in jobs if j.phase == "report"}  # the report of a run is no part of its work
    active = any(t.live for t in tasks if t.job not in reports)
    words = {f"{t.job}_{i}": t.state for t in tasks for i in t.indices}
    for name, stage in stages.items():
        rows.append(stage_status(run, stage, folds[name], scopes[name], words))
        rows[-1].planned = stage.domain == "inputs" or bool(stage.folder)
        count_tasks(rows[-1], [j for j in jobs if j.stage == name], tasks)
    state = overall(rows, active, any(f.running for f in folds.values()))
    status = Status(run.id, str(run.folder), attempt.number, state, rows, [j.job for j in jobs], active, told.calls)
    accounted = [t for t in told.accounted if t.job in every]
    return Gathered(status, plan, attempt, folds, stages, scopes, tasks, jobs, accounted)


class Told(msgspec.Struct):
    """What Slurm said."""

    tasks: list[slurm.Task] = []
    """As it is now."""
    accounted: list[slurm.Task] = []
    """A Task for each start."""
    calls: int = 0


def slurm_tasks(jobs: list[Job], since: float, history: bool = False) -> Told:
    """Tasks as squeue and sacct tell; squeue's word counts where both know one."""
    ids = [j.job for j in jobs]
    if not ids or not slurm.available():
        return Told()
    live = slurm.queue(ids)
    seen = {(t.job, i) for t in live for i in t.indices or (-1,)}
    try:
        known = slurm.accounting(ids, since, history)
    except slurm.SlurmError as error:  # records and squeue tell most of it
        print(f"without accounting: {error}", file=sys.stderr)
        known = []
    ended = []
    # Its last start counts. What the accounting takes for alive and squeue doesn't know has ended a moment ago.
    for task in {(t.job, t.indices): t for t in known}.values():
        left = [i for i in task.indices or (-1,) if (task.job, i) not in seen]
        if left and task.state.startswith(slurm.DONE):
            ended.append(msgspec.structs.replace(task, indices=tuple(left) if task.indices else ()))
    return Told(live + ended, known if history else [], 2)


def scope_of(attempt: Attempt, plan: AttemptPlan, stages: dict[str, StagePlan], stage: StagePlan) -> list[str]:
    if stage.domain == "inputs":
        return attempt.scope(plan)
    head = stages.get(stage.domain, stage)
    if not head.folder:
        return []
    try:
        return prepare.frozen_ids(head.folder)
    except (OSError, storage.StorageError):
        return []


def lives(worker: records.Worker, record: records.Record, words: dict[str, str]) -> bool:
    """Is the shard that this worker has started still in its hands? Of processes elsewhere, and of tasks that Slurm
    wasn't asked about or has forgotten, one can only tell by how long ago they said something."""
    word = words.get(worker.job)
    if word is not None:
        return not word.startswith(("PENDING", *slurm.DONE))
    if worker.job.startswith("local") and worker.node == os.uname().nodename:
        try:
            return worker.run.encode() in Path(f"/proc/{worker.raw_job}/cmdline").read_bytes()
        except OSError:
            return False
    return time.time() - record.t < 120


def stage_status(
    run: Run, stage: StagePlan, fold: records.Fold, scope: list[str], words: dict[str, str]
) -> StageStatus:
    """words: array task -> Slurm's word for its state."""
    wanted = set(scope)
    done = [r for s, r in fold.done.items() if s in wanted]
    failed = {s: r for s, r in fold.failed.items() if s in wanted and s not in fold.running}
    counts: Counter[str] = Counter()
    for record in done:
        counts.update(record.counts)
    # a shard that started and was not heard of since: in flight if its worker lives, lost if not
    flying = {s: r for s, (w, r) in fold.running.items()
              if s in wanted and (w.job, w.restart) not in fold.ended and lives(w, r, words)}  # fmt: skip
    held = [(w, last - w.t) for w, last in fold.workers.values() if w.run == run.id]
    seconds = sum(r.seconds for r in done)
    gpu: Counter[str] = Counter()
    for record in [*(r for s, r in fold.done.items() if s in wanted and fold.where[s].run == run.id), *flying.values()]:
        gpu.update({name: record.gpu[name] for name in ("seconds", "busy", "joules") if name in record.gpu})
    left = len(scope) - len(done)
    width = max(1, len({(w.job, w.restart) for s, (w, _) in fold.running.items() if s in flying}))
    return StageStatus(
        stage=stage.name, kind=stage.kind, folder=stage.folder, shards=len(scope), done=len(done), failed=len(failed),
        running=len(flying), missing=left - len(failed) - len(flying),
        fraction=(len(done) + sum(r.fraction for r in flying.values())) / len(scope) if scope else 0.0,
        failures=dict(Counter(r.failure for r in failed.values())),
        quarantined=sum(len(r.bad) for r in done), counts=dict(counts),
        worker_seconds=sum(s for _, s in held), cpu_seconds_held=sum(w.cpus * s for w, s in held),
        gpu_seconds=sum(w.gpus * s for w, s in held), gpu=dict(gpu),
        bytes_written=float(sum(o.bytes for r in done for o in r.objects)),
        eta_seconds=left * seconds / len(done) / width / stage.resources.workers if done and flying else 0.0,
        last=max((last for w, last in fold.workers.values() if w.run == run.id), default=0.0),
    )  # fmt: skip


def count_tasks(row: StageStatus, jobs: list[Job], tasks: list[slurm.Task]) -> None:
    ids = {j.job for j in jobs}
    for task in tasks:
        if task.job in ids:
            word = task.state.split()[0]
            n = max(1, len(task.indices))
            row.tasks[word] = row.tasks.get(word, 0) + n
            if word == "PENDING" and task.reason:
                row.reasons[task.reason] = row.reasons.get(task.reason, 0) + n


def overall(rows: list[StageStatus], active: bool, flying: bool) -> str:
    if all(r.planned and r.done == r.shards for r in rows):
        return "done"
    if active:
        return "running" if any(r.running or r.tasks.get("RUNNING") for r in rows) else "waiting"
    if any(r.running for r in rows):
        return "running"
    return "failed" if any(r.failed for r in rows) else "incomplete"


def lines(status: Status) -> list[str]:
    """For a terminal."""
    out = [f"{status.run}  attempt {status.attempt}  {status.state}  {status.folder}"]
    for r in status.stages:
        total = str(r.shards) if r.planned else "?"
        parts = [f"{r.done}/{total} shards"]
        parts += [f"{r.running} running"] if r.running else []
        parts += [f"{r.failed} failed ({', '.join(f'{n} {c}' for c, n in r.failures.items())})"] if r.failed else []
        parts += [f"{r.quarantined} inputs quarantined"] if r.quarantined else []
        if r.tasks:
            parts.append("tasks: " + " ".join(f"{s} {n}" for s, n in sorted(r.tasks.items())))
        if r.reasons:
            parts.append("pending for: " + " ".join(f"{s} {n}" for s, n in sorted(r.reasons.items())))
        out.append(f"  {r.stage:<12} {r.fraction:>6.1%}  " + "; ".join(parts))
    return out
