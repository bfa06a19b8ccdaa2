"""The third part of the dedup, an array over clusters: each row's nearest one among those before it.

<shard>.scores.parquet (tables.SCORES) has the rows that are at home, cluster by cluster, in the order of the dedup;
<shard>.guests.parquet (tables.GUESTS) what was found about rows that live elsewhere. Vectors lie in a file in scratch,
mapped into memory, and are compared block by block, so memory stays bounded however large a cluster is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.curate.dedup import sphere, tables
from hpc.curate.dedup.tables import GUESTS, ROWS, SCORES
from hpc.curate.settings import DedupPrune
from hpc.data import layers, storage
from hpc.data.work import Made, Work

SHARD_BYTES = 256 * 1024**2  # of vectors, guests among them, of several clusters; one may have more
SMALL = 16384  # rows of a cluster that one thread compares; larger ones are shared by all
READ = 8 * 1024**2  # bytes in one read; eight are on their way


def freeze(
    settings: DedupPrune, upstream: tables.Upstream, superseded: set[tuple[str, str]]
) -> Iterator[list[dict[str, Any]]]:
    """Clusters first <= c < end together, up to SHARD_BYTES, and where all rows are."""
    rows, vectors = (tables.parts(upstream, suffix) for suffix in (".rows.parquet", ".vectors.f32"))
    sizes = np.zeros(1, np.int64)
    for counted in layers.map_ahead(_sizes, rows):
        longer, shorter = sorted((sizes, counted), key=len, reverse=True)
        longer[: len(shorter)] += shorter
        sizes = longer
    with storage.open(rows[0]) as file:
        dim = layers.read_meta(file)["dim"]
    first, filled = 0, 0
    parts = [list(pair) for pair in zip(rows, vectors, strict=True)]
    for cluster, size in enumerate(sizes.tolist()):
        if filled and filled + 4 * dim * size > SHARD_BYTES:
            yield [{"first": first, "end": cluster, "dim": dim, "parts": parts}]
            first, filled = cluster, 0
        filled += 4 * dim * size
    yield [{"first": first, "end": len(sizes), "dim": dim, "parts": parts}]


def _sizes(uri: str) -> sphere.Longs:
    """Rows of each cluster."""
    with storage.open(uri) as file:
        return np.bincount(layers.read_table(file, ["cluster"])["cluster"], minlength=1)


def gather(plan: dict[str, Any], scratch: Path, check: Callable[[], None]) -> tuple[pa.Table, sphere.Floats]:
    """(rows of the plan's clusters, their vectors), sorted by cluster, those at home first, then in the dedup's order.

    The table has the column `rank` besides those of tables.ROWS: each row's place in that order, guests or not.
    """

    def look(pair: tuple[str, str]) -> tuple[pa.Table, str, int]:
        with storage.open(pair[0]) as file:
            rows, before = tables.clusters(file, plan["first"], plan["end"])
        return rows, pair[1], 4 * plan["dim"] * before

    found = [one for one in layers.map_ahead(look, plan["parts"]) if len(one[0])]
    rows = pa.concat_tables([ROWS.empty_table(), *(one[0].cast(ROWS) for one in found)])
    ranked = pc.sort_indices(rows, [("cluster", "ascending"), ("distance", "descending"), ("uuid", "ascending")])
    rank = np.empty(len(rows), np.int64)
    rank[ranked.to_numpy()] = np.arange(len(rows))
    cluster, home = (rows[name].to_numpy() for name in ("cluster", "home"))
    order = np.lexsort((rank, home != cluster, cluster))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))

    row_bytes = 4 * plan["dim"]
    vectors = np.memmap(scratch / "vectors.f32", np.float32, "w+", shape=(max(1, len(rows)), max(1, plan["dim"])))
    starts = np.cumsum([0, *(len(one[0]) for one in found)])
    reads = (
        (uri, offset + part.start * row_bytes, offset + part.stop * row_bytes, start + part.start)
        for start, (table, uri, offset) in zip(starts.tolist(), found, strict=False)
        for part in sphere.blocks(len(table), READ // max(1, row_bytes))
    )
    for data, start in layers.map_ahead(lambda one: (storage.read(*one[:3]), one[3]), reads):
        check()
        places = place[start : start + len(data) // row_bytes]
        vectors[places] = np.frombuffer(data, "<f4").reshape(len(places), plan["dim"])
    sorted_rows = rows.take(pa.array(order)).append_column("rank", pa.array(rank[order]))
    return sorted_rows, vectors[: len(rows)]


def slices(rows: pa.Table) -> Iterator[tuple[int, slice, slice]]:
    """(cluster, rows at home, guests) of what `gather` returns."""
    cluster, home = (rows[name].to_numpy() for name in ("cluster", "home"))
    starts = np.flatnonzero(np.diff(cluster, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(cluster)], strict=False):
        middle = start + int(np.count_nonzero(home[start:end] == cluster[start:end]))
        yield int(cluster[start]), slice(int(start), middle), slice(middle, int(end))


def start(settings: DedupPrune) -> Callable[[Work], Made]:
    return functools.partial(process, settings, sphere.Tiles())


def process(settings: DedupPrune, tiles: sphere.Tiles, work: Work) -> Made:
    [plan] = work.rows
    rows, vectors = gather(plan, work.scratch, work.check)
    uuids = rows["uuid"].combine_chunks()
    rank = rows["rank"].to_numpy()
    scores = np.full(len(rows), sphere.NOTHING, np.float32)
    twins = np.full(len(rows), -1)
    at_home = np.zeros(len(rows), bool)
    every = list(slices(rows))

    def one(part: tuple[int, slice, slice], alone: bool = True) -> None:
        _, home, guests = part
        whole = slice(home.start, guests.stop)
        scores[whole], near = sphere.earlier(
            vectors[home], vectors[guests], rank[home], rank[guests], settings.horizon, tiles, work.check, alone
        )
        twins[whole] = np.where(near < 0, np.arange(home.start, guests.stop), near + home.start)
        at_home[home] = True

    few = [part for part in every if part[1].stop - part[1].start <= SMALL]
    many = [part for part in every if part[1].stop - part[1].start > SMALL]
    for done, _ in enumerate(itertools.chain(tiles.each(one, few), map(functools.partial(one, alone=False), many)), 1):
        work.progress(done / len(every), f"{done} of {len(every)} clusters")
    none = twins == np.arange(len(rows))
    columns = {"cluster": rows["home"], "uuid": uuids, "max_id": uuids.take(pa.array(twins)),
               "score": np.where(none, np.float32(0), scores), "distance": rows["distance"]}  # fmt: skip
    found = pa.table(columns, SCORES)
    told = found.filter(pa.array(~at_home & (scores >= 1 - settings.horizon))).select(GUESTS.names)
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "first": plan["first"], "end": plan["end"]}
    paths = [work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS]
    tables.write(paths[0], told, meta)
    tables.write(paths[1], found.filter(pa.array(at_home)), meta)
    return Made(paths, {"rows": int(at_home.sum()), "guests": int((~at_home).sum()), "told": len(told)})
