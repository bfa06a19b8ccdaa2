"""Videos: probe, decode frame by frame with exact times, encode clips, thumbnails. The only module that touches PyAV.

A `source` is a path or a seekable binary file (`hpc.data.storage.open`). Frames are numbered in the order in which they
are shown. Times are kept as the file has them, integers in units of `time_base`, so that a variable frame rate stays
what it is. Frames come out upright: a rotation in the metadata has been applied.

    with open(path, "rb") as file:
        video = probe(file)
        for number, frame in Decoder(file):
            seconds = (frame.pts - video.start_pts) * video.time_base
"""

from __future__ import annotations

import contextlib
import heapq
import io
import itertools
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.filter
import msgspec
import numpy as np
import numpy.typing as npt
import PIL.Image
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from hpc.data.work import BadInput

Frame = av.VideoFrame
Source = str | Path | BinaryIO

# Containers that are opened. Others would be guesses at text, or playlists that make libav open further files and URLs.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,mxf,h264,hevc,m4v,ivf,obu,nut,dv,yuv4mpegpipe"
# What a file that is meant to be a video begins with: Matroska, AVI, FLV, Ogg, ASF, MPEG; mp4 and mov after 4 bytes.
MAGIC = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba")
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
READ = 1024**2  # bytes libav asks for at a time: fewer calls into Python
REORDER = 17  # frames; no codec shows more than 16 frames before a key frame that it decodes after it
SEEKS = 3  # tries, each from a key frame further back
JUMP_BACK = 1.0  # seconds; timestamps that fall by more start anew there, as in joined recordings
SMALLEST = 16  # pixels a side: one macroblock


class Video(msgspec.Struct, frozen=True):
    """What a file says about itself, and its first frame."""

    width: int
    """As shown, upright."""
    height: int
    rotation: int
    """Degrees clockwise that the metadata asks for: 0, 90, 180 or 270."""
    pixel_aspect: Fraction
    """Width of a shown pixel by its height."""
    codec: str
    pix_fmt: str
    fps: Fraction
    """Average."""
    frames: int
    """As declared, without those that an edit list hides; 0 where the container does not say."""
    duration: float
    """Seconds, as declared; 0.0 where the container does not say."""
    start_pts: int
    """Time of the first frame, in units of time_base."""
    time_base: Fraction
    """Seconds."""
    audio_codec: str
    """Of the first audio stream; "" for none."""
    bytes: int


class Index(msgspec.Struct, frozen=True):
    """Where decoding can begin in a file."""

    frames: int
    """How many there are, as far as the container knows."""
    keys: list[tuple[int, int]]
    """(place in decoding order, timestamp) of each key frame."""
    by_dts: bool
    """The timestamps are decoding times (of the container's own index), not those at which the frames are shown."""


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first real video stream; the other streams are not read. Raises BadInput."""
    with contextlib.ExitStack() as stack:
        named = isinstance(source, str | Path)
        file: BinaryIO = stack.enter_context(Path(source).open("rb")) if named else source  # type: ignore
        uri = str(source if named else getattr(file, "name", "<file>"))
        file.seek(0)
        head = file.read(16)
        file.seek(0)
        if not head:
            raise BadInput(uri, "empty-file", "0 bytes")
        bare = stack.enter_context(_Bare(file))
        try:
            container = stack.enter_context(av.open(bare, buffer_size=READ, options={"format_whitelist": CONTAINERS}))
        except (av.FFmpegError, UnicodeDecodeError) as error:
            known = head.startswith(MAGIC) or head[4:8] in BOXES
            raise BadInput(uri, "corrupt" if known else "not-a-video", f"it begins with {head!r}: {error}") from error
        cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            others = ", ".join(s.type for s in container.streams) or "nothing"
            raise BadInput(uri, "no-video-stream", f"{container.format.name} with {others}")
        stream = streams[0]
        if stream.codec_context is None:
            raise BadInput(uri, "unknown-codec", f"{container.format.name}, stream {stream.index}")
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        yield container, stream


class _Bare:
    """A file as libav may see it: without its name, so that it judges by the bytes, wherever they lie. An error of the
    file is its end to libav; here it is kept, and raised when libav is through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return self.file.read(size)
        except Exception as error:
            self.error = error
            raise

    def __enter__(self) -> _Bare:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.error and error is not self.error and kind is not GeneratorExit:
            raise self.error from error


def refused(error: Exception) -> bool:
    """Is it libav that cannot do this, now or later? (Not a full disk, or too little memory.)"""
    return isinstance(error, av.FFmpegError) and not isinstance(error, OSError | MemoryError)


def probe(source: Source) -> Video:
    """Raises BadInput: empty-file, not-a-video, corrupt, no-video-stream, unknown-codec, too-small."""
    decoder = Decoder(source)
    frame = next((frame for _, frame in decoder), None)
    with _opened(source) as (container, stream):
        if frame is None:
            raise BadInput(decoder.uri, "corrupt", f"no frame of its {stream.codec_context.name} stream can be decoded")
        if min(frame.width, frame.height) < SMALLEST:
            raise BadInput(decoder.uri, "too-small", f"{frame.width}x{frame.height}; {SMALLEST} a side is the least")
        aspect = stream.sample_aspect_ratio or Fraction(1)
        audio = next((s.codec_context for s in container.streams.audio if s.codec_context), None)
        duration = stream.duration and float(stream.duration * stream.time_base)
        return Video(
            width=frame.width,
            height=frame.height,
            rotation=decoder.rotation,
            pixel_aspect=1 / aspect if decoder.rotation in (90, 270) else aspect,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=frame.format.name,
            fps=_fps(stream),
            frames=len(_indexed(container, stream)) or stream.frames,
            duration=duration or (container.duration or 0) / av.time_base,
            start_pts=frame.pts,
            time_base=stream.time_base,
            audio_codec=audio.codec.canonical_name if audio else "",
            bytes=_size(source),
        )


def _fps(stream: av.VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _size(source: Source) -> int:
    return Path(source).stat().st_size if isinstance(source, str | Path) else source.seek(0, io.SEEK_END)


def index(source: Source) -> Index | None:
    """Count the frames and find the key frames, without decoding; None where decoding can begin at the start only.

    From the index of an mp4 or mov, at once; of other files by reading through them.
    """
    with _opened(source) as (container, stream):
        if entries := _indexed(container, stream):
            keys = [(place, entry.timestamp) for place, entry in enumerate(entries) if entry.is_keyframe]
            return Index(len(entries), keys, by_dts=True) if keys else None
        times, keys = set(), []
        count = 0
        for packet in _packets(container, stream):
            if packet.is_discard:
                continue
            if packet.pts is None or packet.pts in times:
                return None
            if packet.is_keyframe:
                keys.append((count, packet.pts))
            times.add(packet.pts)
            count += 1
        in_order = all(a[1] < b[1] for a, b in itertools.pairwise(keys))
        return Index(count, keys, by_dts=False) if keys and in_order else None


def _indexed(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.IndexEntry]:
    """The frames that the index of an mp4 or mov lists, in decoding order; [] without an index of the whole file."""
    if not container.format.name.startswith("mov") or not stream.frames:
        return []
    return [entry for entry in stream.index_entries if not entry.is_discard]


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream up to its end, or to where nothing more can be read."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None or not packet.size:
            return
        yield packet


class Decoder:
    """Iterate for (number, frame) of a video from frame `first` on, in the order in which they are shown.

    frame.pts (in frame.time_base) is set and rises strictly, frame.duration is set. Numbers count what the container
    holds, so where frames are damaged beyond decoding some numbers are missing. To begin in the middle, `at` is the
    file's `index`; the frames are then the same, with the same numbers, as from the start.
    """

    def __init__(self, source: Source, first: int = 0, at: Index | None = None) -> None:
        if first and at is None:
            raise ValueError(f"to begin at frame {first}, give the file's index")
        self.source, self.first, self.at = source, first, at
        self.uri = str(source if isinstance(source, str | Path) else getattr(source, "name", "<file>"))
        self.damaged = 0
        """Frames so far that could not be decoded, or not in full."""
        self.rotation = 0
        """Degrees clockwise by which the frames were turned."""

    def __iter__(self) -> Iterator[tuple[int, Frame]]:
        with _opened(self.source) as (container, stream):
            stream.thread_type = "AUTO"
            place, packets = self._begin(container, stream)
            duration = max(1, round(1 / (_fps(stream) * stream.time_base)))  # where the file gives none
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
                    self.rotation, turn = degrees, _Graph(*TURNS[degrees]) if degrees else None
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
                packets = _packets(container, stream)
                key = next((packet for packet in packets if packet.is_keyframe), None)
                place = places.get(key.dts if self.at.by_dts else key.pts) if key else None
                if place is not None:
                    return place, itertools.chain([key], packets)
            if early_enough:
                container.seek(0)  # this container cannot seek well: read on from the start
        return 0, _packets(container, stream)

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


TURNS = {  # libav's filters, by degrees clockwise
    90: (("transpose", "clock"),),
    180: (("hflip", ""), ("vflip", "")),
    270: (("transpose", "cclock"),),
}


class _Graph:
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


class Resizer:
    """resize(frame) -> uint8 [height, width, 3], RGB; bicubic over the whole area of each pixel."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Frame) -> npt.NDArray[np.uint8]:
        small = self.reformatter.reformat(
            frame, self.width, self.height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        return small.to_ndarray()


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
        self._fit = _Graph(
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


def webp(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """image: uint8 [height, width, 3], RGB."""
    out = io.BytesIO()
    PIL.Image.fromarray(image).save(out, "webp", quality=quality)
    return out.getvalue()
