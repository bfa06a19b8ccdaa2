"""Decode a video frame by frame, with exact numbers and times, from its start or from the middle."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
from av.codec.context import Flags2

from hpc.data.video.color import TRANSFERS, ToneMap
from hpc.data.video.container import Frame, Source, Unfit, average_fps, opened, packets
from hpc.data.video.deinterlace import LEAD, declared, deinterlaced
from hpc.data.video.graph import SCALE, Graph
from hpc.data.video.index import Index
from hpc.data.video.tap import BEHIND, Tap

REORDER = 17  # frames; no codec shows more than 16 frames before a key frame that it decodes after it
SEEKS = 3  # tries, each from a key frame further back
JUMP_BACK = 1.0  # seconds; timestamps that fall by more start anew there, as in joined recordings

PLAIN = ("yuv420p", "yuvj420p")
TURNS = {  # libav's filters, by degrees clockwise
    90: (("transpose", "clock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "cclock"),),
}


class Decoder:
    """Iterate for (number, frame) of a video from frame `first` on, in the order in which they are shown.

    Frames are upright, progressive, of standard dynamic range, and yuv420p (or yuvj420p, its full range) of 8 bits.
    frame.pts (in frame.time_base) is set and rises strictly, frame.duration is set. Numbers count what the container
    holds, so where frames are damaged beyond decoding some numbers are missing. To begin in the middle, `at` is the
    file's `index`; the frames are then the same, with the same numbers, as from the start. With `vectors` the frames
    have their `motion_vectors`, if the codec has any. A `tap` gets the packets that are read on the way. With `digests`
    there are digests of the packets.

    With `nvdec` a GPU decodes, and the frames are handles of its memory: see hpc.data.video.nvdec. Raises Unfit where
    the CPU should do it, also in the middle.
    """

    def __init__(
        self,
        source: Source,
        first: int = 0,
        at: Index | None = None,
        vectors: bool = False,
        tap: Tap | None = None,
        digests: bool = False,
        nvdec: bool = False,
    ) -> None:
        if first and at is None:
            raise ValueError(f"to begin at frame {first}, give the file's index")
        self.source, self.first, self.at, self.vectors, self.tap = source, first, at, vectors, tap
        self.nvdec = nvdec
        self.uri = str(source if isinstance(source, str | Path) else getattr(source, "name", "<file>"))
        self._steps: dict[object, Callable[[Frame], Frame]] = {}
        self.digests: dict[int, bytes] | None = {} if digests else None
        """Time of a picture -> digest of its packet, if asked for; whoever reads them takes them out."""
        self.damaged = 0
        """Frames so far that could not be decoded, or not in full."""
        self.rotation = 0
        """Degrees clockwise by which the frames were turned."""
        self.interlaced = False
        """Were there interlaced frames so far?"""
        self.coded: Frame | None = None
        """The newest frame as it was decoded, before anything was done to it."""

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        return self._on_gpu() if self.nvdec else self._on_cpu()

    def _on_gpu(self) -> Iterator[tuple[int, Frame]]:
        from hpc.data.video import nvdec  # it needs torch

        with opened(self.source, nvdec.accelerator()) as (container, stream):
            stream.codec_context.thread_count = 1
            for number, frame in self._numbered(container, stream, ""):
                nvdec.check(frame)
                if self.damaged:  # a CPU's decoder knows best how to patch pictures
                    break
                if number >= self.first:
                    yield number, frame
            if self.damaged:
                raise Unfit(f"{self.uri}: damaged")

    def _on_cpu(self) -> Iterator[tuple[int, Frame]]:
        with opened(self.source) as (container, stream):
            # More threads cost a fifth more CPU time, and memory; what encodes the frames takes longer anyway. And with
            # them it depends on their number how damage is patched, and on chance which motion vectors there are.
            stream.codec_context.thread_count = 1
            if self.vectors:
                stream.codec_context.flags2 |= Flags2.export_mvs
            fields = declared(stream)
            for number, frame in deinterlaced(self._numbered(container, stream, fields), fields):
                if number >= self.first:
                    yield number, self.plain(frame)

    def _numbered(
        self, container: av.container.InputContainer, stream: av.VideoStream, fields: str
    ) -> Iterator[tuple[int, Frame]]:
        """The frames with their numbers, times and durations, from LEAD before the first one on."""
        place, packets = self._begin(container, stream, self.tap.open(container, stream) if self.tap else [])
        packets = _in_a_row(packets, stream)
        if self.tap:
            packets = self.tap.watch(packets)
        duration = max(1, round(1 / (average_fps(stream) * stream.time_base)))  # where the file gives none
        number, last = place - 1, None
        waiting: list[int] = []  # times of the frames that went into the decoder and were not shown yet
        for frame in self._frames(stream.codec_context, packets, waiting):
            number += 1
            pts = frame.pts
            if pts is None:
                pts = 0 if last is None else last + duration
            while waiting and waiting[0] < pts:
                heapq.heappop(waiting)
                number += 1
            if waiting and waiting[0] == pts:
                heapq.heappop(waiting)
            if number < self.first - LEAD:
                continue
            late = last is not None and pts <= last
            if number >= self.first:
                self.damaged += frame.is_corrupt + late
            if late:
                continue
            last, duration = pts, frame.duration or duration
            frame.pts, frame.duration = pts, duration
            frame.time_base = stream.time_base  # the last frames that the decoder gives come without one
            self.interlaced = self.interlaced or bool(fields) or frame.interlaced_frame
            self.coded = frame
            yield number, frame

    def plain(self, frame: Frame) -> Frame:
        """A frame as it was decoded -> upright, of standard dynamic range, of 8 bits."""
        pts, duration, time_base = frame.pts, frame.duration, frame.time_base
        self.rotation = round(-frame.rotation / 90) * 90 % 360
        if frame.color_trc in TRANSFERS:
            why = (frame.color_trc, frame.color_primaries, frame.colorspace)
            frame = self._step(why, lambda: ToneMap(frame))(frame)
        elif frame.format.name not in PLAIN:
            rgb = frame.format.is_rgb or frame.format.has_palette
            matrix = "out_color_matrix=bt709:" if rgb else ""
            scale = f"{matrix}out_range=tv:flags={SCALE}"
            frame = self._step(scale, lambda: Graph(("scale", scale), ("format", "yuv420p")))(frame)
        if degrees := self.rotation:
            frame = self._step(degrees, lambda: Graph(*TURNS[degrees]))(frame)
        frame.pts, frame.duration, frame.time_base = pts, duration, time_base
        return frame

    def _step(self, kind: object, make: Callable[[], Callable[[Frame], Frame]]) -> Callable[[Frame], Frame]:
        if kind not in self._steps:
            self._steps[kind] = make()
        return self._steps[kind]

    def _begin(
        self, container: av.container.InputContainer, stream: av.VideoStream, sounds: Sequence[av.AudioStream] = ()
    ) -> tuple[int, Iterator[av.Packet]]:
        """The packets from a key frame on from which frame `first` can be decoded, and that key frame's place."""
        if self.at is not None:
            # A key frame's place in decoding order is its number, but for frames that are decoded after it and shown
            # before it, of which there are fewer than REORDER.
            lead = REORDER + LEAD + (math.ceil(BEHIND * average_fps(stream)) if sounds else 0)
            early_enough = [key for key in self.at.keys if key[0] <= self.first - lead]
            places = {stamp: place for place, stamp in early_enough}
            for _, stamp in early_enough[: -SEEKS - 1 : -1]:
                container.seek(stamp, stream=stream)
                rest = packets(container, stream, *sounds)
                key = next((packet for packet in rest if packet.is_keyframe and packet.stream is stream), None)
                place = places.get(key.dts if self.at.by_dts else key.pts) if key else None
                if place is not None:
                    return place, itertools.chain([key], rest)
            if early_enough:
                container.seek(0)  # this container cannot seek well: read on from the start
        return 0, packets(container, stream, *sounds)

    def _frames(
        self, decoder: av.VideoCodecContext, packets: Iterator[av.Packet], waiting: list[int]
    ) -> Iterator[Frame]:
        for packet in packets:
            if packet.pts is not None and not packet.is_discard:
                heapq.heappush(waiting, packet.pts)
                if self.digests is not None:
                    self.digests[packet.pts] = hashlib.blake2b(packet, digest_size=16).digest()
            try:
                yield from decoder.decode(packet)
            except av.FFmpegError:
                self.damaged += 1
        with contextlib.suppress(av.FFmpegError):
            yield from decoder.decode(None)


def _in_a_row(packets: Iterator[av.Packet], stream: av.VideoStream) -> Iterator[av.Packet]:
    """Shift the timestamps of packets that begin anew in the middle, so that time goes on."""
    shifts, latest = [0], None
    sounds: dict[int, tuple[int, int]] = {}  # stream -> its latest time as the file has it, and which shift is on
    for packet in packets:
        if packet.stream is not stream:
            if packet.pts is not None:
                before, on = sounds.get(packet.stream_index, (packet.pts, len(shifts) - 1))
                on += (before - packet.pts) * packet.time_base > JUMP_BACK
                sounds[packet.stream_index] = packet.pts, on
                packet.pts += round(shifts[min(on, len(shifts) - 1)] * stream.time_base / packet.time_base)
            yield packet
            continue
        if packet.dts is not None:
            if latest is not None and (latest - packet.dts - shifts[-1]) * stream.time_base > JUMP_BACK:
                shifts.append(latest + (packet.duration or 1) - packet.dts)
            latest = packet.dts + shifts[-1]
            packet.dts = latest
        if packet.pts is not None:
            packet.pts += shifts[-1]
        yield packet
