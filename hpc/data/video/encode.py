"""Encode clips."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import av
from av.codec.context import Flags
from av.video.reformatter import ColorRange

from hpc.data.video.container import Frame
from hpc.data.video.graph import Graph
from hpc.data.video.probe import Video


class Encoder:
    """One clip to an mp4 with H.264: yuv420p of limited range, even sides, no sound, the source's times counted from 0.

    The bytes depend on the frames and the settings alone: not on the day, the machine's CPU, or its load. The index
    stands in front, so that the clip can be read as a stream.
    """

    def __init__(self, path: Path, video: Video, crf: float, preset: str, threads: int) -> None:
        self.path = path
        self.frames = 0
        self._video = video
        self._container = av.open(
            str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
        )
        options = {"crf": f"{crf:g}", "preset": preset, "x264-params": "cpu-independent=1"}
        self._stream = self._container.add_stream("libx264", rate=video.fps.limit_denominator(100_000), options=options)
        self._context = self._stream.codec_context
        self._context.thread_type, self._context.thread_count = "FRAME", threads
        self._context.flags |= Flags.bitexact | Flags.frame_duration
        self._context.time_base = self._stream.time_base = video.time_base
        self._context.sample_aspect_ratio = video.pixel_aspect
        self._context.pix_fmt = "yuv420p"
        self.width = self._context.width = video.width - video.width % 2
        self.height = self._context.height = video.height - video.height % 2
        self._fit = Graph(
            ("crop", "iw-mod(iw,2):ih-mod(ih,2):0:0:exact=1"),
            ("scale", f"{self.width}:{self.height}:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"),
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
        frame.pts, frame.time_base, frame.duration = pts - self._start, self._video.time_base, duration
        frame.pict_type = 0  # let the encoder choose, whatever it was in the source
        self.frames += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Leave no file."""
        self._container.close()
        self.path.unlink()


def try_encoder(crf: float, preset: str, threads: int) -> None:
    """Encode one frame, so that an encoder which never works is not taken for a bad input. Raises what libav raises."""
    tick = Fraction(1, 24)
    info = Video(64, 64, 0, Fraction(1), "", "", 1 / tick, 0, 0.0, 0, tick, "", 0)
    frame = Frame(64, 64, "yuv420p")
    frame.pts = 0
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder(Path(folder) / "try.mp4", info, crf, preset, threads)
        encoder.write(frame, 1)
        encoder.close()
