"""Layouts of Cosmos-Curate: the tree of tars that its shard pipeline writes, and the files that its split writes.

Keys and names as in cosmos_curate 29f1358: metadata_writer_stage.py (_make_clip_metadata), sharding_pipeline.py,
download_stages.py (DownloadPackUpload), dimensions.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hpc.curate.layouts import USABLE, Entry, Sample, Window, as_json, bins
from hpc.curate.settings import ShardMembers
from hpc.data import pickles, storage

REJECTED_BY = {"motion": "motion", "aesthetic": "aesthetic", "text": "artificial_text",
               "classify": "qwen_classifier", "semantic": "qwen_semantic"}  # fmt: skip
"""Our filters and layers -> its words, in num_clips_filtered_by_<word>."""


def by_duration(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """resolution_*/aspect_ratio_*/duration_*: the clip, its metadata, and a pickle with an array a window."""
    clip = sample.clip
    place = bins.by_duration(clip["width"], clip["height"], clip["num_frames"], clip["fps"], settings.durations)
    windows = sample.usable()
    yield Entry(clip["uuid"], _members(sample, windows, settings), place)


def by_window(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """resolution_*/aspect_ratio_*/frames_*: an entry in each bin that windows of the clip begin in, with the clip's
    video, its metadata with these windows alone (one, but for captions of windows of fewer frames), and a pickle with
    an array for each."""
    clip = sample.clip
    found: dict[str, list[Window]] = {}
    for window in sample.usable():
        found.setdefault(bins.by_window(clip["width"], clip["height"], window.start), []).append(window)
    for place, windows in found.items():
        yield Entry(clip["uuid"], _members(sample, windows, settings), place)


def files(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """clips/<uuid>.mp4 and metas/v0/<uuid>.json; what is about several clips is written with the tree."""
    yield Entry(sample.clip["uuid"], {".json": as_json(metadata(sample, sample.windows, settings.caption_name))})


def _members(sample: Sample, windows: Sequence[Window], settings: ShardMembers) -> dict[str, bytes]:
    members = {".json": as_json(metadata(sample, windows, settings.caption_name))}
    if sample.embedded:
        members[".pickle"] = pickles.dumps([one.embedding for one in windows])
    return members


def source_of(clip: dict[str, Any]) -> str:
    """The video's name; of one in a tar with the tar in front."""
    source = storage.public(clip["source"])
    return f"{source}#{clip['member']}" if clip["member"] else source


def metadata(sample: Sample, windows: Sequence[Window], name: str) -> dict[str, Any]:
    """A clip's metadata, with its keys. name: of captions, e.g. "qwen": captions are in "qwen_caption"."""
    clip = sample.clip
    data: dict[str, Any] = {
        "span_uuid": clip["uuid"],
        "source_video": source_of(clip),
        "duration_span": [clip["start_seconds"], clip["end_seconds"]],
        "width_source": clip["source_width"],
        "height_source": clip["source_height"],
        "framerate_source": clip["source_fps"],
        "clip_location": f"{storage.public(sample.tar)}#{clip['uuid']}.mp4",
    }
    if clip["verdict"] == "keep":
        data |= {
            "width": clip["width"],
            "height": clip["height"],
            "framerate": clip["fps"],
            "num_frames": clip["num_frames"],
            "video_codec": clip["codec"],
            "num_bytes": clip["bytes"],
        }
    if clip["motion_vectors_global"] is not None:
        data["motion_score"] = {
            "global_mean": clip["motion_vectors_global"],
            "per_patch_min_256": clip["motion_vectors_patch"],
        }
    if clip["aesthetic_score"] is not None:
        data["aesthetic_score"] = clip["aesthetic_score"]
    if sample.labels is not None:
        data["qwen_type_classification"] = sample.labels
    if clip["verdict"] in ("classify", "semantic"):
        data["qwen_rejection_stage"] = {"classify": "classifier"}.get(clip["verdict"], "semantic")
    if clip["text_area"] is not None:
        data["post_production_text"] = clip["verdict"] == "text"
    data["windows"] = [_window(one, name) for one in windows]
    data["filtered_windows"] = _filtered(sample, windows, name)
    data["valid"] = clip["verdict"] == "keep" and bool(windows)
    data["has_caption"] = any(one.usable for one in windows)
    data["total_prompt_tokens"] = sum(one.prompt_tokens for one in windows)
    data["total_output_tokens"] = sum(one.output_tokens for one in windows)
    return data


def _filtered(sample: Sample, windows: Sequence[Window], name: str) -> list[dict[str, Any]]:
    """What filters by a model found in windows, and windows whose caption went wrong, in their order."""
    found = {(one["start_frame"], one["end_frame"]): dict(one) for one in sample.judged}
    for window in windows:
        if window.status not in USABLE:
            place = {"start_frame": window.start, "end_frame": window.end}
            one = found.setdefault((window.start, window.end), place)
            one["errors"] = one.get("errors", {}) | {f"{name}_caption": window.status}
    return [found[frames] for frames in sorted(found)]


def _window(window: Window, name: str) -> dict[str, Any]:
    data: dict[str, Any] = {"start_frame": window.start, "end_frame": window.end}
    if window.caption and window.status in USABLE:
        data[f"{name}_caption"] = window.caption
        data[f"{name}_prompt_tokens"] = window.prompt_tokens
        data[f"{name}_output_tokens"] = window.output_tokens
    if window.enhanced is not None:
        data[f"{name}_lm_enhanced_caption"] = window.enhanced
    return data
