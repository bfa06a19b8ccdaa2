"""A run's report: one gathering of facts, printed as text, JSON, an HTML page (page.py) and Prometheus metrics."""

from __future__ import annotations

import functools
import importlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hpc.batch import charts, counts, failure, jsons, page, status
from hpc.batch.run import Run
from hpc.batch.spec import settings_of
from hpc.data import storage
from hpc.data.units import seconds

THUMBNAILS = 60


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
    scores: dict[str, Any] = {}
    """Stage -> hpc.curate.scores.Summary: what its filters measured."""
    findings: dict[str, list[dict[str, Any]]] = {}
    """Stage -> what it found wrong: [{"word", "count", "of", "examples": [text, ...]}, ...]."""
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
    path = gathered.attempt.folder / "provenance.json"
    return Report(
        status=rows, provenance=msgspec.json.decode(path.read_bytes()) if path.exists() else {},
        made=time.strftime("%Y-%m-%d %H:%M:%S %Z"), started=min(first, default=0.0),
        wall_seconds=max(last, default=0.0) - min(first, default=0.0), times=times, failures=failures, quarantined=bad,
        nodes=dict(nodes), advice=_advice(rows, failures, times),
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
    gpu_hours = sum(s.gpu_seconds for s in report.status.stages) / 3600
    git = p.get("git", {})
    code = (git.get("sha") or "unversioned")[:12] + ("+changes" if git.get("changed") else "")
    out.append(
        f"  took {seconds(report.wall_seconds)} from first to last record; "
        f"{sum(s.cpu_seconds_held for s in report.status.stages) / 3600:.2f} CPU-hours, {gpu_hours:.2f} GPU-hours; "
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


def prometheus(report: Report) -> str:
    """Metrics for node_exporter's textfile collector. Labels stay few: no job id, shard or node."""
    e = lambda v: str(v).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    s, p = report.status, report.provenance
    run = f'run="{e(s.run)}"'
    out: dict[str, list[str]] = {}

    def add(name: str, kind: str, about: str, labels: str, value: float) -> None:
        rows = out.setdefault(name, [f"# HELP {name} {about}", f"# TYPE {name} {kind}"])
        rows.append(f"{name}{{{labels}}} {value:.10g}")

    facts = {"spec": p.get("spec_hash", ""), "git_sha": p.get("git", {}).get("sha", ""), "user": p.get("user", "")}
    info = ",".join([run, *(f'{k}="{e(v)}"' for k, v in facts.items())])
    add("hpc_run_info", "gauge", "What the run is.", info, 1)
    for r in s.stages:
        label = f'{run},stage="{e(r.stage)}"'
        for state in ("done", "failed", "running", "missing"):
            add("hpc_run_shards", "gauge", "Shards by state.", f'{label},state="{state}"', getattr(r, state))
        for word, n in r.tasks.items():
            add("hpc_run_tasks", "gauge", "Array tasks by Slurm state.", f'{label},state="{e(word.lower())}"', n)
        add("hpc_run_quarantined_inputs", "gauge", "Inputs that can never work.", label, r.quarantined)
        add("hpc_run_gpu_seconds_total", "counter", "GPU time held.", label, r.gpu_seconds)
        add("hpc_run_cpu_seconds_total", "counter", "CPU time held.", label, r.cpu_seconds_held)
        for why, clips in {"keep": r.counts.get("clips", 0.0), **counts.group(r.counts, "dropped")}.items():
            if "dropped" in r.counts:
                add("hpc_run_clips", "gauge", "Clips by verdict.", f'{label},verdict="{e(why)}"', clips)
        for h in report.scores[r.stage].histograms if r.stage in report.scores else ():
            for limit in h.limits:
                if limit.now is not None:
                    which = f'{label},score="{e(h.column)}",limit="{limit.side}"'
                    about = "Share of the measured clips that a filter's limit keeps."
                    add("hpc_run_limit_keeps_ratio", "gauge", about, which, limit.keeps)
        if "video_seconds" in r.counts:
            add("hpc_run_video_seconds_total", "counter", "Video gone through.", label, r.counts["video_seconds"])
        add("hpc_run_last_progress_timestamp_seconds", "gauge", "Time of the last record.", label, r.last)
    for t in report.times:
        spent = {"start": t.start, **(t.spent or {"work": t.work}), "publish": t.publish, "rest": t.rest}
        for on, value in spent.items() if t.shards else ():
            label = f'{run},stage="{e(t.stage)}",on="{e(on)}"'
            add("hpc_run_spent_seconds_total", "counter", "Workers' time by what it was spent on.", label, value)
    return "".join("\n".join(rows) + "\n" for rows in out.values())


def shards_of(gathered: status.Gathered, stage: str) -> dict[str, Callable[[str], BinaryIO]]:
    """Shard that is done -> open(suffix), which opens its published object with that suffix."""
    folder, fold = gathered.stages[stage].folder, gathered.folds[stage]
    opener = lambda shard, suffix: storage.open(storage.join(folder, shard + suffix))
    return {shard: functools.partial(opener, shard) for shard in gathered.scopes[stage] if shard in fold.done}


def code_of(gathered: status.Gathered, stage: str) -> tuple[Any, Any]:
    """(settings, module) of a stage. Raises whatever a stage of one's own can when it is imported."""
    plan = gathered.stages[stage]
    settings = settings_of(plan.kind, plan.settings)
    return settings, importlib.import_module(settings.CODE)


def gallery(gathered: status.Gathered, limit: int = THUMBNAILS) -> list[tuple[str, str, bytes]]:
    """Thumbnails from the first stage that has any, a few from each of shards spread over the whole run."""
    for name, fold in gathered.folds.items():
        _, code = code_of(gathered, name)
        if hasattr(code, "gallery"):
            shards = [s for s in shards_of(gathered, name).items() if fold.done[s[0]].counts.get("clips")]
            chosen = shards[:: max(1, len(shards) // 12)][:12]
            out: list[tuple[str, str, bytes]] = []
            for i, (_, open_object) in enumerate(chosen):
                out += code.gallery(open_object, -(-(limit - len(out)) // (len(chosen) - i)))
            return out
    return []


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
    pictures: list[tuple[str, str, bytes]] = []
    # A stage's own code, or none of it on this node; a table that cannot be read: the report is written all the same.
    try:
        pictures = gallery(gathered)
    except Exception as error:
        report.notes.append(f"no thumbnails: {type(error).__name__}: {error}")
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
        "html": page.page(report, pictures),
        "prom": prometheus(report),
    }
    for form, content in forms.items():
        replace(run.report(form), content)
    return report


def replace(path: Path, content: str) -> None:
    temp = path.with_name(f".{path.name}")
    temp.write_text(content)
    temp.rename(path)
