"""Layouts: what becomes of a clip, and of what layers say of it, in a data set that some reader expects.

A layout is a function `entries(sample, settings)`: for each entry of the data set that the clip gives, its key, the
folder (bin) that it belongs to, and what stands beside the video. A clip or window without a place raises
`bins.Unfit`, or is an entry with a reason: nothing is dropped silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from hpc.curate.layouts.bins import Unfit
from hpc.curate.settings import ShardMembers

Arrays = np.ndarray[Any, Any]
USABLE = ("success", "truncated")
"""Of a caption's status. cosmos_curate 29f1358: metadata_writer_stage.py, caption_ok."""

VIDEO, METAS, T5 = "video", "metas", "t5_xxl"
TREES = ("cosmos", "cosmos-frames", "predict2.5-webdataset")
"""Layouts of tars in bins, with a tar each for videos, metadata and text embeddings."""
PREDICT = ("predict2", "predict2.5", "predict2-multiview")
FOLDERS = ("cosmos-curate", *PREDICT)
"""Layouts of files."""
COSMOS = ("cosmos", "cosmos-frames", "cosmos-curate")
"""Layouts with Cosmos-Curate's metadata."""
WITH_CAPTIONS = (*TREES, *PREDICT)
"""Layouts that hold no window without a caption."""


class Window(msgspec.Struct):
    """A captioned stretch of a clip; frames counted from the clip's first, both inclusive."""

    start: int
    end: int
    caption: str
    status: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    enhanced: str | None = None
    """None: there is none, or it went wrong."""
    words: str = ""
    """The one of the two that a model learns with."""
    embedding: Arrays | None = None
    """Of the words: float16 [tokens, width]."""

    @property
    def usable(self) -> bool:
        return bool(self.words)

    def choose(self, field: str) -> None:
        """Which caption are the words; as `chosen` of hpc.data.upstream."""
        caption = self.caption.strip() if self.status in USABLE else ""
        enhanced = (self.enhanced or "").strip()
        self.words = {"best": enhanced or caption, "caption": caption, "enhanced": enhanced}[field]


class Sample(msgspec.Struct):
    """A kept clip and what layers say of it."""

    clip: dict[str, Any]
    """Its row of the clips' table."""
    tar: str
    """Where its video is."""
    windows: list[Window] = []
    captioned: bool = False
    """Is there a layer of captions?"""
    embedded: bool = False
    """...and one of their embeddings?"""
    labels: list[str] | None = None
    judged: list[dict[str, Any]] = []
    """Windows as a filter by a model saw them: start_frame, end_frame, and what speaks against them."""

    def usable(self) -> list[Window]:
        """The windows that a model can learn from. Raises Unfit where there are none."""
        if not self.captioned:
            raise ValueError(
                "this layout holds captions: add a stage that makes them (curate.caption, which takes a fixed text "
                "too) to `needs`"
            )
        windows = [one for one in self.windows if one.usable]
        if not windows:
            found = ", ".join(sorted({one.status for one in self.windows})) or "too few frames for a window"
            raise Unfit("no-caption", f"of {len(self.windows)} windows none has a caption: {found}")
        if self.embedded and (bare := [one for one in windows if one.embedding is None]):
            raise Unfit("no-text-embedding", f"the caption of frames {bare[0].start} to {bare[0].end} has none")
        return windows


class Entry(msgspec.Struct):
    """One entry of a data set."""

    key: str
    members: dict[str, bytes] = {}
    """Suffix -> what stands beside the video."""
    bin: str = ""
    start: int | None = None
    """The frames of the clip that its video consists of, if not of all; inclusive."""
    end: int | None = None
    why: str = ""
    """Why it is left out."""
    detail: str = ""


def entries(sample: Sample, settings: ShardMembers) -> list[Entry]:
    """Of one clip: all that goes into the data set, and what does not, with the reason."""
    uuid = sample.clip["uuid"]
    try:
        found = list(layout(settings.layout)(sample, settings))
    except Unfit as unfit:
        return [Entry(uuid, why=unfit.why, detail=unfit.detail)]
    if settings.layout in WITH_CAPTIONS:
        for one in sample.windows:
            if not one.usable:
                words = f"frames {one.start} to {one.end} of a clip whose other windows are there: {one.status}"
                found.append(Entry(f"{uuid}_{one.start}_{one.end}", why="no-caption", detail=words))
    return found


def layout(name: str) -> Callable[[Sample, ShardMembers], Iterator[Entry]]:
    from hpc.curate.layouts import cosmos, plain, predict  # they need this module

    return {
        "webdataset": plain.webdataset,
        "sessions": plain.sessions,
        "cosmos": cosmos.by_duration,
        "cosmos-frames": cosmos.by_window,
        "cosmos-curate": cosmos.files,
        "predict2.5-webdataset": predict.shards,
        "predict2": predict.files,
        "predict2.5": predict.files,
        "predict2-multiview": predict.views,
    }[name]


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
