"""The sound of a clip: each audio stream of the source as it is, packet by packet, or as AAC, cut to the sample.

Time 0 of the clip is that of its first picture. Copied packets may begin before it (decoders need one or more to get
going, and packets are not cut); the mp4's edit list hides that part. Sound that is missing in the middle is silence.
A clip's bytes depend on the packets from shortly before its start to its end alone: each clip has decoders of its own.
"""

from __future__ import annotations

import io
from collections import deque
from fractions import Fraction
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from av.codec.context import Flags

from hpc.data.video.tap import Packet, Tap, Track, described

PREROLL = {"aac": 1, "mp3": 3, "ac3": 1, "eac3": 1, "opus": 4, "flac": 0, "alac": 0}
"""Codecs that mp4 holds, and how many packets their decoders need before the sound is right."""
DECODED = Fraction(1, 4)  # seconds before its start that a clip decodes, whatever the codec
JITTER = 0.01  # seconds by which times may be off (containers round them) before that counts as a gap
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # by channels; others are mixed to stereo
AAC_BITRATE = 64_000  # a channel


class Sound:
    """The sound of one clip, on its way into the clip's mp4."""

    def __init__(self, container: av.container.OutputContainer, tap: Tap, start: Fraction) -> None:
        """Before the first packet is written. start: seconds, the time of the clip's first picture in the source."""
        self._tap = tap
        self._tracks: list[Copied | Transcoded] = []
        self.dropped: list[str] = []
        """The streams that are left out, and why: "stream 2: ..."."""
        for track in tap.tracks:
            how, why = treatment(track, tap.audio)
            if how == "drop":
                self.dropped.append(f"stream {track.index}: {why}")
            else:
                self._tracks.append((Copied if how == "copy" else Transcoded)(container, track, start))

    @property
    def codecs(self) -> list[str]:
        """Of the streams in the clip."""
        return [track.codec for track in self._tracks if track.written]

    def feed(self, seconds: Fraction) -> None:
        """Write what belongs before this time of the source. In small steps, to keep sound and pictures together."""
        self._tap.read_to(seconds)
        for track in self._tracks:
            track.feed(seconds)

    def close(self, end: Fraction) -> None:
        """The clip ends at this time of the source."""
        self._tap.read_to(end)
        for track in self._tracks:
            track.close(end)
            if track.fault:
                self.dropped.append(f"stream {track.track.index}: {track.fault}")


def treatment(track: Track, audio: Literal["keep", "aac"]) -> tuple[Literal["copy", "aac", "drop"], str]:
    """What becomes of a stream, and why it is dropped."""
    if track.template is None:
        return "drop", "unknown codec"
    context = track.template.codec_context
    if not context.sample_rate or not context.channels:
        return "drop", f"{context.name} without a sample rate or channels"
    if audio == "keep" and context.codec.canonical_name in PREROLL:
        try:
            with av.open(io.BytesIO(), "w", format="mp4") as trial:
                trial.add_stream_from_template(track.template)
                trial.start_encoding()
            return "copy", ""
        except (av.FFmpegError, ValueError):
            pass  # mp4 does not hold this kind of it
    try:
        decoder(track).open()
    except av.FFmpegError as error:
        return "drop", f"{context.name}: {error}"
    return "aac", ""


def decoder(track: Track) -> av.AudioCodecContext:
    """A new decoder with all that the container says of the stream."""
    context = described(track.template, "nut", "matroska", "mp4").codec_context
    context.options = {"pkt_timebase": str(track.time_base)}
    return context


class Line:
    """The places of packets or frames that follow each other in samples: free of the rounding of their times."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.end: int | None = None

    def place(self, seconds: Fraction | None, samples: int) -> int:
        """Of what has so many samples and comes at this time, or without one."""
        at = (self.end or 0) if seconds is None else round(seconds * self.rate)
        if self.end is not None and abs(at - self.end) <= JITTER * self.rate:
            at = self.end
        self.end = at + samples
        return at


class Nowhere:
    """A file that keeps nothing."""

    def __init__(self) -> None:
        self.at = 0

    def write(self, data: bytes) -> int:
        self.at += len(data)
        return len(data)

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = at if whence == 0 else self.at + at
        return self.at

    def tell(self) -> int:
        return self.at


class Copied:
    """One stream's packets, as they are, up to the first one that is not what an mp4 may hold."""

    def __init__(self, container: av.container.OutputContainer, track: Track, start: Fraction) -> None:
        self.track, self.start, self.container = track, start, container
        context = track.template.codec_context
        self.codec = context.codec.canonical_name
        self.out = container.add_stream_from_template(track.template)
        self.trial = av.open(Nowhere(), "w", format="mp4")  # what it refuses would cost the clip
        self.trial_out = self.trial.add_stream_from_template(track.template)
        if track.language:
            self.out.metadata["language"] = track.language
        self.line, self.frame_size = Line(context.sample_rate), context.frame_size
        self.next = max(track.gone, track.after(start) - PREROLL[self.codec])
        self.latest: int | None = None
        self.written = 0
        self.fault = ""

    def feed(self, until: Fraction) -> None:
        for packet in self.track.take(self.next, until):
            self.next += 1
            samples = round(packet.duration * self.track.time_base * self.line.rate)
            if abs(samples - self.frame_size) <= self.track.time_base * self.line.rate:
                samples = self.frame_size  # what the container rounded
            at = self.line.place(packet.pts * self.track.time_base - self.start, samples)
            if self.fault or (self.latest is not None and at <= self.latest):
                continue
            try:
                self._write(packet, at, samples, self.trial, self.trial_out)
            except av.FFmpegError as error:
                self.fault = f"ends at {max(0, at) / self.line.rate:.3f} s: {error.strerror}"
                continue
            self._write(packet, at, samples, self.container, self.out)
            self.latest = at
            self.written += 1

    def _write(
        self, packet: Packet, at: int, samples: int, to: av.container.OutputContainer, stream: av.AudioStream
    ) -> None:
        copy = av.Packet(packet.data)
        copy.pts = copy.dts = at
        copy.duration, copy.time_base, copy.is_keyframe = samples, Fraction(1, self.line.rate), True
        copy.stream = stream
        to.mux(copy)

    def close(self, end: Fraction) -> None:
        self.feed(end)


class Transcoded:
    """One stream as AAC."""

    codec = "aac"

    def __init__(self, container: av.container.OutputContainer, track: Track, start: Fraction) -> None:
        self.track, self.start, self.container = track, start, container
        context = track.template.codec_context
        self.line = Line(context.sample_rate)
        self.decoder = decoder(track)
        rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
        self.layout = AAC_LAYOUTS.get(context.channels, "stereo")
        self.out = container.add_stream("aac", rate=rate, layout=self.layout)
        self.channels = self.out.codec_context.channels
        self.out.codec_context.bit_rate = AAC_BITRATE * self.channels
        self.out.codec_context.flags |= Flags.bitexact
        if track.language:
            self.out.metadata["language"] = track.language
        self.resampler: tuple[object, AudioResampler] | None = None
        self.next = track.after(start - DECODED)
        self.ready: deque[tuple[int, npt.NDArray[np.float32]]] = deque()  # decoded: its first sample in the clip, sound
        self.sent = 0  # samples of the clip that are encoded
        self.written = 0
        self.given = 0  # packets of the clip's own time
        self.fault = ""

    def feed(self, until: Fraction) -> None:
        for packet in self.track.take(self.next, until):
            self.next += 1
            self.given += packet.pts * self.track.time_base >= self.start
            self._decode(packet)
        self._send(round((until - self.start) * self.line.rate))

    def close(self, end: Fraction) -> None:
        self.feed(end)
        self._decode(None)
        self._send(round((end - self.start) * self.line.rate))
        if self.sent:
            self._write(None)
        elif self.given:
            self.fault = "none of it can be decoded"

    def _decode(self, packet: Packet | None) -> None:
        coded = None
        if packet:
            coded = av.Packet(packet.data)
            coded.pts = coded.dts = packet.pts
            coded.duration, coded.time_base, coded.is_keyframe = packet.duration, self.track.time_base, True
        try:
            frames = self.decoder.decode(coded)
        except (av.FFmpegError, EOFError):
            return
        for frame in frames:
            sound = self._sound(frame)
            seconds = None if frame.pts is None else frame.pts * self.track.time_base - self.start
            self.ready.append((self.line.place(seconds, sound.shape[1]), sound))

    def _send(self, end: int) -> None:
        """Encode what is ready, up to that sample of the clip."""
        while self.ready and self.ready[0][0] < end:
            at, sound = self.ready.popleft()
            if len(sound[0]) > end - at:
                self.ready.appendleft((end, sound[:, end - at :]))
            sound = sound[:, max(0, self.sent - at) : end - at]
            while sound.size and at > self.sent:  # a second of silence at a time
                self._encode(np.zeros((self.channels, min(at - self.sent, self.line.rate)), np.float32))
            if sound.size:
                self._encode(sound)

    def _sound(self, frame: av.AudioFrame) -> npt.NDArray[np.float32]:
        """[channels, samples], at the stream's own rate and in the layout that is written."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self.resampler is None or self.resampler[0] != kind:
            # a layout that says no more than the number of channels cannot be mixed: its first channels are taken
            same = frame.layout.nb_channels == self.channels or "channels" in frame.layout.name
            layout = frame.layout if same else self.layout
            self.resampler = kind, AudioResampler("fltp", layout, self.line.rate)
        found = [one.to_ndarray()[: self.channels] for one in self.resampler[1].resample(frame)]
        return np.concatenate(found, 1) if found else np.zeros((self.channels, 0), np.float32)

    def _encode(self, sound: npt.NDArray[np.float32]) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.line.rate, self.sent, Fraction(1, self.line.rate)
        self.sent += sound.shape[1]
        self._write(frame)

    def _write(self, frame: av.AudioFrame | None) -> None:
        for packet in self.out.encode(frame):
            self.container.mux(packet)
            self.written += 1
