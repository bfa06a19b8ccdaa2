"""What a decoder's pass over a file reads beside the frames: the packets of the sound, and those of the pictures.

    tap = Tap(audio="keep")
    for number, frame in Decoder(file, tap=tap):
        ...                             # encoders of clips take from the tap what they need
        tap.forget(seconds)             # nothing before that will be asked for
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, NamedTuple

import av

from hpc.data.work import BadInput

AHEAD = 2  # seconds that are read on for sound which lies further back in the file than its pictures
BEHIND = 1  # seconds of packets kept before what was asked to be kept: decoders of sound need a few to get going


def described(stream: av.stream.Stream, *formats: str) -> av.stream.Stream:
    """All that the container says of a stream, to be read when it is closed: a stream like it, of a file in one of
    these formats that is never written. Raises ValueError where none of them takes the codec."""
    for name in formats:
        try:
            copy = av.open(io.BytesIO(), "w", format=name).add_stream_from_template(stream, opaque=True)
        except ValueError:
            continue
        copy.codec_context.bit_rate = 0  # libav's guess, which depends on how far it has read
        return copy
    raise ValueError(f"{' and '.join(formats)} do not take {stream.codec_context.name}")


class Packet(NamedTuple):
    """Of sound. Times in units of the track's time_base."""

    pts: int
    duration: int
    data: bytes


class Track:
    """The packets of one audio stream, as far as they are still kept. A packet's place is its number in the stream."""

    def __init__(self, stream: av.AudioStream) -> None:
        self.index, self.time_base, self.language = stream.index, stream.time_base, stream.language
        self.template: av.AudioStream | None = None
        """None: of an unknown codec."""
        with contextlib.suppress(ValueError):
            if stream.codec_context is not None:
                self.template = described(stream, "nut", "matroska", "mp4")
        self.packets: list[Packet] = []
        self.gone = 0
        """How many packets are kept no more."""
        self.until: Fraction | None = None
        """Seconds; up to here the sound has been read."""

    def push(self, packet: av.Packet) -> None:
        latest = self.packets[-1] if self.packets else None
        pts = packet.pts
        if pts is None:
            if latest is None:
                return
            pts = latest.pts + latest.duration
        if latest and pts < latest.pts:  # packets may be shorter than the container's unit of time
            return
        self.packets.append(Packet(pts, packet.duration or 0, bytes(packet)))
        self.until = (pts + (packet.duration or 0)) * self.time_base

    def after(self, seconds: Fraction) -> int:
        """Place of the first packet that ends later than this."""
        ends = ((packet.pts + packet.duration) * self.time_base for packet in self.packets)
        return self.gone + next((i for i, end in enumerate(ends) if end > seconds), len(self.packets))

    def take(self, place: int, seconds: Fraction) -> list[Packet]:
        """The packets from that place on that begin before `seconds`."""
        found = []
        for packet in self.packets[max(0, place - self.gone) :]:
            if packet.pts * self.time_base >= seconds:
                break
            found.append(packet)
        return found

    def forget(self, seconds: Fraction) -> None:
        count = min(self.after(seconds) - self.gone, len(self.packets) - 1)  # the latest is needed for the next one
        if count > 0:
            del self.packets[:count]
            self.gone += count


class Picture(NamedTuple):
    packet: av.Packet
    shown: float
    """Its time; infinite for one that an edit list hides."""


class Coded:
    """The packets of the pictures, in decoding order, as far as they are still kept."""

    def __init__(self, stream: av.VideoStream) -> None:
        name = stream.container.format.name
        if name in ("avi", "asf") and stream.codec_context.has_b_frames:
            raise BadInput("", "cannot-be-copied", f"{name} does not say when B-frames are shown")
        self.template, self.extradata = described(stream, "mp4"), stream.codec_context.extradata
        self.time_base = stream.time_base
        self.pictures: list[Picture] = []
        self.gone = 0
        self.places: dict[int, int] = {}
        """Time of a picture -> its place in decoding order."""

    def push(self, packet: av.Packet) -> None:
        if packet.pts is None:
            raise BadInput("", "cannot-be-copied", "its packets do not say when their pictures are shown")
        if packet.has_sidedata("new_extradata") and bytes(packet.get_sidedata("new_extradata")) != self.extradata:
            raise BadInput("", "cannot-be-copied", "the parameters of its codec change on the way")
        if not packet.is_discard:
            self.places[packet.pts] = self.gone + len(self.pictures)
        self.pictures.append(Picture(packet, math.inf if packet.is_discard else packet.pts))

    def forget(self, pts: int) -> None:
        count = 0
        while count < len(self.pictures) and self.pictures[count].packet.pts < pts:
            self.places.pop(self.pictures[count].packet.pts, None)
            count += 1
        del self.pictures[:count]
        self.gone += count


class Tap:
    """Give it to a Decoder: it keeps what the decoder's pass reads, until it may forget it.

    audio: what becomes of the sound (see hpc.data.video.audio). pictures: keep their packets too, to be copied.
    """

    def __init__(self, audio: Literal["drop", "keep", "aac"] = "drop", pictures: bool = False) -> None:
        self.audio, self.pictures = audio, pictures
        self.tracks: list[Track] = []
        self.coded: Coded | None = None

    def open(self, container: av.container.InputContainer, stream: av.VideoStream) -> list[av.AudioStream]:
        """The decoder begins with this file; the streams that it must read beside that of the pictures."""
        self.stream = stream
        sounds = list(container.streams.audio) if self.audio != "drop" else []
        for sound in sounds:
            sound.discard = av.stream.Discard.default
        self.tracks = [Track(sound) for sound in sounds]
        self.coded = Coded(stream) if self.pictures else None
        self._ahead: deque[av.Packet] = deque()
        self._read: Fraction | None = None  # seconds; up to here the pictures have been read
        self._by_stream = {track.index: track for track in self.tracks}
        return sounds

    def watch(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """The packets of the pictures among these."""
        self._packets: Iterator[av.Packet] | None = packets
        while self._ahead or self._next():
            if self._ahead:
                yield self._ahead.popleft()

    def _next(self) -> bool:
        packet = next(self._packets, None) if self._packets else None
        if packet is None:
            self._packets = None
            return False
        if packet.stream_index != self.stream.index:
            self._by_stream[packet.stream_index].push(packet)
        else:
            self._ahead.append(packet)
            if packet.dts is not None:
                self._read = packet.dts * self.stream.time_base
            if self.coded:
                self.coded.push(packet)
        return True

    def read_to(self, seconds: Fraction) -> None:
        """Read on until all sound up to there has come, or as good as surely does not."""
        while any(track.until is None or track.until < seconds for track in self.tracks):
            if (self._read is not None and self._read > seconds + AHEAD) or not self._next():
                return

    def forget(self, seconds: Fraction) -> None:
        """Nothing before this time will be asked for."""
        for track in self.tracks:
            track.forget(seconds - BEHIND)
        if self.coded:
            self.coded.forget(int(seconds / self.coded.time_base))
