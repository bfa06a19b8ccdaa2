"""What a file says about itself, and its first frame."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import msgspec

from hpc.data.video.color import TRANSFERS
from hpc.data.video.container import Source, average_fps, indexed, opened
from hpc.data.video.decode import Decoder
from hpc.data.work import BadInput

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
    interlaced: bool = False
    """Its first frame is two fields, taken one after the other."""
    transfer: str = ""
    """"pq" or "hlg", of a high dynamic range; "" for others."""
    primaries: int = 2
    """Of its colors, as numbered in ITU-T H.273: 1 for BT.709, 9 for BT.2020, 2 for not said."""


def probe(source: Source) -> Video:
    """Raises BadInput: empty-file, not-a-video, corrupt, no-video-stream, unknown-codec, too-small."""
    decoder = Decoder(source)
    frame = next((frame for _, frame in decoder), None)
    with opened(source) as (container, stream):
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
            pix_fmt=decoder.coded.format.name,
            fps=average_fps(stream),
            frames=len(indexed(container, stream)) or stream.frames,
            duration=duration or (container.duration or 0) / av.time_base,
            start_pts=frame.pts,
            time_base=stream.time_base,
            audio_codec=audio.codec.canonical_name if audio else "",
            bytes=_size(source),
            interlaced=decoder.interlaced,
            transfer=TRANSFERS.get(decoder.coded.color_trc, ""),
            primaries=int(decoder.coded.color_primaries),
        )


def _size(source: Source) -> int:
    return Path(source).stat().st_size if isinstance(source, str | Path) else source.seek(0, io.SEEK_END)
