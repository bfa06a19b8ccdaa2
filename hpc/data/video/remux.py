"""Clips without encoding: the source's own packets, from a key frame on.

A clip can begin with a key frame, less the pictures that are decoded after it and shown before it (open GOPs): those
need what came before. It can end where all pictures that are decoded so far are shown before all that come later.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Literal

import av
from av.video.frame import PictureType

from hpc.data.video.audio import Sound
from hpc.data.video.container import Frame
from hpc.data.video.encode import MP4
from hpc.data.video.probe import Video
from hpc.data.video.tap import Tap
from hpc.data.work import BadInput

COPIED = ("h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg")
"""What mp4 holds and readers of clips know."""
LATER = 64  # packets to look through for pictures that are shown earlier: no codec holds back more than 16


class Inwards:
    """Moves the bounds of one clip inwards to where its packets can be cut. Ask about its frames, one by one."""

    def __init__(self, tap: Tap) -> None:
        self.coded = tap.coded
        self.begin: int | None = None
        """Time of the key frame at which the clip begins."""
        self.ends: dict[int, tuple[int, int]] = {}
        """Time of a frame at which the clip may end -> places of the packets since the last such frame."""

    def take(self, frame: Frame) -> Literal["before", "inside", "end"]:
        """before: not in the clip. inside: in the clip, if there is an end later. end: the clip may end with it."""
        pts, pictures, gone = frame.pts, self.coded.pictures, self.coded.gone
        if self.begin is None:
            place = self.coded.places.get(pts)
            intra = frame.pict_type in (PictureType.I, PictureType.NONE)  # else a gradual refresh only begins here
            if place is None or not pictures[place - gone].packet.is_keyframe or not intra:
                return "before"
            self.begin, self.next = pts, place
        rest = iter(pictures[self.next - gone :])
        earlier = list(itertools.takewhile(lambda one: one.shown <= pts, rest))
        later = itertools.islice(rest, LATER)
        place = self.next + len(earlier)
        if place - gone < len(pictures) and pictures[place - gone].shown == float("inf"):
            return "inside"
        if any(one.shown <= pts for one in later):
            return "inside"
        self.ends[pts] = self.next, place
        self.next = place
        return "end"


class Remuxer:
    """One clip to an mp4: as `Encoder`, but what is written are the packets of the frames."""

    def __init__(self, path: Path, video: Video, inwards: Inwards, tap: Tap) -> None:
        """inwards: has been asked about all frames that are written here, and said that they are in the clip."""
        self.path = path
        self.frames = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.codec, self.width, self.height = video.codec, video.width, video.height
        self.sound: Sound | None = None
        self._video, self._inwards, self._tap = video, inwards, tap
        self._container = av.open(str(path), "w", format="mp4", options=MP4)
        self._stream = self._container.add_stream_from_template(tap.coded.template, opaque=True)
        if self.codec == "hevc":
            self._stream.codec_context.codec_tag = "hvc1"
        self._dts: int | None = None
        self._early: list[av.Packet] = []

    def write(self, frame: Frame, duration: int) -> None:
        """The next frame. duration: until the next, in units of the video's time_base."""
        if self.sound is None and self._tap.tracks:
            self.sound = Sound(self._container, self._tap, frame.pts * self._video.time_base)
        self._end = frame.pts + duration
        first, last = self._inwards.ends.pop(frame.pts, (0, 0))
        gone = self._tap.coded.gone
        for packet, shown in self._tap.coded.pictures[first - gone : last - gone] if last else ():
            if shown >= self._inwards.begin:
                self._copy(packet)
        if self.sound:
            self.sound.feed(frame.pts * self._video.time_base)

    def _copy(self, packet: av.Packet) -> None:
        """Matroska has no decoding times, and libav knows those of the first packets only when later ones have come."""
        if packet.dts is not None:
            self._write_early(packet.dts - self._inwards.begin)
            self._write(packet, packet.dts - self._inwards.begin)
        elif self._dts is None and len(self._early) < LATER:
            self._early.append(packet)
        else:
            raise BadInput("", "cannot-be-copied", "its packets do not say when they are decoded")

    def _write_early(self, dts: int) -> None:
        """Write the packets that wait for a decoding time: this is that of the next one."""
        step = max(1, round(1 / (self._video.fps * self._video.time_base)))
        for place, packet in enumerate(self._early):
            self._write(packet, dts - (len(self._early) - place) * step)
        self._early.clear()

    def _write(self, packet: av.Packet, dts: int) -> None:
        if self._dts is not None and dts <= self._dts:
            dts = self._dts + 1
        self._dts = dts
        self.digest.update(packet)
        packet.pts, packet.dts = packet.pts - self._inwards.begin, dts
        packet.stream = self._stream
        self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        self._write_early(min((packet.pts - self._inwards.begin for packet in self._early), default=0))
        if self.sound:
            self.sound.close(self._end * self._video.time_base)
        self._container.close()

    def abandon(self) -> None:
        """Leave no file."""
        self._container.close()
        self.path.unlink(missing_ok=True)
