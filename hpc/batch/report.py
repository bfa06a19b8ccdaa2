"""A run's report: one gathering of facts, printed as text, JSON, an HTML page (page.py), CSV (accounting.py) and
Prometheus metrics (metrics.py)."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import (
    accounting,
    charts,
    counts,
    failure,
    health,
    jsons,
    masking,
    metrics,
    outcome,
    page,
    status,
    training,
)
from hpc.batch.outcome import code_of, shards_of
from hpc.batch.run import Run
from hpc.data.units import seconds


class Failed(msgspec.Struct):
    stage: str
    shard: str
    failure: str
    detail: str
    node: str
    job: str
    remedy: str


class Quarantined(msgspec.Struct):
    stage: str
    shard: str
    uri: str
    reason: str
    detail: str


class StageTime(msgspec.Struct):
    """Where one stage's time went, in seconds summed over its workers."""

    stage: str
    shards: int
    start: float
    """Interpreter, imports, models: once per worker process."""
    work: float
    publish: float
    rest: float
    """Between shards: hand-out, records."""
    median_shard: float
    slowest_shard: float
    requested_seconds: float
    longest_task: float
    spent: dict[str, float]
    """What `work` was spent on, if the stage says so; "other" is what it says nothing of."""
    frames_per_second: float
    """Of a worker, everything included; 0 where no frames are counted."""
    realtime: float
    """Seconds of video per second of a worker, everything included."""

    def speed(self) -> str:
        if not self.frames_per_second:
            return ""
        realtime = f", {self.realtime:.3g} x realtime" if self.realtime else ""
        return f"; a worker {self.frames_per_second:,.0f} frames/s{realtime}"


class Report(msgspec.Struct):
    status: status.Status
    provenance: dict[str, Any]
    made: str
    started: float
    wall_seconds: float
    times: list[StageTime]
    failures: list[Failed]
    quarantined: list[Quarantined]
    nodes: dict[str, int]
    """Node -> shards finished there."""
    advice: list[str]
    account: accounting.Account
    trainings: list[training.Training] = []
    attempts: int = 1
    cluster: str = ""
    scores: dict[str, Any] = {}
    """Stage -> hpc.curate.scores.Summary: what its filters measured."""
    findings: dict[str, list[dict[str, Any]]] = {}
    """Stage -> what it found wrong: [{"word", "count", "of", "examples": [text, ...]}, ...]."""
    figures: dict[str, dict[str, Any]] = {}
    """Stage -> what it has measured: hpc.batch.outcome.Outcome."""
    notes: list[str] = []
    """What could not be shown, and why."""


def build(run: Run, gathered: status.Gathered) -> Report:
    rows = gathered.status
    failures: list[Failed] = []
    bad: list[Quarantined] = []
    nodes: Counter[str] = Counter()
    times: list[StageTime] = []
    first: list[float] = []
    last: list[float] = []
    for name, fold in gathered.folds.items():
        wanted = set(gathered.scopes[name])
        for shard, record in sorted(fold.failed.items()):
            if shard in wanted:
                worker = fold.where[shard]
                remedy = failure.REMEDIES[record.failure].words
                failures.append(
                    Failed(name, shard, record.failure, record.detail, worker.node, worker.job, remedy)
                )  # fmt: skip
        for shard, record in sorted(fold.done.items()):
            bad += [Quarantined(name, shard, b.uri, b.reason, b.detail) for b in record.bad if shard in wanted]
            nodes[fold.where[shard].node] += 1
        own = [(w.t, t) for w, t in fold.workers.values() if w.run == run.id]
        first += [a for a, _ in own]
        last += [b for _, b in own]
        times.append(_times(name, fold, gathered.stages[name].resources.time))
    bad_nodes = health.told(run, health.Health())
    path = gathered.attempt.folder / "provenance.json"
    provenance = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    attempts = len(run.attempts())
    return Report(
        status=rows, provenance=provenance, account=accounting.of(gathered, provenance, run),
        trainings=[t for stage in gathered.stages.values() if (t := training.look(run, stage))],
        attempts=attempts, cluster=gathered.plan.cluster,
        made=time.strftime("%Y-%m-%d %H:%M:%S %Z"), started=min(first, default=0.0),
        wall_seconds=max(last, default=0.0) - min(first, default=0.0), times=times, failures=failures, quarantined=bad,
        nodes=dict(nodes), advice=_advice(rows, failures, times)
        + [f"{node} is not fit for work: {', '.join(one.words)}" for node, one in sorted(bad_nodes.items())],
    )  # fmt: skip


def _times(name: str, fold: status.records.Fold, requested: float) -> StageTime:
    done = list(fold.done.values())
    part = {k: sum(r.times.get(k, 0.0) for r in done) for k in ("start", "work", "publish")}
    shards = sorted(r.seconds for r in done)
    held = [last - w.t for w, last in fold.workers.values()]
    total = max(sum(held), sum(part.values()))
    counted: Counter[str] = Counter()
    for record in done:
        counted.update(record.counts)
    spent = counts.group(counted, "time")
    if spent:
        spent["other"] = max(0.0, part["work"] - sum(spent.values()))
    return StageTime(
        stage=name, shards=len(done), **part, rest=total - sum(part.values()),
        median_shard=shards[len(shards) // 2] if shards else 0.0, slowest_shard=shards[-1] if shards else 0.0,
        requested_seconds=float(requested), longest_task=max(held, default=0.0), spent=spent,
        frames_per_second=counted["frames"] / total if total else 0.0,
        realtime=counted["video_seconds"] / total if total else 0.0,
    )  # fmt: skip


def _advice(rows: status.Status, failures: list[Failed], times: list[StageTime]) -> list[str]:
    out = []
    if failures:
        classes = Counter(f.failure for f in failures)
        for name, n in classes.most_common():
            out.append(f"{n} shard{'s' * (n > 1)} failed ({name}): {failure.REMEDIES[name].words}")
        out.append(f"next: hpc logs {rows.run} --failed; hpc retry {rows.run}")
    elif rows.state == "incomplete":
        out.append(f"some shards are missing: hpc retry {rows.run}")
    for t in times:
        if t.shards >= 10 and t.longest_task and t.requested_seconds > 4 * t.longest_task + 600:
            propose = max(600, 2 * t.longest_task)
            out.append(
                f"stages.{t.stage}.resources.time is {seconds(t.requested_seconds)}, the longest task took "
                f"{seconds(t.longest_task)}: ask for {seconds(propose)} and wait less in the queue"
            )
    return out


def text(report: Report) -> str:
    p = report.provenance
    out = status.lines(report.status)
    for s in report.status.stages:
        facts = counts.words(s.counts)
        if facts:
            out.append(f"  {s.stage:<12} {', '.join(facts)}")
        if s.folder:
            out.append(f"  {'':<12} {s.folder}")
    for stage, summary in report.scores.items():
        out += _scores(stage, summary)
    for stage, found in report.findings.items():
        for one in found:
            example = f", e.g. {one['examples'][0][:160]}" if one["examples"] else ""
            out.append(f"  {stage:<12} {one['word']}: {one['count']:,} of {one['of']:,}{example}")
    for stage, told in report.figures.items():
        out.append(f"  {stage:<12} {told['of']}")
        out += [f"    {one['name']:<22} {outcome.words(one)}" for one in told["rows"]]
    for t in report.times:
        if t.shards:
            inside = ", ".join(f"{on} {v:.1f}" for on, v in t.spent.items())
            out.append(
                f"  {t.stage:<12} time: start {t.start:.1f} s, work {t.work:.1f} s{f' ({inside})' * bool(inside)}, "
                f"publish {t.publish:.1f} s, rest {t.rest:.1f} s; "
                f"a shard {t.median_shard:.1f} s (slowest {t.slowest_shard:.1f} s){t.speed()}"
            )
    for f in report.failures[:10]:
        out.append(f"  failed: {f.stage} {f.shard} on {f.node}: {f.failure}: {f.detail[:200]}")
    for q in report.quarantined[:10]:
        out.append(f"  quarantined: {q.uri}: {q.reason}: {q.detail[:200]}")
    if len(report.failures) > 10 or len(report.quarantined) > 10:
        out.append(f"  ... all of them in {report.status.folder}/report.json")
    out += [f"  {t.stage:<12} {t.words()}" for t in report.trainings]
    a = report.account
    git = p.get("git", {})
    code = (git.get("sha") or "unversioned")[:12] + ("+changes" if git.get("changed") else "")
    out.append(
        f"  took {seconds(report.wall_seconds)} from first to last record; "
        f"{accounting.hours(a)}; "
        f"spec {p.get('spec_hash', '')}, code {code}"
    )
    out += [f"  {a}" for a in report.advice]
    return "\n".join(out)


def _scores(stage: str, summary: Any) -> list[str]:
    s = summary.sampled
    out = [f"  {stage:<12} scores of {s.clips:,} clips, from {s.shards} of {s.of} shards"]
    for h in summary.histograms:
        said = [charts.keeps(limit) for limit in h.limits] if h.measured else []
        said += [f"{h.measured:,} measured"] if h.measured < h.clips else []
        said += ["score-only"] if h.mode == "score-only" else []
        axis = f"{h.low:>6.4g} |{charts.sparkline(h.bins)}| {h.high:<6.4g}"
        out.append(f"    {h.column:<22} {axis} {', '.join(said)}".rstrip())
    return out


def scores(gathered: status.Gathered) -> dict[str, Any]:
    """Stage -> hpc.curate.scores.Summary, of the stages that have filters."""
    found = {}
    for name in gathered.stages:
        shards = shards_of(gathered, name)
        settings, code = code_of(gathered, name)
        if shards and hasattr(code, "scores") and (summary := code.scores(settings, shards)):
            found[name] = summary
    return found


def findings(gathered: status.Gathered) -> dict[str, list[dict[str, Any]]]:
    """Of the stages whose code tells what it found wrong: `findings(shards)`."""
    found = {}
    for name in gathered.stages:
        shards = shards_of(gathered, name)
        _, code = code_of(gathered, name)
        if shards and hasattr(code, "findings") and (told := code.findings(shards)):
            found[name] = told
    return found


def write(run: Run, gathered: status.Gathered) -> Report:
    """All forms, into the run folder."""
    report = build(run, gathered)
    made = outcome.outcome(gathered)
    report.figures = made.figures
    report.notes += made.notes
    # A stage's own code, or none of it on this node; a table that cannot be read: the report is written all the same.
    try:
        report.scores = scores(gathered)
    except Exception as error:
        report.notes.append(f"no scores: {type(error).__name__}: {error}")
    try:
        report.findings = findings(gathered)
    except Exception as error:
        report.notes.append(f"no findings: {type(error).__name__}: {error}")
    forms = {
        "txt": text(report) + "\n",
        "json": jsons.pretty(report).decode(),
        "html": page.page(report, made),
        "csv": accounting.table([report.account]),
        "prom": metrics.text([metrics.of(report)]),
    }
    hidden = masking.values(masking.named(run.spec))
    for form, content in forms.items():
        replace(run.report(form), masking.without(content, hidden))
    return report


def replace(path: Path, content: str) -> None:
    temp = path.with_name(f".{path.name}")
    temp.write_text(content)
    temp.rename(path)
