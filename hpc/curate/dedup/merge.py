"""The last part of the dedup: the decisions, and what people and other programs read.

Its first shard has what is said of all clips: <shard>.parquet with the copies, and as files of its own
clustering_results/kmeans_centroids.npy, extraction/dedup_summary_<eps>.csv ("eps,kept,removed,total") for each eps,
extraction/semdedup_pruning_tables/exact.parquet, and pairs.html. The other shards each have some clusters:
<shard>.parquet with the near duplicates, clustering_results/embs_by_nearest_center/nearest_cent_<k>/actor_0.parquet
(id, embedding, cosine_dist_to_cent) and extraction/semdedup_pruning_tables/cluster_<k>.parquet (id, max_id,
cosine_sim_score), sorted as they were compared: Cosmos-Curate's tables (cosmos_curate 696d418:
pipelines/video/dedup/dedup_actor.py), in which the score counts what is over the borders of clusters, too.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpc.curate.dedup import pairs, prune, tables
from hpc.curate.dedup.sphere import SAME
from hpc.curate.dedup.tables import COPIES, GUESTS
from hpc.curate.settings import DedupMerge
from hpc.data import layers, storage
from hpc.data.upstream import table
from hpc.data.work import Made, Work

SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("verdict", pa.string()),  # "duplicate"; clips that stay have no row
        ("reasons", pa.list_(pa.string())),  # "exact" or "semantic"
        ("max_id", pa.string()),  # the nearest clip before it, which stays, or went for another one
        ("score", pa.float32()),  # their cosine; 1 for copies
    ]
)
PRUNED = "extraction/semdedup_pruning_tables"
EMBEDDED = "clustering_results/embs_by_nearest_center"


def freeze(
    settings: DedupMerge, upstream: tables.Upstream, superseded: set[tuple[str, str]]
) -> Iterator[list[dict[str, Any]]]:
    """One shard about all clips, then one for each of prune's."""
    guests, scores = (tables.parts(upstream, suffix) for suffix in (".guests.parquet", ".scores.parquet"))
    rows, vectors = (tables.parts(upstream, suffix) for suffix in (".rows.parquet", ".vectors.f32"))
    sources = [one for one in tables.sources(upstream, superseded) if one.clips]
    [copies], [centroids] = (tables.parts(upstream, suffix) for suffix in (".copies.parquet", ".centroids.npy"))
    yield [{"guests": guests, "scores": scores, "copies": copies, "centroids": centroids,
            "sources": msgspec.to_builtins(sources)}]  # fmt: skip
    parts = [list(pair) for pair in zip(rows, vectors, strict=True)]
    for one in scores:
        yield [{"guests": guests, "scores": [one], "parts": parts}]


def start(settings: DedupMerge) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: DedupMerge, work: Work) -> Made:
    plan = work.rows[0]
    made = overall(settings, plan, work) if "copies" in plan else of_clusters(settings, plan, work)
    return msgspec.structs.replace(made, tree={storage.join(work.folder, name): p for name, p in made.tree.items()})


def of_clusters(settings: DedupMerge, plan: dict[str, Any], work: Work) -> Made:
    [uri] = plan["scores"]
    with storage.open(uri) as file:
        where = layers.read_meta(file)
    with storage.open(plan["parts"][0][0]) as file:
        dim = layers.read_meta(file)["dim"]
    found = final(table(uri), guests(plan["guests"], where["first"], where["end"], work.check))
    rows, vectors = prune.gather({**where, "dim": dim, "parts": plan["parts"]}, work.scratch, work.check)
    tree: dict[str, Path] = {}
    after = 0
    for cluster, home, _ in prune.slices(rows):
        work.check()
        work.progress(home.start / len(rows), f"cluster {cluster}")
        if home.stop == home.start:
            continue
        own = rows.slice(home.start, home.stop - home.start)
        flat = pa.array(np.asarray(vectors[home]).reshape(-1))
        cells = pa.ListArray.from_arrays(pa.array(np.arange(len(own) + 1, dtype=np.int32) * dim), flat)
        tree[f"{EMBEDDED}/nearest_cent_{cluster}/actor_0.parquet"] = _write(
            work.scratch / f"nearest-{cluster}",
            id=own["uuid"], embedding=cells, cosine_dist_to_cent=own["distance"].cast(pa.float32()),
        )  # fmt: skip
        one = found.slice(after, len(own))  # in the same order
        after += len(own)
        tree[f"{PRUNED}/cluster_{cluster}.parquet"] = _write(
            work.scratch / f"cluster-{cluster}",
            id=one["uuid"],
            max_id=one["max_id"],
            cosine_sim_score=one["score"],
        )
    gone = found.filter(_duplicate(found, settings.eps))
    drops = decisions(gone["uuid"], gone["max_id"], gone["score"], "semantic")
    return Made([_decided(settings, drops, work)], {"duplicates": len(gone)}, tree=tree)


def overall(settings: DedupMerge, plan: dict[str, Any], work: Work) -> Made:
    with storage.open(plan["copies"]) as file:
        total = layers.read_meta(file)["clips"]
        copies = pq.read_table(file, schema=COPIES)
    copies = copies.filter(pc.is_valid(copies["max_id"]))
    sweep = sorted({settings.eps, *settings.sweep})
    removed = np.full(len(sweep), len(copies))
    album = pairs.Album(sweep, settings.pairs)
    told = guests(plan["guests"], 0, np.iinfo(np.int32).max, work.check)
    for done, uri in enumerate(plan["scores"]):
        work.check()
        work.progress(0.5 * done / len(plan["scores"]), f"{done} of {len(plan['scores'])} tables")
        found = final(table(uri), told)
        removed += [pc.sum(_duplicate(found, eps)).as_py() or 0 for eps in sweep]
        album.take(found["uuid"], found["max_id"], found["score"])
    summary = [(eps, total - gone, gone, total) for eps, gone in zip(sweep, removed.tolist(), strict=True)]
    tree: dict[str, Path] = {}
    for eps, kept, gone, of in summary:
        tree[f"extraction/dedup_summary_{eps:g}.csv"] = path = work.scratch / f"{eps:g}.csv"
        path.write_text(f"eps,kept,removed,total\n{eps:g},{kept},{gone},{of}\n")
    centroids = work.scratch / "centroids.npy"
    with storage.open(plan["centroids"]) as file, centroids.open("wb") as out:
        shutil.copyfileobj(file, out)
    tree["clustering_results/kmeans_centroids.npy"] = centroids
    ones = pa.array(np.ones(len(copies), np.float32))
    if len(copies):
        tree[f"{PRUNED}/exact.parquet"] = _write(
            work.scratch / "exact", id=copies["uuid"], max_id=copies["max_id"], cosine_sim_score=ones
        )
    album.copies(copies["uuid"], copies["max_id"])
    tree["pairs.html"] = page = work.scratch / "pairs.html"
    page.write_text(album.page(summary, settings.eps, len(copies), plan["sources"], work.check))
    drops = decisions(copies["uuid"], copies["max_id"], ones, "exact")
    counts = {"clips": total, "copies": len(copies)}
    return Made([_decided(settings, drops, work)], counts, tree=tree)


def guests(uris: Sequence[str], first: int, end: int, check: Callable[[], None]) -> pa.Table:
    """What was found in other clusters about the rows of these ones; of each row the nearest alone."""
    out = [GUESTS.empty_table()]
    for uri in uris:
        check()
        told = table(uri)
        cluster = told["cluster"].to_numpy()
        out.append(told.filter(pa.array((cluster >= first) & (cluster < end))).cast(GUESTS))
    told = pa.concat_tables(out).combine_chunks()
    told = told.sort_by([("uuid", "ascending"), ("score", "descending"), ("max_id", "ascending")])
    uuids = told["uuid"].combine_chunks()
    if len(told) < 2:
        return told
    new = pc.not_equal(uuids.slice(1), uuids.slice(0, len(uuids) - 1))
    return told.filter(pa.concat_arrays([pa.array([True]), new]))


def final(scores: pa.Table, told: pa.Table) -> pa.Table:
    """tables.SCORES, with those of `guests` where they are nearer."""
    place = pc.index_in(scores["uuid"], told["uuid"].combine_chunks())
    there = told["score"].take(place)
    better = pc.fill_null(pc.greater(there, pc.add(scores["score"], pa.scalar(SAME, pa.float32()))), False)
    score = pc.if_else(better, there, scores["score"])
    twin = pc.if_else(better, told["max_id"].take(place), scores["max_id"])
    names = scores.schema.names
    return scores.set_column(names.index("score"), "score", score).set_column(names.index("max_id"), "max_id", twin)


def _duplicate(found: pa.Table, eps: float) -> pa.Array:
    return pc.greater_equal(found["score"].cast(pa.float64()), 1 - eps)


def decisions(uuids: pa.Array, twins: pa.Array, scores: pa.Array, why: str) -> pa.Table:
    reasons = pa.array([[why]] * len(uuids), pa.list_(pa.string()))
    verdicts = pa.array(["duplicate"] * len(uuids), pa.string())
    return pa.table([uuids, verdicts, reasons, twins, scores], SCHEMA)


def _decided(settings: DedupMerge, drops: pa.Table, work: Work) -> Path:
    path = work.scratch / f"{work.shard}.parquet"
    tables.write(path, drops, {"stage": settings.KIND, "fingerprint": work.fingerprint, "eps": settings.eps})
    return path


def _write(path: Path, **columns: Any) -> Path:
    tables.write(path, pa.table(columns), {})
    return path
