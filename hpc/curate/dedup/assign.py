"""The second part of the dedup, an array over the embeddings: each row's cluster, and where it is a guest.

A shard is two files. <shard>.rows.parquet (tables.ROWS) is sorted by cluster; <shard>.vectors.f32 has the vectors in
the same order, float32, little endian, D after D. So the rows of some clusters are one range of bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from hpc.curate.dedup import sphere, tables
from hpc.curate.dedup.tables import ROWS, Source
from hpc.curate.settings import DedupAssign
from hpc.data import layers, storage
from hpc.data.work import Made, Work

SHARD_BYTES = 256 * 1024**2  # of vectors, all in memory
WRITE = 16384  # rows


def freeze(
    settings: DedupAssign, upstream: tables.Upstream, superseded: set[tuple[str, str]]
) -> Iterator[list[dict[str, Any]]]:
    """Shards of embeddings together, up to SHARD_BYTES: as for `fit.freeze`, and what that made."""
    sources = tables.sources(upstream, superseded)
    more = {"superseded": sorted(superseded), "copies": tables.parts(upstream, ".copies.parquet")[0],
            "centroids": tables.parts(upstream, ".centroids.npy")[0]}  # fmt: skip
    together: list[Source] = []
    filled = 0
    for source, (rows, dim) in zip(sources, tables.shapes(sources), strict=True):
        if together and filled + 4 * rows * dim > SHARD_BYTES:
            yield [more | {"sources": msgspec.to_builtins(together)}]
            together, filled = [], 0
        together.append(source)
        filled += 4 * rows * dim
    yield [more | {"sources": msgspec.to_builtins(together)}]


def start(settings: DedupAssign) -> Callable[[Work], Made]:
    return functools.partial(process, settings, sphere.Tiles())


def process(settings: DedupAssign, tiles: sphere.Tiles, work: Work) -> Made:
    plan = work.rows[0]
    sources = msgspec.convert(plan["sources"], list[Source])
    superseded = {tuple(one) for one in plan["superseded"]}
    with storage.open(plan["centroids"]) as file:
        centroids = np.load(file)
    with storage.open(plan["copies"]) as file:
        left_out = pq.read_table(file, filters=pc.field("shard").isin([one.shard for one in sources]))
    on = torch.from_numpy(centroids).to(tiles.on)
    apart = sphere.gaps(on)

    uuids: list[pa.Array] = [pa.array([], pa.string())]
    vectors = [np.empty((0, centroids.shape[1]), np.float32)]
    embedded = [one for one in sources if one.embeddings] if len(centroids) else []
    for source, read in layers.map_ahead(lambda one: (one, tables.read(one, superseded)), embedded):
        work.check()
        gone = left_out.filter(pc.equal(left_out["shard"], source.shard))["uuid"]
        stays = pc.invert(pc.is_in(read.uuids.filter(pa.array(read.usable)), gone.combine_chunks()))
        uuids.append(read.uuids.filter(pa.array(read.usable)).filter(stays))
        vectors.append(read.vectors[stays.to_numpy(zero_copy_only=False)])
    x = np.concatenate(vectors)
    vectors.clear()

    homes, distances, guests, hosts = [], [], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in sphere.blocks(len(x), WRITE):
        work.check()
        work.progress(0.1 + 0.7 * part.start / len(x), f"{part.start} of {len(x)} rows")
        home, distance, guest, host = sphere.assign(x[part], on, apart, settings.horizon, tiles)
        homes.append(home)
        distances.append(distance)
        guests.append(guest + part.start)
        hosts.append(host)
    row = np.concatenate([np.arange(len(x)), *guests])
    home = np.concatenate([np.empty(0, np.int64), *homes])[row]
    cluster = np.concatenate([*homes, *hosts])
    order = np.lexsort((home != cluster, cluster))
    row, home, cluster = row[order], home[order], cluster[order]
    columns = {"cluster": cluster, "home": home, "uuid": pa.concat_arrays(uuids).take(pa.array(row)),
               "distance": np.concatenate([np.empty(0), *distances])[row]}  # fmt: skip

    paths = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    with paths[0].open("wb") as out:
        for part in sphere.blocks(len(row), WRITE):
            work.check()
            out.write(x[row[part]].astype("<f4", copy=False).data)
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "dim": centroids.shape[1]}
    tables.write(paths[1], pa.table(columns, ROWS), meta)
    return Made(paths, {"rows": len(x), "guests": len(row) - len(x)})
