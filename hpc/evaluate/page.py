"""The page of an evaluation: the figures, and videos of which one sees generated and real side by side. It stands
alone, without script: pictures are animated WebPs in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import layers, video
from hpc.data.work import BadInput
from hpc.evaluate.films import Film
from hpc.evaluate.pairs import Place

HEIGHT = 144  # pixels of a video on the page
MOST = 16  # pictures of an animation
SECONDS = 0.15  # that each is shown
GAP = 6  # pixels
ORDER = (("psnr", "PSNR"), ("tse", "TSE"))
"""What the videos are ordered by: the first that any of them has."""
LISTED = 50
STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--bar:#3b82c4}
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2.2rem 0 .2rem}.dim{color:var(--dim)}
p{margin:.2rem 0 .8rem}.wide{overflow-x:auto}table{border-collapse:collapse}
td,th{text-align:right;padding:.2rem .9rem .2rem 0;border-bottom:1px solid var(--line);white-space:nowrap}
td{font-variant-numeric:tabular-nums}td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}
td:last-child{white-space:normal;min-width:14rem;font-size:.85rem}
svg{width:150px;height:14px;display:block}svg rect{fill:var(--bar);opacity:.45}svg circle{fill:var(--bar)}
svg path{stroke:var(--dim)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:1rem}
figure{margin:0;border:1px solid var(--line);border-radius:.4rem;padding:.6rem;min-width:0}
img,.none{width:100%;display:block;background:#8882;min-height:4rem}
.none{display:grid;place-items:center;color:var(--dim);font-size:.8rem}
.heads{display:grid;grid-template-columns:1fr 1fr;font-size:.78rem;color:var(--dim)}
.heads.one{grid-template-columns:1fr}.one+img{width:50%}
figcaption{font-size:.82rem;line-height:1.4;margin-top:.3rem;overflow-wrap:anywhere}code{font-size:.92em}
li{overflow-wrap:anywhere}
"""


def page(told: Mapping[str, Any], rows: pa.Table, shown: int, check: Callable[[], None]) -> str:
    """HTML. told: what the .json says; rows: hpc.evaluate.measure.SCHEMA."""
    e = lambda value: html.escape(str(value), quote=True)
    facts = f"{told['measured']:,} of {told['videos']:,} generated videos measured, {told['pairs']:,} beside a real one"
    places = "<br>".join(f"{side}: <code>{e(told[side])}</code>" for side in ("generated", "real") if told[side])
    out = ["<!doctype html><html lang=en><meta charset=utf-8>",
           "<meta name=viewport content='width=device-width,initial-scale=1'>",
           f"<title>Evaluation: {e(compared(told))}</title><style>{STYLE}</style><h1>{e(compared(told))}</h1>",
           f"<p class=dim>{facts}<br>{places}</p>",
           "<div class=wide><table>",
           f"<tr><th>figure<th>value<th>{told['level']:.0%} interval<th><th>n<th></tr>"]  # fmt: skip
    for one in told["figures"]:
        unit = f" {e(one['unit'])}" if one["unit"] else ""
        low, high = one["low"], one["high"]
        span = "" if low is None else f"{low:.4g} to {high:.4g}"
        better = {"higher": "higher is better", "lower": "lower is better"}.get(one["better"], "")
        words = "; ".join(word for word in (better, one["band"], one["note"]) if word)
        value = "none" if one["value"] is None else f"{one['value']:.4g}{unit}"
        out.append(f"<tr><td>{e(one['name'])}<td>{value}<td>{span}<td>{_bar(one)}<td>{one['n']:,}"
                   f"<td class=dim>{e(words)}</tr>")  # fmt: skip
    out.append("</table></div><p class=dim>Intervals are drawn with replacement: over videos, of Fréchet distances "
               "over shards. Where there is none, there were too few.</p>")  # fmt: skip
    for key, title in (("not_measured", "Not measured"), ("without_real", "Without a real one")):
        if told[key]:
            lines = "".join(f"<li><code>{e(name)}</code> {e(why)}" for name, why in list(told[key].items())[:LISTED])
            more = f"<p class=dim>and {len(told[key]) - LISTED:,} more</p>" if len(told[key]) > LISTED else ""
            out.append(f"<h2>{title}</h2><ul>{lines}</ul>{more}")
    for title, some in chosen(rows, shown):
        out += [f"<h2>{e(title)}</h2>", "<div class=grid>"]
        for row, picture in layers.map_ahead(lambda one: (one, beside(one)), some, threads=2):
            check()
            out.append(_figure(row, picture, _last(told["generated"]), _last(told["real"])))
        out.append("</div>")
    return "\n".join(out) + "\n"


def compared(told: Mapping[str, Any]) -> str:
    """What is compared, by the names of their folders: "videos@v1 beside clips@v1, on clips that ar@v1 held out"."""
    words = " beside ".join(_last(told[side]) for side in ("generated", "real") if told[side]) or "Evaluation"
    for uri, count in told.get("held_out", {}).items():
        some = "" if count == told["videos"] else f"{count:,} of {told['videos']:,} "
        words += f", {some}on clips that {_last(uri.rpartition('/')[0])} held out"
    return words


def _last(folder: str) -> str:
    return folder.rpartition("/")[2]


def _bar(one: Mapping[str, Any]) -> str:
    """An interval on an axis from 0, or from where the interval begins if that is below."""
    low, high, value = one["low"], one["high"], one["value"]
    if low is None:
        return ""
    left, right = min(low, 0.0), max(high, value, 0.0)
    x = lambda at: 4 + 142 * (at - left) / ((right - left) or 1.0)
    return (f"<svg viewBox='0 0 150 14' role=img aria-label='interval'><path d='M4 7H146' />"
            f"<rect x={x(low):.1f} y=3 width={max(x(high) - x(low), 1):.1f} height=8 />"
            f"<circle cx={x(value):.1f} cy=7 r=3.5 /></svg>")  # fmt: skip


def chosen(rows: pa.Table, count: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Titles, and rows of videos: the worst, those about the median, and the best; without a figure, the first ones."""
    there = rows.filter(pc.is_null(rows["why"]))
    if not len(there) or not count:
        return []
    key, title = next((one for one in ORDER if there[one[0]].null_count < len(there)), ("", ""))
    if not key:
        return [("Videos", there.slice(0, count).to_pylist())]
    worst = "ascending" if key == "psnr" else "descending"
    by = there.take(pc.sort_indices(there, [(key, worst), ("name", "ascending")]))  # those without it are the last
    if len(by) <= count:
        return [(f"All, from the worst {title} to the best", by.to_pylist())]
    by = by.slice(0, len(by) - by[key].null_count)
    each = max(1, count // 3)
    parts = (("The worst by", 0), ("About the median", (len(by) - each) // 2), ("The best by", len(by) - each))
    return [(f"{words} {title}", by.slice(at, each).to_pylist()) for words, at in parts]


def beside(row: Mapping[str, Any]) -> bytes | None:
    """An animated .webp with the generated video at the left, and at the right the real one, if there is one; None
    where the generated one is gone since."""
    try:
        generated = small(row["generated"], row["name"], row["fps"])
    except BadInput:
        return None
    sides = [generated]
    if row["real"] is not None and row["real_why"] is None:
        try:
            real = small(row["real"], row["name"], row["fps"], len(generated))
            sides += [np.full((len(real), HEIGHT, GAP, 3), 128, np.uint8), real]
        except BadInput:
            pass
    length = min(len(one) for one in sides)
    frames = [PIL.Image.fromarray(one) for one in np.concatenate([one[:length] for one in sides], axis=2)]
    return video.animation(frames, 1000 * SECONDS)


def small(place: Mapping[str, Any], name: str, fps: float, count: int = MOST) -> npt.NDArray[np.uint8]:
    """Pictures SECONDS apart, in the time of a video with `fps`. Raises BadInput."""
    film = Film(Place(place["uri"], place["offset"], place["size"]), name)
    width = 2 * max(1, round(film.info.width * HEIGHT / film.info.height / 2))
    step = max(1, round(fps * SECONDS)) / fps * film.fps
    numbers = [number for i in range(count) if (number := round(i * step)) < film.frames]
    return film.sample(numbers, HEIGHT, width)


def _figure(row: Mapping[str, Any], picture: bytes | None, generated: str, real: str) -> str:
    e = lambda value: html.escape(str(value), quote=True)
    paired = row["real"] is not None and row["real_why"] is None
    heads = f"<span>generated: {e(generated)}</span>" + (f"<span>real: {e(real)}</span>" if paired else "")
    shown = "<div class=none>gone since</div>"
    if picture:
        data = base64.b64encode(picture).decode()
        shown = f"<img loading=lazy alt='{e(row['name'])}' src='data:image/webp;base64,{data}'>"
    told = [(title, row[key], form) for title, key, form in
            (("PSNR", "psnr", "{:.2f} dB"), ("SSIM", "ssim", "{:.3f}"), ("TSE", "tse", "{:.2f} px"),
             ("of the real one", "real_tse", "{:.2f} px"), ("CSE", "cse", "{:.2f} px"))]  # fmt: skip
    words = ", ".join(f"{title} <b>{form.format(value)}</b>" for title, value, form in told if value is not None)
    size = f"{row['width']}x{row['height']}, {row['frames']} frames, {row['fps']:g} a second"
    said = "".join(f"<br>{e(one['question'])}: {_answer(one)}" for one in row["answers"] or ())
    return (f"<figure><div class='heads{'' if paired else ' one'}'>{heads}</div>{shown}<figcaption>{words}"
            f"{said}<br><code>{e(row['name'])}</code> <span class=dim>{size}</span></figcaption></figure>")  # fmt: skip


def _answer(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return f"<span class=dim>{html.escape(one['status'])}: {html.escape(one['answer'][:200])}</span>"
    return f"<b>{one['value']:g}</b>"
