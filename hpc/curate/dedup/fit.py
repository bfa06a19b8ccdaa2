"""The first part of the dedup, one task: copies by digest, and centroids of the embeddings.

The sample that k-means looks at is of the clips whose uuids have the smallest hashes, in that order: whatever the
number and order of the shards, the same clips give the same centroids.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from hpc.curate.dedup import sphere, tables
from hpc.curate.dedup.tables import COPIES, Hashes, Source
from hpc.curate.settings import DedupFit
from hpc.data import layers
from hpc.data.work import Made, Work

SAMPLE = 256  # rows for each centroid: more move it by little
SAMPLE_BYTES = 2 * 1024**3  # of the sample's vectors
MAX_GUESTS = 8.0  # copies of a row that the next part writes, on average
PROBE = 16384  # rows of the sample that tell how many guests there will be
COPIES_AT_ONCE = 4_000_000  # clips, looked at by their digests: 1 GB of memory


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
    k = min(settings.n_clusters or math.isqrt(total), total)
    most = min(total, SAMPLE * k, SAMPLE_BYTES // (4 * dim)) if total else 0
    k = min(k, most)
    # of so many hashes in order, this one comes about after the last that is wanted; with room for chance
    limit = np.uint64(min(2**64 - 1, int((most + 6 * math.isqrt(most) + 6) / max(total, 1) * 2**64)))

    hashes, keys, sample, order, unusable = [], [], [np.empty((0, dim), np.float32)], [np.empty(0, np.uint64)], 0
    for done, read in enumerate(layers.map_ahead(lambda one: tables.read(one, superseded), sources)):
        work.check()
        work.progress(0.5 * done / len(sources), f"{done} of {len(sources)} shards read")
        hashes.append(tables.hash_of(read.uuids))
        keys.append(_keys(read.digests, len(read.uuids)))
        if read.vectors is not None:
            of_vectors = hashes[-1][read.usable]
            chosen = of_vectors <= limit
            sample.append(read.vectors[chosen])
            order.append(of_vectors[chosen])
            unusable += int((~read.usable).sum())
    if unusable:
        logging.getLogger(__name__).warning("%d embeddings are NaN, infinite or zero: not compared", unusable)

    copies = find_copies(sources, superseded, hashes, keys, work)
    _, smallest = np.unique(np.concatenate(order), return_index=True)  # a clip that is there twice counts once
    centroids = _fit(settings, np.concatenate(sample)[smallest[:most]], k, tiles, work)
    paths = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    clips = sum(map(len, hashes)) - copies["max_id"].null_count
    tables.write(paths[0], copies, {"stage": settings.KIND, "fingerprint": work.fingerprint, "clips": clips})
    np.save(paths[1], centroids)
    counts = {"clips": clips, "copies": len(copies) - copies["max_id"].null_count, "clusters": len(centroids),
              "unusable": unusable}  # fmt: skip
    return Made(paths, counts)


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
    sources: list[Source], superseded: tables.Superseded, hashes: list[Hashes], keys: list[Hashes], work: Work
) -> pa.Table:
    """tables.COPIES: clips with the same pictures as one before (max_id), and such as are there already (null).

    hashes, keys: of the uuids and digests of each source's clips. Equal 64 bits only say where to look closer.
    """
    repeated, same = _again(np.concatenate(hashes)), np.concatenate(keys)
    candidate = (_again(same) | _again(same[::-1])[::-1]) & (same > 0)
    ends = np.cumsum([len(one) for one in hashes])
    turns = max(1, -(-int(candidate.sum()) // COPIES_AT_ONCE))
    found: dict[str, list[str | None]] = {name: [] for name in COPIES.names}
    out = [COPIES.empty_table()]
    for turn in range(turns):
        first: dict[str, str] = {}
        wanted = candidate & (same // np.uint64(2) % np.uint64(turns) == turn)
        for source, end, size in zip(sources, ends, map(len, hashes), strict=True):
            here = slice(end - size, end)
            places = np.flatnonzero(wanted[here] | (repeated[here] if turn == 0 else False))
            if not len(places):
                continue
            work.check()
            read = tables.read(source, superseded, vectors=False)
            digests = read.digests.take(pa.array(places)).to_pylist() if read.digests else [None] * len(places)
            for place, uuid, digest in zip(places, read.uuids.take(pa.array(places)).to_pylist(), digests, strict=True):
                again = repeated[end - size + place]
                other = None if again or digest is None else first.setdefault(digest, uuid)
                if (again and turn == 0) or other not in (None, uuid):
                    for name, value in zip(found, (source.shard, uuid, other), strict=True):
                        found[name].append(value)
            out.append(pa.table(found, COPIES))
            found = {name: [] for name in COPIES.names}
    return pa.concat_tables(out)


def _again(values: Hashes) -> npt.NDArray[np.bool_]:
    """Which of them were there before, in this order."""
    order = np.argsort(values, kind="stable")
    again = np.zeros(len(values), bool)
    again[order[1:]] = values[order[1:]] == values[order[:-1]]
    return again
