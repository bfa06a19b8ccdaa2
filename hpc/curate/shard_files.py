"""Layouts of files: Cosmos-Curate's clip tree, the folders of Predict2 and Predict2.5, and tars of sessions.

A shard of them is what becomes of one shard of clips. Videos are copied; a window of a clip that has several is cut out
and encoded again, without sound, as Cosmos-Curate does it.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hpc.curate import shard, shard_tree
from hpc.curate.layouts import Sample, as_json, cosmos
from hpc.curate.settings import Encode, ShardTree
from hpc.curate.settings.filters import FILTERS
from hpc.curate.shard_members import judged_windows
from hpc.data import layers, pickles, storage, upstream
from hpc.data.shard_plan import Records
from hpc.data.work import Made, Work

PREDICT = {".txt": "metas", ".pickle": "t5_xxl", ".pkl": "t5_xxl"}
EMBEDDING = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float64()))])


class Files:
    """Files in scratch, and where they go."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.tree: dict[str, Path] = {}
        self.bytes = 0

    def path(self, name: str) -> Path:
        """For a file of this name in the stage's folder."""
        path = self.work.scratch / f"file-{len(self.tree)}"
        self.tree[storage.join(self.work.folder, name)] = path
        return path

    def add(self, name: str, data: bytes) -> None:
        self.path(name).write_bytes(data)
        self.bytes += len(data)


class Item:
    """An entry of the plan, with its bytes."""

    def __init__(self, members: dict[str, bytes], key: str, beside: dict[str, bytes], start: int) -> None:
        self.members = members
        """Of the clip, in its tar."""
        self.key, self.beside, self.start = key, beside, start


def make(settings: ShardTree, work: Work, head: dict[str, Any], records: Records) -> Made:
    files = Files(work)
    if settings.layout == "sessions":
        rows, told = sessions(items(work, head, records), files), {}
    elif settings.layout == "cosmos-curate":
        rows, told = curator(settings, items(work, head, records), files, head, work.check)
    else:
        rows, told = [predict(item, files) for item in items(work, head, records)], {}
    counts = {"entries": len(rows), "files": len(files.tree), "bytes_out": files.bytes}
    return shard_tree.listed(settings, work, rows, told, counts, files.tree)


def items(work: Work, head: dict[str, Any], records: Records) -> Iterator[Item]:
    """Each entry with what is in the clip's tar and beside it; the next ones are read meanwhile."""
    read = shard.reader()

    def one(record: Any) -> tuple[bytes, bytes, int]:
        _, clips, members = head["sources"][record["table"]]
        offset, meta = int(record["offset"]), int(record["meta_offset"])
        beside = read(members, meta, meta + int(record["json_size"]) + int(record["more_size"]))
        return read(clips, offset, offset + int(record["size"])), beside, int(record["start"])

    for number, (packed, beside, start) in enumerate(layers.map_ahead(one, records)):
        work.check()
        work.progress(number / len(records), f"{number} of {len(records)} clips")
        (_, members), (key, further) = unpacked(packed), unpacked(beside)
        yield Item(members, key, further, start)


def unpacked(entries: bytes) -> tuple[str, dict[str, bytes]]:
    ((key, members),) = layers.read_tar(io.BytesIO(entries + layers.END_OF_ARCHIVE))
    return key, members


def predict(item: Item, files: Files) -> dict[str, Any]:
    """videos/<key>.mp4, metas/<key>.txt, t5_xxl/<key>.pickle; of several cameras videos/<camera>/<key>.mp4, and so on
    for the one that words are about."""
    clip_uuid, start, end = item.key.rsplit("_", 2)
    folder, videos = "", {"": item.members[".mp4"]}
    if about := item.beside.pop(".json", None):
        rig = json.loads(about)
        folder = f"{rig['camera']}/"
        videos = {folder: videos[""]} | {f"{name}/": item.members[f".{name}.mp4"] for name in rig["cameras"]}
    for place, mp4 in videos.items():
        name = f"videos/{place}{item.key}.mp4"
        if item.start < 0:
            files.add(name, mp4)
        else:
            path = files.path(name)
            cut(mp4, int(start), int(end), path)
            files.bytes += path.stat().st_size
    for suffix, data in item.beside.items():
        files.add(f"{PREDICT[suffix]}/{folder}{item.key}{suffix}", data)
    return {"key": item.key, "uuid": clip_uuid, "path": f"videos/{folder}{item.key}.mp4"}


def cut(mp4: bytes, first: int, last: int, path: Path) -> None:
    """Frames `first` to `last` of a video as a video, encoded as curate.clips does by default; without sound."""
    from hpc.curate import clip  # what encodes is imported where it is used: most layouts do without
    from hpc.data import video

    source = io.BytesIO(mp4)
    info = video.probe(source)
    coding = clip.coding(Encode())
    assert coding is not None
    encoder = video.Encoder(path, info, coding)
    held: Any = None
    for number, frame in video.Decoder(source):
        if held is not None:
            encoder.write(held, frame.pts - held.pts)
            held = None
        if number > last:
            break
        if number >= first:
            held = frame
    if held is not None:
        encoder.write(held, held.duration)
    encoder.close()


def sessions(entries: Iterator[Item], files: Files) -> list[dict[str, Any]]:
    """<session>.tar, with <session>.json about all of it and, for each camera, <session>.<camera>.mp4 and .json: the
    times of its frames, as [{"frame_num": 0, "timestamp": milliseconds}, ...]."""
    from hpc.data import video

    rows = []
    for item in entries:
        about = json.loads(item.beside[".json"])
        videos = {about["camera"]: item.members[".mp4"]}
        videos |= {one["camera"]: item.members[f".{one['camera']}.mp4"] for one in about["cameras"]}
        begins = 1000 * about["start_seconds"]
        members = {".json": item.beside[".json"]}
        for camera, mp4 in sorted(videos.items()):
            times = video.times(io.BytesIO(mp4))
            told = [{"frame_num": i, "timestamp": round(begins + 1000 * at)} for i, at in enumerate(times)]
            members |= {f".{camera}.mp4": mp4, f".{camera}.json": as_json(told)}
        path = files.path(f"{item.key}.tar")
        with layers.TarWriter(path) as tar:
            tar.add(item.key, members)
        files.bytes += path.stat().st_size
        rows.append({"key": item.key, "uuid": item.key, "path": f"{item.key}.tar", "place": 0})
    return rows


def videos(
    tables: Iterable[str], superseded: set[tuple[str, str]]
) -> tuple[str, list[tuple[dict[str, int], list[tuple[str, str]]]]]:
    """The folder that all videos are in, and for each table of entries the videos of its clips, with the number of the
    chunk that is there: a long video has one in each of several shards; beside them those of its inputs that were
    replaced since, of which nothing is told."""
    root: str | None = None
    seen: Counter[str] = Counter()
    found = []

    def sources(uri: str) -> tuple[list[str], list[tuple[str, str]]]:
        made_of = upstream.meta_of(uri)["made_of"]
        clips = upstream.table(upstream.clips_of(made_of)[".parquet"], ["member", *upstream.CURRENT])
        names = dict.fromkeys(cosmos.source_of(row) for row in upstream.current(clips, superseded).to_pylist())
        inputs = {(one["source"], one["etag"]) for row in clips.to_pylist() for one in (row, *(row["cameras"] or ()))}
        return list(names), sorted(inputs & superseded)

    for names, replaced in layers.map_ahead(sources, tables):
        for name in names:
            folder = name[: name.rindex("/") + 1]
            root = folder if root is None else common(root, folder)
        found.append(({name: seen[name] for name in names}, replaced))
        seen.update(names)
    return root or "", found


def common(a: str, b: str) -> str:
    """The folder that two folders, which end with "/", are in or are."""
    while not b.startswith(a):
        a = a[: a.rstrip("/").rfind("/") + 1]
    return a


def curator(
    settings: ShardTree, entries: Iterator[Item], files: Files, head: dict[str, Any], check: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Cosmos-Curate's tree, but for what is about all videos. A shard has one chunk of each of its videos.

    Paths and keys: cosmos_curate 29f1358: metadata_writer_stage.py.
    """
    (uri, clips_tar, _) = head["sources"][0]
    made_of = upstream.meta_of(uri)["made_of"]
    table = upstream.table(upstream.clips_of(made_of)[".parquet"])
    clips = upstream.current(table, {tuple(one) for one in head["superseded"]}).to_pylist()
    videos = {cosmos.source_of(row): Chunk(row) for row in reversed(clips)}
    by_uuid = {row["uuid"]: row for row in clips}
    rows = []
    for item in entries:
        about = json.loads(item.beside[".json"])
        name = f"clips/{item.key}.mp4"
        about["clip_location"] = storage.public(storage.join(files.work.folder, name))
        files.add(name, item.members[".mp4"])
        files.add(f"metas/v0/{item.key}.json", as_json(about))
        previews = previews_of(item.members)
        for frames, data in previews.items():
            files.add(f"previews/{item.key}/{frames}.webp", data)
        rows.append({"key": item.key, "uuid": item.key, "path": name})
        videos[cosmos.source_of(by_uuid[item.key])].take(about, bool(previews))
    judged = judged_windows(made_of)
    for row, word in filtered(clips, made_of):
        check()
        location = f"filtered_clips/{row['uuid']}.mp4"
        sample = Sample(row | {"verdict": word}, clips_tar, judged=judged.get(row["uuid"], []))
        about = cosmos.metadata(sample, [], "")
        about["clip_location"] = storage.public(storage.join(files.work.folder, location))
        if row["mp4_offset"] is not None:  # judged by a layer, after it was encoded
            files.add(location, storage.read(clips_tar, row["mp4_offset"], row["mp4_offset"] + row["mp4_size"]))
        files.add(f"metas/v0/{row['uuid']}.json", as_json(about))
        videos[cosmos.source_of(row)].filter(row["uuid"], word)
    vectors = embeddings(made_of)
    of_file = np.float16 if settings.embeddings.startswith("ce1_") else np.float32
    for source, one in videos.items():
        ids = [id for id in one.clips if id in vectors]
        one.stats["num_clips_with_embeddings"] = len(ids)
        if ids:
            number = head["chunks"][source]
            name = f"{settings.embeddings}_parquet/{video_uuid(source)}_{number}.parquet"
            for id in ids:
                files.add(f"{settings.embeddings}/{id}.pickle", pickles.dumps_array(np.array([vectors[id]], of_file)))
            told = [{"id": id, "embedding": vectors[id]} for id in ids]
            layers.write_table(files.path(name), told, {}, EMBEDDING)
    told = []
    for source, one in videos.items():
        number, name = head["chunks"][source], source[len(head["root"]) :]
        path = f"processed_clip_chunks/{name}_{number}.json"
        files.add(path, as_json(one.told(source, number)))
        told.append({"name": name, "chunk": path, "bytes": one.bytes, "facts": one.video})
    return rows, {"videos": told, "root": head["root"]}


STATS = [
    *(f"num_clips_filtered_by_{word}" for word in
      ("motion", "aesthetic", "qwen_classifier", "qwen_semantic", "artificial_text")),
    *("num_clips_passed", "num_clips_transcoded", "num_clips_with_embeddings", "num_clips_with_caption"),
    "num_clips_with_webp",
]  # fmt: skip


class Chunk:
    """What a shard has of one video."""

    def __init__(self, row: dict[str, Any]) -> None:
        source = cosmos.source_of(row)
        self.video = {
            "video": source,
            "height": row["source_height"],
            "width": row["source_width"],
            "framerate": row["source_fps"],
            "num_frames": row["source_frames"],
            "duration": row["source_seconds"],
            "video_codec": row["source_codec"],
            "pixel_format": row["source_pix_fmt"],
            "audio_format": row["source_audio_codec"],
            "video_uuid": video_uuid(source),
        }
        self.bytes = row["source_bytes"]
        self.stats: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.clips: list[str] = []
        self.filtered: list[str] = []
        self.windows: dict[str, dict[str, str]] = {}
        self.enhanced: dict[str, dict[str, str]] = {}

    def take(self, about: dict[str, Any], webp: bool) -> None:
        """A clip that passed, by its metadata."""
        id = about["span_uuid"]
        self.clips.append(id)
        self.stats.update(
            num_clips_passed=1, num_clips_transcoded=1, num_clips_with_caption=about["has_caption"],
            num_clips_with_webp=webp, total_prompt_tokens=about["total_prompt_tokens"],
            total_output_tokens=about["total_output_tokens"],
        )  # fmt: skip
        begin, end = about["duration_span"]
        self.seconds.append(end - begin)
        for kind, found in (("_caption", self.windows), ("_enhanced_caption", self.enhanced)):
            found[id] = {
                f"{window['start_frame']}_{window['end_frame']}": text
                for window in about["windows"]
                for name, text in window.items()
                if name.endswith(kind) and (kind != "_caption" or not name.endswith("_enhanced_caption"))
            }

    def filter(self, id: str, word: str) -> None:
        self.filtered.append(id)
        if word in cosmos.REJECTED_BY:  # it has no words for the others
            self.stats[f"num_clips_filtered_by_{cosmos.REJECTED_BY[word]}"] += 1

    def told(self, source: str, number: int) -> dict[str, Any]:
        return {
            "video": source,
            "clip_chunk_index": number,
            **{name: self.stats[name] for name in STATS},
            "total_clip_duration": sum(self.seconds),
            "max_clip_duration": max(self.seconds, default=0.0),
            "total_prompt_tokens": self.stats["total_prompt_tokens"],
            "total_output_tokens": self.stats["total_output_tokens"],
            "clips": self.clips,
            "filtered_clips": self.filtered,
            "all_windows": self.windows,
            "all_windows_enhanced_caption": self.enhanced,
        }


def video_uuid(source: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, source))


def previews_of(members: dict[str, bytes]) -> dict[str, bytes]:
    """ "<start>_<end>" -> WebP, of the members of a clip."""
    before, after = ".preview_", ".webp"
    return {name[len(before) : -len(after)]: data for name, data in members.items() if name.startswith(before)}


def filtered(clips: list[dict[str, Any]], made_of: dict[str, dict[str, str]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Clips that a filter or a layer dropped, and its word; not those that were never to be clips."""
    judged: dict[str, str] = {}
    for objects in upstream.tables_of(made_of):
        word = upstream.meta_of(objects[".parquet"]).get("stage", "").rpartition(".")[2]
        if word in cosmos.REJECTED_BY:
            judged |= dict.fromkeys(upstream.dropped(objects[".parquet"]), word)
    for row in clips:
        word = judged.get(row["uuid"]) if row["verdict"] == upstream.KEEP else row["verdict"]
        if word in cosmos.REJECTED_BY or word in FILTERS:
            yield row, word


def embeddings(made_of: dict[str, dict[str, str]]) -> dict[str, list[float]]:
    """uuid -> the clip's vector, of the layer that has them."""
    for objects in upstream.tables_of(made_of):
        have = upstream.columns_of(objects[".parquet"])
        if {"uuid", "embedding"} <= have and "window" not in have:
            table = upstream.table(objects[".parquet"], ["uuid", "embedding"])
            return dict(zip(*(table[name].to_pylist() for name in ("uuid", "embedding")), strict=True))
    return {}
