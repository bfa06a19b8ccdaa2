"""The clips of a run, to be searched and looked at: rows of the tables that its stages wrote, with what layers say.

A run may have millions of clips in thousands of tables. They are read a second at a time, from shards spread evenly
over the run: whoever looks sees some at once, and how many shards were looked at so far. What is read is kept.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hpc.batch import watch
from hpc.batch.watch import StagePlace
from hpc.data import storage

MOST = 50_000
"""Clips that are kept of a run: some 50 MB."""
BUDGET = 1.0
"""Seconds of reading before an answer."""
PAGE = 60
"""Clips of one answer at most, if not told otherwise."""
BINS = 40
KEEP = "keep"
"""hpc.data.upstream.KEEP, which needs pyarrow to be imported."""
NOT_SCORES = ("start_seconds", "end_seconds", "source_pixel_aspect", "source_fps", "source_seconds", "temperature",
              "top_p", "guidance")  # fmt: skip


class Clip(msgspec.Struct):
    """A clip, or a video that was generated."""

    key: str
    stage: str
    shard: str
    title: str
    words: str
    """Where it was cut, its size, its speed."""
    verdict: str
    caption: str
    scores: dict[str, float]
    media: dict[str, tuple[int, int]]
    """"mp4", "webp", "preview" -> (offset, size) in the shard's tar, bytes."""


class Gallery:
    """Of one run. Raises ModuleNotFoundError where pyarrow is not installed."""

    def __init__(self, places: Mapping[str, StagePlace]) -> None:
        import pyarrow.parquet  # noqa: F401  # not for every login node

        self.lock = threading.Lock()
        self.clips: dict[tuple[str, str, str], Clip] = {}
        self.read_shards: set[tuple[str, str]] = set()
        self.problems: list[str] = []
        self.update(places)

    def update(self, places: Mapping[str, StagePlace]) -> None:
        """As the run stands now."""
        with self.lock:
            self.places = dict(places)
            self.sources = [name for name, place in places.items() if {".tar", ".parquet"} <= set(place.objects)
                            and not place.kind.startswith(("curate.shard", "prepare."))]  # fmt: skip
            self.layers = [name for name, place in places.items()
                           if ".parquet" in place.objects and ".tar" not in place.objects]  # fmt: skip
            ready = {name: set(places[name].done) for name in self.layers}
            self.ready = {name: [layer for layer in self.layers if ready[layer]] for name in self.sources}
            self.todo = [(name, shard) for name in self.sources for shard in spread(places[name].done)]
            self.done_layers = ready

    def extend(self, budget: float = BUDGET) -> None:
        """Read more shards, until the time is up."""
        end = time.monotonic() + budget
        with self.lock:
            while self.todo and time.monotonic() < end and len(self.clips) < MOST and len(self.problems) < 20:
                stage, shard = self.todo.pop(0)
                layers = tuple(layer for layer in self.ready[stage] if shard in self.done_layers[layer])
                if (stage, f"{shard} {layers}") in self.read_shards:
                    continue
                try:
                    for clip in self._shard(stage, shard, layers):
                        self.clips[stage, shard, clip.key] = clip
                except Exception as error:  # a table that cannot be read is no reason to show none
                    self.problems.append(f"{stage} {shard}: {type(error).__name__}: {error}")
                self.read_shards.add((stage, f"{shard} {layers}"))

    def _shard(self, stage: str, shard: str, layers: tuple[str, ...]) -> Iterator[Clip]:
        from hpc.data import upstream

        with open_object(self.places[stage], shard, ".parquet") as file:
            rows, scores = table(file)
        if not rows or not ({"uuid", "name"} & rows[0].keys()) or "mp4_offset" not in rows[0]:
            return
        captions: dict[str, list[str]] = {}
        verdicts: dict[str, str] = {}
        more: dict[str, dict[str, float]] = {}
        for layer in layers if "uuid" in rows[0] else ():
            with open_object(self.places[layer], shard, ".parquet") as file:
                said, names = table(file)
            for row in said:
                uuid = row.get("uuid")
                if not uuid:
                    break
                if "caption" in row and (words := upstream.chosen(row)):
                    captions.setdefault(uuid, []).append(words)
                if row.get("verdict", KEEP) != KEEP:
                    verdicts.setdefault(uuid, str(row["verdict"]))
                more.setdefault(uuid, {}).update({n: row[n] for n in names if row.get(n) is not None})
        for row in rows:
            key = row.get("uuid") or row["name"]
            verdict = row.get("verdict") or KEEP
            yield Clip(
                key=key, stage=stage, shard=shard, title=_title(row), words=_words(row),
                verdict=verdict if verdict != KEEP else verdicts.get(key, verdict),
                caption="\n".join(captions.get(key, [])) or row.get("prompt") or row.get("caption") or "",
                scores={n: row[n] for n in scores if row.get(n) is not None} | more.get(key, {}), media=_media(row),
            )  # fmt: skip

    def search(self, text: str = "", column: str = "", low: float | None = None, high: float | None = None,
               verdict: str = KEEP, stage: str = "", sort: str = "", offset: int = 0,
               limit: int = PAGE) -> dict[str, Any]:  # fmt: skip
        """The clips that have all words of `text`, and a score between low and high. verdict, stage: "" for all.
        sort: "column" or "-column"."""
        with self.lock:
            clips = list(self.clips.values())
            looked = len({(stage, shard.partition(" ")[0]) for stage, shard in self.read_shards})
            of = sum(len(self.places[name].done) for name in self.sources)
            more = bool(self.todo) and len(clips) < MOST and len(self.problems) < 20
            problems = list(self.problems[:5])
        stages = Counter(clip.stage for clip in clips)
        verdicts = Counter(clip.verdict for clip in clips if stage in ("", clip.stage))
        words = text.casefold().split()
        found = [c for c in clips if verdict in ("", c.verdict) and stage in ("", c.stage) and _has(c, words)]
        ranges: dict[str, list[float]] = {}
        for clip in found:
            for name, score in clip.scores.items():
                known = ranges.setdefault(name, [score, score])
                known[0], known[1] = min(known[0], score), max(known[1], score)
        bins = histogram([c.scores[column] for c in found if column in c.scores], ranges.get(column))
        if low is not None or high is not None:
            found = [c for c in found if (value := c.scores.get(column)) is not None
                     and (low is None or value >= low) and (high is None or value <= high)]  # fmt: skip
        if sort:
            name = sort.lstrip("-")
            found = [c for c in found if name in c.scores]
            found.sort(key=lambda c: c.scores[name], reverse=sort.startswith("-"))
        return {
            "looked": looked, "of": of, "more": more, "clips": len(clips), "found": len(found),
            "verdicts": dict(verdicts), "stages": dict(stages), "scores": dict(sorted(ranges.items())),
            "bins": bins, "problems": problems,
            "page": [msgspec.to_builtins(c) for c in found[offset : offset + limit]],
        }  # fmt: skip

    def clip(self, stage: str, shard: str, key: str) -> Clip:
        """Raises KeyError. The shard's table is read if it was not yet."""
        with self.lock:
            if (stage, shard, key) not in self.clips and shard in self.places[stage].done:
                self.clips |= {(stage, shard, c.key): c for c in self._shard(stage, shard, ())}
            return self.clips[stage, shard, key]


def spread(shards: list[str]) -> list[str]:
    """The same ones, in an order of which every beginning is spread evenly over all: halves, quarters, eighths."""
    bits = max(1, (len(shards) - 1).bit_length())
    order = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [shards[i] for i in order if i < len(shards)]


def open_object(place: StagePlace, shard: str, suffix: str) -> BinaryIO:
    """An object of a shard that is done. Raises FileNotFoundError, and PermissionError for a link out of the folder."""
    uri = watch.objects(place, shard, suffix)
    if "://" not in uri:
        watch.inside(Path(uri), Path(place.folder))
    return storage.open(uri)


def table(file: BinaryIO) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows without nested columns but the previews, names of the columns that are scores)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        plain = [f.name for f in schema if not pa.types.is_nested(f.type) and not pa.types.is_binary(f.type)]
        plain += ["previews"] if "previews" in schema.names else []
        rows = parquet.read(plain).to_pylist()
    scores = [f.name for f in schema if pa.types.is_floating(f.type) and f.name not in NOT_SCORES]
    return rows, scores


def histogram(values: list[float], ends: list[float] | None) -> list[int]:
    if not ends or not values:
        return []
    first, last = ends
    bins = [0] * BINS
    for value in values:
        bins[min(BINS - 1, int((value - first) / (last - first) * BINS)) if last > first else 0] += 1
    return bins


def _has(clip: Clip, words: list[str]) -> bool:
    text = f"{clip.caption}\n{clip.title}\n{clip.key}".casefold() if words else ""
    return all(word in text for word in words)


def _title(row: Mapping[str, Any]) -> str:
    return str(row.get("name") or row.get("member") or row.get("source") or row["uuid"]).rpartition("/")[2]


def _words(row: Mapping[str, Any]) -> str:
    said = []
    if row.get("start_seconds") is not None and row.get("end_seconds") is not None:
        said.append(f"{_clock(row['start_seconds'])} to {_clock(row['end_seconds'])}")
    elif row.get("frames"):
        said.append(f"{row['frames']} frames")
    if row.get("width") and row.get("height"):
        said.append(f"{row['width']}x{row['height']}")
    if row.get("fps"):
        said.append(f"{row['fps']:.4g} fps")
    return ", ".join(said)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60 * 10) / 10:04.1f}"


def _media(row: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Members of the tar. Raises ValueError for places that no tar has."""
    found = {}
    for kind in ("mp4", "webp"):
        if row.get(f"{kind}_size"):
            found[kind] = (int(row[f"{kind}_offset"]), int(row[f"{kind}_size"]))
    for one in (row.get("previews") or ())[:1]:
        if one.get("size"):
            found["preview"] = (int(one["offset"]), int(one["size"]))
    if any(offset < 0 or size < 0 for offset, size in found.values()):
        raise ValueError(f"{row.get('uuid')}: {found} is no place in a tar")
    return found
