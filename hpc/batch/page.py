"""The report as a page that stands alone: no script, no other host; thumbnails, videos and charts are inside. The pages
that stages have written are linked to, relative to the run folder.

Everything that came from outside (names, paths, error texts) is escaped.
"""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.batch import charts, counts, outcome
from hpc.data.units import seconds, size

if TYPE_CHECKING:
    from hpc.batch.accounting import Account
    from hpc.batch.outcome import Gallery, Outcome
    from hpc.batch.report import Report, StageTime

SHOWN = 200
"""Failures and quarantined inputs on the page; report.json has all of them."""

STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--good:#2a9d4a;--bad:#d33;--may:#d9822b;--new:#3b82c4}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{white-space:nowrap;font-weight:600}td.made{min-width:16rem}td.bad{color:var(--bad);font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}code{font-size:.9em;overflow-wrap:anywhere}
.bar{background:#8883;height:.6rem;border-radius:.3rem;min-width:6rem;margin-top:.45rem}
.bar i{display:block;height:100%;border-radius:.3rem;background:var(--good)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:.8rem}
.grid.small{grid-template-columns:repeat(auto-fill,minmax(135px,1fr))}
figure{margin:0;overflow-wrap:anywhere}figure img{width:100%;border-radius:.3rem;display:block}
.none{aspect-ratio:16/9;border-radius:.3rem;background:#8882;color:var(--dim);display:grid;place-items:center}
figcaption{font-size:.8rem;line-height:1.35;margin-top:.25rem;color:var(--dim)}
.advice{border-left:.25rem solid var(--dim);background:#8881;padding:.5rem .9rem;margin:1rem 0}
.advice.failed,.advice.incomplete{border-color:var(--bad)}.advice p{margin:.15rem 0}
.state{padding:.15rem .7rem;border-radius:1rem;color:#fff;background:var(--dim);font-size:.9rem;vertical-align:.2em}
.state.done{background:var(--good)}.state.failed,.state.incomplete{background:var(--bad)}
.scroll{overflow-x:auto}pre{background:#8881;padding:.7rem .9rem;border-radius:.3rem;overflow-x:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:1.4rem 1.6rem}
h3{font-size:.95rem;margin:0 0 .1rem;overflow-wrap:anywhere}.small{font-size:.85rem;line-height:1.4;margin:.2rem 0}
.badge{font-size:.8rem;font-weight:400;padding:.05rem .5rem;border-radius:.7rem;background:#8882;white-space:nowrap}
"""


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data: 'self'; form-action 'none'"
"""What the page may load: were something of it not escaped, it would not run all the same."""


def head(title: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>\n"
        f"<meta http-equiv=Content-Security-Policy content=\"{POLICY}\">\n"
        "<meta name=viewport content='width=device-width,initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title><style>{STYLE}{charts.STYLE}</style>"
    )


def figure(title: str, subtitle: str, webp: bytes) -> str:
    e = lambda v: html.escape(v, quote=True)
    data = base64.b64encode(webp).decode()
    picture = f"<img loading=lazy alt='{e(title)}' src='data:image/webp;base64,{data}'>"
    if not webp:
        picture = "<div class=none>not kept: no picture</div>"
    return f"<figure>{picture}<figcaption>{e(title)}<br>{e(subtitle)}</figcaption></figure>"


def shown(what: str, gallery: Gallery) -> list[str]:
    of = f"of {html.escape(gallery.stage)}, {len(gallery.pictures)} shown"
    return [f"<h2>{what} <span class=dim>{of}</span></h2><div class=grid>",
            *(figure(*picture) for picture in gallery.pictures), "</div>"]  # fmt: skip


def filters(stage: str, clips: dict[str, float], summary: Any) -> list[str]:
    """What became of a stage's clips, and the histograms of their scores."""
    e = lambda v: html.escape(str(v))
    out = [f"<h2>Filters <span class=dim>of {e(stage)}</span></h2>", charts.bar(clips, "")]
    if summary is None:
        return out
    s = summary.sampled
    out.append(f"<p class=dim>scores of {s.clips:,} clips, from {s.shards} of {s.of} shards"
               + (f"; {len(s.unreadable)} could not be read, e.g. {e(s.unreadable[0])}" if s.unreadable else "")
               + "</p><div class=charts>")  # fmt: skip
    for h in summary.histograms:
        limits = [limit for limit in h.limits if limit.now is not None]
        out.append(f"<div><h3>{e(h.column)} <span class=badge>{e(h.mode)}</span></h3>")
        out.append(f"<p class='small dim'>{e(h.words)}</p>")
        if h.measured:
            marks = [(charts.keeps(limit), limit.now, "now") for limit in limits]
            out.append(charts.histogram(h, marks, [(limit.side, limit.now) for limit in limits]))
        measured = f"{h.measured:,} of {h.clips:,} clips measured" if h.measured < h.clips else ""
        median = f"median {h.median:.4g}" if h.median is not None else ""
        lines = ["; ".join(filter(None, (measured, median))), *map(charts.thresholds, h.limits if h.measured else ())]
        out.append(f"<p class='small dim'>{'<br>'.join(e(line) for line in lines if line)}</p></div>")
    return [*out, "</div>"]


def time(t: StageTime) -> str:
    parts = {"start": t.start, **(t.spent or {"work": t.work}), "publish": t.publish, "rest": t.rest}
    total = f"{sum(parts.values()):,.1f} s of workers{t.speed()}"
    return f"<h3>{html.escape(t.stage)} <span class=dim>{total}</span></h3>" + charts.bar(
        {on: v for on, v in parts.items() if v >= 0.05} or parts
    )


def account(a: Account, title: str = "Asked for and used") -> list[str]:
    """What was asked for, held, used and paid, stage by stage."""
    e = lambda v: html.escape(str(v))
    share = lambda v: "" if v is None else charts.percent(v)
    columns = ("CPU-hours", "GPU-hours", "GPUs busy", "kWh", f"cost {a.currency}", "time asked", "longest task", "next",
               "memory asked", "held", "next")  # fmt: skip
    out = [f"<h2>{e(title)}</h2><div class=scroll><table><tr><th>stage"
           + "".join(f"<th class=n>{e(c)}" for c in columns) + "</tr>"]  # fmt: skip
    for u in (u for u in a.stages if u.tasks):
        cells = [f"{u.cpu_hours:,.2f}", f"{u.gpu_hours:,.2f}", share(u.gpu_utilization)]
        cells += ["" if v is None else f"{v:,.2f}" for v in (u.energy_kwh, u.cost)]
        cells += [seconds(v) if v else "" for v in (u.requested_time, u.used_time, u.next_time)]
        cells += [size(v) if v else "" for v in (u.requested_memory, u.used_memory, u.next_memory)]
        out.append(f"<tr><td>{e(u.stage)}" + "".join(f"<td class=n>{e(c)}" for c in cells) + "</tr>")
    source = "Slurm's accounting" if any(u.from_slurm for u in a.stages) else "the run's own records"
    return [*out, f"</table></div><p class='small dim'>Hours are those of {source}; memory is one worker's.</p>"]


def figures(stage: str, told: dict[str, Any]) -> list[str]:
    """What a stage has measured."""
    e = lambda v: html.escape(str(v))
    out = [f"<h2>Evaluation <span class=dim>{e(stage)}: {e(told['of'])}</span></h2><div class=scroll><table>"
           "<tr><th>figure<th class=n>value<th class=n>interval<th class=n>n<th></tr>"]  # fmt: skip
    for one in told["rows"]:
        unit = f" {e(one['unit'])}" if one["unit"] else ""
        value = "none" if one["value"] is None else f"{one['value']:.4g}{unit}"
        span = "" if one["low"] is None else f"{one['low']:.4g} to {one['high']:.4g}"
        better = f"{one['better']} is better" if one["better"] else ""
        said = "; ".join(word for word in (better, one["band"], one["note"]) if word)
        out.append(f"<tr><td>{e(one['name'])}<td class=n>{value}<td class=n>{span}<td class=n>{one['n']:,}"
                   f"<td class='dim small'>{e(said)}</tr>")  # fmt: skip
    return [*out, "</table></div>"]


def page(report: Report, came: Outcome) -> str:
    e = lambda v: html.escape(str(v))
    code = lambda v: re.sub(r"`([^`]+)`", r"<code>\1</code>", e(v))
    s, p = report.status, report.provenance
    git = p.get("git", {})
    out = [
        head(s.run),
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
        made = ", ".join(counts.words(r.counts))
        out.append(
            f"<tr><td>{e(r.stage)}<br><span class=dim>{e(r.kind)}</span>"
            f"<td><div class=bar><i style='width:{100 * r.fraction:.1f}%'></i></div>"
            f"<td class=n>{r.done}/{r.shards or '?'}<td class='n bad'>{r.failed or ''}<td class=n>{r.quarantined or ''}"
            f"<td class=made>{e(made)}<br><code class=dim>{e(r.folder)}</code>"
            f"<td class=n>{r.cpu_seconds_held / 3600:.2f}<td class=n>{r.gpu_seconds / 3600:.2f}</tr>"
        )
    out.append("</table></div>")
    folder = Path(s.folder)
    links = [(stage, link) for stage, uris in came.pages.items() for uri in uris if (link := outcome.link(uri, folder))]
    if links:
        said = ", ".join(f"<a href='{e(link)}'>{e(stage)}</a>" for stage, link in links)
        out.append(f"<p>Pages of their own: {said}</p>")
    clips = [one for one in came.galleries if one.kind == "curate.clips"]
    for stage, told in came.figures.items():
        out += figures(stage, told)
    out += [line for one in came.galleries if one not in clips for line in shown("Videos", one)]
    for stage, curves in came.curves.items():
        words = next((t.words() for t in report.trainings if t.stage == stage), "")
        out += [f"<h2>Training <span class=dim>of {e(stage)}: {e(words)}</span></h2><div class=charts>",
                *(f"<div>{curve}</div>" for curve in curves), "</div>"]  # fmt: skip
    for r in s.stages:
        summary = report.scores.get(r.stage)
        if summary is not None or r.counts.get("dropped"):
            out += filters(r.stage, {"kept": r.counts.get("clips", 0.0), **counts.group(r.counts, "dropped")}, summary)
    for stage, found in report.findings.items():
        out.append(f"<h2>Captions to look at <span class=dim>of {e(stage)}</span></h2><div class=scroll><table>"
                   "<tr><th>flag<th class=n>windows<th>examples</tr>")  # fmt: skip
        for one in found:
            share = f"{one['count']:,} of {one['of']:,}"
            examples = "".join(f"<p class=small>{e(text)}</p>" for text in one["examples"])
            out.append(f"<tr><td>{e(one['word'])}<td class=n>{share}<td>{examples}</tr>")
        out.append("</table></div>")
    out += [f"<p><b>{e(t.stage)}</b> {e(t.words())}</p>" for t in report.trainings if t.stage not in came.curves]
    out.append("<h2>Where the time went</h2>")
    out += [time(t) for t in report.times if t.shards]
    columns = ("start", "work", "publish", "rest", "median shard", "slowest shard", "longest task", "time limit")
    heads = "".join(f"<th class=n>{c}" for c in columns)
    out.append(f"<div class=scroll><table><tr><th>stage{heads}</tr>")
    for t in (t for t in report.times if t.shards):
        cells = [f"{v:,.1f} s" for v in (t.start, t.work, t.publish, t.rest, t.median_shard, t.slowest_shard)]
        cells += [seconds(t.longest_task), seconds(t.requested_seconds)]
        out.append(f"<tr><td>{e(t.stage)}" + "".join(f"<td class=n>{c}" for c in cells) + "</tr>")
    out.append("</table></div>")
    out += account(report.account)
    if report.failures:
        heads = "".join(f"<th>{c}" for c in ("stage", "shard", "class", "what", "node", "what now"))
        out.append(f"<h2>Failures</h2><div class=scroll><table><tr>{heads}</tr>")
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
    out += [line for one in clips for line in shown("Clips", one)]
    out += [f"<p class=dim>{e(note)}</p>" for note in report.notes]
    return "\n".join(out) + "\n"
