"""All runs under a folder, as the dashboard and `hpc top` show them: looked at when somebody looks, and read again only
where something has changed (hpc.batch.exporter has the rules, and asks Slurm once a minute for all of them).

Of each run there is a summary (a row of the list) and a detail (its page), both plain JSON values. A shard is a
character in strings that are as long as its stage has shards, so that ten thousand of them are some ten kilobytes:

    cells = {"state": "ddddrfqw..", "attempt": "1112..", "reason": "...0..", "seconds": [12.1, ...]}
"""

from __future__ import annotations

import re
import stat
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import accounting, counts, exporter, masking, report, status, training
from hpc.batch.exporter import Seen
from hpc.batch.run import Run

STATES = {"d": "done", "r": "running", "f": "failed", "q": "queued", "s": "stopped", "l": "lost", "w": "waiting"}
"""queued: Slurm has its task pending. stopped: given up for now. lost: begun, and its worker has vanished."""
FAILURES = 300
"""Failures of a stage that a page lists; all are counted."""
QUARANTINED = 200
BINS = 60
"""Of the chart of finished shards over time."""
LEAST_PAUSE = 2.0
"""Seconds between two looks."""
RECENT = 900.0
"""Seconds over which the present rate is taken."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Known(msgspec.Struct):
    """What is known of one run."""

    summary: dict[str, Any]
    detail: dict[str, Any]
    version: str
    """Another one whenever it was read again."""
    folders: dict[str, StagePlace]
    secrets: tuple[str, ...]
    """Names of the environment variables whose values are shown to nobody."""
    env: dict[str, str]
    """What the run declares: its store is reached with it."""


class StagePlace(msgspec.Struct):
    """Where a stage's objects are, and which of its shards are done."""

    kind: str
    folder: str
    objects: tuple[str, ...]
    done: list[str]
    jobs: dict[str, str]
    """Shard -> the task that said the last word about it, as its log is named."""
    metrics: Path | None = None
    pictures: Path | None = None


class Watch(exporter.Exporter):
    """`read` looks at all runs; `known` has what it found, under the runs' names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.resolve(), days=float("inf"))
        self.known: dict[str, Known] = {}
        self.problems: dict[str, str] = {}
        """Runs that could not be read, and why."""
        self.count = 0
        self.read_at = self.took = 0.0
        self.environment = threading.Lock()
        """Held while a run's declared environment is that of this process."""

    def scrape(self) -> str:
        """Look again, but not before REST times as long as the last look took: stats of many files are a load too."""
        if not self.read_at or time.monotonic() - self.read_at > max(LEAST_PAUSE, exporter.REST * self.took):
            return super().scrape()
        return self.page

    def read(self) -> str:
        begun = time.monotonic()
        page = super().read()
        self.read_at = time.monotonic()
        self.took = self.read_at - begun
        there = set(self.seen)
        self.known = {name: one for name, one in self.known.items() if name in there}
        self.problems = {name: why for name, why in self.problems.items() if (self.folder / name).is_dir()}
        return page

    def look(self, run: Run, mark: tuple) -> Seen:
        begun = time.monotonic()
        try:
            inside(run.folder, self.folder)
            with self.environment, exporter.own_environment():
                gathered = status.gather(run, ask_slurm=False, told=self.told)
                made = report.build(run, gathered)
            found = known(run, gathered, made)
        except Exception as error:
            self.problems[run.id] = f"{type(error).__name__}: {error}"
            self.known.pop(run.id, None)
            raise
        self.count += 1
        found.version = f"{self.count:x}"
        self.known[run.id] = found
        self.problems.pop(run.id, None)
        files = [place.metrics for place in found.folders.values() if place.metrics]
        jobs = set(made.status.jobs)
        live = [(t.state, t.reason, t.indices) for t in self.told.tasks if t.job in jobs]
        marks = mark if not files else exporter.changes(run, files)
        return Seen((marks, live), time.time(), time.monotonic() - begun, made.status.state, jobs, files, {})

    def runs(self) -> dict[str, Any]:
        """The list: every run's summary, those that go on first, then by their last record."""
        order = {"running": 0, "waiting": 1}
        rows = [one.summary for one in list(self.known.values())]
        rows.sort(key=lambda r: (order.get(r["state"], 2), -(r["last"] or r["created"]), r["run"]))
        reasons: Counter[str] = Counter()
        for row in rows:
            reasons.update(row["reasons"])
        return {
            "folder": str(self.folder), "at": time.time(), "runs": rows, "slurm": self.slurm_up,
            "reading": not self.read_at,
            "problems": [{"run": name, "why": why} for name, why in sorted(self.problems.items())],
            "totals": {"states": dict(Counter(r["state"] for r in rows)), "reasons": dict(reasons.most_common()),
                       **{key: sum(r[key] for r in rows) for key in ("running", "failed", "pending", "gpus", "cpus")}},
        }  # fmt: skip


def inside(path: Path, folder: Path) -> Path:
    """The path with all links resolved. Raises PermissionError if it leads out of the folder."""
    found = path.resolve()
    if not found.is_relative_to(folder.resolve()):
        raise PermissionError(f"{path}: a link that leads out of {folder}: not shown")
    return found


def regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def known(run: Run, gathered: status.Gathered, made: report.Report) -> Known:
    """All that is shown of a run. Pure but for looking which reports and pages are there."""
    now = time.time()
    words = {f"{t.job}_{i}": t.state for t in gathered.tasks for i in t.indices}
    stages, folders, measured = [], {}, figures(run)
    gpus: dict[tuple[str, int], int] = {}
    cpus: dict[tuple[str, int], int] = {}
    for row in made.status.stages:
        fold, plan = gathered.folds[row.stage], gathered.stages[row.stage]
        cells = shards(gathered, row.stage, words)
        for shard, state in zip(gathered.scopes[row.stage], cells["state"], strict=True):
            if state == "r":
                worker = fold.running[shard][0]
                gpus[worker.job, worker.restart], cpus[worker.job, worker.restart] = worker.gpus, worker.cpus
        flow = throughput([r.t for s, r in fold.done.items() if fold.where[s].run == run.id], now)
        file = training.metrics_file(plan)
        stages.append(one_stage(row, cells, flow) | {
            "figures": measured.get(row.stage),
            "time": next((msgspec.to_builtins(t) for t in made.times if t.stage == row.stage), None),
            "training": next((msgspec.to_builtins(t) | {"words": t.words()} for t in made.trainings
                              if t.stage == row.stage), None),
        })  # fmt: skip
        done = [s for s in gathered.scopes[row.stage] if s in fold.done]
        jobs = {s: w.job for s, w in fold.where.items()} | {s: w.job for s, (w, _) in fold.running.items()}
        own = row.folder if re.fullmatch(rf".*/{re.escape(row.stage)}@v\d+", row.folder) else ""
        folders[row.stage] = StagePlace(row.kind, own, plan.objects, done, jobs, file,
                                        file.with_name("pictures") if file else None)  # fmt: skip
    totals = {key: sum(s[key] for s in stages) for key in ("shards", "done", "failed", "running", "quarantined")}
    provenance, account = made.provenance, made.account
    reasons: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for one in made.status.stages:
        reasons.update(one.reasons)
        failures.update(one.failures)
    live = made.status.state in ("running", "waiting")
    learning = [s["training"]["words"] for s in stages if s["training"]]
    summary = {
        "run": run.id, "state": made.status.state, "attempt": made.status.attempt, "attempts": made.attempts,
        "user": account.user, "cluster": made.cluster, "created": gathered.plan.created, "started": made.started,
        "last": made.started + made.wall_seconds if made.started else 0.0, "wall": made.wall_seconds, **totals,
        "fraction": sum(s["fraction"] * s["shards"] for s in stages) / totals["shards"] if totals["shards"] else 0.0,
        "rate": max((s["flow"]["rate"] for s in stages), default=0.0) if live else 0.0,
        "eta": max((s["eta"] for s in stages), default=0.0), "gpus": sum(gpus.values()), "cpus": sum(cpus.values()),
        "gpu_busy": _busy(made), "pending": sum(s["tasks"].get("PENDING", 0) for s in stages),
        "reasons": dict(reasons.most_common()), "failures": dict(failures.most_common()),
        "training": learning[-1] if learning else "",
        "stages": [{k: s[k] for k in ("stage", "kind", "shards", "planned", "done", "failed", "running", "fraction")}
                   for s in stages],
    }  # fmt: skip
    detail = summary | {
        "stages": stages, "folder": str(run.folder), "output": gathered.plan.output, "advice": made.advice,
        "nodes": made.nodes, "failed_shards": failed(made), "quarantine": bad(made),
        "account": msgspec.to_builtins(account) | {"words": accounting.hours(account)},
        "spec": provenance.get("spec_hash", ""), "git": provenance.get("git", {}), "host": provenance.get("host", ""),
        "time": provenance.get("time", ""), "command": " ".join(map(str, provenance.get("command", []))),
        "links": links(run, folders),
    }  # fmt: skip
    env = dict(gathered.plan.env)
    secrets = masking.named(run.spec)
    return Known(masking.everywhere(summary, secrets), masking.everywhere(detail, secrets), "", folders, secrets, env)


def one_stage(row: status.StageStatus, cells: dict[str, Any], flow: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": row.stage, "kind": row.kind, "folder": row.folder, "planned": row.planned, "shards": row.shards,
        "done": row.done, "failed": row.failed, "running": row.running, "missing": row.missing,
        "fraction": row.fraction, "quarantined": row.quarantined, "failures": row.failures, "tasks": row.tasks,
        "reasons": row.reasons, "made": counts.words(row.counts), "dropped": counts.group(row.counts, "dropped"),
        "clips": row.counts.get("clips", 0.0), "cpu_hours": row.cpu_seconds_held / 3600,
        "gpu_hours": row.gpu_seconds / 3600, "bytes": row.bytes_written, "eta": row.eta_seconds, "last": row.last,
        "cells": cells, "flow": flow,
    }  # fmt: skip


def shards(gathered: status.Gathered, stage: str, words: dict[str, str]) -> dict[str, Any]:
    """A character a shard, in the order of their ids. words: array task -> Slurm's word for its state.

    {"ids": None where they count up from "first", "state", "attempt": of this run ("0": another run made it),
    "again": how often a worker vanished on it, "reason": a digit of "reasons" or ".", "seconds"}
    """
    fold, scope = gathered.folds[stage], gathered.scopes[stage]
    run = gathered.status.run
    why = pending(gathered, stage)
    reasons = list(dict.fromkeys(why.values()))[: len(DIGITS)]
    state, attempt, reason, again, seconds = [], [], [], [], []
    for shard in scope:
        worker, record = None, None
        if shard in fold.running:
            worker, record = fold.running[shard]
            flying = (worker.job, worker.restart) not in fold.ended and status.lives(worker, record, words)
            code = "r" if flying else "q" if shard in why else "l"
        elif shard in fold.done:
            code, worker, record = "d", fold.where[shard], fold.done[shard]
        elif shard in fold.failed:
            code, worker, record = "f", fold.where[shard], fold.failed[shard]
        else:
            code = "q" if shard in why else "s" if shard in fold.stopped else "w"
        state.append(code)
        attempt.append(DIGITS[min(worker.attempt, 35)] if worker and worker.run == run else "0" if worker else ".")
        again.append(DIGITS[min(fold.kills.get(shard, 0), 35)])
        reason.append(DIGITS[reasons.index(why[shard])] if code == "q" and why[shard] in reasons else ".")
        seconds.append(float(f"{record.seconds:.3g}") if record and code in "df" else 0)
    ordered = bool(scope) and scope[0].isdigit() and all(s == f"{int(scope[0]) + i:0{len(scope[0])}}"
                                                         for i, s in enumerate(scope))  # fmt: skip
    return {
        "ids": None if ordered else scope, "first": scope[0] if ordered else "", "state": "".join(state),
        "attempt": "".join(attempt), "again": "".join(again), "reason": "".join(reason), "reasons": reasons,
        "seconds": seconds,
    }  # fmt: skip


def pending(gathered: status.Gathered, stage: str) -> dict[str, str]:
    """Shard -> why Slurm has its task waiting."""
    jobs = {j.job: j for j in gathered.jobs if j.stage == stage and j.phase in ("map", "gang")}
    waiting = [t for t in gathered.tasks if t.job in jobs and t.state.startswith("PENDING")]
    if not waiting:
        return {}
    rows = gathered.attempt.shards(gathered.stages[stage].domain)
    found = {}
    for task in waiting:
        first = jobs[task.job].first_row
        for index in task.indices or (0,):
            for shard in rows[first + index] if first + index < len(rows) else ():
                found[shard] = task.reason
    return found


def throughput(times: list[float], now: float) -> dict[str, Any]:
    """Finished shards over time: {"start", "end", "bins"}, and "rate": shards an hour of late, or over all."""
    if not times:
        return {"start": 0.0, "end": 0.0, "bins": [], "rate": 0.0}
    times = sorted(times)
    first, last = times[0], times[-1]
    span = max(last - first, 1.0)
    bins = [0] * min(BINS, max(1, len(times)))
    for t in times:
        bins[min(len(bins) - 1, int((t - first) / span * len(bins)))] += 1
    late = [t for t in times if t > now - RECENT]
    over = min(RECENT, max(now - first, 1.0)) if late else span
    return {"start": first, "end": last, "bins": bins, "rate": 3600 * len(late or times) / over}


def failed(made: report.Report) -> list[dict[str, Any]]:
    """By class, the commonest first; of each class some, with how many there are."""
    groups: dict[tuple[str, str], list[report.Failed]] = {}
    for one in made.failures:
        groups.setdefault((one.stage, one.failure), []).append(one)
    return [
        {"stage": stage, "class": why, "count": len(ones), "remedy": ones[0].remedy, "nodes": Counter(
            one.node for one in ones).most_common(8), "shards": [
            {"shard": one.shard, "detail": one.detail[:1000], "node": one.node, "job": one.job}
            for one in ones[:FAILURES]]}
        for (stage, why), ones in sorted(groups.items(), key=lambda pair: -len(pair[1]))
    ]  # fmt: skip


def bad(made: report.Report) -> list[dict[str, Any]]:
    """Inputs that can never work, by reason."""
    groups: dict[str, list[report.Quarantined]] = {}
    for one in made.quarantined:
        groups.setdefault(one.reason, []).append(one)
    return [{"reason": reason, "count": len(ones), "inputs": [
        {"stage": q.stage, "shard": q.shard, "uri": q.uri, "detail": q.detail[:500]} for q in ones[:QUARANTINED]]}
        for reason, ones in sorted(groups.items(), key=lambda pair: -len(pair[1]))]  # fmt: skip


def links(run: Run, folders: dict[str, StagePlace]) -> list[dict[str, str]]:
    """What of the run can be read as it is: {"title", "path"}, path as the server's /files/<run>/ has it."""
    found = []
    for name, title in FILES.items():
        number = f"attempt-{run.attempts()[-1]}/" if name in IN_ATTEMPT else ""
        if regular(run.folder / number / name):
            found.append({"title": title, "path": f"run/{name}"})
    for stage, place in folders.items():
        for page in pages(place):
            found.append({"title": f"{stage}: {page}", "path": f"stage/{stage}/{page}"})
    return found


FILES = {"report.html": "report", "calibrate.html": "thresholds", "report.txt": "report, text",
         "report.json": "report, JSON", "report.csv": "hours and cost, CSV", "spec.yaml": "spec",
         "submit.sh": "commands", "provenance.json": "provenance"}  # fmt: skip
IN_ATTEMPT = ("submit.sh", "provenance.json")
MOST_PAGES = 20


def pages(place: StagePlace) -> list[str]:
    """The pages beside a stage's objects; those of a store are not listed."""
    if not place.folder or "://" in place.folder:
        return []
    try:
        names = [p.name for p in Path(place.folder).iterdir() if p.suffix == ".html" and regular(p)]
    except OSError:
        return []
    return sorted(names)[:MOST_PAGES]


def _busy(made: report.Report) -> float | None:
    """How busy the GPUs were, over all stages."""
    seen = sum(s.gpu.get("seconds", 0.0) for s in made.status.stages)
    return sum(s.gpu.get("busy", 0.0) for s in made.status.stages) / seen if seen else None


class _Figures(msgspec.Struct):
    figures: dict[str, dict[str, Any]] = {}


def figures(run: Run) -> dict[str, dict[str, Any]]:
    """What stages have measured, as the last report tells."""
    try:
        return msgspec.json.decode(run.report("json").read_bytes(), type=_Figures).figures
    except (OSError, msgspec.MsgspecError):
        return {}


def objects(place: StagePlace, shard: str, suffix: str) -> str:
    """The address of an object of a shard that is done. Raises FileNotFoundError."""
    if not place.folder or suffix not in place.objects or shard not in place.done:
        raise FileNotFoundError(f"{shard}{suffix}")
    return place.folder.rstrip("/") + f"/{shard}{suffix}"
