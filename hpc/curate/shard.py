"""Clips -> a data set for training: tars of equal size, in a fixed order, that webdataset reads.

The barrier (`freeze`) looks at columns alone: which clips are kept, in which order, and in which tar each goes. The
array (`start`) then copies byte ranges from the clips' tars: nothing is decoded, and only tar headers are looked at.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.curate.settings import Shard
from hpc.data import layers, storage
from hpc.data.work import Made, Work

# 36 bytes a clip: 1 M clips are 36 MB. The uuid's hash orders the clips and finds duplicates.
CLIP = np.dtype([("hash", "S16"), ("tar", "<u4"), ("offset", "<i8"), ("size", "<i8")])


def freeze(
    settings: Shard, upstream: dict[str, list[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[list[str | int]]]:
    """Plan the tars: for each, its rows [uri of a clips tar, offset, size], in bytes; neighbours are merged.

    upstream: the clips stage's name -> [(shard id, {".tar": uri, ".parquet": uri}), ...], the frozen good shards, in
    order. superseded: (source, etag) of inputs that were replaced since; their clips are left out, as are those whose
    verdict is not "keep". Of clips with the same uuid the first in the order of the shards stays; the log counts the
    others.
    """
    objects = [files for shards in upstream.values() for _, files in shards]
    for files in objects:
        if not {".tar", ".parquet"} <= files.keys():
            raise ValueError(f"curate.shard needs a stage that makes .tar and .parquet; {list(upstream)} made {files}")
    shards = layers.map_ahead(
        lambda numbered: _kept_clips(numbered[0], numbered[1][".parquet"], superseded), enumerate(objects)
    )
    clips = np.concatenate([np.empty(0, CLIP), *shards])

    _, first = np.unique(clips["hash"], return_index=True)  # sorted by hash; the first of equal ones
    if len(first) < len(clips):
        logging.getLogger(__name__).warning("left out %d clips whose uuid is there already", len(clips) - len(first))
    clips = clips[first if settings.shuffle else np.sort(first)]

    rows: list[list[str | int]] = []
    filled, held = len(layers.END_OF_ARCHIVE), 0
    for _, tar, offset, size in map(np.void.item, clips):
        if rows and (filled + size > settings.tar or held == settings.max_clips):
            yield rows
            rows, filled, held = [], len(layers.END_OF_ARCHIVE), 0
        uri = objects[tar][".tar"]
        if rows and rows[-1][0] == uri and rows[-1][1] + rows[-1][2] == offset:
            rows[-1][2] += size
        else:
            rows.append([uri, offset, size])
        filled, held = filled + size, held + 1
    if rows:
        yield rows


def _kept_clips(tar: int, uri: str, superseded: set[tuple[str, str]]) -> np.ndarray:
    with storage.open(uri) as file:
        table = layers.read_table(file, ["uuid", "source", "etag", "verdict", "offset", "size"])
    table = table.filter(pc.equal(table["verdict"], "keep"))
    inputs = zip(table["source"].to_pylist(), table["etag"].to_pylist(), strict=True)
    table = table.filter(pa.array([one not in superseded for one in inputs], pa.bool_()))
    for name in ("uuid", "offset", "size"):
        if table[name].null_count:
            raise ValueError(f"{uri}: {table[name].null_count} kept clips have no {name}; make this shard again")
    clips = np.empty(len(table), CLIP)
    clips["hash"] = [hashlib.blake2b(uuid.encode(), digest_size=16).digest() for uuid in table["uuid"].to_pylist()]
    clips["tar"], clips["offset"], clips["size"] = tar, table["offset"], table["size"]
    return clips


def start(settings: Shard) -> Callable[[Work], Made]:
    return process


def process(work: Work) -> Made:
    """Copy the rows that `freeze` planned for this shard into <shard>.tar.

    Raises layers.TornTar when a range of a source is not whole keys, storage.Changed when a source is replaced
    meanwhile.
    """
    path = work.scratch / f"{work.shard}.tar"
    total = sum(size for _, _, size in work.rows)
    version = functools.cache(storage.stat)  # one version of each source, whichever thread meets it first

    def read(uri: str, begin: int, end: int) -> bytes:
        entry = version(uri)
        return storage.read(uri, begin, end, entry.etag if entry else None)

    def tick(written: int) -> None:
        work.check()
        work.progress(written / total, f"{written >> 20} of {total >> 20} MiB")

    clips = layers.copy_ranges(path, work.rows, read, tick)
    return Made([path], {"clips": clips, "bytes_out": path.stat().st_size})
