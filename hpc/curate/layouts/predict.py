"""Layouts of the trainers: Cosmos-Predict2.5's dialect of the tree of tars, and the folders for post-training.

What they read: cosmos-predict2.5 50369b8: predict2/datasets/augmentors/video_parsing.py, text_transforms_for_video.py;
local_datasets/dataset_video.py; cosmos-predict2 661da47: data/dataset_video.py, data/dataset_multiview.py. (The
multi-view training of Predict2.5 has no such form: cosmos-predict2.5 50369b8: predict2_multiview/datasets reads tars by
way of tables of NVIDIA's own stores, and its local_dataset.py is one sample for inference.)
"""

from __future__ import annotations

from collections.abc import Iterator

from hpc.curate.layouts import Entry, Sample, as_json, bins
from hpc.curate.layouts.bins import Unfit
from hpc.curate.layouts.cosmos import source_of
from hpc.curate.settings import ShardMembers
from hpc.data import pickles

T2W, I2W = "t2w_windows", "i2w_windows_later_frames"
CAPTION = "qwen2p5_7b_caption"
T2W_EMBEDDING, I2W_EMBEDDING = "t2w_qwen2p5_7b", "i2w_qwen2p5_7b_later_frames"


def shards(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """The tree of Cosmos-Curate, with metadata as the loader of Predict2.5 wants it.

    It takes `end_frame` for the first frame after a window, where Cosmos-Curate means the last one of it. A window has
    no other keys: any that it does not know costs the whole clip. The pickle is a list of dicts, one a window.
    """
    clip = sample.clip
    place = bins.by_duration(clip["width"], clip["height"], clip["num_frames"], clip["fps"], settings.durations)
    least, most = settings.fps
    if not least <= clip["fps"] <= most:
        raise Unfit("frame-rate", f"{clip['fps']:g} frames per second; the loader takes {least:g} to {most:g}")
    windows = sample.usable()
    told = [{"start_frame": one.start, "end_frame": one.end + 1, CAPTION: one.words} for one in windows]
    members = {
        ".json": as_json(
            {
                "framerate": clip["fps"],
                "nb_frames": clip["num_frames"],
                "width": clip["width"],
                "height": clip["height"],
                "duration_span": [clip["start_seconds"], clip["end_seconds"]],
                "source_video": source_of(clip),
                T2W: told,
                I2W: told,
            }
        )
    }
    if sample.embedded:
        arrays = [one.embedding for one in windows if one.embedding is not None]
        members[".pickle"] = pickles.dumps([dict.fromkeys((T2W_EMBEDDING, I2W_EMBEDDING), one) for one in arrays])
    yield Entry(clip["uuid"], members, place)


def views(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """The folders of Predict2's multi-view training: videos/<camera>/, metas/<camera>/ and t5_xxl/<camera>/, with a
    file of the same name in each camera's.

    Words are of the camera that was cut: the loader takes those of one view alone (front_view_caption_only), and takes
    the same frames of all, so that windows are left out that a camera has not to their end.
    """
    clip = sample.clip
    if not clip.get("cameras"):
        raise Unfit("one-camera", "a clip of a single video: `inputs` has no `group_by`, or they have one camera")
    if not sample.embedded:
        raise ValueError("Cosmos-Predict2 takes no video without a text embedding: add curate.text_embed to `needs`")
    shortest = min(clip["cameras"], key=lambda one: one["num_frames"])
    about = as_json({"camera": clip["camera"], "cameras": [one["camera"] for one in clip["cameras"]]})
    for entry in files(sample, settings):
        *_, start, end = entry.key.split("_")
        if not entry.why and shortest["num_frames"] <= int(end):
            words = f"camera {shortest['camera']} has {shortest['num_frames']} frames of {start} to {end}"
            entry = Entry(entry.key, start=int(start), end=int(end), why="camera-short", detail=words)
        if not entry.why:
            if entry.start is None and any(one["num_frames"] != clip["num_frames"] for one in clip["cameras"]):
                entry.start, entry.end = int(start), int(end)
            pickled = entry.members.pop(".pickle")
            entry.members = {".json": about, **entry.members, ".pkl": pickled}
        yield entry


def files(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """videos/, metas/ and t5_xxl/ with a file <uuid>_<start>_<end> for each window (frames inclusive)."""
    clip = sample.clip
    if settings.layout == "predict2" and not sample.embedded:
        raise ValueError("Cosmos-Predict2 takes no video without a text embedding: add curate.text_embed to `needs`")
    for one in sample.usable():
        key, frames = f"{clip['uuid']}_{one.start}_{one.end}", one.end + 1 - one.start
        if frames < settings.min_frames:
            detail = f"{frames} frames; the loader needs {settings.min_frames} (min_frames)"
            yield Entry(key, start=one.start, end=one.end, why="too-few-frames", detail=detail)
            continue
        members = {".txt": one.words.encode()}
        if settings.layout != "predict2.5" and one.embedding is not None:
            members[".pickle"] = pickles.dumps([one.embedding])
        whole = len(sample.windows) == 1 and frames == clip["num_frames"]
        yield Entry(key, members, start=None if whole else one.start, end=None if whole else one.end)
