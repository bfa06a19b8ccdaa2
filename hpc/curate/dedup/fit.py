"""The first part of the dedup, one task: copies by digest, and centroids of the embeddings.

The sample that k-means looks at is of the clips whose uuids have the smallest hashes, in that order: whatever the
number and order of the shards, the same clips give the same centroids. Of more clips than `sample` the vectors of some
shards are read, which a hash of their names and of the seed chooses.

Of the others nothing but uuids and digests is read. What all clips have to be compared by goes through temporary files,
32 bytes a clip, so that memory does not grow with their number.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hpc.curate.dedup import sphere, tables
from hpc.curate.dedup.tables import COPIES, Hashes, Source
from hpc.curate.settings import DedupFit
from hpc.data import layers
from hpc.data.shard_plan import BUCKETS, Files, Records
from hpc.data.work import Made, Work

SAMPLE = 256  # rows for each centroid: more move it by little
SAMPLE_BYTES = 2 * 1024**3  # of the sample's vectors
MAX_GUESTS = 8.0  # copies of a row that the next part writes, on average
PROBE = 16384  # rows of the sample that tell how many guests there will be
COPIES_AT_ONCE = 4_000_000  # clips, looked at by their digests: 1 GB of memory
SEEN = np.dtype([("value", "<u8"), ("source", "<u4"), ("row", "<u4")])
"""64 bits of a clip's uuid or digest, and where the clip is: which source, which of its kept clips."""
PLACE = np.dtype([("source", "<u4"), ("row", "<u4"), ("key", "<u8"), ("again", "?")])
"""A clip to look at more closely. key: of its digest, which others have; again: its uuid was there before."""


def freeze(
    settings: DedupFit, upstream: tables.Upstream, superseded: set[tuple[str, str]]
) -> Iterator[list[dict[str, Any]]]:
    """One shard: {"sources": tables.Source..., "superseded": [source, etag]...}. Raises ValueError."""
    sources = tables.sources(upstream, superseded)
    yield [{"sources": msgspec.to_builtins(sources), "superseded": sorted(superseded)}]


def start(settings: DedupFit) -> Callable[[Work], Made]:
    return functools.partial(process, settings, sphere.Tiles())


def process(settings: DedupFit, tiles: sphere.Tiles, work: Work) -> Made:
    """Write <shard>.copies.parquet (tables.COPIES) and <shard>.centroids.npy: float32 [k, D], 1 long; [0, 0] without
    embeddings. Raises ValueError for embeddings of several sizes."""
    sources = msgspec.convert(work.rows[0]["sources"], list[Source])
    superseded = {tuple(one) for one in work.rows[0]["superseded"]}
    rows, dims = zip(*tables.shapes(sources), strict=True)
    total, [dim, *others] = sum(rows), sorted(set(dims) - {0}) or [0]
    if others:
        raise ValueError(f"embeddings have {dim}, {', '.join(map(str, others))} dimensions: of several models?")
    read_of = chosen(sources, rows, settings.sample, settings.seed)
    read_rows = sum(rows[number] for number in read_of)
    k = min(settings.n_clusters or math.isqrt(total), total)
    most = min(read_rows, SAMPLE * k, SAMPLE_BYTES // (4 * dim)) if total else 0
    k = min(k, most)
    # of so many hashes in order, this one comes about after the last that is wanted; with room for chance
    limit = np.uint64(min(2**64 - 1, int((most + 6 * math.isqrt(most) + 6) / max(read_rows, 1) * 2**64)))

    seen = {name: Files(work.scratch, name, SEEN) for name in ("uuid", "digest")}
    sample, order, clips, unusable = [np.empty((0, dim), np.float32)], [np.empty(0, np.uint64)], 0, 0

    def read(numbered: tuple[int, Source]) -> tables.Read:
        return tables.read(numbered[1], superseded, vectors=numbered[0] in read_of)

    for number, one in enumerate(layers.map_ahead(read, enumerate(sources))):
        work.check()
        work.progress(0.5 * number / len(sources), f"{number} of {len(sources)} shards read")
        hashes = tables.hash_of(one.uuids)
        note(seen["uuid"], number, hashes)
        note(seen["digest"], number, _keys(one.digests, len(one.uuids)))
        clips += len(hashes)
        if one.vectors is not None and number in read_of:
            of_vectors = hashes[one.usable]
            small = of_vectors <= limit
            sample.append(one.vectors[small])
            order.append(of_vectors[small])
            unusable += int((~one.usable).sum())
    if unusable:
        logging.getLogger(__name__).warning("%d embeddings are NaN, infinite or zero: not compared", unusable)

    paths = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    _, smallest = np.unique(np.concatenate(order), return_index=True)  # a clip that is there twice counts once
    looked_at = np.concatenate(sample)[smallest[:most]]
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "clips": clips,
            "vectors": total, "read": read_rows, "sample": len(looked_at)}  # fmt: skip
    logging.getLogger(__name__).info(
        f"centroids of {len(looked_at):,} of {total:,} vectors; {read_rows:,} of {len(read_of):,} shards were read"
    )
    copies = find_copies(sources, superseded, seen, paths[0], meta, work)
    centroids = _fit(settings, looked_at, k, tiles, work)
    np.save(paths[1], centroids)
    counts = {"clips": meta["clips"], "copies": copies, "clusters": len(centroids), "sampled_vectors": len(looked_at),
              "unusable": unusable}  # fmt: skip
    return Made(paths, counts)


def chosen(sources: list[Source], rows: tuple[int, ...], most: int, seed: int) -> set[int]:
    """The sources whose vectors are read: all, or so many that they have about `most`, one at least."""
    if sum(rows) <= most:
        return {number for number, count in enumerate(rows) if count}
    digest = lambda number: hashlib.blake2b(f"{seed}/{sources[number].shard}".encode(), digest_size=8).digest()
    order = sorted((number for number, count in enumerate(rows) if count), key=digest)
    enough = np.searchsorted(np.cumsum([rows[number] for number in order]), most, "right")
    return set(order[: max(1, int(enough))])


def note(files: Files, source: int, values: Hashes) -> None:
    """Spread by their first bits, so that equal ones meet in one file."""
    records = np.zeros(len(values), SEEN)
    records["value"], records["source"], records["row"] = values, source, np.arange(len(values))
    files.spread(records, values >> np.uint64(56))


def _keys(digests: pa.Array | None, count: int) -> Hashes:
    """64 bits of each digest; 0 where there is none."""
    if digests is None:
        return np.zeros(count, np.uint64)
    return np.array([int(one[:16], 16) | 1 if one else 0 for one in digests.to_pylist()], np.uint64)


def _fit(settings: DedupFit, sample: sphere.Floats, k: int, tiles: sphere.Tiles, work: Work) -> sphere.Floats:
    """Centroids; fewer than k if the settings leave that open, and rows would be guests in too many clusters."""
    k = min(k, len(sample))

    def tick(done: int) -> None:
        work.check()
        work.progress(0.5 + 0.5 * done / settings.max_iter, f"k-means, {k} clusters: round {done}")

    while k:
        centroids, rounds = sphere.kmeans(sample, k, settings.max_iter, settings.seed, tiles, tick)
        on = torch.from_numpy(centroids).to(tiles.on)
        guests = sphere.assign(sample[:PROBE], on, sphere.gaps(on), settings.horizon, tiles)[2]
        each = len(guests) / min(PROBE, len(sample))
        words = f"{k} clusters of {len(sample)} rows in {rounds} rounds; a row is a guest in {each:.2f} clusters"
        logging.getLogger(__name__).info(words)
        if each <= MAX_GUESTS or k == 1 or settings.n_clusters:
            return centroids
        k //= 2
    return np.empty((0, 0), np.float32)


def find_copies(
    sources: list[Source], superseded: tables.Superseded, seen: dict[str, Files], path: Path, meta: dict[str, Any],
    work: Work,
) -> int:  # fmt: skip
    """Write tables.COPIES: clips with the same pictures as one before (max_id), and such as are there already (null).
    Returns how many of the former; of the latter `clips` in the table's meta is told.

    seen: SEEN of the uuids and digests of all clips, in order. Equal 64 bits only say where to look closer.
    """
    places = Files(work.scratch, "places", PLACE)
    total = 0  # of clips that may be copies
    for name, files in seen.items():
        for number in sorted(files.counts):
            work.check()
            records = files.read(number)
            same = _again(records["value"])
            if name == "digest":
                same = (same | _again(records["value"][::-1])[::-1]) & (records["value"] > 0)
            found = np.zeros(int(same.sum()), PLACE)
            found["source"], found["row"] = records["source"][same], records["row"][same]
            found["key" if name == "digest" else "again"] = records["value"][same] if name == "digest" else True
            if name == "digest":
                total += len(found)
            else:
                meta["clips"] -= len(found)
            places.spread(found, found["source"].astype("u8") * BUCKETS // len(sources))
    turns = max(1, -(-total // COPIES_AT_ONCE))
    copies = 0
    schema = COPIES.with_metadata({"hpc": json.dumps(meta, sort_keys=True)})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["shard"]) as writer:
        for turn in range(turns):
            first: dict[str, str] = {}
            for source, rows in by_source(places):
                rows = rows[(rows["key"] // np.uint64(2) % np.uint64(turns) == turn) | (rows["again"] & (turn == 0))]
                if not len(rows):
                    continue
                work.check()
                table = copies_of(sources[source], superseded, rows, first, turn == 0)
                copies += len(table) - table["max_id"].null_count
                if len(table):
                    writer.write_table(table)
    return copies


def by_source(places: Files) -> Iterator[tuple[int, Records]]:
    """PLACE of each source that has some, in order; of each of its clips one, which says if its uuid is there again."""
    for number in sorted(places.counts):
        found = places.read(number)
        found = found[np.lexsort([~found["again"], found["row"], found["source"]])]
        new = np.ones(len(found), bool)
        new[1:] = (found["source"][1:] != found["source"][:-1]) | (found["row"][1:] != found["row"][:-1])
        found = found[new]
        for some in np.split(found, np.flatnonzero(np.diff(found["source"].astype("i8"))) + 1):
            yield int(some["source"][0]), some


def copies_of(source: Source, superseded: tables.Superseded, rows: Records, first: dict[str, str],
              with_again: bool) -> pa.Table:  # fmt: skip
    """tables.COPIES of these clips of a source. first: digest -> the clip that has it, of those before."""
    read = tables.read(source, superseded, vectors=False)
    at = pa.array(rows["row"].astype("i8"))
    digests = read.digests.take(at).to_pylist() if read.digests is not None else [None] * len(rows)
    found: dict[str, list[str | None]] = {name: [] for name in COPIES.names}
    for again, uuid, digest in zip(rows["again"].tolist(), read.uuids.take(at).to_pylist(), digests, strict=True):
        other = None if again or digest is None else first.setdefault(digest, uuid)
        if (again and with_again) or other not in (None, uuid):
            for name, value in zip(found, (source.shard, uuid, other), strict=True):
                found[name].append(value)
    return pa.table(found, COPIES)


def _again(values: Hashes) -> npt.NDArray[np.bool_]:
    """Which of them were there before, in this order."""
    order = np.argsort(values, kind="stable")
    again = np.zeros(len(values), bool)
    again[order[1:]] = values[order[1:]] == values[order[:-1]]
    return again
