"""A run's report: one gathering of facts, printed as text, JSON, an HTML page and Prometheus metrics.

The page stands alone: no script, no other host, thumbnails inside. Everything that came from outside (names, paths,
error texts) is escaped.
"""

from __future__ import annotations

import base64
import html
import importlib
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import failure, jsons, status
from hpc.batch.run import Run, StagePlan
from hpc.batch.spec import settings_of
from hpc.data import storage
from hpc.data.units import seconds, size

THUMBNAILS = 60
SHOWN = 200
"""Failures and quarantined inputs on the page; report.json has all of them."""


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
    spent = sorted(r.seconds for r in done)
    held = [last - w.t for w, last in fold.workers.values()]
    return StageTime(
        stage=name, shards=len(done), **part, rest=max(0.0, sum(held) - sum(part.values())),
        median_shard=spent[len(spent) // 2] if spent else 0.0, slowest_shard=spent[-1] if spent else 0.0,
        requested_seconds=float(requested), longest_task=max(held, default=0.0),
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
        known = {k: v for k, v in s.counts.items() if v and not k.startswith("time_")}
        facts = [_count(k, v) for k, v in known.items()]
        if facts:
            out.append(f"  {s.stage:<12} {', '.join(facts)}")
        if s.folder:
            out.append(f"  {'':<12} {s.folder}")
    for t in report.times:
        if t.shards:
            out.append(
                f"  {t.stage:<12} time: start {t.start:.1f} s, work {t.work:.1f} s, publish {t.publish:.1f} s, "
                f"rest {t.rest:.1f} s; a shard {t.median_shard:.1f} s (slowest {t.slowest_shard:.1f} s)"
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


def _count(name: str, value: float) -> str:
    words = name.replace("_", " ")
    if name.endswith("_seconds"):
        return f"{seconds(value)} of {words.removesuffix(' seconds')}"
    if name.startswith("bytes"):
        return f"{size(value)} {words.removeprefix('bytes ')}"
    return f"{value:,.0f} {words.removesuffix('s') if value == 1 else words}"


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
        if "video_seconds" in r.counts:
            add("hpc_run_video_seconds_total", "counter", "Video gone through.", label, r.counts["video_seconds"])
        add("hpc_run_last_progress_timestamp_seconds", "gauge", "Time of the last record.", label, r.last)
    return "".join("\n".join(rows) + "\n" for rows in out.values())


def gallery(gathered: status.Gathered, limit: int = THUMBNAILS) -> list[tuple[str, str, bytes]]:
    """Thumbnails from the first stage that has any, a few from each of shards spread over the whole run."""
    for name, fold in gathered.folds.items():
        stage = gathered.stages[name]
        code = importlib.import_module(settings_of(stage.kind, stage.settings).CODE)
        if hasattr(code, "gallery"):
            return _pick(code.gallery, stage, fold, gathered.scopes[name], limit)
    return []


def _pick(
    of_shard: Callable, stage: StagePlan, fold: status.records.Fold, scope: list[str], limit: int
) -> list[tuple[str, str, bytes]]:
    shards = [s for s in scope if s in fold.done and fold.done[s].counts.get("clips")]
    chosen = shards[:: max(1, len(shards) // 12)][:12]
    out: list[tuple[str, str, bytes]] = []
    for i, shard in enumerate(chosen):
        objects = {suffix: storage.join(stage.folder, shard + suffix) for suffix in stage.objects}
        out += of_shard(
            lambda suffix, objects=objects: storage.open(objects[suffix]), -(-(limit - len(out)) // (len(chosen) - i))
        )
    return out


STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--good:#2a9d4a;--bad:#d33}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{white-space:nowrap;font-weight:600}td.bad{color:var(--bad);font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.9em;overflow-wrap:anywhere}
.bar{background:#8883;height:.6rem;border-radius:.3rem;min-width:6rem;margin-top:.45rem}
.bar i{display:block;height:100%;border-radius:.3rem;background:var(--good)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:.8rem}
figure{margin:0;overflow-wrap:anywhere}figure img{width:100%;border-radius:.3rem;display:block}
figcaption{font-size:.8rem;line-height:1.35;margin-top:.25rem;color:var(--dim)}
.advice{border-left:.25rem solid var(--dim);background:#8881;padding:.5rem .9rem;margin:1rem 0}
.advice.failed,.advice.incomplete{border-color:var(--bad)}.advice p{margin:.15rem 0}
.state{padding:.15rem .7rem;border-radius:1rem;color:#fff;background:var(--dim);font-size:.9rem;vertical-align:.2em}
.state.done{background:var(--good)}.state.failed,.state.incomplete{background:var(--bad)}
.scroll{overflow-x:auto}
"""


def page(report: Report, pictures: list[tuple[str, str, bytes]], note: str = "") -> str:
    e = lambda v: html.escape(str(v))
    code = lambda v: re.sub(r"`([^`]+)`", r"<code>\1</code>", e(v))
    s, p = report.status, report.provenance
    git = p.get("git", {})
    out = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{e(s.run)}</title><style>{STYLE}</style>",
        f"<h1>{e(s.run)} <span class='state {e(s.state)}'>{e(s.state)}</span></h1>",
        f"<p class=dim>attempt {s.attempt}, {seconds(report.wall_seconds)} from first to last record, "
        f"spec {e(p.get('spec_hash', ''))}, code {e((git.get('sha') or 'unversioned')[:12])}"
        f"{' with local changes' if git.get('changed') else ''}, "
        f"by {e(p.get('user', '?'))} on {e(p.get('host', '?'))}; written {e(report.made)}<br>",
        f"<code>{e(s.folder)}</code></p>",
    ]
    if report.advice:
        words = "".join(f"<p>{code(a)}</p>" for a in report.advice)
        out.append(f"<div class='advice {e(s.state)}'>{words}</div>")
    out.append("<h2>Stages</h2><div class=scroll><table><tr><th>stage<th>progress<th class=n>shards<th class=n>failed"
               "<th class=n>quarantined<th>made<th class=n>CPU-hours<th class=n>GPU-hours</tr>")  # fmt: skip
    for r in s.stages:
        made = ", ".join(_count(k, v) for k, v in r.counts.items() if v)
        out.append(
            f"<tr><td>{e(r.stage)}<br><span class=dim>{e(r.kind)}</span>"
            f"<td><div class=bar><i style='width:{100 * r.fraction:.1f}%'></i></div>"
            f"<td class=n>{r.done}/{r.shards or '?'}<td class='n bad'>{r.failed or ''}<td class=n>{r.quarantined or ''}"
            f"<td>{e(made)}<br><code class=dim>{e(r.folder)}</code>"
            f"<td class=n>{r.cpu_seconds_held / 3600:.2f}<td class=n>{r.gpu_seconds / 3600:.2f}</tr>"
        )
    columns = ("start", "work", "publish", "rest", "median shard", "slowest shard", "longest task", "time limit")
    head = "".join(f"<th class=n>{c}" for c in columns)
    out.append(f"</table></div><h2>Where the time went</h2><div class=scroll><table><tr><th>stage{head}</tr>")
    for t in (t for t in report.times if t.shards):
        cells = [f"{v:.1f} s" for v in (t.start, t.work, t.publish, t.rest, t.median_shard, t.slowest_shard)]
        cells += [seconds(t.longest_task), seconds(t.requested_seconds)]
        out.append(f"<tr><td>{e(t.stage)}" + "".join(f"<td class=n>{c}" for c in cells) + "</tr>")
    out.append("</table></div>")
    if report.failures:
        head = "".join(f"<th>{c}" for c in ("stage", "shard", "class", "what", "node", "what now"))
        out.append(f"<h2>Failures</h2><div class=scroll><table><tr>{head}</tr>")
        for f in report.failures[:SHOWN]:
            out.append(f"<tr><td>{e(f.stage)}<td>{e(f.shard)}<td>{e(f.failure)}<td><code>{e(f.detail)}</code>"
                       f"<td>{e(f.node)}<td>{code(f.remedy)}</tr>")  # fmt: skip
        out.append("</table></div>")
    if report.quarantined:
        out.append("<h2>Quarantined inputs</h2><div class=scroll><table><tr><th>input<th>reason<th>what</tr>")
        for q in report.quarantined[:SHOWN]:
            out.append(f"<tr><td><code>{e(q.uri)}</code><td>{e(q.reason)}<td>{e(q.detail)}</tr>")
        out.append("</table></div>")
    left = max(0, len(report.failures) - SHOWN) + max(0, len(report.quarantined) - SHOWN)
    if left:
        out.append(f"<p class=dim>{left} more rows in report.json</p>")
    if pictures:
        out.append(f"<h2>Clips <span class=dim>({len(pictures)} shown)</span></h2><div class=grid>")
        for title, subtitle, webp in pictures:
            data = base64.b64encode(webp).decode()
            out.append(
                f"<figure><img loading=lazy alt='{html.escape(title, quote=True)}' src='data:image/webp;base64,{data}'>"
                f"<figcaption>{e(title)}<br>{e(subtitle)}</figcaption></figure>"
            )
        out.append("</div>")
    if note:
        out.append(f"<p class=dim>{e(note)}</p>")
    return "\n".join(out) + "\n"


def write(run: Run, gathered: status.Gathered) -> Report:
    """All forms, into the run folder."""
    report = build(run, gathered)
    pictures, note = [], ""
    try:
        pictures = gallery(gathered)
    except Exception as error:  # a stage's own code, or none of it on this node: the report is written all the same
        note = f"no thumbnails: {type(error).__name__}: {error}"
    forms = {
        "txt": text(report) + "\n",
        "json": jsons.pretty(report).decode(),
        "html": page(report, pictures, note),
        "prom": prometheus(report),
    }
    for form, content in forms.items():
        _replace(run.report(form), content)
    return report


def _replace(path: Path, content: str) -> None:
    temp = path.with_name(f".{path.name}")
    temp.write_text(content)
    temp.rename(path)
