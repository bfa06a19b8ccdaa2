"""Clips -> one vector each, as a table beside their own: hpc.models.embed opens what makes them.

Clips are read, decoded and made ready by threads, a few ahead of the model. A shard is <shard>.parquet with the columns
of `schema`; its meta says which model, how long the vectors are, of how many frames, and whether they have length 1.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from hpc.curate.settings.embed import Embed
from hpc.data import layers, upstream, video
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.models import embed as models

BATCH = 8  # clips; Cosmos-Curate has 8
COLUMNS = ("num_frames", "width", "height")


def schema(dim: int) -> pa.Schema:
    return pa.schema([("uuid", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])


def start(settings: Embed) -> Callable[[Work], Made]:
    """Raises as `hpc.models.embed.open_embedder` does."""
    return functools.partial(process, models.open_embedder(settings))


def process(embedder: models.Embedder, work: Work) -> Made:
    """Make one shard."""
    clips = upstream.clips(work, COLUMNS)
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    waited = worked = 0.0
    ready = layers.map_ahead(functools.partial(looked_at, embedder), upstream.videos(clips))
    done = 0
    while True:
        began = time.monotonic()
        batch = list(itertools.islice(ready, BATCH))
        waited += time.monotonic() - began
        if not batch:
            break
        work.check()
        good = [(uuid, found) for uuid, found in batch if not isinstance(found, Bad)]
        bad += [found for _, found in batch if isinstance(found, Bad)]
        began = time.monotonic()
        vectors = embedder.embed([found for _, found in good]) if good else []
        worked += time.monotonic() - began
        rows += [{"uuid": uuid, "embedding": vector} for (uuid, _), vector in zip(good, vectors, strict=True)]
        done += len(batch)
        work.progress(done / len(clips), f"{done} of {len(clips)} clips")
    path = work.scratch / f"{work.shard}.parquet"
    meta = {"stage": Embed.KIND, "fingerprint": work.fingerprint, "model": embedder.model,
            "revision": embedder.revision, "dim": embedder.dim, "frames": embedder.frames,
            "normalised": embedder.normalised}  # fmt: skip
    layers.write_table(path, rows, meta, schema(embedder.dim))
    counts = {"clips": len(clips), "embedded": len(rows), "frames": len(rows) * embedder.frames,
              "data_wait_seconds": waited, "model_seconds": worked}  # fmt: skip
    return Made([path], counts, bad)


def looked_at(embedder: models.Embedder, one: tuple[upstream.Clip, bytes]) -> tuple[str, Any]:
    """A clip's uuid, and what the model takes of it; or a Bad."""
    clip, data = one
    row = clip.row
    try:
        found = video.sample(data, embedder.times(row["num_frames"]), *embedder.size(row["width"], row["height"]))
        if not len(found):
            raise BadInput(clip.tar, "no-frames")
    except BadInput as error:
        return clip.uuid, Bad(f"{clip.tar}#{clip.uuid}.mp4", error.bad.reason, error.bad.detail)
    return clip.uuid, embedder.prepare(found)
