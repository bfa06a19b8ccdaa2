"""Files as libav opens them: which containers, which stream of them, and how an error of the file stays one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.codec.hwaccel import HWAccel

from hpc.data.work import BadInput

Frame = av.VideoFrame
Source = str | Path | BinaryIO

# Containers that are opened. Others would be guesses at text, or playlists that make libav open further files and URLs.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,mxf,h264,hevc,m4v,ivf,obu,nut,dv,yuv4mpegpipe"
# What a file that is meant to be a video begins with: Matroska, AVI, FLV, Ogg, ASF, MPEG; mp4 and mov after 4 bytes.
MAGIC = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba")
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
READ = 1024**2  # bytes libav asks for at a time: fewer calls into Python


class Unfit(Exception):
    """This video is to be decoded on the CPU: what the GPU gives would not be the same."""


@contextlib.contextmanager
def opened(
    source: Source, accelerator: HWAccel | None = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first real video stream; the other streams are not read. Raises BadInput; Unfit if there
    is an accelerator, and it fails."""
    with contextlib.ExitStack() as stack:
        named = isinstance(source, str | Path)
        file: BinaryIO = stack.enter_context(Path(source).open("rb")) if named else source  # type: ignore
        uri = str(source if named else getattr(file, "name", "<file>"))
        file.seek(0)
        head = file.read(16)
        file.seek(0)
        if not head:
            raise BadInput(uri, "empty-file", "0 bytes")
        bare = stack.enter_context(Bare(file))
        try:
            options = {"format_whitelist": CONTAINERS}
            container = stack.enter_context(av.open(bare, buffer_size=READ, options=options, hwaccel=accelerator))
        except (av.FFmpegError, UnicodeDecodeError) as error:
            if accelerator:
                raise Unfit(f"{uri}: {error}") from error
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


class Bare:
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

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.error and error is not self.error and kind is not GeneratorExit:
            raise self.error from error


def refused(error: Exception) -> bool:
    """Is it libav that cannot do this, now or later? (Not a full disk, or too little memory.)"""
    return isinstance(error, av.FFmpegError) and not isinstance(error, OSError | MemoryError)


def packets(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """The packets of these streams up to their end, or to where nothing more can be read."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, IndexError):  # the latter at the end of a file in which streams came up on the way
            return
        if packet is None:
            return
        if packet.size:  # at its end each stream has an empty one
            yield packet


def indexed(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.IndexEntry]:
    """The frames that the index of an mp4 or mov lists, in decoding order; [] without an index of the whole file."""
    if not container.format.name.startswith("mov") or not stream.frames:
        return []
    return [entry for entry in stream.index_entries if not entry.is_discard]


def average_fps(stream: av.VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)
