"""A training as one page: curves of its metrics over the steps, facts, and a picture. One file, no script."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 420, 150
MOST = 400
"""Points of a curve; of more, each is the mean of some."""
COLOURS = ("#3b82c4", "#d9822b", "#2a9d4a", "#c2506f", "#8e5bc0")
STYLE = """
:root{color-scheme:light dark}body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
svg{width:100%;height:auto}svg text{font-size:11px;fill:currentColor}.axis{stroke:#8888}img{max-width:100%}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1.5rem}
td{padding:.1rem .8rem .1rem 0}td+td{font-variant-numeric:tabular-nums}
"""


def page(title: str, facts: dict[str, Any], charts: Sequence[Sequence[str]], lines: Sequence[dict[str, Any]],
         picture: bytes | None, about: str) -> str:  # fmt: skip
    """charts: names of metrics that share a chart, each. lines: of metrics.jsonl. picture: a .webp; about: what it
    shows."""
    e = lambda value: html.escape(str(value))
    rows = "".join(f"<tr><td>{e(name)}<td>{e(value)}" for name, value in facts.items())
    curves = "".join(f"<figure>{drawn}</figure>" for names in charts if (drawn := chart(names, lines)))
    shown = ""
    if picture:
        data = base64.b64encode(picture).decode()
        shown = f"<p>{e(about)}<p><img alt='{e(about)}' src='data:image/webp;base64,{data}'>"
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>{e(title)}</title><style>{STYLE}</style>"
            f"<h1>{e(title)}</h1><table>{rows}</table><div class=curves>{curves}</div>{shown}\n")  # fmt: skip


def chart(names: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    """Metrics over the steps as SVG; "" where there are none of these names."""
    curves = {name: found for name in names if (found := points(name, lines))}
    if not curves:
        return ""
    low = min(y for curve in curves.values() for _, y in curve)
    high = max(y for curve in curves.values() for _, y in curve)
    last = max(x for curve in curves.values() for x, _ in curve)
    span = high - low or 1.0
    out = [f"<svg viewBox='0 0 {WIDTH + 70} {HEIGHT + 34}' role=img aria-label='{html.escape(', '.join(names))}'>",
           f"<path class=axis fill=none d='M60 14V{HEIGHT + 14}H{WIDTH + 60}' />"]  # fmt: skip
    for where, value in ((18, high), (HEIGHT + 14, low)):
        out.append(f"<text x=56 y={where} text-anchor=end>{value:.3g}</text>")
    out.append(f"<text x={WIDTH + 60} y={HEIGHT + 30} text-anchor=end>{last:,} steps</text>")
    left = 64
    for colour, (name, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
        path = " ".join(f"{60 + WIDTH * x / last:.1f},{14 + HEIGHT * (high - y) / span:.1f}" for x, y in curve)
        words = f"{name} {curve[-1][1]:.4g}"
        out.append(f"<polyline fill=none stroke='{colour}' stroke-width=1.5 points='{path}' />"
                   f"<text x={left} y=11 style='fill:{colour}'>{html.escape(words)}</text>")  # fmt: skip
        left += 7 * len(words) + 10
    return "".join(out) + "</svg>"


def points(name: str, lines: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, value) where there is a finite one; of more than MOST, means of neighbours."""
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
    each = math.ceil(len(found) / MOST)
    groups = [found[at : at + each] for at in range(0, len(found), max(each, 1))]
    return [(some[-1][0], sum(y for _, y in some) / len(some)) for some in groups]
