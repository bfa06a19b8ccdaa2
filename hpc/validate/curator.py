"""Cosmos-Curate's clip tree, as its shard and dedup pipelines read it.

cosmos_curate 29f1358: video_pipe_input.py (extract_shard_tasks), captioning_stages.py (T5StageForShard),
summary_writers.py, metadata_writer_stage.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpc.data import storage
from hpc.validate import Files, Report, counts, expected, frames
from hpc.validate.folders import shown, unpickled

AGAIN = "Make the data set again"
READ = ("span_uuid", "width", "height", "num_frames", "framerate", "num_bytes", "clip_location", "valid", "windows")
"""Of a clip's metadata, by its shard pipeline."""
RECORD = ("video", "height", "width", "framerate", "num_frames", "duration", "num_total_clips", "num_clip_chunks",
          "video_uuid")  # fmt: skip
CHUNK = ("video", "clip_chunk_index", "num_clips_passed", "clips", "filtered_clips", "all_windows")
TOTAL = ("num_input_videos", "num_processed_videos", "total_video_duration", "total_clip_duration",
         "total_num_clips_passed")  # fmt: skip


def curator(files: Files, report: Report) -> None:
    summary = files.json("summary.json", report)
    if not isinstance(summary, dict):
        return
    _keys("summary.json", summary, TOTAL, report)
    videos = {name: one for name, one in summary.items() if isinstance(one, dict)}
    if not any("clips" in one for one in videos.values()):
        report.add(
            "summary.json", "no-clips", "it names no video with clips: shard and dedup find nothing to do", AGAIN
        )
    clips: set[str] = set()
    some = set(report.pick("videos", sorted(videos)))
    for name, one in videos.items():
        if one.get("processed") is False:
            report.add("summary.json", "unprocessed", f"{name}: nothing is known of it", "Split it", error=False)
            continue
        mine = one.get("clips", [])
        if not isinstance(mine, list) or not all(isinstance(uuid, str) for uuid in mine):
            report.add("summary.json", "keys", f"{name}: its clips should be a list of ids", AGAIN)
            continue
        clips.update(mine)
        if name in some:
            with expected(f"processed_videos/{name}.json", "keys", report):
                _video(files, report, name, one)
    folders = {name.split("/")[1] for name in files.named("clips/") if name.count("/") > 1}
    chosen = report.pick("clips", sorted(clips))
    looked = counts(files, (mp4 for uuid in chosen if (mp4 := f"clips/{uuid}.mp4") in files.sizes))
    for uuid in chosen:
        found = next(looked)[1] if f"clips/{uuid}.mp4" in files.sizes else None
        with expected(f"metas/v0/{uuid}.json", "metadata", report):
            _clip(files, report, uuid, folders, found)
    report.entries = len(chosen)
    _embeddings(files, report, clips)
    captions = "v0/all_window_captions.json"
    if captions in files.sizes and isinstance(told := files.json(captions, report), dict):
        for name in sorted(told.keys() - videos.keys()):
            report.add(captions, "captions", f"it has {name}, which summary.json has not", AGAIN, error=False)
    for name in files.named("clips/", ".mp4"):
        uuid = name[len("clips/") :].split("/")[0].removesuffix(".mp4")
        if uuid not in clips:
            report.add(name, "orphan", "summary.json does not name it: it is never read", AGAIN, error=False)


def _keys(name: str, value: dict[str, Any], wanted: tuple[str, ...], report: Report) -> bool:
    lacking = [key for key in wanted if key not in value]
    if lacking:
        report.add(name, "keys", f"it lacks {', '.join(lacking)}", AGAIN)
    return not lacking


def _video(files: Files, report: Report, name: str, told: dict[str, Any]) -> None:
    record = files.json(f"processed_videos/{name}.json", report)
    if not isinstance(record, dict) or not _keys(f"processed_videos/{name}.json", record, RECORD, report):
        return
    found: list[str] = []
    for number in range(record["num_clip_chunks"]):
        path = f"processed_clip_chunks/{name}_{number}.json"
        chunk = files.json(path, report)
        if isinstance(chunk, dict) and _keys(path, chunk, CHUNK, report):
            found += chunk["clips"]
    if sorted(found) != sorted(told.get("clips", ())):
        what = f"its chunks have {len(found)} clips, summary.json {len(told.get('clips', ()))}"
        report.add(f"processed_videos/{name}.json", "chunks", what, AGAIN)


def _clip(files: Files, report: Report, uuid: str, folders: set[str], found: int | str | None) -> None:
    """folders: those in clips/, in which a session has the videos of its cameras. found: what `count` finds of its
    video, None where there is none."""
    name = f"metas/v0/{uuid}.json"
    about = files.json(name, report)
    if not isinstance(about, dict) or not _keys(name, about, READ, report):
        return
    if about["span_uuid"] != uuid:
        report.add(name, "metadata", f"span_uuid is {about['span_uuid']}", AGAIN)
    if not about["valid"]:
        report.add(name, "not-valid", '"valid" is false, since it has no windows: its shard passes over it',
                   "Caption the clips (curate.caption), or the data set is empty", error=False)  # fmt: skip
        return
    mp4 = f"clips/{uuid}.mp4"
    where = about["clip_location"]
    if storage.public(where) != storage.public(files.uri(mp4)) and storage.stat(where) is None:
        report.add(name, "clip-location", f"the shard pipeline opens {where}, which is not there",
                   "It is an absolute path: make the data set where it is to be used")  # fmt: skip
    if found is not None:
        if files.sizes[mp4] != about["num_bytes"]:
            report.add(
                mp4, "num-bytes", f"it has {files.sizes[mp4]} bytes, its metadata says {about['num_bytes']}", AGAIN
            )
        count = frames(mp4, found, report)
        if count is not None and count != about["num_frames"]:
            report.add(mp4, "frame-count", f"it has {count} frames, its metadata says {about['num_frames']}", AGAIN)
    elif uuid not in folders:
        report.add(mp4, "missing", "summary.json names the clip; its video is not there", AGAIN)
    if not about["framerate"] > 0:
        report.add(name, "metadata", f"a frame rate of {about['framerate']}: no bin takes it", "Leave it out")
    _windows(name, about, report)


def _windows(name: str, about: dict[str, Any], report: Report) -> None:
    bare = [number for number, one in enumerate(about["windows"])
            if not any(key.endswith("_caption") and not key.endswith("_enhanced_caption") for key in one)]  # fmt: skip
    if bare and any(number > bare[0] for number in range(len(about["windows"])) if number not in bare):
        what = f"window {bare[0]} has no caption and a later one has: an assert ends the shard pipeline"
        report.add(name, "caption-gap", what, "Caption it again (curate.caption), or leave the clip out")
    elif bare:
        what = f"window {bare[0]} has no caption: there will be fewer embeddings than windows"
        report.add(name, "no-caption", what, "Caption it again (curate.caption), or leave the clip out", error=False)
    for one in about["windows"]:
        if not 0 <= one["start_frame"] <= one["end_frame"] < about["num_frames"]:
            what = f"a window of frames {one['start_frame']} to {one['end_frame']} of {about['num_frames']}"
            report.add(name, "window", what, AGAIN)


def _embeddings(files: Files, report: Report, clips: set[str]) -> None:
    """What dedup reads: *_embd_parquet/ with the columns id and embedding; and *_embd/ with a pickle a clip."""
    wanted = {"id": pa.types.is_string, "embedding": lambda kind: pa.types.is_list(kind)}
    sizes: set[int] = set()
    tables = [name for name in files.named(after=".parquet") if "_embd_parquet/" in name]
    for name in report.pick("tables of embeddings", tables):
        table: pa.Table | None = None
        with expected(name, "embeddings", report), files.open(name) as file:
            table = pq.read_table(file)
        if table is None:
            continue
        for column, right in wanted.items():
            if column not in table.column_names or not right(table.schema.field(column).type):
                report.add(
                    name, "embeddings", f"a column {column!r} should be there; it has {table.schema.names}", AGAIN
                )
                break
        else:
            sizes |= {len(one) for one in table["embedding"].to_pylist()}
            if strange := set(table["id"].to_pylist()) - clips:
                what = f"{len(strange)} ids that summary.json has not, e.g. {sorted(strange)[0]}"
                report.add(name, "embeddings", what, AGAIN, error=False)
    pickled = [name for name in files.named(after=".pickle") if "_embd" in name.partition("/")[0]]
    for name in report.pick("files of embeddings", pickled):
        value = unpickled(name, files.read(name), report)
        if value is not None and not (isinstance(value, np.ndarray) and value.ndim and value.size == value.shape[-1]):
            report.add(name, "pickle", f"the vector of a clip should be there; it is {shown(value)}", AGAIN)
        elif value is not None:
            sizes.add(value.size)
    if len(sizes) > 1:
        report.add("", "embeddings", f"vectors of different lengths: {sorted(sizes)}", "Embed all clips with one model")
