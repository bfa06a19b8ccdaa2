"""Folders for post-training of Cosmos-Predict2 and Predict2.5: videos/, metas/, t5_xxl/; with a folder for each camera
inside for multi-view training.

cosmos-predict2 661da47: data/dataset_video.py, data/dataset_multiview.py.
cosmos-predict2.5 50369b8: local_datasets/dataset_video.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc.data import pickles
from hpc.validate import Files, Report, counts, frames

TOKENS, WIDTH = 512, 1024
"""Of a text embedding: CosmosTextEncoderConfig."""


def predict2(files: Files, report: Report) -> None:
    videos, some = _videos(files, report)
    pickled = {name[len("t5_xxl/") : -len(".pickle")] for name in files.named("t5_xxl/", ".pickle")}
    for stem in some:
        name = f"t5_xxl/{stem}.pickle"
        if stem not in pickled:
            report.add(f"videos/{stem}.mp4", "no-embedding", f"the loader passes over it: there is no {name}",
                       "Embed its caption (curate.text_embed), or take the video away")  # fmt: skip
        else:
            embedding(name, files.read(name), report)
    _orphans("t5_xxl", ".pickle", pickled - videos, report)


def multiview(files: Files, report: Report) -> None:
    """videos/<camera>/, t5_xxl/<camera>/: the loader lists the first camera's, and takes the same frames of all.

    cosmos-predict2 661da47: data/dataset_multiview.py, with front_view_caption_only as in its recipe.
    """
    rigs: dict[str, set[str]] = {}
    for name in files.named("videos/"):
        camera, _, file = name[len("videos/") :].rpartition("/")
        if not camera or not file.endswith(".mp4"):
            what = "the loader opens every file in videos/<camera>/ as a video"
            report.add(name, "not-a-video", what, "Take it away")
        else:
            rigs.setdefault(file.removesuffix(".mp4"), set()).add(camera)
    cameras = set[str]().union(*rigs.values())
    least = report.settings.num_frames
    some = report.pick("sessions", sorted(rigs))
    looked = counts(files, [f"videos/{camera}/{stem}.mp4" for stem in some for camera in sorted(rigs[stem])])
    for stem in some:
        lengths = {}
        for camera, (name, found) in zip(sorted(rigs[stem]), looked, strict=False):
            if (count := frames(name, found, report)) is not None:
                lengths[camera] = count
        all_of = f"videos/*/{stem}.mp4"
        if lacking := cameras - rigs[stem]:
            what = f"there is none of {', '.join(sorted(lacking))}: another session is taken in its place"
            report.add(all_of, "camera-missing", what, "Take it away from the other cameras too")
        if len(set(lengths.values())) > 1:
            what = f"the same frames are taken of all cameras, and they have different numbers: {lengths}"
            report.add(all_of, "frame-count", what, "Cut the session again")
        if lengths and min(lengths.values()) < least:
            report.add(all_of, "too-few-frames", f"{min(lengths.values())} frames: it is never sampled",
                       f"Leave it out (min_frames: {least}), or train on fewer (--num-frames)")  # fmt: skip
    embedded = {name[len("t5_xxl/") : -len(".pkl")] for name in files.named("t5_xxl/", ".pkl")}
    front = {name.rpartition("/")[0] for name in embedded} & cameras
    if not front:
        report.add("t5_xxl/", "no-embedding", "no camera has embeddings: t5_xxl/<camera>/*.pkl",
                   "Embed the captions (curate.text_embed)")  # fmt: skip
    for name in sorted(f"{camera}/{stem}" for camera in front for stem in some):
        if name not in embedded:
            what = f"another session is taken in its place: there is no t5_xxl/{name}.pkl"
            do = "Embed its caption (curate.text_embed), or take the session away"
            report.add(f"videos/{name}.mp4", "no-embedding", what, do)
        else:
            embedding(f"t5_xxl/{name}.pkl", files.read(f"t5_xxl/{name}.pkl"), report)
    if len(rigs) < 2:
        report.add("videos/", "too-few-videos", f"{len(rigs)} sessions: the loader keeps one for validation, at least",
                   "Give the folder that has videos/<camera>/ in it, or add sessions")  # fmt: skip
    report.entries = len(some)


def predict25(files: Files, report: Report) -> None:
    videos, some = _videos(files, report)
    told = {name[len("metas/") : -len(".txt")] for name in files.named("metas/", ".txt")}
    for stem in some:
        name = f"metas/{stem}.txt"
        if stem not in told:
            report.add(f"videos/{stem}.mp4", "no-caption", f"it is trained on without words: there is no {name}",
                       "Write its caption there, or take the video away")  # fmt: skip
            continue
        try:
            empty = not files.read(name).decode().strip()
        except UnicodeDecodeError as error:
            report.add(name, "caption", f"it is trained on without words: {error}", "Write the caption as UTF-8")
            continue
        if empty:
            report.add(name, "caption", "it is trained on without words: the caption is empty", "Caption it again")
    _orphans("metas", ".txt", told - videos, report)


def _videos(files: Files, report: Report) -> tuple[set[str], list[str]]:
    """The stems of the videos, and of those that are looked at."""
    least, stems = report.settings.num_frames + 1, set()
    for name in files.named("videos/"):
        stem = name[len("videos/") : -len(".mp4")]
        if "/" in name[len("videos/") :] or not name.endswith(".mp4"):
            report.add(name, "not-a-video", "the loader takes files in videos/ whose names end with .mp4, no others",
                       "Convert it, or take it away", error=False)  # fmt: skip
            continue
        if ".mp4" in stem:
            report.add(name, "name", "the loader replaces every .mp4 in a name by the suffix of its caption",
                       "Name it otherwise: .mp4 may come once")  # fmt: skip
        stems.add(stem)
    some = report.pick("videos", sorted(stems))
    for name, found in counts(files, [f"videos/{stem}.mp4" for stem in some]):
        count = frames(name, found, report)
        if count is not None and count < least:
            report.add(name, "too-few-frames", f"{count} frames: there is no random start among {count} - {least - 1}",
                       f"Leave out videos with fewer than {least} frames (min_frames: {least}), or train on fewer "
                       "(--num-frames)")  # fmt: skip
    report.entries = len(some)
    if not stems:
        report.add("videos/", "no-videos", "the loader lists videos/*.mp4; there are none",
                   "Give the folder that has videos/ in it")  # fmt: skip
    return stems, some


def _orphans(folder: str, suffix: str, stems: set[str], report: Report) -> None:
    for stem in sorted(stems):
        report.add(f"{folder}/{stem}{suffix}", "orphan", f"there is no videos/{stem}.mp4", "Take it away", error=False)


def embedding(name: str, data: bytes, report: Report) -> None:
    """The asserts of the loader, and what comes of shapes behind them."""
    do = "Write it again: a list with one float16 array of [tokens, 1024]"
    value = unpickled(name, data, report)
    if value is None:
        return
    if not isinstance(value, list) or len(value) != 1:
        report.add(name, "pickle", f"a list of one array should be in it; it has {shown(value)}", do)
    elif not isinstance(value[0], np.ndarray) or value[0].ndim != 2:
        report.add(name, "pickle", f"its array should have 2 dimensions; it has {shown(value[0])}", do)
    elif value[0].shape[1] != WIDTH or not 0 < value[0].shape[0] <= TOKENS:
        what = f"the loader pads it to {TOKENS} x {WIDTH}; it has {shown(value[0])}"
        report.add(name, "shape", what, "Embed with T5-XXL (google-t5/t5-11b), at most 512 tokens")
    elif value[0].shape[0] == TOKENS and value[0].dtype != np.float32:
        what = f"all {TOKENS} tokens: nothing is padded, so that it stays {value[0].dtype} among float32 others"
        report.add(name, "dtype", what, "Shorten the caption by a token", error=False)


def unpickled(name: str, data: bytes, report: Report) -> Any:
    """The value of a pickle; None, with a problem, for what cannot be read."""
    try:
        return pickles.loads(data)
    except pickles.Refused as error:
        report.add(name, "pickle", str(error), "Write it again; do not load it with Python's pickle")
        return None


def shown(value: Any) -> str:
    """A value as words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list):
        return f"a list of {len(value)}" + (f", first {shown(value[0])}" if value else "")
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(str, list(value)[:5])) or 'nothing'}"
    return f"{type(value).__name__} {value!r}"[:80]
