"""One clip: encoded, measured and pictured as its frames come; at its end a row of the table and members of the tar."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from hpc.curate import filters, preview, split
from hpc.curate.look import Look
from hpc.curate.settings import Clips, Encode
from hpc.curate.settings.encode import ENCODERS
from hpc.curate.settings.filters import SCORES
from hpc.data import storage, video

# What a clip keeps while it is not known to be long enough; then it is encoded, at the risk of waste.
HELD = 64  # frames
HELD_BYTES = 256 * 1024**2  # 21 frames of 3840x2160

PREVIEW = ("start_frame", "end_frame", "offset", "size")  # both frames inclusive, counted from the clip's first

CAMERA = [
    ("camera", pa.string()),
    ("source", pa.string()),
    ("etag", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("num_frames", pa.int64()),
    ("codec", pa.string()),
    ("bytes", pa.int64()),
    ("digest", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
]
OF_KEPT = ("width", "height", "codec", "audio_codec", "audio_streams", "audio_dropped", "bytes", "digest", "previews")
SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("source", pa.string()),  # the input's uri, as it was planned
        ("member", pa.string()),  # the video's name in it, if the input is a tar; else ""
        ("etag", pa.string()),
        ("start_seconds", pa.float64()),  # from the video's first frame
        ("end_seconds", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),  # the first one after the clip
        ("verdict", pa.string()),  # "keep", or why it was dropped: a filter, or one of "short",
        # "no-key-frame", "past-max-clip", "camera-missing", "duplicate"
        ("reasons", pa.list_(pa.string())),  # every limit of a filter that it breaks
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),  # average
        ("is_vfr", pa.bool_()),
        ("width", pa.int32()),  # of a kept clip; null for others, like everything down to webp_size
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("audio_codec", pa.string()),  # of its first audio stream, "" for none
        ("audio_streams", pa.int32()),
        ("audio_dropped", pa.list_(pa.string())),  # the source's streams that are left out, and why
        ("bytes", pa.int64()),
        ("digest", pa.string()),  # of its coded pictures, in hexadecimal: equal ones are copies, whatever the container
        ("offset", pa.int64()),  # in the tar: all members of the clip, headers and padding included
        ("size", pa.int64()),
        ("mp4_offset", pa.int64()),
        ("mp4_size", pa.int64()),
        ("webp_offset", pa.int64()),
        ("webp_size", pa.int64()),
        ("previews", pa.list_(pa.struct([(name, pa.int64()) for name in PREVIEW]))),  # of each window
        ("camera", pa.string()),  # of a session's clip: the one that says where to cut; all columns are about it
        ("cameras", pa.list_(pa.struct(CAMERA))),  # the others; the tar has their videos as <uuid>.<camera>.mp4
        ("source_width", pa.int32()),  # upright
        ("source_height", pa.int32()),
        ("source_rotation", pa.int32()),
        ("source_pixel_aspect", pa.float64()),
        ("source_codec", pa.string()),
        ("source_pix_fmt", pa.string()),
        ("source_interlaced", pa.bool_()),
        ("source_transfer", pa.string()),  # "pq" or "hlg"; "" for a standard dynamic range
        ("source_primaries", pa.int32()),  # as numbered in ITU-T H.273: 1 BT.709, 9 BT.2020, 2 not said
        ("source_fps", pa.float64()),
        ("source_frames", pa.int64()),  # as declared, 0 for unknown
        ("source_seconds", pa.float64()),  # as declared, 0 for unknown
        ("source_audio_codec", pa.string()),
        ("source_bytes", pa.int64()),
        *((column, pa.float64()) for column in SCORES),  # null: not measured
    ]
)


def described(row: dict[str, Any]) -> bytes:
    """The clip's own JSON."""
    return json.dumps(row, ensure_ascii=False, indent=1, sort_keys=True).encode()


class Made(msgspec.Struct):
    """What becomes of a clip."""

    row: dict[str, Any]
    members: dict[str, Path | bytes]
    """Suffix -> file or bytes, of a kept clip: what goes into the tar."""


def drop(made: Made, verdict: str, reason: str) -> None:
    """A clip that was to be kept is not."""
    for column in (*OF_KEPT, "cameras"):
        made.row.pop(column, None)
    made.row |= {"verdict": verdict, "reasons": [reason]}
    made.members.clear()


class Source(msgspec.Struct):
    """What all clips of one video share."""

    uri: str
    """With the video's name in it, if it came in a tar."""
    info: video.Video
    facts: dict[str, Any]
    """Columns that are the same for all of its clips."""
    settings: Clips
    filters: dict[str, filters.Open]
    scratch: Path
    """A folder of this video's own."""
    spend: Callable[[str], None]
    """spend("encode"): from here on time is spent on that."""
    tap: video.Tap | None = None
    """What the decoder reads beside the frames, where clips need it."""
    made: list[Made] = []


def coding(settings: Encode) -> video.Coding | None:
    """How the settings say that pictures are encoded; None for a copy."""
    if settings.encoder == "copy":
        return None
    known = ENCODERS[settings.encoder]
    bitrate = settings.bitrate_mbps
    fps = None
    if settings.fps is not None:
        ntsc = Fraction(1000 * round(settings.fps), 1001)
        fps = ntsc if abs(ntsc - settings.fps) < 0.005 else Fraction(settings.fps).limit_denominator(1000)
    return video.Coding(
        encoder=settings.encoder,
        crf=None if bitrate else settings.crf or known.crf,
        bitrate=round(1_000_000 * (bitrate or 0)),
        preset=str(known.preset if settings.preset is None else settings.preset),
        threads=settings.threads,
        short_side=settings.short_side,
        fps=fps,
    )


class Clip:
    """A clip that is being cut: what it holds is encoded as it comes."""

    def __init__(self, source: Source, number: int, pts: int, verdict: str) -> None:
        """verdict: why it will be dropped, whatever it holds; "" if that is open."""
        self.source, self.verdict = source, verdict
        self.first, self.pts = number, pts
        self.frames = 0
        self.held: deque[tuple[Look, int]] = deque()
        self.most_held = min(HELD, HELD_BYTES // (source.info.width * source.info.height * 3 // 2))
        self.encoder: video.Encoder | video.Remuxer | None = None
        self.inwards = video.Inwards(source.tap) if source.settings.encode.encoder == "copy" else None
        self.waiting: list[tuple[int, int, int, Look]] = []  # frames that may turn out to lie behind a copy's end
        self.middle = preview.Middle(source.info, source.settings.thumbnail.height)
        self.windows: preview.Windows | None = None
        self.content = hashlib.blake2b(digest_size=16) if source.settings.ids == "content" else None
        self.durations: tuple[int, int] | None = None  # the shortest and the longest of its frames
        self.reasons: list[str] = []
        self.meters = {name: open_meter(source.info) for name, open_meter in source.filters.items()}
        self.due = dict.fromkeys(self.meters, 0.0)
        self.scores: dict[str, float] = {}
        if not verdict:
            self._judge([m for m in self.meters.values() if m.every == filters.NO_FRAMES])

    def take(self, number: int, pts: int, end: int, look: Look) -> None:
        """The next frame; its picture is None for a clip that is only noted."""
        if self.inwards is None or self.verdict:
            self._take(number, pts, end, look)
            return
        where = self.inwards.take(look.frame)
        if where != "before":
            self.waiting.append((number, pts, end, look))
        if not self.frames:
            self.end, self.end_pts = number + 1, end  # of a clip that will hold nothing
        if where == "end":
            if not self.frames:
                self.first, self.pts = self.waiting[0][:2]
            for one in self.waiting:
                self._take(*one)
            self.waiting.clear()

    def _take(self, number: int, pts: int, end: int, look: Look) -> None:
        self.end, self.end_pts = number + 1, end
        if self.content and look:
            self.content.update(look.digest)
        elif not look:
            self.content = None
        self.frames += 1
        shortest, longest = self.durations or (end - pts, end - pts)
        self.durations = min(shortest, end - pts), max(longest, end - pts)
        if not self.verdict:
            self.held.append((look, end - pts))
            if self.encoder or self._long_enough() or len(self.held) > self.most_held:
                self._encode()

    def held_since(self) -> int | None:
        """Time of the first frame that it holds back."""
        if self.held:
            return self.held[0][0].pts
        return self.waiting[0][1] if self.waiting else None

    def _long_enough(self) -> bool:
        rules, info = self.source.settings.split, self.source.info
        if rules.at_shots and self.frames < rules.min_frames:
            return False
        return self.end_pts - self.pts >= rules.min_clip / float(info.time_base) - split.slack(info)

    def _encode(self) -> None:
        if self.encoder is None:
            how, p = coding(self.source.settings.encode), self.source.settings.preview
            stem = self.source.scratch / f"{len(self.source.made)}"
            path, info, tap = Path(f"{stem}.mp4"), self.source.info, self.source.tap
            self.encoder = video.Encoder(path, info, how, tap) if how else video.Remuxer(path, info, self.inwards, tap)
            slack = split.slack(self.source.info) * float(self.source.info.time_base)
            self.windows = preview.Windows(self.source.info, p, stem, slack) if p else None
        while self.held:
            look, duration = self.held.popleft()
            self.source.spend("pictures")
            self.middle.take(look)
            if self.windows:
                self.windows.take(look, float((look.pts - self.pts) * self.source.info.time_base))
            self.source.spend("filters")
            look.duration = duration  # until the next frame, whatever the container says
            self._measure(look)
            self.source.spend("encode")
            self.encoder.write(look.frame, duration)

    def _measure(self, look: Look) -> None:
        seconds = float((look.pts - self.pts) * self.source.info.time_base)
        slack = split.slack(self.source.info) * float(self.source.info.time_base)
        for name, meter in self.meters.items():
            if seconds >= self.due[name] - slack and meter.every < filters.NO_FRAMES:
                meter.take(look, seconds)
                while meter.every and self.due[name] <= seconds + slack:
                    self.due[name] += meter.every

    def _judge(self, meters: list[filters.Meter]) -> None:
        for meter in meters:
            self.scores |= meter.scores()
        self.verdict, self.reasons = filters.judge(self.source.settings.filter, self.scores)

    def close(self) -> None:
        info, made = self.source.info, self.source.made
        if not self.verdict:
            if not self.frames:
                self.verdict = "no-key-frame"
            elif self._long_enough():
                self.source.spend("filters")
                self._judge(list(self.meters.values()))
            else:
                self.verdict = "short"
        self.verdict = self.verdict or "keep"
        seconds = [float((pts - info.start_pts) * info.time_base) for pts in (self.pts, self.end_pts)]
        row = {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._origin()}_{self._span(seconds)}")),
            "start_seconds": seconds[0],
            "end_seconds": seconds[1],
            "start_frame": self.first,
            "end_frame": self.end,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "num_frames": self.end - self.first,
            "fps": round((self.end - self.first) / (seconds[1] - seconds[0]), 6),
            "is_vfr": self.durations is not None and self.durations[1] - self.durations[0] > 2 * split.slack(info),
            **self.source.facts,
            **self.scores,
        }
        members: dict[str, Path | bytes] = {}
        if self.verdict == "keep":
            self.source.spend("encode")
            members = self._finish(row)
        elif self.encoder:
            self.encoder.abandon()
            if self.windows:
                self.windows.abandon()
        made.append(Made(row, members))

    def _origin(self) -> str:
        return self.content.hexdigest() if self.content else storage.public(self.source.uri)

    def _span(self, seconds: list[float]) -> str:
        """The part of a clip's name that says which clip of the video it is: frames of a shot, seconds of a stride."""
        rules, info = self.source.settings.split, self.source.info
        if rules.at_shots:
            return f"{self.first}_{self.end}"
        slack = split.slack(info) * float(info.time_base)
        begin = (seconds[0] + slack) // rules.stride * rules.stride
        end = begin + rules.stride
        return f"{begin}_{end if seconds[1] + slack >= end else seconds[1]}"

    def _finish(self, row: dict[str, Any]) -> dict[str, Path | bytes]:
        encoder = self.encoder
        encoder.close()
        codecs = encoder.sound.codecs if encoder.sound else []
        if fps := getattr(coding(self.source.settings.encode), "fps", None):
            row |= {"fps": round(float(fps), 6), "is_vfr": False}
        row |= {
            "num_frames": encoder.frames,
            "width": encoder.width,
            "height": encoder.height,
            "codec": encoder.codec,
            "audio_codec": codecs[0] if codecs else "",
            "audio_streams": len(codecs),
            "audio_dropped": encoder.sound.dropped if encoder.sound else [],
            "bytes": encoder.path.stat().st_size,
            "digest": encoder.digest.hexdigest(),
        }
        previews: dict[str, Path | bytes] = {}
        if self.windows:
            self.source.spend("pictures")
            self.windows.close()
            row["previews"] = [dict(zip(PREVIEW, bounds, strict=False)) for bounds in self.windows.files]
            previews = {path.name[path.name.index(".") :]: path for path in self.windows.files.values()}
        return {
            ".mp4": encoder.path,
            ".json": described(row),
            ".webp": video.webp(self.middle.picture(), self.source.settings.thumbnail.quality),
            **previews,
        }
