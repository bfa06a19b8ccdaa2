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

import functools
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hpc.curate import clip, filters, source
from hpc.curate import scores as scoring
from hpc.curate.settings import VIDEO, Clips
from hpc.data import layers, storage, video
from hpc.data.work import Bad, BadInput, Item, Made, Work
from hpc.models import shots

SCHEMA = clip.SCHEMA
COUNTS = ("inputs", "clips", "dropped", "frames", "damaged_frames", "video_seconds", "clip_seconds")


def start(settings: Clips) -> Callable[[Work], Made]:
    """Raises FileNotFoundError without the detector's weights, and whatever libav raises if it cannot encode."""
    model = None
    if settings.split.detector == "transnetv2":
        model = shots.load_transnetv2("cuda" if torch.cuda.is_available() else "cpu")
    if coding := clip.coding(settings.encode):
        video.try_encoder(coding)
    return functools.partial(process, source.Tools(settings, model, filters.start(settings.filter)))


def process(tools: source.Tools, work: Work) -> Made:
    """Make one shard. Inputs that can never work are in Made.bad; errors of the storage and the machine are raised."""
    tar_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in tools.settings.OBJECTS)
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    counts = Counter(dict.fromkeys(COUNTS, 0.0))
    with layers.TarWriter(tar_path) as tar:
        for item in work.items:
            work.begin(item)
            try:
                for member, file in videos(item):
                    cut_one(tools, work, item, member, file, (rows, bad, counts, tar))
            except BadInput as error:
                bad.append(error.bad)
            counts["inputs"] += 1 / item.parts
    meta = {"fingerprint": work.fingerprint, "shard": work.shard}
    meta["sha256"], meta["size"] = storage.sha256(str(tar_path))
    layers.write_table(table_path, rows, meta, SCHEMA)
    return Made([tar_path, table_path], {**counts, "bytes_out": meta["size"]}, bad)


def cut_one(
    tools: source.Tools,
    work: Work,
    item: Item,
    member: str,
    file: BinaryIO,
    shard: tuple[list[dict[str, Any]], list[Bad], Counter[str], layers.TarWriter],
) -> None:
    """Cut one video, and add what it gives to the shard: all of it, or a Bad."""
    rows, bad, counts, tar = shard
    uri = f"{item.uri}#{member}" if member else item.uri

    def progress(share: float, frame: int, clips: int) -> None:
        done = (counts["inputs"] + share) / len(work.items)
        work.progress(min(done, 1.0), f"{uri.rpartition('/')[2]}: frame {frame}, {counts['clips'] + clips:.0f} clips")

    scratch = work.scratch / "cutting"
    scratch.mkdir()
    try:
        made, counted = source.cut(tools, item, member, file, scratch, work.check, progress)
        for one in made:
            if one.members:
                add(tar, one)
            rows.append(one.row)
        counts.update(counted)
        counts.update(source.tally(made))
    except BadInput as error:
        bad.append(Bad(uri, error.bad.reason, error.bad.detail))
    except Exception as error:
        if not video.refused(error):
            raise
        bad.append(Bad(uri, "cannot-be-processed", f"{type(error).__name__}: {error}"))
    finally:
        shutil.rmtree(scratch)


def add(tar: layers.TarWriter, made: clip.Made) -> None:
    """Put a clip's members into the tar, and into its row where they lie."""
    row = made.row
    entry = tar.add(row["uuid"], {s: m.read_bytes() if isinstance(m, Path) else m for s, m in made.members.items()})
    row |= {"offset": entry.offset, "size": entry.size}
    for suffix in ("mp4", "webp"):
        row[f"{suffix}_offset"], row[f"{suffix}_size"] = entry.members[f".{suffix}"]
    for one in row.get("previews") or ():
        one["offset"], one["size"] = entry.members[f".preview_{one['start_frame']}_{one['end_frame']}.webp"]


def videos(item: Item) -> Iterator[tuple[str, BinaryIO]]:
    """(name, file) of the videos of an input: itself, with no name, or those in a tar. Raises BadInput."""
    with open_input(item) as file:
        if item.uri.lower().endswith(".tar"):
            yield from videos_in_tar(item, source.Watched(item.uri, file, lambda: None))
        else:
            yield "", file


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
