"""Clips -> a data set for training: tars of equal size, in a fixed order, that webdataset reads.

The barrier (`freeze`) looks at columns alone: which clips are kept, in which order, and in which tar each goes. The
array (`start`) then copies byte ranges from the clips' tars: nothing is decoded, and only tar headers are looked at.
With `join`, each clip's .json comes from hpc.curate.shard_members, which wrote what other layers say into it.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.curate import left_out
from hpc.curate.settings import Shard
from hpc.curate.shard_members import Shards, clips_stage, is_members
from hpc.data import layers, storage
from hpc.data.shard_plan import RECORD, Plan, Records, groups, hashes
from hpc.data.upstream import CURRENT, KEEP, columns_of, current, meta_of
from hpc.data.work import Made, Work

JOINED = {"caption", "embedding"}
PLACES = ["offset", "size", "video_size", "video_bytes", "rest_offset", "meta_offset", "json_size", "more_size"]


def freeze(settings: Shard, upstream: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """Plan the tars: for each, its rows [uri of a tar, offset, size], in bytes; neighbours are merged. A row with a
    fourth value goes on with the clip of the row before. Where clips are left out, a tar's begin with
    {"left_out": left_out.pieces...}: one of these for each tar, and for the last one all others.

    upstream: the clips stage's name -> [(shard id, {".tar": uri, ".parquet": uri}), ...], the frozen good shards, in
    order, and those of stages that judge clips. superseded: (source, etag) of inputs that were replaced since; their
    clips are left out, as are those that a verdict drops. Of clips with the same uuid the first in the order of the
    shards stays; the log and the report count the others.
    """
    clips = clips_stage(upstream)
    members = members_stage(upstream)
    first = {name: shards[0][1].get(".parquet") for name, shards in upstream.items() if shards}
    told = [name for name, uri in first.items() if "window" in (has := columns_of(uri)) and has & JOINED]
    if told and not members:
        raise ValueError(f"`needs` has {', '.join(told)}, which layout webdataset joins with `join: true` only")
    tables = [files for _, files in upstream[members or clips]]
    with Plan() as plan:
        judges = left_out.judges({name: some for name, some in upstream.items() if name not in (clips, members)})
        for found in left_out.drops(judges):
            plan.drop(found)
        read = functools.partial(_joined if members else _kept_clips, superseded)
        for found, unfit in layers.map_ahead(read, enumerate(files[".parquet"] for files in tables)):
            plan.add(found)
            plan.leave_out(unfit)
        plan.bin("")
        plan.sort(settings.shuffle)
        if copies := plan.copies.counts.get(0, 0):
            logging.getLogger(__name__).warning("left out %d clips whose uuid is there already", copies)
        sources = [(files[".tar"], "") for files in tables]
        if members:
            sources = list(layers.map_ahead(layers_of, tables))
        room = settings.tar - len(layers.END_OF_ARCHIVE)
        tars = (_rows(some, sources) for name in plan.bins()
                for some in groups(plan.entries(name), room, settings.max_clips, "size"))  # fmt: skip
        lost = left_out.pieces(plan, [files[".parquet"] for files in tables], judges)
        now = next(tars, None)
        if now is None:  # there is no tar to tell of them with
            words = "no clip stays: %d are dropped by verdicts, %d have no place"
            logging.getLogger(__name__).warning(words, *(f.counts.get(0, 0) for f in (plan.dropped, plan.unfit)))
        while now is not None:
            then = next(tars, None)
            told = list(lost) if then is None else list(itertools.islice(lost, 1))
            yield ([{"left_out": told}] if told else []) + now
            now = then


def members_stage(upstream: Shards) -> str | None:
    """The stage that prepared what stands beside the videos, if there is one."""
    return next((name for name, shards in upstream.items() if shards and is_members(shards[0][1])), None)


def layers_of(files: dict[str, str]) -> tuple[str, str]:
    """(uri of the clips' tar, uri of the members' tar) of a shard of shard_members."""
    made_of = meta_of(files[".parquet"])["made_of"]
    return next(objects[".tar"] for objects in made_of.values() if ".tar" in objects), files[".tar"]


def _kept_clips(superseded: set[tuple[str, str]], numbered: tuple[int, str]) -> tuple[Records, Records]:
    """The kept clips of a table of curate.clips; the others were told of there."""
    number, uri = numbered
    with storage.open(uri) as file:
        table = layers.read_table(file, ["uuid", *(CURRENT if superseded else ()), "verdict", "offset", "size"])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    table = current(table.filter(pc.equal(table["verdict"], KEEP)), superseded)
    for name in ("uuid", "offset", "size"):
        if table[name].null_count:
            raise ValueError(f"{uri}: {table[name].null_count} kept clips have no {name}; make this shard again")
    return records(table, number, ("offset", "size")), np.empty(0, RECORD)


def _joined(superseded: set[tuple[str, str]], numbered: tuple[int, str]) -> tuple[Records, Records]:
    """The entries of a table of shard_members, and what is none."""
    number, uri = numbered
    with storage.open(uri) as file:
        table = layers.read_table(file, ["uuid", *(CURRENT if superseded else ()), "why", *PLACES])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    table = current(table, superseded)
    here = pc.is_null(table["why"])
    unfit = records(table.filter(pc.invert(here)), number, ())
    found = records(table.filter(here), number, PLACES)
    joined = found["json_size"] > 0  # which takes the place of the clip's own .json
    video, rest = found["video_size"], found["offset"] + found["size"] - found["rest_offset"]
    found["size"] = np.where(joined, video + found["json_size"] + found["more_size"] + rest, found["size"])
    return found, unfit


def records(table: pa.Table, number: int, places: Any) -> Records:
    found = np.zeros(len(table), RECORD)
    found["hash"] = hashes(table["uuid"].to_pylist())
    found["table"], found["row"] = number, table["row"]
    for name in places:
        found[name] = table[name]
    return found


def _rows(records: Records, sources: list[tuple[str, str]]) -> list[list[Any]]:
    rows: list[list[Any]] = []

    def add(uri: str, offset: int, size: int, goes_on: bool = False) -> None:
        last = rows[-1] if rows else None
        if last and last[0] == uri and last[1] + last[2] == offset and len(last) == 3 and not goes_on:
            last[2] += size
        elif size:
            rows.append([uri, offset, size] + [1] * goes_on)

    for _, table, _, _, _, offset, size, video, _, rest, meta, beside, more in map(np.void.item, records):
        tar, members = sources[table]
        if not beside:
            add(tar, offset, size)
            continue
        add(tar, offset, video)
        add(members, meta, beside + more, True)
        add(tar, rest, size - video - beside - more, True)
    return rows


def start(settings: Shard) -> Callable[[Work], Made]:
    return process


def process(work: Work) -> Made:
    """Copy the rows that `freeze` planned for this shard into <shard>.tar; what is left out is told in
    left-out/<shard>.parquet.

    Raises layers.TornTar when a range of a source is not whole keys, storage.Changed when a source is replaced
    meanwhile.
    """
    path = work.scratch / f"{work.shard}.tar"
    head = work.rows[0] if isinstance(work.rows[0], dict) else {}
    rows = work.rows[1:] if head else work.rows
    total = sum(row[2] for row in rows)

    def tick(written: int) -> None:
        work.check()
        work.progress(written / total, f"{written >> 20} of {total >> 20} MiB")

    counts = {"clips": layers.copy_ranges(path, rows, reader(), tick), "bytes_out": path.stat().st_size}
    tree = {}
    if head:
        lost = tree[storage.join(work.folder, "left-out", f"{work.shard}.parquet")] = work.scratch / "left-out.parquet"
        told = [row for piece in head["left_out"] for row in left_out.rows(*piece)]
        reasons = left_out.write(lost, told, {"stage": Shard.KIND, "fingerprint": work.fingerprint})
        counts |= left_out.counted(reasons)
    return Made([path], counts, tree=tree)


def reader() -> Callable[[str, int, int], bytes]:
    """Read ranges of files; of each file all of the same version."""
    version = functools.cache(storage.stat)  # one version of each source, whichever thread meets it first

    def read(uri: str, begin: int, end: int) -> bytes:
        entry = version(uri)
        return storage.read(uri, begin, end, entry.etag if entry else None)

    return read
