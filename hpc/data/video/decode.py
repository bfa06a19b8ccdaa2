"""Decode a video frame by frame, with exact numbers and times, from its start or from the middle."""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.codec.context import Flags2

from hpc.data.video.container import Frame, Source, average_fps, opened, packets
from hpc.data.video.graph import Graph
from hpc.data.video.index import Index

REORDER = 17  # frames; no codec shows more than 16 frames before a key frame that it decodes after it
SEEKS = 3  # tries, each from a key frame further back
JUMP_BACK = 1.0  # seconds; timestamps that fall by more start anew there, as in joined recordings

TURNS = {  # libav's filters, by degrees clockwise
    90: (("transpose", "clock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "cclock"),),
}


class Decoder:
    """Iterate for (number, frame) of a video from frame `first` on, in the order in which they are shown.

    frame.pts (in frame.time_base) is set and rises strictly, frame.duration is set. Numbers count what the container
    holds, so where frames are damaged beyond decoding some numbers are missing. To begin in the middle, `at` is the
    file's `index`; the frames are then the same, with the same numbers, as from the start. With `vectors` the frames
    have their `motion_vectors`, if the codec has any.
    """

    def __init__(self, source: Source, first: int = 0, at: Index | None = None, vectors: bool = False) -> None:
        if first and at is None:
            raise ValueError(f"to begin at frame {first}, give the file's index")
        self.source, self.first, self.at, self.vectors = source, first, at, vectors
        self.uri = str(source if isinstance(source, str | Path) else getattr(source, "name", "<file>"))
        self.damaged = 0
        """Frames so far that could not be decoded, or not in full."""
        self.rotation = 0
        """Degrees clockwise by which the frames were turned."""

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        with opened(self.source) as (container, stream):
            stream.thread_type = "AUTO"
            if self.vectors:
                stream.codec_context.flags2 |= Flags2.export_mvs
            place, packets = self._begin(container, stream)
            duration = max(1, round(1 / (average_fps(stream) * stream.time_base)))  # where the file gives none
            number, last = place - 1, None
            waiting: list[int] = []  # times of the frames that went into the decoder and were not shown yet
            turn = None
            for frame in self._frames(stream.codec_context, _in_a_row(packets, stream.time_base), waiting):
                number += 1
                pts = frame.pts
                if pts is None:
                    pts = 0 if last is None else last + duration
                while waiting and waiting[0] < pts:
                    heapq.heappop(waiting)
                    number += 1
                if waiting and waiting[0] == pts:
                    heapq.heappop(waiting)
                if number < self.first:
                    continue
                self.damaged += frame.is_corrupt
                if last is not None and pts <= last:
                    self.damaged += 1
                    continue
                last, duration = pts, frame.duration or duration
                if self.rotation != (degrees := round(-frame.rotation / 90) * 90 % 360):
                    self.rotation, turn = degrees, Graph(*TURNS[degrees]) if degrees else None
                frame.time_base = stream.time_base  # the last frames that the decoder gives come without one
                if turn:
                    frame = turn(frame)
                frame.pts, frame.duration = pts, duration
                yield number, frame

    def _begin(self, container: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, Iterator[av.Packet]]:
        """The packets from a key frame on from which frame `first` can be decoded, and that key frame's place."""
        if self.at is not None:
            # A key frame's place in decoding order is its number, but for frames that are decoded after it and shown
            # before it, of which there are fewer than REORDER.
            early_enough = [key for key in self.at.keys if key[0] <= self.first - REORDER]
            places = {stamp: place for place, stamp in early_enough}
            for _, stamp in early_enough[: -SEEKS - 1 : -1]:
                container.seek(stamp, stream=stream)
                rest = packets(container, stream)
                key = next((packet for packet in rest if packet.is_keyframe), None)
                place = places.get(key.dts if self.at.by_dts else key.pts) if key else None
                if place is not None:
                    return place, itertools.chain([key], rest)
            if early_enough:
                container.seek(0)  # this container cannot seek well: read on from the start
        return 0, packets(container, stream)

    def _frames(
        self, decoder: av.VideoCodecContext, packets: Iterator[av.Packet], waiting: list[int]
    ) -> Iterator[Frame]:
        for packet in packets:
            if packet.pts is not None and not packet.is_discard:
                heapq.heappush(waiting, packet.pts)
            try:
                yield from decoder.decode(packet)
            except av.FFmpegError:
                self.damaged += 1
        with contextlib.suppress(av.FFmpegError):
            yield from decoder.decode(None)


def _in_a_row(packets: Iterator[av.Packet], time_base: Fraction) -> Iterator[av.Packet]:
    """Shift the timestamps of packets that begin anew in the middle, so that time goes on."""
    shift, latest = 0, None
    for packet in packets:
        if packet.dts is not None:
            if latest is not None and (latest - packet.dts - shift) * time_base > JUMP_BACK:
                shift = latest + (packet.duration or 1) - packet.dts
            latest = packet.dts + shift
            packet.dts = latest
        if packet.pts is not None:
            packet.pts += shift
        yield packet
