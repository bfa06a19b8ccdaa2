"""How clips are written."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta


class Encoder(NamedTuple):
    """What an encoder takes."""

    crf: float
    """The default."""
    least: float
    most: float
    preset: str
    """The default."""
    presets: tuple[str, ...]


X26X = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
SVT = tuple(map(str, range(14)))
NVENC = tuple(f"p{i}" for i in range(1, 8))
ENCODERS = {  # x264 and x265: 0 is lossless, a profile that few can play; NVENC: 0 is "automatic"
    "libx264": Encoder(18.0, 1, 51, "veryfast", X26X),
    "libx265": Encoder(22.0, 1, 51, "fast", X26X),
    "libsvtav1": Encoder(30.0, 1, 63, "8", SVT),
    "h264_nvenc": Encoder(21.0, 1, 51, "p4", NVENC),
    "hevc_nvenc": Encoder(24.0, 1, 51, "p4", NVENC),
    "av1_nvenc": Encoder(30.0, 1, 51, "p4", NVENC),
}


class Encode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How clips are written: mp4, 8-bit 4:2:0 with even sides, whatever comes in (but for `copy`)."""

    encoder: Literal["libx264", "libx265", "libsvtav1", "h264_nvenc", "hevc_nvenc", "av1_nvenc", "copy"] = "libx264"
    """libx264 H.264, libx265 HEVC, libsvtav1 AV1; *_nvenc on a GPU that has an encoder (A100, H100 and H200 have none;
    L4, L40S and RTX have). The software encoders give the same bytes for the same input and settings, at any load.

    copy: nothing is encoded; a clip holds the source's own packets, 10 bits or odd sides included. Its bounds move
    inwards, to the first key frame, and to the last frame up to which no later one is needed (a few frames at most);
    the table says where they are. What is left of a clip must still be long enough; without a key frame its verdict is
    no-key-frame. Sources that mp4 cannot hold are quarantined as cannot-be-copied."""
    crf: Annotated[float, Meta(ge=1, le=63)] | None = None
    """Constant quality: lower is better and larger. libx264 and libx265 take 1 to 51, libsvtav1 1 to 63; with NVENC it
    is `cq`, 1 to 51. Default: 18 (libx264: visually lossless for most film), 22 (libx265), 30 (libsvtav1, av1_nvenc),
    21 (h264_nvenc, as Cosmos-Curate has it), 24 (hevc_nvenc)."""
    bitrate_mbps: Annotated[float, Meta(ge=0.01, le=1000)] | None = None
    """Megabits a second on average, in place of crf. libsvtav1 then runs with one thread, to be reproducible."""
    preset: str | int | None = None
    """Speed; a slower one makes smaller files. libx264 (default veryfast) and libx265 (fast): ultrafast to veryslow;
    libsvtav1 (8): 13, fastest, to 0; NVENC (p4): p1, fastest, to p7."""
    threads: Annotated[int, Meta(ge=1, le=64)] = 2
    """Encoder threads. Part of the fingerprint: the bytes of x264 and x265 depend on it."""
    short_side: Annotated[int, Meta(ge=16, le=8192)] | None = None
    """Pixels: scale down to this, keeping the aspect ratio; smaller videos stay as they are. Default: no scaling."""
    fps: Annotated[float, Meta(ge=0.1, le=480)] | None = None
    """A constant rate: at each tick the frame that the source shows then, so frames are repeated or left out, and no
    time is lost. 23.976, 29.97 and 59.94 mean 24000/1001 and so on. Default: the source's own times, also variable."""
    hdr: Literal["tonemap", "refuse"] = "tonemap"
    """Videos of a high dynamic range (PQ or HLG). tonemap: shown as a good display of BT.709 shows them (BT.2390; white
    at 203 cd/m2, as BT.2408 has it); the table's source_transfer says which they were. refuse: quarantined, reason hdr.
    With `encoder: copy` clips keep their range."""
    audio: Literal["drop", "keep", "aac"] = "drop"
    """drop: no sound (world models learn from pictures). keep: every audio stream, as it is if mp4 can hold it (AAC,
    MP3, AC-3, E-AC-3, Opus, FLAC, ALAC), else as AAC. aac: all as AAC, cut to the sample. A stream that cannot be
    decoded is left out, and the table's audio_dropped says so."""

    def __post_init__(self) -> None:
        if self.encoder == "copy":
            for name in ("crf", "bitrate_mbps", "preset", "short_side", "fps"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: `encoder: copy` encodes nothing: leave it out, or choose an encoder")
            return
        known = ENCODERS[self.encoder]
        if self.crf is not None and self.bitrate_mbps is not None:
            raise ValueError("bitrate_mbps: give crf (constant quality) or bitrate_mbps (constant size), not both")
        if self.crf is not None and not known.least <= self.crf <= known.most:
            bounds = f"{known.least:g} to {known.most:g}"
            raise ValueError(f"crf: {self.crf:g} is too much: {self.encoder} takes {bounds} (default {known.crf:g})")
        if self.preset is not None and str(self.preset) not in known.presets:
            words = ", ".join(known.presets)
            raise ValueError(f"preset: {self.preset!r} is not one of {self.encoder}: {words}")
        if self.short_side is not None and self.short_side % 2:
            raise ValueError(f"short_side: {self.short_side} is odd; 4:2:0 pictures have even sides")
