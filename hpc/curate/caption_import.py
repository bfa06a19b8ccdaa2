"""Captions that Cosmos-Curate wrote beside clips -> a layer of captions: same windows, same words, nothing is asked.

It has a JSON file for each clip, metas/v0/<uuid>.json, with `windows: [{start_frame, end_frame, <model>_caption,
<model>_prompt_tokens, <model>_output_tokens, <language model>_enhanced_caption}]`, both frames inclusive; how a caption
came to be is not in it (cosmos_curate 29f1358: pipelines/video/read_write/metadata_writer_stage.py). Its clips are
files of that name, of which the clips stage made clips with ids of our own: the name of the source joins them.
"""

from __future__ import annotations

import functools
import json
import posixpath
from collections.abc import Callable
from typing import Any

from hpc.curate.caption import SCHEMA
from hpc.curate.settings.caption_import import CaptionImport
from hpc.data import layers, storage, upstream
from hpc.data.upstream import Clip
from hpc.data.work import Made, Work

ENHANCED = "_enhanced_caption"


def start(settings: CaptionImport) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: CaptionImport, work: Work) -> Made:
    """Raises ValueError where not one clip of the shard has a file in the folder: it is not the folder of these."""
    clips = upstream.clips(work, ("source", "num_frames"))
    read = functools.partial(windows, settings)
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for done, (clip, found) in enumerate(zip(clips, layers.map_ahead(read, clips), strict=True), 1):
        work.check()
        work.progress(done / len(clips), f"{done} of {len(clips)} clips")
        if found is None:
            missing.append(clip.uuid)
        else:
            rows += [{"uuid": clip.uuid, "window": number, **one} for number, one in enumerate(found)]
    if clips and len(missing) == len(clips):
        raise ValueError(f"folder: there is no {place(settings, clips[0])}, nor one for any other clip of this shard")
    path = work.scratch / f"{work.shard}.parquet"
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "model": settings.name, "revision": "",
            "folder": settings.folder, "without_metadata": missing}  # fmt: skip
    layers.write_table(path, rows, meta, SCHEMA)
    counts = {"clips": len(clips), "windows": len(rows), "clips_without_metadata": len(missing)}
    return Made([path], counts | {"errors": sum(row["status"] == "error" for row in rows)})


def place(settings: CaptionImport, clip: Clip) -> str:
    stem = posixpath.splitext(posixpath.basename(clip.row["source"]))[0]
    return storage.join(settings.folder, f"{stem}.json")


def windows(settings: CaptionImport, clip: Clip) -> list[dict[str, Any]] | None:
    """What is said of one clip; None if it has no file. Raises ValueError for a file that is none of these."""
    uri = place(settings, clip)
    try:
        data = storage.read(uri)
    except FileNotFoundError:
        return None
    try:
        told = json.loads(data)["windows"]
        return [window(settings.name, one, clip.row["num_frames"]) for one in told]
    except (ValueError, KeyError, TypeError) as error:
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"{uri} is no metadata of a clip as Cosmos-Curate writes it: {words}") from error


def window(name: str, told: dict[str, Any], frames: int) -> dict[str, Any]:
    text = told.get(f"{name}_caption") or ""
    others = [key for key in told if key.endswith("_caption") and not key.endswith(ENHANCED)]
    enhanced = next((told[key] for key in told if key.endswith(ENHANCED)), None)
    detail = "" if text else f"no {name}_caption" + (f"; there is {', '.join(others)}" if others else "")
    return {
        "start_frame": told["start_frame"], "end_frame": min(told["end_frame"], frames - 1), "caption": text,
        "status": "success" if text else "error", "detail": detail,
        "prompt_tokens": told.get(f"{name}_prompt_tokens", 0), "output_tokens": told.get(f"{name}_output_tokens", 0),
        "enhanced": enhanced, "enhanced_status": "success" if enhanced else None,
    }  # fmt: skip
