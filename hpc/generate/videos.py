"""What generate.ar and generate.diffusion share: the shards that are planned, and how videos are written.

A shard is a plain webdataset tar with members for each video: <name>.mp4, <name>.webp (an animation of it, small, for
reports), <name>.json (its row), and what a model adds; and <shard>.parquet with a row for each video, and for each that
could not be made.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa

from hpc.data import layers, upstream, video
from hpc.data.work import Bad, Made, Work
from hpc.generate import prompts
from hpc.generate.prompts import Request
from hpc.generate.settings.videos import Videos
from hpc.models.tokenizer_files import is_stage

Shards = Mapping[str, Sequence[tuple[str, Mapping[str, str]]]]
PLACES = ("weights", "tokenizer", "objective")
"""What a planned row says beside its request: where the models are that other stages have trained."""
HEIGHT = 144  # pixels of the small animation, at most
MOST = 16  # pictures of it
SECONDS = 0.15  # that each is shown
FIRST = (
    ("name", pa.string()),
    ("prompt", pa.string()),
    ("media", pa.string()),  # that it goes on from; null for none
    ("given", pa.int32()),  # latent frames of that
    ("held_out", pa.string()),  # the list of a training's held-out clips, with that one; null: nobody asked
    ("seed", pa.int64()),
)
LAST = (
    ("frames", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("fps", pa.float32()),
    ("source", pa.string()),  # the file with the prompt
    ("mp4_offset", pa.int64()),  # in the tar, bytes
    ("mp4_size", pa.int64()),
    ("webp_offset", pa.int64()),
    ("webp_size", pa.int64()),
    ("seconds", pa.float32()),  # that it took; of a batch an equal share
    ("why", pa.string()),  # it was not made; null for videos
)


def schema(*own: tuple[str, pa.DataType]) -> pa.Schema:
    """Columns that all have, with a model's own between them."""
    return pa.schema([*FIRST, *own, *LAST])


# What is planned


def frozen(
    settings: Videos, tokenizer: str | None, model: str | None, upstream_: Shards, superseded: set[tuple[str, str]],
    wordless: bool, trained: Callable[[str, str], dict[str, Any]],
) -> Iterator[list[Any]]:  # fmt: skip
    """Rows of shards, `per_shard` requests each in their order, each with PLACES. model: the stage that made it, of
    which trained(stage, uri of its .json) says those. A name that several have gets a number. What is wrong in the file
    of `prompts` is planned, too: a video that cannot be made. Raises ValueError where there is not one request, as
    `trained` does, and where `held_out` leaves nothing."""
    places: dict[str, Any] = {}
    found: list[Request] = []
    held = None if settings.held_out is None else upstream.held_out(upstream_[settings.held_out], settings.held_out)
    for stage, shards in upstream_.items():
        if stage == settings.prompts:
            found += prompts.of_clips(shards, superseded, settings, held)
        elif stage == tokenizer:
            places["tokenizer"] = upstream.trained(shards, "tokenizer")["tokenizer"]
        elif stage == model:
            places |= trained(stage, shards[0][1][".json"])
        elif stage != settings.held_out:
            found += (one for _, objects in shards for one in prompts.of_shard(objects[".jsonl"], superseded))
    if settings.place is not None:
        found = prompts.of_file(settings.place, wordless)
    named = {one.media for one in found if one.source != one.media}
    found = [one for one in found if one.source != one.media or one.media not in named]  # beside a file that names it
    if settings.limit is not None and not is_stage(settings.prompts):
        wrong = [one for one in found if one.why is not None]
        found = prompts.spread([one for one in found if one.why is None], settings.limit) + wrong
    for rows in prompts.planned(found, settings.per_shard):
        yield [row | places for row in rows]


def request(row: Mapping[str, Any]) -> Request:
    """Of a planned row."""
    return msgspec.convert({name: value for name, value in row.items() if name not in PLACES}, Request)


def places(row: Mapping[str, Any]) -> dict[str, Any]:
    """...and where its models are."""
    return {name: row[name] for name in PLACES if name in row}


# What is made


class Shard:
    """with Shard(settings, work, SCHEMA, fps) as shard: shard.add(row, frames); shard.lost(row, bad)
    made = shard.made()"""

    def __init__(self, settings: Any, work: Work, columns: pa.Schema, fps: float) -> None:
        self.settings, self.work, self.columns, self.fps = settings, work, columns, fps
        self.paths = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
        self.rows: list[dict[str, Any]] = []
        self.bad: list[Bad] = []
        self.counts: Counter[str] = Counter(videos=0, frames=0)
        self.tar = layers.TarWriter(self.paths[0])

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *error: Any) -> None:
        self.tar.__exit__(*error)

    def add(self, row: dict[str, Any], frames: npt.NDArray[np.uint8], seconds: float,
            more: Mapping[str, bytes] | None = None) -> None:  # fmt: skip
        """frames: uint8 [frames, height, width, 3], RGB. more: further members, whose places the columns have."""
        path = self.work.scratch / "video.mp4"
        video.write(path, frames, self.fps, video.Coding(crf=self.settings.crf))
        about = json.dumps(row, ensure_ascii=False).encode()
        members = {".mp4": path.read_bytes(), ".webp": small(frames, self.fps), **(more or {})}
        path.unlink()
        entry = self.tar.add(row["name"], members | {".json": about})
        spans = {f"{suffix[1:]}_{what}": entry.members[suffix][i] for suffix in members
                 for i, what in enumerate(("offset", "size"))}  # fmt: skip
        self.rows.append(row | spans | {"seconds": seconds})
        self.counts.update(videos=1, frames=len(frames))

    def lost(self, row: dict[str, Any], bad: Bad) -> None:
        self.rows.append(row | {"why": bad.reason})
        self.bad.append(bad)

    def made(self) -> Made:
        s = self.settings
        meta = {"stage": s.KIND, "fingerprint": self.work.fingerprint, "model": s.model}
        layers.write_table(self.paths[1], self.rows, meta, self.columns)
        return Made(self.paths, {**self.counts, "bytes_out": self.paths[0].stat().st_size}, self.bad)


def small(frames: npt.NDArray[np.uint8], fps: float) -> bytes:
    """An animated .webp of a video's first seconds."""
    height = min(HEIGHT, frames.shape[1])
    size = max(1, round(frames.shape[2] * height / frames.shape[1])), height
    step = max(1, round(fps * SECONDS))
    some = [PIL.Image.fromarray(one).resize(size, PIL.Image.Resampling.BICUBIC) for one in frames[::step][:MOST]]
    return video.animation(some, 1000 * step / fps)


def gallery(open_object: Callable[[str], BinaryIO], limit: int) -> list[tuple[str, str, bytes]]:
    """(title, subtitle, webp) of up to `limit` videos spread over a published shard, for the report."""
    with open_object(".parquet") as file:
        made = [row for row in layers.read_table(file).to_pylist() if row["why"] is None]
    pictures = []
    with open_object(".tar") as file:
        for row in made[:: max(1, len(made) // limit)][:limit]:
            file.seek(row["webp_offset"])
            of = f"{row['given']} latent frames given" if row["given"] else "of words alone"
            of += ", of a held-out clip" if row.get("held_out") else ""
            words = f"{row['width']}x{row['height']}, {row['frames']} frames at {row['fps']:g} a second, {of}"
            pictures.append((row["name"], f"{row['prompt'][:160]} {words}".strip(), file.read(row["webp_size"])))
    return pictures
