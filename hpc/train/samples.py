"""The samples that training may take, as one table: what each is and where its bytes lie. Made once, before a run.

    table = listed("s3://bucket/shard@v1")          # tars, a tree of tars, a folder of videos, a .jsonl of prompts
    shapes = [Shape(frames=33, height=640, width=1024, batch=8)]
    chosen = assigned(table, shapes)                 # sample -> the shape it is taken in; what fits none is named

Tars are those of `curate.shard` in any layout, of `prepare.latents`, or anybody's with members <key>.mp4, <key>.json
and so on. A folder has its videos anywhere below it, or in videos/ with metas/*.txt and t5_xxl/*.pickle beside it, as
predict2 and predict2.5 have them. A .jsonl has a line {"visual_input": path, "prompt": text} a sample, as the
autoregressive models' data.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import latents, layers, storage, video
from hpc.data.work import BadInput
from hpc.train import randomness
from hpc.train.settings.data import Shape as Shape

MOVING = (".mp4", ".mov", ".mkv", ".webm", ".avi")
STILL = (".jpg", ".jpeg", ".png", ".webp")
LATENTS = (latents.SUFFIX,)
BESIDE = {".json": "json", ".txt": "text", ".pickle": "embedding"}
"""Members and files beside a video -> the columns that say where they lie."""
WINDOW = re.compile(r"^([0-9a-f-]{36})(?:_\d+){1,2}$")
"""Of prepare.latents a key is a clip's uuid and a window's first frame; of the layouts of Predict2 and 2.5 its last one
follows."""
PLACE = pa.struct([("uri", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
"""Bytes of a file; size -1 stands for all of it."""
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("media", PLACE),  # the video or picture, or latents of one
        ("still", pa.bool_()),
        ("latents", pa.bool_()),  # hpc.prepare made them: frames, height and width are those that were encoded
        ("frames", pa.int32()),  # 1 for a picture
        ("fps", pa.float32()),  # 0 for a picture
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("prompt", pa.string()),  # of a .jsonl; others have it in `json` or `text`
        ("source", pa.string()),  # the video that a clip was cut from, as its JSON says; else the key
        *((column, PLACE) for column in BESIDE.values()),
    ]
)


def listed(uri: str | Sequence[str]) -> pa.Table:
    """A table of SCHEMA, in the order of the keys. uri: one place, or these very tars and videos. Raises
    FileNotFoundError where nothing is, and ValueError naming what cannot be understood."""
    if not isinstance(uri, str):
        rows = itertools.chain(_tars([one for one in uri if one.endswith(".tar")]), _videos(uri))
    elif uri.endswith(".jsonl"):
        rows = _prompts(uri)
    else:
        entries = list(storage.listing(uri))
        tars = [entry.uri for entry in entries if entry.uri.endswith(".tar")]
        lists = [] if tars else [entry.uri for entry in entries if _is_list(entry.uri)]
        rows = _tars(tars) if tars else _prepared(lists) if lists else _folder(uri, entries)
    merged = sorted(rows, key=lambda row: row["key"])
    if not merged:
        raise FileNotFoundError(f"{uri}: no tars, videos or pictures are there (looked for .tar {' '.join(MOVING)})")
    for row, following in itertools.pairwise(merged):
        if row["key"] == following["key"]:
            raise ValueError(f"{uri}: the sample {row['key']} is there twice: {row['media']} and {following['media']}")
    return pa.Table.from_pylist(list(layers.map_ahead(_measured, merged)), schema=SCHEMA)


def _tars(uris: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a key; its members may lie in several tars, in trees such as video/ metas/ t5_xxl/."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for uri, entries in layers.map_ahead(_index, uris):
        for key, entry in entries:
            row = found[key]
            row["key"] = key
            for suffix, (offset, size) in entry.members.items():
                place = {"uri": uri, "offset": offset, "size": size}
                if suffix in MOVING + STILL + LATENTS:
                    if "media" in row and suffix in STILL and not row["still"]:
                        continue  # a video's thumbnail
                    if "media" in row and (suffix in STILL or not row["still"]):
                        raise ValueError(f"{uri}: {key}{suffix} is the second video of {key}, besides {row['media']}: "
                                         "sessions of cameras are data sets of their own")  # fmt: skip
                    row |= {"media": place, "still": suffix in STILL, "latents": suffix in LATENTS}
                elif suffix in BESIDE:
                    row[BESIDE[suffix]] = place
    for key, row in found.items():
        if "media" not in row:
            raise ValueError(f"{key} has {sorted(row)} and no video, in any of {len(uris)} tars, e.g. {uris[0]}")
        yield row


def _index(uri: str) -> tuple[str, list[tuple[str, layers.Entry]]]:
    with storage.open(uri) as file:
        try:
            return uri, list(layers.index(file))
        except layers.TornTar as error:
            raise ValueError(f"{uri}: {error}") from error


def _is_list(uri: str) -> bool:
    """Is this one of the lists of samples that hpc.prepare.latents_list makes?"""
    if not uri.endswith(".parquet"):
        return False
    with storage.open(uri) as file:
        return "json_offset" in layers.columns(file)


def _prepared(lists: Sequence[str]) -> Iterator[dict[str, Any]]:
    for uri in lists:
        with storage.open(uri) as file:
            for one in layers.read_table(file).to_pylist():
                yield {
                    "key": one["key"], "still": one["num_frames"] == 1, "latents": True, "fps": one["fps"],
                    "frames": one["num_frames"], "height": one["encoded_height"], "width": one["encoded_width"],
                    "prompt": one["caption"], "source": one["source"],
                    "media": {"uri": one["tar"], "offset": one["offset"], "size": one["size"]},
                    "json": {"uri": one["tar"], "offset": one["json_offset"], "size": one["json_size"]},
                    "embedding": one["pickle_size"] and {
                        "uri": one["tar"], "offset": one["pickle_offset"], "size": one["pickle_size"]},
                }  # fmt: skip


def _videos(uris: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Files of their own; a key is the path below the folder that has them all."""
    found = [uri for uri in uris if uri.lower().endswith(MOVING)]
    begin = os.path.commonprefix([uri.rpartition("/")[0] + "/" for uri in found])  # noqa: RUF071 - of s3:// too
    base = begin.rpartition("/")[0] + "/"
    for uri in found:
        yield {"key": uri.removeprefix(base).rpartition(".")[0], "still": False,
               "media": {"uri": uri, "offset": 0, "size": -1}}  # fmt: skip


def _folder(uri: str, entries: Iterable[storage.Entry]) -> Iterator[dict[str, Any]]:
    base = storage.join(uri, "")
    names = {entry.uri.removeprefix(base): entry for entry in entries}
    apart = any(name.startswith("videos/") for name in names)
    for name, entry in names.items():
        stem, dot, suffix = name.rpartition(".")
        if (dot + suffix).lower() not in MOVING + STILL or (apart and not name.startswith("videos/")):
            continue
        row = {"key": stem.removeprefix("videos/") if apart else stem, "still": (dot + suffix).lower() in STILL}
        row["media"] = {"uri": entry.uri, "offset": 0, "size": entry.size}
        for folder, beside in (("metas", ".txt"), ("metas", ".json"), ("t5_xxl", ".pickle")):
            if other := names.get(f"{folder}/{row['key']}{beside}" if apart else f"{stem}{beside}"):
                row[BESIDE[beside]] = {"uri": other.uri, "offset": 0, "size": other.size}
        yield row


def _prompts(uri: str) -> Iterator[dict[str, Any]]:
    folder = uri.rpartition("/")[0]
    for number, line in enumerate(storage.read(uri).decode().split("\n"), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            path = said["visual_input"]
        except (ValueError, KeyError, TypeError) as error:
            message = '{"visual_input": path, "prompt": text} is expected'
            raise ValueError(f"{uri}:{number}: {line[:80]!r}: {message}") from error
        where = path if path.startswith("/") or "://" in path else storage.join(folder, path)
        entry = storage.stat(where)
        if entry is None:
            raise FileNotFoundError(f"{uri}:{number}: {where} is not there")
        still = path.lower().endswith(STILL)
        yield {"key": f"{number:08}", "media": {"uri": where, "offset": 0, "size": entry.size}, "still": still,
               "prompt": said.get("prompt", "")}  # fmt: skip


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """The row with frames, size and speed: as its JSON says, or by looking at the video."""
    if "frames" in row:
        return row
    row = {"latents": False} | row | {"source": row["key"]}
    if place := row.get("json"):
        try:
            said = dict(json.loads(fetched(place)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place['uri']}: {row['key']}.json is no JSON object: {error}") from error
        row["source"] = said.get("source") or said.get("source_video") or row["key"]
        frames, fps = said.get("num_frames", said.get("nb_frames")), said.get("fps", said.get("framerate"))
        if frames and fps and said.get("width") and said.get("height"):
            row["still"] |= row["latents"] and frames == 1
            return row | {"frames": frames, "fps": fps, "height": said["height"], "width": said["width"]}
    if row["latents"]:
        raise ValueError(f"{row['media']['uri']}: {row['key']}: beside latents there is a .json with num_frames, fps, "
                         "height and width of what was encoded; here is none, or it lacks one")  # fmt: skip
    data = fetched(row["media"])
    if row["still"]:
        height, width, _ = video.still(data).shape
        return row | {"frames": 1, "fps": 0.0, "height": height, "width": width}
    try:
        info, frames = video.measured(data)
    except BadInput as error:
        raise ValueError(f"{row['media']['uri']}: {row['key']}: {error.bad.reason}: {error.bad.detail}") from error
    return row | {"frames": frames, "fps": float(info.fps), "height": info.height, "width": info.width}


def fetched(place: dict[str, Any]) -> bytes:
    end = None if place["size"] < 0 else place["offset"] + place["size"]
    return storage.read(place["uri"], place["offset"], end)


def clips(table: pa.Table, column: str = "key") -> list[str]:
    """What the samples are of: names without the window, in a column that has keys, or, of samples that do not know
    their source, keys as well."""
    return [WINDOW.sub(r"\1", name) for name in table[column].to_pylist()]


def held_out(table: pa.Table, share: float, by: Literal["source", "clip"]) -> tuple[pa.Table, pa.Table]:
    """(what is trained on, what is not): of the sources, or of the clips, this share, at least one, those whose names
    have the smallest hashes; a clip with all of its windows. Raises ValueError where nothing would be left to train
    on."""
    names = pa.array(clips(table, "source" if by == "source" else "key"), pa.string())
    ordered = sorted(names.unique().to_pylist(), key=lambda name: randomness.key(0, "held out", name))
    count = max(1, round(share * len(ordered)))
    if count >= len(ordered):
        advice = "hold out by clip, or train on more videos" if by == "source" else "train on more clips"
        raise ValueError(f"validation: {count} of {len(ordered)} {by}s held out leave nothing to train on: {advice}")
    held = pc.is_in(names, value_set=pa.array(ordered[:count]))
    return table.filter(pc.invert(held)), table.filter(held)


class Assigned(msgspec.Struct):
    rows: list[np.ndarray]
    """For each shape int64 [samples], rows of the table."""
    left_out: dict[str, list[str]]
    """Why -> keys."""


def assigned(table: pa.Table, shapes: Sequence[Shape]) -> Assigned:
    """Which shape each sample is taken in: of those it has the frames for, the one whose aspect ratio is nearest; of
    these the one with the most frames, and then the one whose area is nearest. Pictures go to shapes of one frame, and
    latents to the very shape that they were made of."""
    columns = {name: table[name].to_numpy() for name in ("frames", "height", "width", "fps")}
    still, latent = (table[name].to_numpy(zero_copy_only=False) for name in ("still", "latents"))
    best = np.full(len(table), -1)
    least = np.full((3, len(table)), np.inf)
    ratio = np.log(columns["width"] / columns["height"])
    area = np.log(columns["width"] * columns["height"])
    enough = np.zeros(len(table), bool)
    for number, shape in enumerate(shapes):
        spans = {fps: shape.span(fps) for fps in np.unique(columns["fps"]).tolist()}
        fits = (columns["frames"] >= np.array([spans[fps] for fps in columns["fps"].tolist()], int)) & (
            still == (shape.frames == 1)
        )
        exact = np.isclose(columns["fps"], shape.fps, rtol=1e-3) if shape.fps else np.ones(len(table), bool)
        for name in ("frames", "height", "width"):
            exact &= columns[name] == getattr(shape, name)
        fits &= exact | ~latent
        enough |= fits
        cost = np.stack([
            np.abs(ratio - math.log(shape.width / shape.height)).round(3),
            np.full(len(table), -shape.frames),
            np.abs(area - math.log(shape.width * shape.height)),
        ])  # fmt: skip
        less, equal = np.zeros(len(table), bool), np.ones(len(table), bool)
        for mine, held in zip(cost, least, strict=True):
            less |= equal & (mine < held)
            equal &= mine == held
        better = fits & less
        best[better], least[:, better] = number, cost[:, better]
    rows = [np.flatnonzero(best == number) for number in range(len(shapes))]
    keys = table["key"].to_pylist()
    left_out: dict[str, list[str]] = {}
    for place in np.flatnonzero(best < 0).tolist():
        if latent[place]:
            made_of = "x".join(str(columns[name][place]) for name in ("frames", "height", "width"))
            why = f"no shape is for latents of {made_of}, {columns['fps'][place]:g} frames a second"
            left_out.setdefault(why, []).append(keys[place])
            continue
        least_frames = min((s.frames for s in shapes if (s.frames == 1) == bool(still[place])), default=0)
        why = f"shorter than {least_frames} frames" if least_frames else "no shape is for " + (
            "pictures" if still[place] else "videos")  # fmt: skip
        left_out.setdefault(why, []).append(keys[place])
    return Assigned(rows, left_out)
