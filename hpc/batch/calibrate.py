"""`hpc calibrate`: thresholds for the filters of a run, from the scores of its own clips.

Text, JSON, and a page with the clips on both sides of each threshold. What is proposed is said by the stage
(hpc.curate.scores); nothing of a spec is changed: a person pastes the block.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from hpc.batch import charts, page, report, status
from hpc.batch.run import Run

if TYPE_CHECKING:  # numpy is not for a login node
    from hpc.curate.scores import Calibration, Example, Histogram, Proposal

EXAMPLES = 3  # in the text, on each side of a threshold


def calibrate(run: Run, stage: str | None, keep: float) -> tuple[str, Calibration]:
    """(stage, its calibration), which is also written as a page. stage: None if only one has filters. Raises ValueError
    when there is nothing to calibrate, or too few clips."""
    if not 0.5 <= keep < 1:
        raise ValueError(f"--keep {keep:g}: a share of the clips from 0.5 to less than 1, e.g. 0.9")
    gathered = status.gather(run, ask_slurm=False)
    if stage is not None and stage not in gathered.stages:
        raise ValueError(f"no stage {stage}; {run.id} has {', '.join(gathered.stages)}")
    for name in [stage] if stage else list(gathered.stages):
        settings, code = report.code_of(gathered, name)
        if hasattr(code, "calibrate"):
            shards = report.shards_of(gathered, name)
            found = code.calibrate(settings, shards, keep)
            pictures = {one.uuid: _picture(shards, one) for p in found.proposals for one in (*p.dropped, *p.kept)}
            report.replace(run.folder / "calibrate.html", html_page(run, name, found, pictures))
            return name, found
    raise ValueError(f"{stage or 'no stage of ' + run.id} has no filters whose scores could be calibrated")


def _picture(shards: dict[str, Any], one: Example) -> bytes:
    """WebP; nothing for a clip that was dropped, or whose shard cannot be read."""
    if one.webp is None:
        return b""
    try:
        with shards[one.shard](".tar") as file:
            file.seek(one.webp[0])
            return file.read(one.webp[1])
    except Exception:  # the page is worth having without this picture
        return b""


def rests_on(found: Calibration) -> str:
    s = found.sampled
    unreadable = f"; {len(s.unreadable)} tables could not be read, e.g. {s.unreadable[0]}" if s.unreadable else ""
    return f"{s.clips:,} clips with scores, from {s.shards} of {s.of} shards{unreadable}"


def clip(one: Example) -> str:
    return f"{one.start_seconds:.2f} s to {one.end_seconds:.2f} s, {one.score:.4g}"


def proposed(p: Proposal) -> str:
    """As in "min_global: 0.00071 keeps 90 % (now 0.00098, 83 %); a gap at 0.0005 keeps 96 %"."""
    now = f"now {charts.keeps(p.limit)}"
    gap = f"; a gap at {p.gap:.4g} keeps {charts.percent(p.gap_keeps)}" if p.gap is not None else ""
    if p.value is None:
        return f"{p.limit.setting}: no other value drops some clips and keeps enough ({now}){gap}"
    return f"{p.limit.setting}: {p.text} keeps {charts.percent(p.keeps)} ({now}){gap}"


def text(run: Run, stage: str, found: Calibration) -> list[str]:
    out = [f"{run.id}  {stage}: {rests_on(found)}; each threshold is to keep {charts.percent(found.keep)}"]
    shown: dict[str, Histogram] = {h.column: h for h in found.histograms}
    for p in found.proposals:
        h = shown[p.limit.column]
        if h.measured:
            out.append("")
            out.append(f"{p.limit.filter}.{proposed(p)}")
            out.append(
                f"  {p.limit.column} {h.low:.4g} |{charts.sparkline(h.bins)}| {h.high:.4g}, {h.measured:,} measured"
            )
            for word, clips in (("dropped", p.dropped), ("kept", p.kept)):
                out += [f"  {word:<8} {one.uuid}  {one.source}  {clip(one)}" for one in clips[:EXAMPLES]]
    out += ["", together(found), "", found.yaml.rstrip()]
    return out


def together(found: Calibration) -> str:
    return (
        f"all together: the proposed thresholds keep {charts.percent(found.keeps)} of the clips; "
        f"those of the spec {charts.percent(found.keeps_now)}"
    )


def html_page(run: Run, stage: str, found: Calibration, pictures: dict[str, bytes]) -> str:
    e = lambda v: html.escape(str(v))
    shown: dict[str, Histogram] = {h.column: h for h in found.histograms}
    out = [
        page.head(f"{run.id}: thresholds"),
        f"<h1>{e(run.id)} <span class=badge>{e(stage)}</span></h1>",
        f"<p class=dim>{e(rests_on(found))}; each threshold is to keep {e(charts.percent(found.keep))} of the clips<br>"
        f"<code>{e(run.folder)}</code></p><p>{e(together(found))}</p><pre>{e(found.yaml.rstrip())}</pre>",
    ]
    measured = [p for p in found.proposals if shown[p.limit.column].measured]
    for p in measured:
        if p.value is None:
            continue
        h = shown[p.limit.column]
        marks = [("now: " + charts.keeps(p.limit), p.limit.now, "now")] if p.limit.now is not None else []
        marks.append((f"proposed: keeps {charts.percent(p.keeps)} at {p.text}", p.value, "new"))
        if p.gap is not None:
            marks.append((f"gap: keeps {charts.percent(p.gap_keeps)} at {p.gap:.4g}", p.gap, "gap"))
        limits = [(p.limit.side, p.value)]
        out.append(
            f"<h2>{e(p.limit.filter)}.{e(p.limit.setting)} <span class=dim>{e(p.limit.column)}: {e(p.words)}</span>"
            f"</h2><div class=chart>{charts.histogram(h, marks, limits)}</div>"
            f"<p class=small>{e(proposed(p))}<br><span class=dim>{e(charts.thresholds(p.limit))}</span></p>"
        )
        for word, clips in (("dropped by it, the nearest first", p.dropped), ("kept, the nearest first", p.kept)):
            if clips:
                figures = [page.figure(one.source.rpartition("/")[2], clip(one), pictures[one.uuid]) for one in clips]
                out += [f"<h3>{word}</h3><div class='grid small'>", *figures, "</div>"]
    if same := [p for p in measured if p.value is None]:
        out.append("<h2>As they are</h2>")
        out += [f"<p class=small>{e(p.limit.filter)}.{e(proposed(p))}</p>" for p in same]
    return "\n".join(out) + "\n"
