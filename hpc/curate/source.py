"""One video on its way through: decoded once, cut into clips as the cuts become known."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hpc.curate import changes, clip, filters, gpu, split
from hpc.curate.look import Look, Sizes
from hpc.curate.settings import Clips
from hpc.data import storage, video
from hpc.data.video import nvdec
from hpc.data.work import Bad, BadInput, Item
from hpc.models import shots, shots_gpu

CHECK_EVERY = 4  # frames
PROGRESS_EVERY = 50  # frames


class Tools(msgspec.Struct):
    """What a worker loads once."""

    settings: Clips
    model: shots.TransNetV2 | shots_gpu.Batcher | None
    filters: dict[str, filters.Open]
    lanes: int = 1
    """Videos worked on at the same time."""
    gpu_bytes: int = 0
    """Of the GPU's memory, for the decoded frames of each of them; 0: decode on the CPU."""


class Watched:
    """A file that looks, whenever it is read, whether the worker was told to stop: counting the frames of a long input
    reads all of it before the first frame is decoded. An input that vanishes or is replaced meanwhile is a BadInput."""

    def __init__(self, uri: str, file: BinaryIO, check: Callable[[], None]) -> None:
        self.uri, self.file, self.check = uri, file, check
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        self.check()
        try:
            return self.file.read(size)
        except FileNotFoundError as error:
            raise BadInput(self.uri, "missing", "it vanished while it was read") from error
        except storage.Changed as error:
            raise BadInput(self.uri, "changed-since-planned", str(error)) from error


def unchanged(item: Item) -> None:
    """Raises BadInput if an input that was read to its end is no longer the one that was planned."""
    now = storage.stat(item.uri)
    if now is not None and now.etag != item.version:
        raise BadInput(item.uri, "changed-since-planned", f"while it was read: {item.version} became {now.etag}")


def refusal(uri: str, error: Exception) -> Bad:
    """What is wrong with an input, if it is at fault; else the error is raised again."""
    if isinstance(error, BadInput):
        return Bad(uri, error.bad.reason, error.bad.detail)
    if not video.refused(error):
        raise error
    return Bad(uri, "cannot-be-processed", f"{type(error).__name__}: {error}")


def span(part: int, parts: int, frames: int) -> tuple[int, float]:
    """[first, last) of the frames that part `part` of `parts` owns: bounds are multiples of the detector's step."""
    bounds = [shots.STEP * round(k * frames / parts / shots.STEP) for k in (part, part + 1)]
    return bounds[0], bounds[1] if part + 1 < parts else float("inf")


class Clock:
    """Where the time goes: seconds by what they are spent on."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.since, self.on = time.perf_counter(), ""

    def spend(self, on: str) -> None:
        """From here on time is spent on that."""
        now = time.perf_counter()
        if self.on:
            self.seconds[self.on] += now - self.since
        self.since, self.on = now, on


def cut(
    tools: Tools,
    item: Item,
    member: str,
    file: BinaryIO,
    scratch: Path,
    check: Callable[[], None],
    progress: Callable[[float, int, int], None],
) -> tuple[list[clip.Made], dict[str, float]]:
    """Cut one video, or the span of it that the item is: its clips in order, and counts of all else.

    member: the video's name, if it comes in a tar. scratch: an empty folder for this video alone. progress(share of the
    video 0..1, frame, clips). Raises BadInput.
    """
    try:
        return cut_once(tools, item, member, file, scratch, check, progress)
    except video.Unfit:  # the GPU gives it up: again, on the CPU
        for path in scratch.iterdir():
            path.unlink()
        on_cpu = msgspec.structs.replace(tools, gpu_bytes=0)
        return cut_once(on_cpu, item, member, file, scratch, check, progress)


def cut_once(
    tools: Tools,
    item: Item,
    member: str,
    file: BinaryIO,
    scratch: Path,
    check: Callable[[], None],
    progress: Callable[[float, int, int], None],
) -> tuple[list[clip.Made], dict[str, float]]:
    """Raises Unfit if a GPU was to decode, and cannot do it as a CPU does."""
    settings, counts, clock = tools.settings, Counter[str](), Clock()
    clock.spend("probe")
    watched: Any = Watched(item.uri, file, check)
    info = video.probe(watched)
    own, at = (0, float("inf")), None
    if not member and item.parts > 1:
        at = video.index(watched)
        if at is not None:
            own = span(item.part, item.parts, at.frames)
        if own[0] >= own[1] or (at is None and item.part):
            return [], counts  # a file that can be decoded from its start only is left to the first span
    uri = f"{item.uri}#{member}" if member else item.uri
    if info.transfer and settings.encode.hdr == "refuse":
        raise BadInput(uri, "hdr", f"its transfer is {info.transfer}, and the spec says `encode: {{hdr: refuse}}`")
    copied, audio = settings.encode.encoder == "copy", settings.encode.audio
    if copied and info.codec not in video.COPIED:
        raise BadInput(uri, "cannot-be-copied", f"{info.codec} is no codec for mp4; `encoder: libx264` takes all")
    tap = video.Tap(audio, copied) if copied or audio != "drop" else None
    source = clip.Source(uri, info, facts(item, member, info), settings, tools.filters, scratch, clock.spend, tap)
    labeller: split.Labeller
    if tools.model is not None:
        labeller = split.Shots(tools.model, settings.split.cut_above, own[0])
    elif settings.split.at_shots:
        adaptive = settings.split.detector == "adaptive"
        labeller = changes.Changes(info, adaptive, settings.split.cut_above, own[0])
    else:
        labeller = split.Strides(info, settings.split.stride, own[0])
    cutter = split.Cutter(info, settings.split, labeller.first, own, functools.partial(clip.Clip, source))
    last = own[1] if own[1] < float("inf") else info.frames or float(info.duration * info.fps)
    sizes: Sizes = {}
    on_gpu = tools.gpu_bytes > 0 and nvdec.fits(info)
    decoder = video.Decoder(watched, labeller.begin, at, vectors=settings.filter.vectors(), tap=tap,
                            digests=settings.ids == "content", nvdec=on_gpu)  # fmt: skip
    held = gpu.Held(info, decoder, tools.gpu_bytes) if on_gpu else None
    number, ticks = -1, 0
    before = None  # time of the frame before, if it is this span's own
    clock.spend("decode")
    for number, frame in decoder:
        if number % CHECK_EVERY == 0:
            check()
            if tap:
                tap.forget(oldest(cutter, frame.pts) * info.time_base)
        if number % PROGRESS_EVERY == 0:
            progress(min(1.0, max(0.0, (number - own[0]) / max(1.0, last - own[0]))), number, len(source.made))
        ticks += frame.pts - before if before is not None else 0
        before = frame.pts if own[0] <= number < own[1] else None
        counts["frames"] += before is not None
        digest = decoder.digests.pop(frame.pts, b"") if decoder.digests is not None else b""
        look = (held.look if held else Look)(number, frame, sizes, digest)
        clock.spend("detect")
        labels = labeller.push(look)
        clock.spend("cut")
        cutter.push(look, labels)
        clock.spend("decode")
        if cutter.done or (settings.limit_clips and kept(source) >= settings.limit_clips):
            break
    else:
        ticks += frame.duration if before is not None else 0
        clock.spend("detect")
        labels = labeller.finish()
        clock.spend("cut")
        cutter.finish(labels)
        counts["damaged_frames"] += max(0, (at.frames if at else info.frames) - number - 1)
    clock.spend("")
    unchanged(item)
    counts["damaged_frames"] += decoder.damaged
    if on_gpu:
        counts["frames_on_gpu"] = counts["frames"]
    counts["video_seconds"] += float(ticks * info.time_base)
    return source.made, {**counts, **{f"time_{on}": spent for on, spent in clock.seconds.items()}}


def tally(made: list[clip.Made]) -> Counter[str]:
    """Counts of the clips."""
    counts: Counter[str] = Counter()
    for one in made:
        if not one.members:
            counts["dropped"] += 1
            counts[f"dropped_{one.row['verdict']}"] += 1
        else:
            counts["clips"] += 1
            counts["clip_seconds"] += one.row["end_seconds"] - one.row["start_seconds"]
    return counts


def kept(source: clip.Source) -> int:
    return sum(bool(one.members) for one in source.made)


def oldest(cutter: split.Cutter, pts: int) -> int:
    """Time of the first frame that may still be in a clip, where a frame of this time is the newest."""
    held = cutter.clip.held_since() if cutter.clip else None
    return held if held is not None else cutter.queue[0].pts if cutter.queue else pts


def facts(item: Item, member: str, info: video.Video) -> dict[str, Any]:
    """The columns that say where a clip comes from."""
    return {
        "source": item.uri,
        "member": member,
        "etag": item.etag,
        "camera": item.camera,
        "source_width": info.width,
        "source_height": info.height,
        "source_rotation": info.rotation,
        "source_pixel_aspect": float(info.pixel_aspect),
        "source_codec": info.codec,
        "source_pix_fmt": info.pix_fmt,
        "source_interlaced": info.interlaced,
        "source_transfer": info.transfer,
        "source_primaries": info.primaries,
        "source_fps": float(info.fps),
        "source_frames": info.frames,
        "source_seconds": info.duration,
        "source_audio_codec": info.audio_codec,
        "source_bytes": info.bytes,
    }
