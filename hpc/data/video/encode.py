"""Encode clips."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import msgspec
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from hpc.data.video.audio import Sound
from hpc.data.video.color import BT709
from hpc.data.video.container import Frame
from hpc.data.video.graph import SCALE, Graph
from hpc.data.video.probe import Video
from hpc.data.video.tap import Tap

MP4 = {"movflags": "+faststart", "fflags": "+bitexact"}
os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 has no other way to say: errors only


class Coding(msgspec.Struct, frozen=True, kw_only=True):
    """How pictures are encoded."""

    encoder: str = "libx264"
    """libx264, libx265, libsvtav1, h264_nvenc, hevc_nvenc or av1_nvenc."""
    crf: float | None = 18.0
    """Constant quality; with NVENC its `cq`."""
    bitrate: int = 0
    """Bits a second on average, where there is no crf."""
    preset: str = "veryfast"
    threads: int = 2
    short_side: int | None = None
    """Pixels to scale down to, even."""
    fps: Fraction | None = None
    """A constant rate, in place of the source's times."""

    def options(self) -> dict[str, str]:
        """The encoder's own options: those that make its bytes depend on frames and settings alone."""
        quality = {} if self.crf is None else {"crf": f"{self.crf:g}"}
        if self.encoder == "libx264":
            return {**quality, "preset": self.preset, "x264-params": "cpu-independent=1"}
        if self.encoder == "libx265":
            # Without these it takes as many frames in parallel as there are cores, which changes the bytes, and writes
            # the CPU's name into them. Closed GOPs, so that readers can begin at each key frame.
            params = {"pools": self.threads, "frame-threads": min(1 + self.threads // 4, 6), "info": 0, "open-gop": 0,
                      "log-level": "error"}  # fmt: skip
            joined = ":".join(f"{key}={value}" for key, value in params.items())
            return {**quality, "preset": self.preset, "x265-params": joined}
        if self.encoder == "libsvtav1":
            # With a crf its bytes are the same for any number of threads; with a bitrate they depend on their timing.
            threads = min(self.threads, 6) if quality else 1
            return {**quality, "preset": self.preset, "svtav1-params": f"lp={threads}"}
        return {**({"rc": "vbr", "cq": f"{self.crf:g}"} if quality else {}), "preset": self.preset, "tune": "hq"}

    def size(self, video: Video) -> tuple[int, int]:
        """(width, height) of the clip: even, never more than the source's."""
        width, height = video.width - video.width % 2, video.height - video.height % 2
        short = min(width, height)
        if self.short_side is None or self.short_side >= short:
            return width, height
        long = 2 * round(max(width, height) * self.short_side / short / 2)
        return (long, self.short_side) if width > height else (self.short_side, long)


class Encoder:
    """One clip to an mp4: 8-bit yuv420p of limited range, even sides, the source's times counted from 0.

    The bytes depend on the frames and the coding alone: not on the day, the machine's CPU, or its load. The index
    stands in front, so that the clip can be read as a stream. With a `tap` that has sound, the clip has it too.
    `digest` is of the coded pictures alone.
    """

    def __init__(self, path: Path, video: Video, coding: Coding, tap: Tap | None = None) -> None:
        self.path = path
        self.frames = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._video, self._fps, self._tap = video, coding.fps, tap
        self.sound: Sound | None = None
        self._container = av.open(str(path), "w", format="mp4", options=MP4)
        rate = coding.fps or video.fps
        self._stream = self._container.add_stream(
            coding.encoder, rate=rate.limit_denominator(100_000), options=coding.options()
        )
        self._context = self._stream.codec_context
        if coding.encoder == "libx264":
            self._context.thread_type, self._context.thread_count = "FRAME", coding.threads
        self._context.bit_rate = coding.bitrate
        self._context.flags |= Flags.bitexact | Flags.frame_duration
        self._time_base = 1 / coding.fps if coding.fps else video.time_base
        self._context.time_base = self._stream.time_base = self._time_base
        self._context.sample_aspect_ratio = video.pixel_aspect
        self._context.pix_fmt = "yuv420p"
        self.codec: str = self._context.codec.canonical_name
        if self.codec == "hevc":
            self._context.codec_tag = "hvc1"  # players of Apple take no other
        self.width, self.height = coding.size(video)
        self._context.width, self._context.height = self.width, self.height
        self._durations: dict[int, int] = {}
        self._slack = min(2 * video.time_base, 1 / (4 * video.fps), 1 / (4 * rate))  # by which times may be rounded
        self._fit = Graph(
            ("crop", "iw-mod(iw,2):ih-mod(ih,2):0:0:exact=1"),
            ("scale", f"{self.width}:{self.height}:out_range=tv:flags={SCALE}"),
            ("format", "yuv420p"),
        )

    def write(self, frame: Frame, duration: int) -> None:
        """The next frame, which gets other times by it. duration: until the next, in units of the video's time_base."""
        pts = frame.pts
        as_is = (frame.width, frame.height, frame.format.name) == (self.width, self.height, "yuv420p")
        if not as_is or frame.color_range == ColorRange.JPEG:
            frame = self._fit(frame)
        if not self.frames:
            self._start = pts
            for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
                setattr(self._context, name, getattr(frame, name))
            if self._tap:
                self.sound = Sound(self._container, self._tap, pts * self._video.time_base)
        self._end = pts + duration
        frame.pict_type = 0  # let the encoder choose, whatever it was in the source
        if self._fps is None:
            self._encode(frame, pts - self._start, duration)
        else:
            shown = (self._end - self._start) * self._video.time_base - self._slack
            while self.frames < shown * self._fps:
                self._encode(frame, self.frames, 1)
        if self.sound:
            self.sound.feed(pts * self._video.time_base)

    def _encode(self, frame: Frame, pts: int, duration: int) -> None:
        frame.pts, frame.time_base, frame.duration = pts, self._time_base, duration
        self.frames += 1
        self._durations[pts] = duration
        self._mux(frame)

    def _mux(self, frame: Frame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._durations.pop(packet.pts, packet.duration)  # not every encoder hands it on
            self.digest.update(packet)
            self._container.mux(packet)

    def close(self) -> None:
        """Finish the file."""
        self._mux(None)
        if self.sound:
            self.sound.close(self._end * self._video.time_base)
        self._container.close()

    def abandon(self) -> None:
        """Leave no file."""
        self._container.close()
        self.path.unlink(missing_ok=True)  # it comes with the first packet


def write(path: Path, frames: npt.NDArray[np.uint8], fps: float, coding: Coding) -> None:
    """Pictures uint8 [frames, height, width, 3], RGB of BT.709, as a video of a constant rate. Sides are even."""
    height, width = frames.shape[1:3]
    rate = Fraction(fps).limit_denominator(100_000)
    info = Video(width, height, 0, Fraction(1), "", "", rate, 0, 0.0, 0, 1 / rate, "", 0)
    encoder = Encoder(path, info, coding)
    to_yuv = VideoReformatter()
    try:
        for number, picture in enumerate(frames):
            frame = to_yuv.reformat(
                Frame.from_ndarray(picture, "rgb24"), format="yuv420p", dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG, interpolation=Interpolation.BICUBIC, threads=1,
            )  # fmt: skip
            frame.color_range = ColorRange.MPEG
            frame.colorspace = frame.color_primaries = frame.color_trc = BT709
            frame.pts, frame.time_base = number, info.time_base
            encoder.write(frame, 1)
        encoder.close()
    except BaseException:
        encoder.abandon()
        raise


def try_encoder(coding: Coding) -> None:
    """Encode one frame, so that an encoder which never works is not taken for a bad input. Raises RuntimeError."""
    side = 256  # NVENC takes nothing much smaller
    info = Video(side, side, 0, Fraction(1), "", "", Fraction(24), 0, 0.0, 0, Fraction(1, 24), "", 0)
    frame = Frame(side, side, "yuv420p")
    frame.pts, frame.time_base = 0, info.time_base
    with tempfile.TemporaryDirectory() as folder:
        try:
            encoder = Encoder(Path(folder) / "try.mp4", info, coding)
            encoder.write(frame, 1)
            encoder.close()
        except av.FFmpegError as error:
            words = f"encode.encoder: {coding.encoder} does not work on {platform.node()}: {error}"
            if coding.encoder.endswith("nvenc"):
                words += ("\n    It needs a GPU with NVENC, and its driver: L4, L40S and RTX have it; A100, H100 and "
                          "H200 have none. Take another partition, or a software encoder such as libx264.")  # fmt: skip
            raise RuntimeError(words) from error
