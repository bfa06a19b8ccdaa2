"""Charts without script: inline SVG and bars for the pages, which have a light and a dark side, and lines of text."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy is not for a login node
    from hpc.curate.scores import Histogram, Limit

COLOURS = {
    "kept": "var(--good)", "short": "#9aa0a8", "past-max-clip": "#7f8896",
    "start": "#9a8fbf", "publish": "#7f8896", "rest": "#8885", "other": "#b9a27c", "probe": "#c9b23f",
    "decode": "#3b82c4", "detect": "#8e5bc0", "cut": "#5aa6a6", "pictures": "#c77b3a", "filters": "#2a9d4a",
    "encode": "#c2506f",
}  # fmt: skip
MORE = ("#d9822b", "#8e5bc0", "#a0522d", "#3b82c4", "#c2506f", "#c9b23f", "#5aa6a6")
WIDTH, HEIGHT = 360, 84

STYLE = """
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:currentColor;stroke:Canvas;stroke-width:3px;paint-order:stroke}
svg .dim{fill:var(--dim)}svg .bar-in{fill:var(--good)}svg .bar-out,svg .beyond{fill:var(--bad)}svg .beyond{opacity:.1}
svg .axis{stroke:var(--dim)}svg .now{stroke:var(--bad);stroke-width:1.5}
svg.score-only .bar-out,svg.score-only .beyond{fill:var(--may)}svg.score-only .now{stroke:var(--may)}
svg .new{stroke:var(--new);stroke-width:1.5}svg .gap{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:4 3}
.chart{max-width:27rem}
.stack{display:flex;height:1.1rem;border-radius:.3rem;overflow:hidden;background:#8883}.stack i{display:block}
.legend{margin:.3rem 0 1rem;font-size:.85rem;line-height:1.7}.legend span{white-space:nowrap;margin-right:1rem}
.legend b{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.35rem}
"""


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def bar(parts: dict[str, float], unit: str = " s") -> str:
    """One bar of several colours with its legend; parts: name -> amount."""
    total = sum(parts.values()) or 1.0
    more = iter(MORE * len(parts))
    colours = {name: COLOURS.get(name) or next(more) for name in parts}
    show = lambda v: f"{v:,.1f}{unit}" if unit else f"{v:,.0f}"
    cells = "".join(f"<i style='width:{100 * v / total:.2f}%;background:{colours[n]}'></i>" for n, v in parts.items())
    legend = " ".join(
        f"<span><b style='background:{colours[n]}'></b>{html.escape(n)} {show(v)} ({percent(v / total)})</span>"
        for n, v in parts.items()
    )
    return f"<div class=stack>{cells}</div><p class=legend>{legend}</p>"


def place(one: Histogram, value: float) -> float:
    """Where a value stands on the axis, 0 to 1."""
    low, high = one.low, one.high
    if one.log:
        value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def histogram(one: Histogram, marks: list[tuple[str, float, str]], limits: list[tuple[str, float]]) -> str:
    """marks: (words, where, "now", "new" or "gap"), a line for each. limits: ("min" or "max", where): what lies beyond
    is shown as dropped."""
    e = lambda v: html.escape(str(v), quote=True)
    top = 13 * len(marks) + 4
    bottom = top + HEIGHT
    step, highest = WIDTH / len(one.bins), max(one.bins) or 1
    out = [f"<svg class={e(one.mode)} viewBox='0 0 {WIDTH} {bottom + 15}' role=img aria-label='{e(one.column)}'>"]
    beyond = [(0.0, place(one, at)) if side == "min" else (place(one, at), 1.0) for side, at in limits]
    for left, right in beyond:
        out.append(f"<rect class=beyond x={left * WIDTH:.1f} y={top} width={(right - left) * WIDTH:.1f} "
                   f"height={HEIGHT} />")  # fmt: skip
    for k, n in enumerate(one.bins):
        if n:
            height = max(2.0, HEIGHT * n / highest)
            middle = (k + 0.5) / len(one.bins)
            dropped = any(left <= middle < right for left, right in beyond)
            out.append(f"<rect class={'bar-out' if dropped else 'bar-in'} x={k * step:.1f} y={bottom - height:.1f} "
                       f"width={step - 1:.1f} height={height:.1f} />")  # fmt: skip
    out.append(f"<path class=axis d='M0 {bottom}H{WIDTH}' />")
    for k, (words, at, kind) in enumerate(marks):
        x, y = place(one, at) * WIDTH, 13 * k + 10
        anchor, dx = ("start", 4) if x < WIDTH / 2 else ("end", -4)
        out.append(f"<path class={kind} d='M{x:.1f} {y - 9}V{bottom}' />"
                   f"<text x={x + dx:.1f} y={y} text-anchor={anchor}>{e(words)}</text>")  # fmt: skip
    middle = math.sqrt(one.low * one.high) if one.log else (one.low + one.high) / 2
    for at, anchor in ((0, "start"), (WIDTH / 2, "middle"), (WIDTH, "end")):
        value = (one.low, middle, one.high)[round(2 * at / WIDTH)]
        out.append(f"<text class=dim x={at} y={bottom + 12} text-anchor={anchor}>{value:.4g}</text>")
    return "".join(out) + "</svg>"


def sparkline(bins: list[int], width: int = 24) -> str:
    """The bins as a line of blocks; one that holds anything is never blank."""
    whole = [sum(bins[k * len(bins) // width : (k + 1) * len(bins) // width]) for k in range(width)]
    highest = max(whole) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * n / highest)] for n in whole)


def keeps(limit: Limit) -> str:
    """As in "keeps 83 % at min 0.00098"."""
    if limit.now is None:
        return f"no {limit.side}"
    return f"keeps {percent(limit.keeps)} at {limit.side} {limit.now:.4g}"


def thresholds(limit: Limit) -> str:
    """What other thresholds would keep: "min_global 0.0003 keeps 99 %, 0.0008 keeps 95 %"; "" if all would keep all."""
    found = ", ".join(f"{value:.4g} keeps {percent(share)}" for value, share in limit.thresholds)
    return f"{limit.setting} {found}" if found else ""
