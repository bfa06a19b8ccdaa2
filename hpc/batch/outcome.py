"""What a run has made, for its report: pictures of clips and of generated videos, curves of trainings, figures of
evaluations, and the pages that stages have written.

A stage's own code tells: `gallery(open_object, limit)` of a shard, `figures(open_object)` of one, and CHARTS, the names
of metrics that share a chart each. Its settings may name PAGES, files in its folder.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from hpc.batch import status, training
from hpc.batch.spec import settings_of
from hpc.data import storage

THUMBNAILS = 60
SHARDS = 12
"""Of which pictures are taken."""
CHARTS = 4
"""Of a training, at most."""
LINES = 50_000
"""Of metrics, at most: the last ones."""
Open = Callable[[str], BinaryIO]


class Gallery(NamedTuple):
    stage: str
    kind: str
    pictures: list[tuple[str, str, bytes]]
    """(title, subtitle, webp)."""


class Outcome(NamedTuple):
    galleries: list[Gallery]
    curves: dict[str, list[str]]
    """Stage -> SVGs."""
    figures: dict[str, dict[str, Any]]
    """Stage -> {"of": what is compared, "rows": [{"name", "value", "low", "high", "n", "unit", ...}]}."""
    pages: dict[str, list[str]]
    """Stage -> uris of pages."""
    notes: list[str]
    """What could not be shown, and why."""


def outcome(gathered: status.Gathered) -> Outcome:
    """All of it. A stage's own code, or none of it on this node, or a table that cannot be read, is a note."""
    found = Outcome([], {}, {}, {}, [])
    for name in gathered.stages:
        lost: dict[str, list[str]] = {}
        for what, look in (("pictures", _gallery), ("curves", _curves), ("figures", _figures), ("pages", _pages)):
            try:
                look(gathered, name, found)
            except Exception as error:
                lost.setdefault(f"{type(error).__name__}: {error}", []).append(what)
        found.notes.extend(f"{name}: no {', '.join(what)}: {why}" for why, what in lost.items())
    return found


def shards_of(gathered: status.Gathered, stage: str) -> dict[str, Open]:
    """Shard that is done -> open(suffix), which opens its published object with that suffix."""
    folder, fold = gathered.stages[stage].folder, gathered.folds[stage]
    opener = lambda shard, suffix: storage.open(storage.join(folder, shard + suffix))
    return {shard: functools.partial(opener, shard) for shard in gathered.scopes[stage] if shard in fold.done}


def code_of(gathered: status.Gathered, stage: str) -> tuple[Any, Any]:
    """(settings, module) of a stage. Raises whatever a stage of one's own can when it is imported."""
    plan = gathered.stages[stage]
    settings = settings_of(plan.kind, plan.settings)
    return settings, importlib.import_module(settings.CODE)


def _gallery(gathered: status.Gathered, stage: str, found: Outcome, limit: int = THUMBNAILS) -> None:
    """A few from each of shards that are spread over the whole run."""
    _, code = code_of(gathered, stage)
    if not hasattr(code, "gallery"):
        return
    counts = {shard: record.counts for shard, record in gathered.folds[stage].done.items()}
    shards = [(shard, file) for shard, file in shards_of(gathered, stage).items()
              if counts[shard].get("clips") or counts[shard].get("videos")]  # fmt: skip
    chosen = shards[:: max(1, len(shards) // SHARDS)][:SHARDS]
    pictures: list[tuple[str, str, bytes]] = []
    for i, (_, open_object) in enumerate(chosen):
        pictures += code.gallery(open_object, -(-(limit - len(pictures)) // (len(chosen) - i)))
    if pictures:
        found.galleries.append(Gallery(stage, gathered.stages[stage].kind, pictures))


def _curves(gathered: status.Gathered, stage: str, found: Outcome) -> None:
    plan = gathered.stages[stage]
    if training.metrics_file(plan) is None:
        return
    from hpc.train import page

    _, code = code_of(gathered, stage)
    lines = _metrics(gathered, stage)
    charts = [page.chart(names, lines) for names in getattr(code, "CHARTS", (("loss",), ("grad_norm",)))]
    if some := [chart for chart in charts if chart][:CHARTS]:
        found.curves[stage] = some


def _metrics(gathered: status.Gathered, stage: str) -> list[dict[str, Any]]:
    """A line a step: as published, or while it trains."""
    plan = gathered.stages[stage]
    raw: list[bytes] = []
    if ".jsonl" in plan.objects and (shards := shards_of(gathered, stage)):
        with next(iter(shards.values()))(".jsonl") as file:
            raw = file.read().splitlines()
    elif (path := training.metrics_file(plan)) and path.exists():
        raw = path.read_bytes().splitlines()
    lines = []
    for line in raw[-LINES:]:
        try:
            told = json.loads(line)
        except ValueError:  # being written
            continue
        if isinstance(told, dict) and isinstance(told.get("step"), int):
            lines.append(told)
    return lines


def _figures(gathered: status.Gathered, stage: str, found: Outcome) -> None:
    shards = shards_of(gathered, stage)
    _, code = code_of(gathered, stage)
    if shards and hasattr(code, "figures") and (told := code.figures(next(iter(shards.values())))):
        found.figures[stage] = told


def _pages(gathered: status.Gathered, stage: str, found: Outcome) -> None:
    plan = gathered.stages[stage]
    settings = settings_of(plan.kind, plan.settings)
    if shards := shards_of(gathered, stage):
        names = [f"{next(iter(shards))}.html"] if ".html" in plan.objects else []
        if names := [*names, *getattr(settings, "PAGES", ())]:
            found.pages[stage] = [storage.join(plan.folder, name) for name in names]


def link(uri: str, base: Path) -> str:
    """What a page in a folder links to: relative, so that both can be copied together; "" for what no browser opens."""
    return "" if storage.is_s3(uri) else quote(os.path.relpath(uri, base), safe="/@")


def words(figure: dict[str, Any]) -> str:
    """Of a row of figures: "14.21 dB (13.5 to 15.02), of 6"."""
    if figure["value"] is None:
        return "none"
    unit = f" {figure['unit']}" if figure["unit"] else ""
    span = "" if figure["low"] is None else f" ({figure['low']:.4g} to {figure['high']:.4g})"
    return f"{figure['value']:.4g}{unit}{span}, of {figure['n']:,}"
