"""Entries of a layout -> a tree of tars, or of files, with the names that its reader expects.

The barrier puts all entries in order and cuts them into tars (hpc.data.shard_plan); the array copies byte ranges of
videos from the clips' tars, and of what stands beside them from the tars of hpc.curate.shard_members. Three tars with
the same keys in the same order make a shard of a tree; files are made by hpc.curate.shard_files. Each shard's .parquet
lists its entries; what is left out is listed by shards of its own, so that every clip is accounted for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.curate import left_out, shard, shard_files
from hpc.curate.layouts import FOLDERS, METAS, T5, TREES, VIDEO
from hpc.curate.settings import ShardTree
from hpc.curate.shard_members import Shards, clips_stage
from hpc.data import layers, shard_plan, storage
from hpc.data.shard_plan import Plan, Records
from hpc.data.upstream import CURRENT, current
from hpc.data.work import Made, Work

PER_PART = 100
"""Tars in a folder part_%06d. cosmos_curate 29f1358: --max-tars-per-part."""
SESSIONS = 64
"""Clips that one task of layout sessions makes tars of, at most."""

def freeze(settings: ShardTree, upstream: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """Plan the tars: each has a row that says where it goes and where its entries are, and a row of these, packed."""
    clips, members = clips_stage(upstream), shard.members_stage(upstream)
    tables = [files for _, files in upstream[members]] if members else []
    folders = settings.layout in FOLDERS
    with Plan() as plan:
        judges = left_out.judges({name: some for name, some in upstream.items() if name not in (clips, members)})
        for found in left_out.drops(judges):
            plan.drop(found)
        for numbered in layers.map_ahead(functools.partial(_table, superseded), enumerate(tables)):
            _add(plan, *numbered)
        plan.sort(settings.shuffle and not folders)
        tars = layers.map_ahead(shard.layers_of, tables)
        sources = [[files[".parquet"], *found] for files, found in zip(tables, tars, strict=True)]
        if settings.layout == "cosmos-curate":
            yield from curator(plan, sources, superseded)
        for name in plan.bins() if settings.layout != "cosmos-curate" else ():
            entries = plan.entries(name)
            if folders:
                cut = by_table(entries)
            elif settings.layout == "sessions":
                cut = shard_plan.groups(entries, settings.tar, SESSIONS)
            else:
                cut = shard_plan.groups(entries, settings.tar, settings.max_clips)
            for number, some in enumerate(cut):
                yield _rows({"bin": name, "number": number}, some, sources)
        for kind, near, places in left_out.pieces(plan, [uri for uri, *_ in sources], judges):
            yield [{"left_out": kind, "sources": near}, places]
        if not plan.bins():  # a stage that makes nothing would look like one that failed
            yield [{"left_out": left_out.UNFIT, "sources": []}, shard_plan.packed(np.empty(0, shard_plan.RECORD))]


def curator(plan: Plan, sources: list[Any], superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """A shard for each shard of clips, also of those that have none to keep, since videos are told of."""
    root, found = shard_files.videos((uri for uri, *_ in sources), superseded)
    pieces = by_table(piece for name in plan.bins() for piece in plan.entries(name))  # in the order of the tables
    held = next(pieces, None)
    for source, (number, (chunks, replaced)) in zip(sources, enumerate(found), strict=True):
        some = np.empty(0, shard_plan.RECORD)
        if held is not None and held["table"][0] == number:
            some, held = held.copy(), next(pieces, None)
        some["table"] = 0
        head = {"root": root, "chunks": chunks, "superseded": replaced, "sources": [source]}
        yield [head, shard_plan.packed(some)]


def _rows(head: dict[str, Any], records: Records, sources: list[Any]) -> list[Any]:
    near, records = shard_plan.local(records, sources)
    return [head | {"sources": near}, shard_plan.packed(records)]


def by_table(pieces: Iterator[Records]) -> Iterator[Records]:
    """Entries of the same table together; they come in its order."""
    held: Records | None = None
    for piece in pieces:
        for one in np.split(piece, np.flatnonzero(np.diff(piece["table"].astype("i8"))) + 1):
            if held is not None and held["table"][0] != one["table"][0]:
                yield held
                held = None
            held = one if held is None else np.concatenate([held, one])
    if held is not None:
        yield held


def _table(superseded: set[tuple[str, str]], numbered: tuple[int, dict[str, str]]) -> tuple[int, pa.Table]:
    number, files = numbered
    with storage.open(files[".parquet"]) as file:
        wanted = ["uuid", *(CURRENT if superseded else ()), "why", "bin", "start_frame", *shard.PLACES]
        table = layers.read_table(file, wanted)
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    return number, current(table, superseded)


def _add(plan: Plan, number: int, table: pa.Table) -> None:
    missing = pc.is_null(table["why"])
    kept = table.filter(missing)
    records = shard.records(kept, number, shard.PLACES)
    records["bin"] = [plan.bin(name) for name in kept["bin"].to_pylist()]
    records["start"] = kept["start_frame"].fill_null(-1)
    plan.add(records)
    plan.leave_out(shard.records(table.filter(pc.invert(missing)), number, ()))


def start(settings: ShardTree) -> Callable[[Work], Made]:
    def process(work: Work) -> Made:
        head, packed = work.rows
        if "left_out" in head:
            return listed_out(settings, work, left_out.rows(head["left_out"], head["sources"], packed))
        records = shard_plan.unpacked(packed)
        if settings.layout in TREES:
            return tars(settings, work, head, records)
        return shard_files.make(settings, work, head, records)

    return process


def tars(settings: ShardTree, work: Work, head: dict[str, Any], records: Records) -> Made:
    """Three tars of the same name, or two where there are no text embeddings."""
    name = f"part_{head['number'] // PER_PART:06}/{head['number'] % PER_PART:06}.tar"
    sources = head["sources"]
    ranges: dict[str, list[tuple[str, int, int]]] = {VIDEO: [], METAS: [], T5: []}
    for one in records:
        _, clips, members = sources[one["table"]]
        offset, meta, json_size, more = (int(one[x]) for x in ("offset", "meta_offset", "json_size", "more_size"))
        ranges[VIDEO].append((clips, offset, int(one["video_size"])))
        ranges[METAS].append((members, meta, json_size))
        if more:
            ranges[T5].append((members, meta + json_size, more))
    read, total = shard.reader(), sum(size for some in ranges.values() for _, _, size in some)
    done, keys, tree = 0, {}, {}
    for kind, some in ranges.items():
        if not some:
            continue
        path = work.scratch / f"{kind}.tar"

        def tick(written: int, before: int = done) -> None:
            work.check()
            work.progress((before + written) / total, f"{before + written >> 20} of {total >> 20} MiB")

        layers.copy_ranges(path, some, read, tick)
        done += sum(size for _, _, size in some)
        with path.open("rb") as file:
            keys[kind] = [key for key, _ in layers.index(file)]
        tree[storage.join(work.folder, settings.version, head["bin"], kind, name)] = path
    if any(found != keys[VIDEO] for found in keys.values()):
        lengths = ", ".join(f"{len(found)} in {kind}" for kind, found in keys.items())
        raise layers.TornTar(f"the tars of {head['bin']}/{name} do not have the same keys ({lengths}): make the stages "
                             "before this one again")  # fmt: skip
    path = f"{settings.version}/{head['bin']}/{VIDEO}/{name}"
    rows = [{"key": key, "uuid": key, "path": path, "place": i} for i, key in enumerate(keys[VIDEO])]
    told = {"bin": head["bin"], "tar": name, "kinds": [kind for kind in (VIDEO, T5, METAS) if kind in keys]}
    counts = {"entries": len(rows), "bytes_out": sum(path.stat().st_size for path in tree.values())}
    return listed(settings, work, rows, told, counts, tree)


def listed_out(settings: ShardTree, work: Work, rows: list[dict[str, Any]]) -> Made:
    """Name what is not in the data set, and why."""
    path = work.scratch / f"{work.shard}.parquet"
    reasons = left_out.write(path, rows, about(settings, work, len(rows)))
    return Made([path], {"entries": 0, **left_out.counted(reasons)})


def about(settings: ShardTree, work: Work, entries: int) -> dict[str, Any]:
    return {"stage": settings.KIND, "fingerprint": work.fingerprint, "layout": settings.layout, "entries": entries}


def listed(settings: ShardTree, work: Work, rows: list[dict[str, Any]], told: dict[str, Any],
           counts: dict[str, Any], tree: dict[str, Path]) -> Made:  # fmt: skip
    path = work.scratch / f"{work.shard}.parquet"
    layers.write_table(path, rows, about(settings, work, len(rows)) | told, left_out.SCHEMA)
    return Made([path], {"entries": 0, **counts}, tree=tree)
