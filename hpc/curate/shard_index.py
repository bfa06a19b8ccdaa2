"""What a reader of a tree looks at first, and what was left out: written behind the tars, about those that exist.

Trees: wdinfo.json in each bin and wdinfo_list.csv, as cosmos_curate 29f1358: summary_writers.py, write_shard_summary.
Cosmos-Curate's clip tree: processed_videos/, summary.json and v0/all_window_captions.json. All: left-out.parquet with a
row for each clip, or window of one, that is not in the data set, and why: it has no place there, a verdict or the dedup
drops it, or it is there already.

It reads the footers of the tars' tables, and of them the rows that were left out; a tar's entries are not looked at.
Cosmos-Curate's summary names every clip, so that one takes memory for that.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq

from hpc.curate import left_out
from hpc.curate.layouts import TREES, as_json
from hpc.curate.settings import ShardIndex
from hpc.curate.shard_files import STATS, Files
from hpc.curate.shard_members import Shards
from hpc.curate.shard_tree import PER_PART
from hpc.data import layers, storage
from hpc.data.upstream import meta_of
from hpc.data.work import Made, Work


def freeze(settings: ShardIndex, upstream: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """One shard; its rows are the tables of the tars."""
    ((_, tree),) = ((name, shards) for name, shards in upstream.items() if tables_only(shards))
    yield [files[".parquet"] for _, files in tree]


def tables_only(shards: list[tuple[str, dict[str, str]]]) -> bool:
    """Are these of hpc.curate.shard_tree?"""
    if not shards or set(shards[0][1]) != {".parquet"}:
        return False
    return str(meta_of(shards[0][1][".parquet"]).get("stage", "")).startswith("curate.shard-tree")


def start(settings: ShardIndex) -> Callable[[Work], Made]:
    def process(work: Work) -> Made:
        tree = work.rows[0].rpartition("/")[0] if work.rows else work.folder
        work.folder = tree  # files go beside those of the tars
        files = Files(work)
        found = list(zip(work.rows, layers.map_ahead(meta_of, work.rows), strict=True))
        counts = {"entries": sum(one["entries"] for _, one in found if "left_out" not in one)}
        if settings.layout in TREES:
            counts |= bins(settings, files, [one for _, one in found if "bin" in one])
        elif settings.layout == "cosmos-curate":
            counts |= summary(settings, files, [one for _, one in found if "videos" in one])
        path = work.scratch / f"{work.shard}.parquet"
        told: Counter[str] = Counter()
        schema = left_out.SCHEMA.with_metadata({"hpc": json.dumps({"stage": settings.KIND})})
        with pq.ParquetWriter(path, schema) as writer:
            for uri, one in found:
                if "left_out" in one:
                    told.update(one["left_out"])
                    with storage.open(uri) as file:
                        writer.write_table(layers.read_table(file).replace_schema_metadata(writer.schema.metadata))
        files.tree[storage.join(work.folder, "left-out.parquet")] = path
        return Made([path], counts | left_out.counted(told) | {"files": len(files.tree)}, tree=files.tree)

    return process


def bins(settings: ShardIndex, files: Files, tars: list[dict[str, Any]]) -> dict[str, int]:
    """wdinfo.json of each bin, and the list of them. `root` is what the reader joins with a key and a tar: a path, or
    on S3 the key alone, since the reader has the bucket from elsewhere."""
    base = storage.join(files.work.folder, settings.version)
    places = []
    for name in sorted({one["bin"] for one in tars}):
        of_bin = sorted((one for one in tars if one["bin"] == name), key=lambda one: one["tar"])
        folder = storage.join(base, name)
        told = {
            "data_keys": of_bin[0]["kinds"],
            "chunk_size": PER_PART,
            "data_list": [one["tar"] for one in of_bin],
            "root": folder.removeprefix("s3://").partition("/")[2] if storage.is_s3(folder) else folder,
            "total_key_count": sum(one["entries"] for one in of_bin),
        }
        files.add(f"{settings.version}/{name}/wdinfo.json", json.dumps(told, indent=4).encode())
        places.append([storage.public(storage.join(folder, "wdinfo.json"))])
    text = io.StringIO()
    csv.writer(text).writerows(places)
    files.add(f"{settings.version}/wdinfo_list.csv", text.getvalue().encode())
    return {"bins": len(places), "tars": len(tars)}


def summary(settings: ShardIndex, files: Files, shards: list[dict[str, Any]]) -> dict[str, int]:
    """processed_videos/<video>.json, summary.json, v0/all_window_captions.json."""
    videos: dict[str, list[dict[str, Any]]] = {}
    for one in shards:
        for video in one["videos"]:
            videos.setdefault(video["name"], []).append(video)
    total: dict[str, Any] = {
        "num_input_videos": len(videos),
        "num_input_videos_selected": len(videos),
        "num_processed_videos": len(videos),
        "embedding_algorithm": settings.embeddings,
        "total_video_duration": 0.0,
        "total_clip_duration": 0.0,
        "max_clip_duration": 0.0,
        "pipeline_run_time": 0.0,
        "total_video_bytes": 0,
        "num_remuxed_videos": 0,
        "total_prompt_tokens": 0,
        "total_output_tokens": 0,
        **{f"total_{name}": 0 for name in STATS},
    }
    told: dict[str, Any] = {}
    captions: dict[str, dict[str, dict[str, str]]] = {}
    for name, chunks in sorted(videos.items()):
        files.work.check()
        facts = chunks[0]["facts"]
        uris = [storage.join(files.work.folder, one["chunk"]) for one in chunks]
        found = [json.loads(data) for data in layers.map_ahead(storage.read, uris)]
        clips, filtered = ([id for one in found for id in one[kind]] for kind in ("clips", "filtered_clips"))
        sums = {stat: sum(one[stat] for one in found) for stat in STATS}
        counts = {"num_total_clips": len(clips) + len(filtered), "num_clip_chunks": len(found)}
        files.add(f"processed_videos/{name}.json", as_json(facts | counts))
        told[name] = {
            "source_video": facts["video"], "video_uuid": facts["video_uuid"], "num_clip_chunks": len(found),
            "num_total_clips": counts["num_total_clips"], "clips": clips, "filtered_clips": filtered, **sums,
        }  # fmt: skip
        captions[name] = {id: dict(windows) for one in found for id, windows in one["all_windows"].items()}
        for stat, value in sums.items():
            total[f"total_{stat}"] += value
        for key in ("total_clip_duration", "total_prompt_tokens", "total_output_tokens"):
            total[key] += sum(one[key] for one in found)
        total["max_clip_duration"] = max([total["max_clip_duration"], *(one["max_clip_duration"] for one in found)])
        total["total_video_duration"] += facts["duration"]
        total["total_video_bytes"] += chunks[0]["bytes"]
    files.add("summary.json", json.dumps(total | told, indent=4, ensure_ascii=False).encode())
    files.add("v0/all_window_captions.json", json.dumps(captions, indent=4, ensure_ascii=False).encode())
    return {"videos": len(videos)}
