"""A training as one page: facts and costs, curves of its metrics over the steps, the newest picture. One file, no
script; the newest videos, and earlier pictures, are in pictures/ beside it."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc.train import pictures

WIDTH, HEIGHT = 420, 150
MOST = 400
"""Points of a curve; of more, each is the mean of some."""
COLOURS = ("#3b82c4", "#d9822b", "#2a9d4a", "#c2506f", "#8e5bc0")
STYLE = """
:root{color-scheme:light dark}body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
svg{width:100%;height:auto}svg text{font-size:11px;fill:currentColor}.axis{stroke:#8888}img{max-width:100%}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1.5rem}
video{max-width:min(100%,24rem);margin:0 .5rem .5rem 0}
td{vertical-align:top;padding:.1rem .8rem .1rem 0}td+td{font-variant-numeric:tabular-nums}
"""


def page(title: str, facts: dict[str, Any], charts: Sequence[Sequence[str]], lines: Sequence[dict[str, Any]],
         folder: Path, about: str) -> str:  # fmt: skip
    """charts: names of metrics that share a chart, each. lines: of metrics.jsonl. folder: of pictures and videos
    (hpc.train.pictures); about: what they show."""
    e = lambda value: html.escape(str(value))
    rows = "".join(f"<tr><td>{e(name)}<td>{e(value)}" for name, value in facts.items())
    curves = "".join(f"<figure>{drawn}</figure>" for names in charts if (drawn := chart(names, lines)))
    shown = ""
    found = pictures.by_step(folder)
    for step, files in list(found.items())[-1:]:
        shown = f"<h2>After {step:,} steps</h2><p>{e(about)}<p>"
        for path in sorted(files, key=lambda path: path.suffix == ".mp4"):
            if path.suffix == ".mp4":
                name = e(path.stem.partition("_")[2].replace("_", " "))
                src = f"src='pictures/{path.name}'"
                shown += f"<video controls loop muted preload=metadata title='{name}' {src}></video>"
            else:
                data = base64.b64encode(path.read_bytes()).decode()
                shown += f"<img alt='{e(about)}' src='data:image/webp;base64,{data}'><p>"
    links = [f"<a href='pictures/{path.name}'>{step:,}{e(path.stem[9:].replace('_', ' '))}</a>"
             for step, files in list(found.items())[:-1] for path in files]  # fmt: skip
    shown += f"<p>After fewer steps: {' · '.join(links)}" if links else ""
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>{e(title)}</title><style>{STYLE}</style>"
            f"<h1>{e(title)}</h1><table>{rows}</table><div class=curves>{curves}</div>{shown}\n")  # fmt: skip


def costs(told: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Facts of what a training took: means over its steps, shares of its time. told: its summary."""
    spent = {name: sum(line.get(name, 0.0) for line in lines)
             for name in ("seconds", "waited", "checkpoint_seconds", "validation_seconds", "pictures_seconds")}
    whole = sum(spent.values()) or 1.0
    mean = lambda name: sum(found) / len(found) if (found := [line[name] for line in lines if name in line]) else 0.0
    each = {"tokens a second and GPU": f"{mean('tokens_per_second_per_gpu'):,.0f}",
            "TFLOP/s of a GPU": f"{mean('tflops_per_gpu'):.4g}", "MFU": f"{mean('mfu'):.1%}"}  # fmt: skip
    names = ("tokens_per_second_per_gpu", "tflops_per_gpu", "mfu")
    return {
        "GPU-hours": f"{told['gpu_hours']:.3g}",
        **{name: value for (name, value), of in zip(each.items(), names, strict=True) if mean(of)},
        **({"FLOP": told["flops"]} if "flops" in told else {}),
        "memory of a GPU at most": f"{max((line.get('memory_bytes', 0) for line in lines), default=0) / 2**30:.1f} GiB",
        "time": ", ".join(f"{value / whole:.1%} {word}" for word, value in zip(
            ("steps", "waiting for data", "held up by checkpoints", "validation", "pictures"), spent.values(),
            strict=True) if value),
    }  # fmt: skip


def chart(names: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    """Metrics over the steps as SVG, which is XML too; "" where there are none of these names."""
    curves = {name: found for name in names if (found := points(name, lines))}
    if not curves:
        return ""
    low = min(y for curve in curves.values() for _, y in curve)
    high = max(y for curve in curves.values() for _, y in curve)
    last = max(x for curve in curves.values() for x, _ in curve)
    span = high - low or 1.0
    out = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH + 70} {HEIGHT + 34}' role='img' "
           f"aria-label='{html.escape(', '.join(names))}'>"
           f"<path class='axis' fill='none' d='M60 14V{HEIGHT + 14}H{WIDTH + 60}' />"]  # fmt: skip
    for where, value in ((18, high), (HEIGHT + 14, low)):
        out.append(f"<text x='56' y='{where}' text-anchor='end'>{value:.3g}</text>")
    out.append(f"<text x='{WIDTH + 60}' y='{HEIGHT + 30}' text-anchor='end'>{last:,} steps</text>")
    left = 64
    for colour, (name, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
        path = " ".join(f"{60 + WIDTH * x / last:.1f},{14 + HEIGHT * (high - y) / span:.1f}" for x, y in curve)
        words = f"{name} {curve[-1][1]:.4g}"
        out.append(f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{path}' />"
                   f"<text x='{left}' y='11' style='fill:{colour}'>{html.escape(words)}</text>")  # fmt: skip
        left += 7 * len(words) + 10
    return "".join(out) + "</svg>"


def points(name: str, lines: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, value) where there is a finite one; of more than MOST, means of neighbours."""
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
    each = math.ceil(len(found) / MOST)
    groups = [found[at : at + each] for at in range(0, len(found), max(each, 1))]
    return [(some[-1][0], sum(y for _, y in some) / len(some)) for some in groups]
