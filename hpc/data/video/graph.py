"""Chains of libav's filters."""

from __future__ import annotations

import itertools

import av.filter

from hpc.data.video.container import Frame


class Graph:
    """A chain of libav's filters, built anew when the frames change their size or format."""

    def __init__(self, *steps: tuple[str, str]) -> None:
        self.steps = steps
        self.kind: object = None

    def __call__(self, frame: Frame) -> Frame:
        kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if kind != self.kind:
            self.kind, self.graph = kind, av.filter.Graph()
            options = "video_size={}x{}:pix_fmt={}:colorspace={}:range={}".format(*kind)
            filters = [("buffer", f"{options}:time_base={frame.time_base}"), *self.steps, ("buffersink", "")]
            nodes = [self.graph.add(name, arguments) for name, arguments in filters]
            for node, following in itertools.pairwise(nodes):
                node.link_to(following)
            self.graph.configure()
        self.graph.push(frame)
        return self.graph.pull()
