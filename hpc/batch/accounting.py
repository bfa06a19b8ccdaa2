"""What a run took and cost: asked for, held and used, stage by stage, and what to ask for next time.

Hours held come from Slurm's accounting where there is any (all starts of all attempts, and that is what a site bills),
else from the run's own records. How busy GPUs were, their energy and the memory that workers held are known from the
records alone: `sacct -X` says nothing of them.
"""

from __future__ import annotations

import csv
import io

import msgspec

from hpc.batch import jsons, slurm, status
from hpc.batch.cluster import Cluster
from hpc.batch.run import Attempt, Run, StagePlan
from hpc.data.units import seconds, size

GIB = float(1 << 30)
SPARE_TIME, SPARE_MEMORY = 1.5, 1.3
"""What is proposed over what was needed: tasks differ more in time than in memory."""
LEAST_TIME, LEAST_MEMORY = 600.0, GIB
ENOUGH = 0.2
"""A proposal that would change less than this share is none."""


class StageUse(msgspec.Struct):
    """One stage. None: not known."""

    stage: str
    kind: str
    shards: int
    done: int
    failed: int
    tasks: int
    """Starts of array tasks, or of workers where Slurm is not asked."""
    cpu_hours: float
    gpu_hours: float
    from_slurm: bool
    """Hours are of Slurm's accounting, not of the records."""
    gpu_utilization: float | None
    energy_kwh: float | None
    """Of the GPUs alone."""
    cost: float | None
    requested_time: float
    """Seconds, of a task."""
    used_time: float
    """The longest one's."""
    requested_memory: float
    """Bytes, of a worker."""
    used_memory: float
    next_time: float | None
    """What to ask for next time, where it should be something else."""
    next_memory: float | None

    def words(self) -> str:
        said = []
        if self.next_time:
            said.append(f"time: {seconds(self.next_time)} (now {seconds(self.requested_time)}, the longest task took "
                        f"{seconds(self.used_time)})")  # fmt: skip
        if self.next_memory:
            said.append(f"memory: {size(self.next_memory)} (now {size(self.requested_memory)}, a worker held "
                        f"{size(self.used_memory)})")  # fmt: skip
        return ", ".join(said)


class Account(msgspec.Struct):
    """One run."""

    run: str
    folder: str
    user: str
    account: str
    cluster: str
    spec: str
    git: str
    """Commit, with + if there were changes."""
    attempts: int
    state: str
    started: float
    ended: float
    shards: int
    done: int
    failed: int
    cpu_hours: float
    gpu_hours: float
    gpu_utilization: float | None
    energy_kwh: float | None
    cost: float | None
    currency: str
    stages: list[StageUse]


class Total(msgspec.Struct):
    """Several runs together."""

    who: str
    runs: int
    shards: int
    cpu_hours: float
    gpu_hours: float
    gpu_utilization: float | None
    energy_kwh: float | None
    cost: float | None
    currency: str


def of(gathered: status.Gathered, provenance: dict, run: Run) -> Account:
    s = gathered.status
    preset = preset_of(gathered.attempt)
    first = [w.t for f in gathered.folds.values() for w, _ in f.workers.values() if w.run == s.run]
    last = [t for f in gathered.folds.values() for w, t in f.workers.values() if w.run == s.run]
    jobs = {j.job: j.stage for n in run.attempts() for j in run.attempt(n).jobs()} if gathered.accounted else {}
    stages = [_stage(gathered, r, preset, [t for t in gathered.accounted if jobs.get(t.job) == r.stage])
              for r in s.stages]  # fmt: skip
    git = provenance.get("git", {})
    known = next((t for t in gathered.accounted if t.account), None)
    return Account(
        run=s.run, folder=s.folder, user=provenance.get("user", ""),
        account=known.account if known else _account(preset, gathered.stages),
        cluster=gathered.plan.cluster, spec=provenance.get("spec_hash", ""),
        git=git.get("sha", "")[:12] + "+" * bool(git.get("changed")), attempts=len(run.attempts()), state=s.state,
        started=min(first, default=0.0), ended=max(last, default=0.0), shards=sum(r.shards for r in s.stages),
        done=sum(r.done for r in s.stages), failed=sum(r.failed for r in s.stages),
        cpu_hours=sum(u.cpu_hours for u in stages), gpu_hours=sum(u.gpu_hours for u in stages),
        gpu_utilization=_mean([(u.gpu_utilization, u.gpu_hours) for u in stages]),
        energy_kwh=_sum([u.energy_kwh for u in stages]), cost=_sum([u.cost for u in stages]),
        currency=preset.rates.currency if preset.rates else "", stages=stages,
    )  # fmt: skip


def preset_of(attempt: Attempt) -> Cluster:
    """The cluster preset as it was when the attempt was planned."""
    try:
        return jsons.decode((attempt.folder / "cluster.json").read_bytes(), Cluster)
    except (OSError, msgspec.DecodeError):  # of a version of hpc that knew other keys
        return Cluster(name=attempt.plan().cluster)


def _account(preset: Cluster, stages: dict[str, StagePlan]) -> str:
    """To which the run was charged: the one of its first stage that names one."""
    return next((a for s in stages.values() if (a := preset.for_stage(s.name, s.kind).account)), "")


def _stage(gathered: status.Gathered, row: status.StageStatus, preset: Cluster, told: list[slurm.Task]) -> StageUse:
    plan, fold = gathered.stages[row.stage], gathered.folds[row.stage]
    own = [(w, t - w.t) for w, t in fold.workers.values() if w.run == gathered.status.run]
    said = [r for s, r in fold.done.items() if fold.where[s].run == gathered.status.run]
    said += [r for w, r in fold.running.values() if w.run == gathered.status.run]
    began = [t for t in told if t.elapsed]
    cpu, gpu = row.cpu_seconds_held, row.gpu_seconds
    if began:
        cpu, gpu = (sum(t.elapsed * t.holds(what) for t in began) for what in ("cpu", "gres/gpu"))
    asked = max((w.memory for w, _ in own), default=0.0) or float(plan.resources.memory)
    limit = max((w.time for w, _ in own), default=0.0) or float(plan.resources.time)
    longest = max([*(seconds for _, seconds in own), *(t.elapsed for t in began)], default=0.0)
    held = max((r.memory for r in said), default=0.0)
    out_of_time = "timeout" in row.failures or any(t.state.startswith("TIMEOUT") for t in began)
    out_of_memory = "memory" in row.failures or any(t.state.startswith("OUT_OF_MEMORY") for t in began)
    seen = row.gpu.get("seconds", 0.0)
    rates = preset.rates
    return StageUse(
        stage=row.stage, kind=row.kind, shards=row.shards, done=row.done, failed=row.failed,
        tasks=len(began) or len(own), cpu_hours=cpu / 3600, gpu_hours=gpu / 3600, from_slurm=bool(began),
        gpu_utilization=row.gpu.get("busy", 0.0) / seen if seen else None,
        energy_kwh=row.gpu["joules"] / seen * gpu / 3.6e6 if seen and "joules" in row.gpu else None,
        cost=rates.cost(cpu / 3600, gpu / 3600) if rates else None,
        requested_time=limit, used_time=longest, requested_memory=asked, used_memory=held,
        next_time=propose(limit, longest if row.done else 0.0, out_of_time, SPARE_TIME, LEAST_TIME, 300.0),
        next_memory=propose(asked, held, out_of_memory, SPARE_MEMORY, LEAST_MEMORY, GIB / 2),
    )  # fmt: skip


def propose(asked: float, used: float, short: bool, spare: float, least: float, step: float) -> float | None:
    """What to ask for: twice as much where it fell short, else what was used and some to spare, in whole steps."""
    if short:
        return 2 * asked
    if not used:
        return None
    wanted = -(-max(least, spare * used) // step) * step
    return wanted if abs(wanted - asked) > ENOUGH * asked and (wanted < asked or used > asked / spare) else None


def _sum(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _mean(pairs: list[tuple[float | None, float]]) -> float | None:
    """Of (value, weight)."""
    known = [(v, w) for v, w in pairs if v is not None and w]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


def totals(accounts: list[Account], by: str) -> list[Total]:
    """by: "user", "account"."""
    groups: dict[str, list[Account]] = {}
    for a in accounts:
        groups.setdefault(getattr(a, by) or "-", []).append(a)
    made = [
        Total(who, len(own), sum(a.done for a in own), sum(a.cpu_hours for a in own), sum(a.gpu_hours for a in own),
              _mean([(a.gpu_utilization, a.gpu_hours) for a in own]), _sum([a.energy_kwh for a in own]),
              _sum([a.cost for a in own]), "/".join(sorted({a.currency for a in own if a.currency})))
        for who, own in groups.items()
    ]  # fmt: skip
    return sorted(made, key=lambda t: (-t.gpu_hours, -t.cpu_hours, t.who))


def table(accounts: list[Account]) -> str:
    """CSV: a row for each stage of each run, the run's own columns first."""
    out = io.StringIO()
    own = "run user account cluster spec git attempts state started ended currency".split()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([*own, *StageUse.__struct_fields__])
    for a in accounts:
        for u in a.stages:
            values = [getattr(a, n) for n in own] + [getattr(u, n) for n in StageUse.__struct_fields__]
            rows.writerow([_cell(v) for v in values])
    return out.getvalue()


def _cell(value: object) -> object:
    """Numbers as short as they are exact; a text that a spreadsheet would take for a formula is none."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def hours(a: Account | Total) -> str:
    said = f"{a.cpu_hours:,.2f} CPU-hours, {a.gpu_hours:,.2f} GPU-hours"
    said += f", GPUs busy {a.gpu_utilization:.0%}" if a.gpu_utilization is not None else ""
    said += f", {a.energy_kwh:,.2f} kWh" if a.energy_kwh is not None else ""
    return said + (f", cost {a.cost:,.2f} {a.currency}".rstrip() if a.cost is not None else "")
