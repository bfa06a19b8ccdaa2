"""Videos -> clips: one decode of each input finds the cuts, encodes every clip as soon as its cut is known, and
measures and pictures it on the way.

source.cut: decode -> labels of the frames (split.Labeller) -> split.Cutter -> clip.Clip: encode, filters,
thumbnail. Here: the inputs of a shard, and its tar and table.

A shard is <shard>.tar, with <uuid>.mp4, <uuid>.json and <uuid>.webp of each clip side by side, and <shard>.parquet,
with one row for each clip, kept or dropped; a clip's row says where its bytes lie in the tar. The same inputs and
settings give the same bytes, also when a long input is planned as spans: a span owns the shots that begin in it, and
decodes as much before and after as these need.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from hpc.curate import cameras, clip, filters, lanes, source
from hpc.curate import scores as scoring
from hpc.curate.settings import VIDEO, Clips
from hpc.data import layers, storage, video
from hpc.data.video import nvdec
from hpc.data.work import Bad, BadInput, Item, Made, Work
from hpc.models import shots, shots_gpu

SCHEMA = clip.SCHEMA
GPU_LANES = 8  # an H200 has 7 video engines
COUNTS = ("inputs", "clips", "dropped", "frames", "damaged_frames", "video_seconds", "clip_seconds")


class Job(NamedTuple):
    """One video, or what else there is to say of an input."""

    number: int
    item: Item
    member: str = ""
    """The video's name, if it comes in a tar."""
    open: Callable[[], BinaryIO] | None = None
    share: float = 0.0
    """Of the shard's work."""
    bad: tuple[Bad, ...] = ()
    """Why the input, or what is left of it, can never work."""
    last: bool = False
    """This was all of the input."""
    session: tuple[Item, ...] = ()
    """All of its cameras, if there are several to be cut together."""

    @property
    def uri(self) -> str:
        return self.session[0].session if self.session else self.item.uri


class Cut(NamedTuple):
    """What became of a video."""

    job: Job
    scratch: Path
    made: list[clip.Made]
    counts: dict[str, float]
    bad: tuple[Bad, ...]


def start(settings: Clips) -> Callable[[Work], Made]:
    """Raises FileNotFoundError without the detector's weights, and whatever libav raises if it cannot encode."""
    on_gpu = torch.cuda.is_available()
    # Several threads would wait for each other actively, in competition with those that decode and encode; lanes each
    # have one of their own. And the last bits of sums depend on the number of threads.
    torch.set_num_threads(1)
    if on_gpu:
        nvdec.prepare()
    model: shots.TransNetV2 | shots_gpu.Batcher | None = None
    if settings.split.detector == "transnetv2":
        model = shots_gpu.Batcher(shots.load_transnetv2("cuda")) if on_gpu else shots.load_transnetv2()
    if coding := clip.coding(settings.encode):
        video.try_encoder(coding)
    # Detectors of changes want every frame on the CPU, and NVDEC keeps its motion vectors to itself.
    decodes = on_gpu and settings.split.detector in ("transnetv2", "stride") and not settings.filter.vectors()
    count = settings.lanes or (GPU_LANES if decodes else 1)
    gpu_bytes = torch.cuda.mem_get_info()[0] // 2 // count if decodes else 0
    tools = source.Tools(settings, model, filters.start(settings.filter), count, gpu_bytes)
    return functools.partial(process, tools)


def process(tools: source.Tools, work: Work) -> Made:
    """Make one shard. Inputs that can never work are in Made.bad; errors of the storage and the machine are raised."""
    tar_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in tools.settings.OBJECTS)
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    counts = Counter(dict.fromkeys(COUNTS, 0.0))
    seen: set[str] = set()
    progress = lanes.Progress(work.progress)

    def one(job: Job, check: Callable[[], None]) -> Cut:
        def report(share: float, frame: int, clips: int) -> None:
            name = (job.member or job.uri).rpartition("/")[2]
            progress(job.number, job.share * share, f"{name}: frame {frame}, {counts['clips'] + clips:.0f} clips")

        with contextlib.ExitStack() as on:
            for item in job.session or (job.item,):
                on.enter_context(work.on(item))
            cut = cut_one(tools, job, work.scratch / f"cutting-{job.number}", check, report)
        progress.done[job.number] = job.share
        return cut

    cuts = lanes.in_order(jobs(work.items), one, 1 if work.alone else tools.lanes, work.check)
    with layers.TarWriter(tar_path) as tar, contextlib.closing(cuts):
        for cut in cuts:
            for made in cut.made:
                if made.members and made.row["uuid"] in seen:
                    clip.drop(made, "duplicate", "a clip of this shard has the same content")
                if made.members:
                    seen.add(made.row["uuid"])
                    add(tar, made)
                rows.append(made.row)
            shutil.rmtree(cut.scratch, ignore_errors=True)
            bad.extend(cut.bad)
            counts.update(cut.counts)
            counts.update(source.tally(cut.made))
            counts["inputs"] += cut.job.last / cut.job.item.parts
    meta = {"fingerprint": work.fingerprint, "shard": work.shard}
    meta["sha256"], meta["size"] = storage.sha256(str(tar_path))
    layers.write_table(table_path, rows, meta, SCHEMA)
    return Made([tar_path, table_path], {**counts, "bytes_out": meta["size"]}, bad)


def cut_one(
    tools: source.Tools,
    job: Job,
    scratch: Path,
    check: Callable[[], None],
    progress: Callable[[float, int, int], None],
) -> Cut:
    """Cut one video: all of its clips, or a Bad. Their files are in `scratch`, which is made."""
    if job.open is None and not job.session:
        return Cut(job, scratch, [], {}, job.bad)
    scratch.mkdir()
    try:
        if job.session:
            made, counts, bad = cameras.cut(tools, job.session, open_input, scratch, check, progress)
            return Cut(job, scratch, made, counts, tuple(bad))
        with job.open() as file:
            return Cut(job, scratch, *source.cut(tools, job.item, job.member, file, scratch, check, progress), ())
    except Exception as error:
        uri = f"{job.uri}#{job.member}" if job.member else job.uri
        return Cut(job, scratch, [], {}, (source.refusal(uri, error),))


def add(tar: layers.TarWriter, made: clip.Made) -> None:
    """Put a clip's members into the tar, and into its row where they lie."""
    row = made.row
    entry = tar.add(row["uuid"], {s: m.read_bytes() if isinstance(m, Path) else m for s, m in made.members.items()})
    row |= {"offset": entry.offset, "size": entry.size}
    for suffix in ("mp4", "webp"):
        row[f"{suffix}_offset"], row[f"{suffix}_size"] = entry.members[f".{suffix}"]
    for one in row.get("previews") or ():
        one["offset"], one["size"] = entry.members[f".preview_{one['start_frame']}_{one['end_frame']}.webp"]
    for one in row.get("cameras") or ():
        one["offset"], one["size"] = entry.members[f".{one['camera']}.mp4"]


def jobs(items: list[Item]) -> Iterator[Job]:
    """The videos of these inputs, in order, and after those of each input the news that it is over."""
    tars, number = Tars(), itertools.count()
    for _, together in itertools.groupby((item for item in items if item.session), lambda item: item.session):
        rig = tuple(together)
        yield Job(next(number), rig[0], share=len(rig) / len(items), session=rig)
        yield from (Job(next(number), item, last=True) for item in rig)
    for item in items:
        if item.session:
            continue
        bad: tuple[Bad, ...] = ()
        if not item.uri.lower().endswith(".tar"):
            open_file = functools.partial(open_input, item)
            yield Job(next(number), item, open=open_file, share=1 / len(items))
        else:
            try:
                members, cut_short = videos_in_tar(item)
                bad = (cut_short,) if cut_short else ()
            except BadInput as error:
                members, bad = [], (error.bad,)
            for member in members:
                share = 1 / len(members) / len(items)
                yield Job(next(number), item, member.name, functools.partial(tars.open, item, member), share)
        yield Job(next(number), item, bad=bad, last=True)


def open_input(item: Item) -> BinaryIO:
    try:
        return storage.open(item.uri, item.version)
    except FileNotFoundError as error:
        raise BadInput(item.uri, "missing", f"it had {item.size} bytes when the run was planned") from error
    except storage.Changed as error:
        raise BadInput(item.uri, "changed-since-planned", str(error)) from error


class Tars(threading.local):
    """Members of tars: each thread opens a tar once, and reads one member after the other."""

    item: Item | None = None

    def open(self, item: Item, member: tarfile.TarInfo) -> BinaryIO:
        if self.item != item:
            self.tar = tarfile.open(fileobj=open_input(item), mode="r:")
            self.item = item
        return self.tar.extractfile(member)


def videos_in_tar(item: Item) -> tuple[list[tarfile.TarInfo], Bad | None]:
    """The videos in a tar; of a tar planned in parts, those of this part. Of members with the same name the last
    counts, as tar has it. With them, for a tar that is cut short, that it is so. Raises BadInput."""
    found: dict[str, tarfile.TarInfo] = {}
    cut_short = None
    try:
        with open_input(item) as file:
            tar = tarfile.open(fileobj=source.Watched(item.uri, file, lambda: None), mode="r:")
            try:
                for member in tar:
                    name = member.name
                    shown = name.lower().endswith(VIDEO) and "/." not in f"/{name}"
                    if shown and member.isreg() and not member.issparse():  # a sparse one may unfold to any size
                        found[name] = member
            except tarfile.TarError as error:
                found = {name: m for name, m in found.items() if m.offset_data + m.size <= item.size}
                cut_short = Bad(item.uri, "corrupt", f"cut short behind {len(found)} videos: {error}")
    except tarfile.TarError as error:
        raise BadInput(item.uri, "corrupt", f"not a tar: {error}") from error
    if not found and not cut_short:
        raise BadInput(item.uri, "no-videos-in-tar", f"no file in it ends with {' '.join(VIDEO)}")
    first, last = (len(found) * part // item.parts for part in (item.part, item.part + 1))
    return list(found.values())[first:last], cut_short


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


def scores(settings: Clips, shards: scoring.Shards) -> scoring.Summary | None:
    """What the report shows of the filters; None if the settings name none."""
    return scoring.summary(settings.filter, shards)


def calibrate(settings: Clips, shards: scoring.Shards, keep: float) -> scoring.Calibration:
    """Thresholds for the filters that the settings name. Raises ValueError if they name none, or clips are too few."""
    return scoring.calibrate(settings.filter, shards, keep)


def clock(seconds: float) -> str:
    """75.25 -> "1:15.2"."""
    return f"{int(seconds // 60)}:{int(seconds % 60 * 10) / 10:04.1f}"
