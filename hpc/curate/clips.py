"""Videos -> clips: one decode of each input finds the cuts, encodes every clip as soon as its cut is known, and takes
its thumbnail on the way.

decode -> labels of the frames (split.Shots, split.Strides) -> split.Cutter -> Clip: encode and thumbnail -> tar, table.

A shard is <shard>.tar, with <uuid>.mp4, <uuid>.json and <uuid>.webp of each clip side by side, and <shard>.parquet,
with one row for each clip, kept or dropped; a clip's row says where its bytes lie in the tar. The same inputs and
settings give the same bytes, also when a long input is planned as spans: a span owns the shots that begin in it, and
decodes as much before and after as these need.
"""

from __future__ import annotations

import functools
import json
import tarfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from hpc.curate import split
from hpc.curate.settings import VIDEO, Clips
from hpc.data import layers, storage, video
from hpc.data.work import Bad, BadInput, Item, Made, Work
from hpc.models import shots

HELD = 64  # frames that a clip keeps while it is not known to be long enough; then it is encoded, at the risk of waste
KEPT = 16  # pictures a clip keeps to choose the middle one from: within 1/32 of its length
CHECK_EVERY = 4  # frames
PROGRESS_EVERY = 50  # frames

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
        ("verdict", pa.string()),  # "keep", or why it was dropped: "short", "past-max-clip"
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),  # average
        ("is_vfr", pa.bool_()),
        ("width", pa.int32()),  # of a kept clip; null for others, like everything down to webp_size
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("bytes", pa.int64()),
        ("offset", pa.int64()),  # in the tar: all members of the clip, headers and padding included
        ("size", pa.int64()),
        ("mp4_offset", pa.int64()),
        ("mp4_size", pa.int64()),
        ("webp_offset", pa.int64()),
        ("webp_size", pa.int64()),
        ("source_width", pa.int32()),  # upright
        ("source_height", pa.int32()),
        ("source_rotation", pa.int32()),
        ("source_pixel_aspect", pa.float64()),
        ("source_codec", pa.string()),
        ("source_pix_fmt", pa.string()),
        ("source_fps", pa.float64()),
        ("source_frames", pa.int64()),  # as declared, 0 for unknown
        ("source_seconds", pa.float64()),  # as declared, 0 for unknown
        ("source_audio_codec", pa.string()),
        ("source_bytes", pa.int64()),
    ]
)


def start(settings: Clips) -> Callable[[Work], Made]:
    """Raises FileNotFoundError without the detector's weights, and whatever libav raises if it cannot encode."""
    model = None
    if settings.split.detector == "transnetv2":
        model = shots.load_transnetv2("cuda" if torch.cuda.is_available() else "cpu")
    e = settings.encode
    video.try_encoder(e.crf, e.preset, e.threads)
    return functools.partial(process, settings, model)


def process(settings: Clips, model: shots.TransNetV2 | None, work: Work) -> Made:
    """Make one shard. Inputs that can never work are in Made.bad; errors of the storage and the machine are raised."""
    tar_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    with layers.TarWriter(tar_path) as tar:
        shard = Shard(settings, model, work, tar)
        for item in work.items:
            try:
                with open_input(item) as file:
                    if item.uri.lower().endswith(".tar"):
                        for member, part_of_tar in videos_in_tar(item, file):
                            shard.add(item, member, part_of_tar)
                    else:
                        shard.add(item, "", file)
            except BadInput as error:
                shard.bad.append(error.bad)
            shard.counts["inputs"] += 1 / item.parts
    meta = {"fingerprint": work.fingerprint, "shard": work.shard}
    meta["sha256"], meta["size"] = storage.sha256(str(tar_path))
    layers.write_table(table_path, shard.rows, meta, SCHEMA)
    return Made([tar_path, table_path], {**shard.counts, "bytes_out": meta["size"]}, shard.bad)


def open_input(item: Item) -> BinaryIO:
    try:
        return storage.open(item.uri, item.etag)
    except FileNotFoundError as error:
        raise BadInput(item.uri, "missing", f"it had {item.size} bytes when the run was planned") from error
    except storage.Changed as error:
        raise BadInput(item.uri, "changed-since-planned", str(error)) from error


def videos_in_tar(item: Item, file: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """(name, file) of the videos in a tar; of a tar planned in parts, those of this part. Of members with the same name
    the last counts, as tar has it. Raises BadInput; for a tar that is cut short only after what is there."""
    found: dict[str, tarfile.TarInfo] = {}
    cut_short = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                for member in tar:
                    name = member.name
                    if member.isreg() and name.lower().endswith(VIDEO) and "/." not in f"/{name}":
                        found[name] = member
            except tarfile.TarError as error:
                cut_short = error
                found = {name: m for name, m in found.items() if m.offset_data + m.size <= item.size}
            if not found and not cut_short:
                raise BadInput(item.uri, "no-videos-in-tar", f"no file in it ends with {' '.join(VIDEO)}")
            first, last = (len(found) * part // item.parts for part in (item.part, item.part + 1))
            for member in list(found.values())[first:last]:
                yield member.name, tar.extractfile(member)
    except tarfile.TarError as error:
        raise BadInput(item.uri, "corrupt", f"not a tar: {error}") from error
    if cut_short:
        raise BadInput(item.uri, "corrupt", f"cut short behind {len(found)} videos: {cut_short}")


class Watched:
    """A file that looks, whenever it is read, whether the worker was told to stop: counting the frames of a long input
    reads all of it before the first frame is decoded."""

    def __init__(self, file: BinaryIO, check: Callable[[], None]) -> None:
        self.file, self.check = file, check
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self.check()
        return self.file.read(size)


def span(part: int, parts: int, frames: int) -> tuple[int, float]:
    """[first, last) of the frames that part `part` of `parts` owns: bounds are multiples of the detector's step."""
    bounds = [shots.STEP * round(k * frames / parts / shots.STEP) for k in (part, part + 1)]
    return bounds[0], bounds[1] if part + 1 < parts else float("inf")


class Shard:
    """What all inputs of a shard share, and write to."""

    def __init__(self, settings: Clips, model: shots.TransNetV2 | None, work: Work, tar: layers.TarWriter) -> None:
        self.settings, self.model, self.work, self.tar = settings, model, work, tar
        self.rows: list[dict[str, Any]] = []
        self.bad: list[Bad] = []
        self.counts: dict[str, float] = dict.fromkeys(
            ("inputs", "clips", "dropped", "frames", "damaged_frames", "video_seconds", "clip_seconds"), 0
        )

    def add(self, item: Item, member: str, file: BinaryIO) -> None:
        """Cut one video."""
        uri = f"{item.uri}#{member}" if member else item.uri
        watched: Any = Watched(file, self.work.check)
        try:
            Source(self, item, member, uri, video.probe(watched)).cut(watched)
        except BadInput as error:
            self.bad.append(Bad(uri, error.bad.reason, error.bad.detail))
        except Exception as error:
            if not video.refused(error):
                raise
            self.bad.append(Bad(uri, "cannot-be-processed", f"{type(error).__name__}: {error}"))


class Source:
    """One video on its way through."""

    def __init__(self, shard: Shard, item: Item, member: str, uri: str, info: video.Video) -> None:
        self.shard, self.item, self.uri, self.info = shard, item, uri, info
        self.part, self.parts = (0, 1) if member else (item.part, item.parts)
        self.facts = {
            "source": item.uri,
            "member": member,
            "etag": item.etag,
            "source_width": info.width,
            "source_height": info.height,
            "source_rotation": info.rotation,
            "source_pixel_aspect": float(info.pixel_aspect),
            "source_codec": info.codec,
            "source_pix_fmt": info.pix_fmt,
            "source_fps": float(info.fps),
            "source_frames": info.frames,
            "source_seconds": info.duration,
            "source_audio_codec": info.audio_codec,
            "source_bytes": info.bytes,
        }
        height = min(shard.settings.thumbnail.height, info.height)
        self.thumbnail = video.Resizer(max(1, round(info.width * height / info.height)), height)

    def cut(self, file: BinaryIO) -> None:
        """Decode what this span needs, once."""
        own, at = (0, float("inf")), None
        if self.parts > 1:
            at = video.index(file)
            if at is not None:
                own = span(self.part, self.parts, at.frames)
            if own[0] >= own[1] or (at is None and self.part):
                return  # a file that can be decoded from its start only is left to the first span
        rules, counts = self.shard.settings.split, self.shard.counts
        labeller: split.Labeller
        if self.shard.model is not None:
            labeller = split.Shots(self.shard.model, rules.threshold, own[0])
        else:
            labeller = split.Strides(self.info, rules.stride, own[0])
        cutter = split.Cutter(self.info, rules, labeller.first, own, functools.partial(Clip, self))
        decoder = video.Decoder(file, labeller.begin, at)
        number, ticks = -1, 0
        before = None  # time of the frame before, if it is this span's own
        for number, frame in decoder:
            if number % CHECK_EVERY == 0:
                self.shard.work.check()
            if number % PROGRESS_EVERY == 0:
                self._progress(number, own)
            ticks += frame.pts - before if before is not None else 0
            before = frame.pts if own[0] <= number < own[1] else None
            counts["frames"] += before is not None
            cutter.push(number, frame, labeller.push(number, frame))
            if cutter.done:
                break
        else:
            ticks += frame.duration if before is not None else 0
            cutter.finish(labeller.finish())
            counts["damaged_frames"] += max(0, (at.frames if at else self.info.frames) - number - 1)
        counts["damaged_frames"] += decoder.damaged
        counts["video_seconds"] += float(ticks * self.info.time_base)

    def _progress(self, number: int, own: tuple[int, float]) -> None:
        work, counts = self.shard.work, self.shard.counts
        last = own[1] if own[1] < float("inf") else self.info.frames or float(self.info.duration * self.info.fps)
        share = min(1.0, max(0.0, (number - own[0]) / max(1.0, last - own[0])))
        done = (counts["inputs"] + share) / len(work.items)
        work.progress(min(done, 1.0), f"{self.uri.rpartition('/')[2]}: frame {number}, {counts['clips']:.0f} clips")


class Middle:
    """The picture in the middle of a clip whose length is not known before its end."""

    def __init__(self, resize: video.Resizer) -> None:
        self.resize = resize
        self.pictures: list[npt.NDArray[np.uint8]] = []
        self.every, self.frames = 1, 0

    def take(self, frame: video.Frame) -> None:
        if self.frames % self.every == 0:
            self.pictures.append(self.resize(frame))
            if len(self.pictures) == 2 * KEPT:
                self.pictures, self.every = self.pictures[::2], 2 * self.every
        self.frames += 1

    def picture(self) -> npt.NDArray[np.uint8]:
        return self.pictures[min(round((self.frames - 1) / 2 / self.every), len(self.pictures) - 1)]


class Clip:
    """A clip that is being cut: what it holds is encoded as it comes, and written to the tar when it ends."""

    def __init__(self, source: Source, number: int, pts: int, verdict: str) -> None:
        """verdict: why it will be dropped, whatever it holds; "" if that is open."""
        self.source, self.verdict = source, verdict
        self.first, self.pts = number, pts
        self.frames = 0
        self.held: list[tuple[video.Frame, int]] = []
        self.encoder: video.Encoder | None = None
        self.middle = Middle(source.thumbnail)
        self.durations: tuple[int, int] | None = None  # the shortest and the longest of its frames

    def take(self, number: int, pts: int, end: int, frame: video.Frame) -> None:
        self.end, self.end_pts = number + 1, end
        self.frames += 1
        shortest, longest = self.durations or (end - pts, end - pts)
        self.durations = min(shortest, end - pts), max(longest, end - pts)
        if not self.verdict:
            self.held.append((frame, end - pts))
            if self.encoder or self._long_enough() or len(self.held) > HELD:
                self._encode()

    def _long_enough(self) -> bool:
        rules, info = self.source.shard.settings.split, self.source.info
        if rules.detector == "transnetv2" and self.frames < rules.min_frames:
            return False
        return self.end_pts - self.pts >= rules.min_clip / float(info.time_base) - split.slack(info)

    def _encode(self) -> None:
        if self.encoder is None:
            shard, e = self.source.shard, self.source.shard.settings.encode
            path = shard.work.scratch / f"{len(shard.rows)}.mp4"  # a new name, should an error have left one behind
            self.encoder = video.Encoder(path, self.source.info, e.crf, e.preset, e.threads)
        for frame, duration in self.held:
            self.middle.take(frame)
            self.encoder.write(frame, duration)
        self.held.clear()

    def close(self) -> None:
        shard, info = self.source.shard, self.source.info
        if not self.verdict:
            self.verdict = "keep" if self._long_enough() else "short"
        seconds = [float((pts - info.start_pts) * info.time_base) for pts in (self.pts, self.end_pts)]
        row = {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.source.uri}_{self._span(seconds)}")),
            "start_seconds": seconds[0],
            "end_seconds": seconds[1],
            "start_frame": self.first,
            "end_frame": self.end,
            "verdict": self.verdict,
            "num_frames": self.end - self.first,
            "fps": round((self.end - self.first) / (seconds[1] - seconds[0]), 6),
            "is_vfr": self.durations[1] - self.durations[0] > 2 * split.slack(info),
            **self.source.facts,
        }
        if self.verdict == "keep":
            self._write(row)
            shard.counts["clip_seconds"] += seconds[1] - seconds[0]
        elif self.encoder:
            self.encoder.abandon()
        shard.counts["clips" if self.verdict == "keep" else "dropped"] += 1
        shard.rows.append(row)

    def _span(self, seconds: list[float]) -> str:
        """The part of a clip's name that says which clip of the video it is: frames of a shot, seconds of a stride."""
        rules, info = self.source.shard.settings.split, self.source.info
        if rules.detector == "transnetv2":
            return f"{self.first}_{self.end}"
        slack = split.slack(info) * float(info.time_base)
        begin = (seconds[0] + slack) // rules.stride * rules.stride
        end = begin + rules.stride
        return f"{begin}_{end if seconds[1] + slack >= end else seconds[1]}"

    def _write(self, row: dict[str, Any]) -> None:
        shard, encoder = self.source.shard, self.encoder
        encoder.close()
        mp4 = encoder.path.read_bytes()
        encoder.path.unlink()
        row |= {
            "num_frames": encoder.frames,
            "width": encoder.width,
            "height": encoder.height,
            "codec": "h264",
            "bytes": len(mp4),
        }
        members = {
            ".mp4": mp4,
            ".json": json.dumps(row, ensure_ascii=False, indent=1, sort_keys=True).encode(),
            ".webp": video.webp(self.middle.picture(), shard.settings.thumbnail.quality),
        }
        entry = shard.tar.add(row["uuid"], members)
        row |= {"offset": entry.offset, "size": entry.size}
        for suffix in ("mp4", "webp"):
            row[f"{suffix}_offset"], row[f"{suffix}_size"] = entry.members[f".{suffix}"]


def gallery(open_object: Callable[[str], BinaryIO], limit: int) -> list[tuple[str, str, bytes]]:
    """(title, subtitle, webp) of up to `limit` kept clips spread over a published shard.

    open_object(suffix) opens the shard's object with that suffix.
    """
    columns = ["source", "member", "verdict", "start_seconds", "end_seconds", "width", "height", "fps",
               "webp_offset", "webp_size"]  # fmt: skip
    with open_object(".parquet") as file:
        clips = [row for row in layers.read_table(file, columns).to_pylist() if row["verdict"] == "keep"]
    pictures = []
    with open_object(".tar") as file:
        for row in clips[:: max(1, len(clips) // limit)][:limit]:
            file.seek(row["webp_offset"])
            title = (row["member"] or row["source"]).rpartition("/")[2]
            words = f"{clock(row['start_seconds'])} to {clock(row['end_seconds'])}, {row['width']}x{row['height']}"
            pictures.append((title, f"{words}, {row['fps']:.5g} fps", file.read(row["webp_size"])))
    return pictures


def clock(seconds: float) -> str:
    """75.25 -> "1:15.2"."""
    return f"{int(seconds // 60)}:{int(seconds % 60 * 10) / 10:04.1f}"
