"""Deinterlace: one whole frame for each interlaced one, at the time of its first field."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import av

from hpc.data.video.container import Frame
from hpc.data.video.graph import Graph

LEAD = 3  # frames to begin before the first one that is wanted: bwdif looks at one before, and starts differently
FIRST_FIELD = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}  # AVFieldOrder: what is shown first is what counts here


def declared(stream: av.VideoStream) -> str:
    """The field that every frame shows first, "tff" or "bff", if only the container knows of fields; else "".
    Codecs with prediction say it frame by frame; of those without it some, like MJPEG, know nothing of fields."""
    context = stream.codec_context
    return FIRST_FIELD.get(context.field_order, "") if context.codec.intra_only else ""


def deinterlaced(frames: Iterable[tuple[int, Frame]], fields: str) -> Iterator[tuple[int, Frame]]:
    """(number, frame) -> the same numbers, times and durations in the same order; progressive frames as they are.

    fields: as `declared`. Nothing is done before the first interlaced frame. From there on frames come one late, out of
    libav's bwdif: each missing line from those above and below it, and from the frames before and after.
    """
    graph = None
    waiting: deque[tuple[int, Frame]] = deque()
    for number, frame in frames:
        if graph is None:
            if not frame.interlaced_frame and not fields:
                yield number, frame
                continue
            mark = () if frame.interlaced_frame else (("setfield", fields),)
            graph = Graph(*mark, ("bwdif", "mode=send_frame:parity=auto:deint=interlaced"))
        waiting.append((number, frame))
        yield from _as_they_were(graph.feed(frame), waiting)
    if graph is not None:
        yield from _as_they_were(graph.flush(), waiting)


def _as_they_were(frames: Iterable[Frame], waiting: deque[tuple[int, Frame]]) -> Iterator[tuple[int, Frame]]:
    """Give each frame the number and times that it came with: the filter counts in halves."""
    for frame in frames:
        number, source = waiting.popleft()
        frame.pts, frame.time_base, frame.duration = source.pts, source.time_base, source.duration
        yield number, frame
