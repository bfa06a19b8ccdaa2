"""Chains of libav's filters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import av
import av.filter

from hpc.data.video.container import Frame

SCALE = "bicubic+accurate_rnd+full_chroma_int+bitexact"
"""Flags of the filter "scale": the same bytes on every CPU."""


class Graph:
    """A chain of libav's filters, built anew when the frames change their size or format."""

    def __init__(self, *steps: tuple[str, str]) -> None:
        self.steps = steps
        self.kind: object = None

    def __call__(self, frame: Frame) -> Frame:
        """The frame, filtered; for chains that hold none back."""
        (filtered,) = self.feed(frame)
        return filtered

    def feed(self, frame: Frame) -> Iterator[Frame]:
        """Give it the next frame: all frames that are ready by now."""
        kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if kind != self.kind:
            yield from self.flush()
            self.kind, self.graph = kind, av.filter.Graph()
            options = "video_size={}x{}:pix_fmt={}:colorspace={}:range={}".format(*kind)
            filters = [("buffer", f"{options}:time_base={frame.time_base}"), *self.steps, ("buffersink", "")]
            nodes = [self.graph.add(name, arguments) for name, arguments in filters]
            for node, following in itertools.pairwise(nodes):
                node.link_to(following)
            self.graph.configure()
        self.graph.push(frame)
        yield from self._ready()

    def flush(self) -> Iterator[Frame]:
        """No further frame of this kind comes: those that the chain held back."""
        if self.kind:
            self.kind = None
            self.graph.push(None)
            yield from self._ready()

    def _ready(self) -> Iterator[Frame]:
        while True:
            try:
                yield self.graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
