"""The page that shows pairs of clips around each eps, so that a person can choose one: stands alone, with pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.curate.dedup.tables import Source, hash_of
from hpc.data import layers, storage
from hpc.data.upstream import table

BINS = 60  # of the histogram
COPIES = 6  # pairs that are shown of them: there is not much to see
COLUMNS = ["uuid", "source", "member", "start_seconds", "end_seconds", "webp_offset", "webp_size"]
STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--stays:#2a9d4a;--goes:#d33;--bar:#3b82c4}
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2.2rem 0 .2rem}.dim{color:var(--dim)}
p{margin:.2rem 0 .8rem}table{border-collapse:collapse}tr.now{font-weight:600;background:#8882}
td,th{text-align:right;padding:.2rem .9rem;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
svg{width:100%;max-width:760px;height:auto;display:block;margin:1rem 0}
svg text{font-size:11px;fill:var(--dim)}svg rect{fill:var(--bar)}svg line{stroke:var(--goes);stroke-dasharray:4 3}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:1rem}
.pair{border:1px solid var(--line);border-radius:.4rem;padding:.6rem;min-width:0}
.pair b{font-variant-numeric:tabular-nums}.two{display:grid;grid-template-columns:1fr 1fr;gap:.5rem;margin-top:.3rem}
figure{margin:0;min-width:0}img,.none{width:100%;aspect-ratio:16/9;object-fit:contain;background:#8882;display:block}
.none{display:grid;place-items:center;color:var(--dim);font-size:.8rem}
.stays img,.stays .none{border-bottom:3px solid var(--stays)}.goes img,.goes .none{border-bottom:3px solid var(--goes)}
figcaption{font-size:.78rem;line-height:1.35;margin-top:.3rem;overflow-wrap:anywhere}code{font-size:.92em}
"""


class Pair(NamedTuple):
    goes: str
    stays: str
    score: float


class Album:
    """Some pairs from each range of scores between two eps, drawn by their hash, and all scores as a histogram."""

    def __init__(self, sweep: Sequence[float], pairs: int) -> None:
        """sweep: rising."""
        self.sweep = list(sweep)
        self.each = -(-pairs // (len(self.sweep) + 1)) if pairs else 0
        """Pairs of each range, and of the copies."""
        self.ranges: list[list[tuple[int, Pair]]] = [[] for _ in range(len(self.sweep) + 1)]
        self.low = 1 - min(2 * self.sweep[-1], 1.0)
        self.histogram = np.zeros(BINS, np.int64)
        self.same: list[Pair] = []

    def take(self, uuids: pa.ChunkedArray, twins: pa.ChunkedArray, scores: pa.ChunkedArray) -> None:
        score = scores.to_numpy().astype(np.float64)
        self.histogram += np.histogram(score, BINS, (self.low, 1 + 1e-6))[0]
        limits = [np.inf, *(1 - eps for eps in self.sweep), self.low]
        for held, high, low in zip(self.ranges, limits[:-1], limits[1:], strict=True):
            places = np.flatnonzero((score < high) & (score >= low))
            if low == self.low and len(places) > self.each:  # those just below the last eps
                places = places[np.argsort(-score[places], kind="stable")[: self.each]]
            ids, others = (column.take(pa.array(places)).to_pylist() for column in (uuids, twins))
            lots = hash_of(pa.array(ids, pa.string())).tolist() if low != self.low else (-score[places]).tolist()
            pairs = map(Pair, ids, others, score[places].tolist())
            held[:] = sorted([*held, *zip(lots, pairs, strict=True)])[: self.each]

    def copies(self, uuids: pa.ChunkedArray, twins: pa.ChunkedArray) -> None:
        few = min(self.each, COPIES)
        pairs = zip(uuids.slice(0, few).to_pylist(), twins.slice(0, few).to_pylist(), strict=True)
        self.same = [Pair(goes, stays, 1.0) for goes, stays in pairs]

    def page(
        self,
        summary: Sequence[tuple[float, int, int, int]],
        now: float,
        copies: int,
        sources: list[Any],
        check: Callable[[], None],
    ) -> str:
        """HTML. summary: (eps, kept, removed, total) of each eps, rising; sources: tables.Source that have clips."""
        shown = [pair for held in self.ranges for _, pair in held] + self.same
        clips = _clips(shown, msgspec.convert(sources, list[Source]), check)
        out = ["<!doctype html><html lang=en><meta charset=utf-8>",
               "<meta name=viewport content='width=device-width,initial-scale=1'>",
               f"<title>Duplicates</title><style>{STYLE}</style><h1>Duplicates</h1>",
               "<p class=dim>A clip goes if the cosine of its embedding with that of a clip before it is 1 - eps or "
               "more. In each pair the left one stays, or went for another one; the right one goes.</p>",
               "<table><tr><th>eps<th>cosine<th>removed<th>kept<th>share removed</tr>"]  # fmt: skip
        for eps, kept, removed, total in summary:
            out.append(f"<tr{' class=now' if eps == now else ''}><td>{eps:g}<td>{1 - eps:g}<td>{removed:,}<td>{kept:,}"
                       f"<td>{removed / max(total, 1):.2%}</tr>")  # fmt: skip
        out.append(f"</table><p class=dim>Bold: what this dedup goes by. Each row counts {copies:,} copies with the "
                   "same coded pictures.</p>")  # fmt: skip
        out.append(f"{self._bars()}<p class=dim>Clips by their largest cosine with one before them. Heights are roots, "
                   "so that few are seen beside many; the lines are each eps.</p>")  # fmt: skip
        before = 0
        for number, held in enumerate(self.ranges):
            pairs = sorted((pair for _, pair in held), key=lambda pair: (-pair.score, pair.goes))
            if number < len(summary):
                eps, _, removed, _ = summary[number]
                more = removed - (before or copies)
                before = removed
                title, words = f"Gone with eps {eps:g}", f"{more:,} clips, down to a cosine of {1 - eps:g}"
            else:
                title, words = f"Kept with eps {self.sweep[-1]:g}", "the nearest that are left"
            if pairs:
                out += [f"<h2>{title}</h2><p class=dim>{words}; {len(pairs)} shown</p>", *self._grid(pairs, clips)]
        if self.same:
            words = f"the same coded pictures, whatever eps; {len(self.same)} shown"
            out += [f"<h2>Copies</h2><p class=dim>{copies:,} clips, {words}</p>", *self._grid(self.same, clips)]
        return "\n".join(out) + "\n"

    def _bars(self) -> str:
        """The histogram."""
        tall, wide = 150, 760
        top = max(1, int(self.histogram.max())) ** 0.5
        x = lambda score: (score - self.low) / (1 - self.low) * wide
        bars = "".join(
            f"<rect x={place * wide / BINS:.1f} y={tall - tall * count**0.5 / top:.1f} width={wide / BINS - 1:.1f} "
            f"height={tall * count**0.5 / top:.1f}><title>{count:,}</title></rect>"
            for place, count in enumerate(self.histogram.tolist())
        )
        marks = "".join(f"<line x1={x(1 - eps):.1f} x2={x(1 - eps):.1f} y1=-4 y2={tall} />" for eps in self.sweep)
        words = "".join(
            f"<text x={x(1 - eps):.1f} y={-8 - 12 * (place % 3)} text-anchor=middle>{eps:g}</text>"
            for place, eps in enumerate(self.sweep)
        )
        ends = (
            f"<text x=0 y={tall + 14}>cosine {self.low:g}</text><text x={wide} y={tall + 14} text-anchor=end>1</text>"
        )
        return (f"<svg viewBox='-12 -48 {wide + 24} {tall + 66}' role=img aria-label='clips by their largest cosine'>"
                f"{bars}{marks}{words}{ends}</svg>")  # fmt: skip

    def _grid(self, pairs: list[Pair], clips: dict[str, dict[str, Any]]) -> list[str]:
        out = ["<div class=grid>"]
        for pair in pairs:
            left, right = clips.get(pair.stays, {}), clips.get(pair.goes, {})
            where = ""
            if left and right:
                same = (left["source"], left["member"]) == (right["source"], right["member"])
                apart = abs(left["start_seconds"] - right["start_seconds"])
                where = f"the same video, {apart:.1f} s apart" if same else "two videos"
            two = _figure("stays", pair.stays, left) + _figure("goes", pair.goes, right)
            head = f"<b>{pair.score:.5f}</b> <span class=dim>{where}</span>"
            out.append(f"<div class=pair>{head}<div class=two>{two}</div></div>")
        return [*out, "</div>"]


def _figure(role: str, uuid: str, clip: dict[str, Any]) -> str:
    e = lambda value: html.escape(str(value), quote=True)
    picture = "<div class=none>no picture</div>"
    if clip.get("webp"):
        data = base64.b64encode(clip["webp"]).decode()
        picture = f"<img loading=lazy alt='{e(uuid)}' src='data:image/webp;base64,{data}'>"
    name = (clip.get("member") or clip.get("source", "")).rpartition("/")[2]
    times = f"<br>{clip['start_seconds']:.2f} to {clip['end_seconds']:.2f} s" if clip else ""
    title = e(clip.get("source", ""))
    words = f"<span title='{title}'>{e(name)}</span>{times}<br><code class=dim>{e(uuid)}</code>"
    return f"<figure class={role}>{picture}<figcaption>{words}</figcaption></figure>"


def _clips(pairs: list[Pair], sources: list[Source], check: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """uuid -> the columns of its row, and its thumbnail as "webp"."""
    wanted = pa.array(sorted({uuid for pair in pairs for uuid in (pair.goes, pair.stays)}), pa.string())
    found: dict[str, dict[str, Any]] = {}

    def look(source: Source) -> list[dict[str, Any]]:
        rows = table(source.clips, COLUMNS)
        return [row | {"tar": source.tar} for row in rows.filter(pc.is_in(rows["uuid"], wanted)).to_pylist()]

    for rows in layers.map_ahead(look, sources if len(wanted) else ()):
        check()
        for row in rows:
            found.setdefault(row["uuid"], row)
        if len(found) == len(wanted):
            break
    have = [row for row in found.values() if row["webp_offset"] is not None]
    read = lambda row: (row, storage.read(row["tar"], row["webp_offset"], row["webp_offset"] + row["webp_size"]))
    for row, data in layers.map_ahead(read, have):
        row["webp"] = data
    return found
