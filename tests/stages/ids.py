"""Ids' work: a .bin, its .idx, and the table that says which document is of which split."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpc.data import layers
from hpc.data.tokens.indexed import HEAD, MAGIC
from hpc.data.work import Made, Work


def start(settings):
    def process(work: Work) -> Made:
        return Made(write(work.scratch, work.shard, settings.shape, settings.clips), {"clips": settings.clips})

    return process


def write(folder: Path, shard: str, shape: tuple[int, int, int], clips: int) -> list[Path]:
    size = math.prod(shape)
    ids = np.stack([(np.arange(size) * (n + 1) + int(shard)) % 64_000 for n in range(clips)]).astype("<i4")
    paths = [folder / f"{shard}{suffix}" for suffix in (".bin", ".idx", ".parquet")]
    paths[0].write_bytes(ids.tobytes())
    lengths, places = np.full(clips, size, "<i4"), (np.arange(clips) * size * 4).astype("<i8")
    head = HEAD.pack(MAGIC, 1, 4, clips, clips + 1) + lengths.tobytes() + places.tobytes()
    paths[1].write_bytes(head + np.arange(clips + 1).astype("<i8").tobytes())
    table = pa.table({"split": ["train"] * (clips - 1) + ["valid"]})
    layers.write_arrow(paths[2], table, {"shape": list(shape)})
    return paths
