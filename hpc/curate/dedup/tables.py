"""What the parts of the dedup read and hand on: tables of the stages before, and ranges of sorted rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpc.curate.dedup.sphere import Floats, unit
from hpc.data import layers, storage
from hpc.data.upstream import CURRENT, KEEP, columns_of, current, dropped, table

Upstream = Mapping[str, list[tuple[str, dict[str, str]]]]
Hashes = npt.NDArray[np.uint64]
Superseded = Collection[tuple[str, str]]

COPIES = pa.schema(
    [
        ("shard", pa.string()),
        ("uuid", pa.string()),
        ("max_id", pa.string()),  # the copy that may stay; null: the same clip, in an earlier shard
    ]
)
ROWS = pa.schema(
    [
        ("cluster", pa.int32()),
        ("home", pa.int32()),  # the cluster in which it lives; in others it is a guest
        ("uuid", pa.string()),
        ("distance", pa.float64()),  # 1 - cosine to the centroid of its home
    ]
)
SCORES = pa.schema(
    [
        ("cluster", pa.int32()),
        ("uuid", pa.string()),
        ("max_id", pa.string()),  # its nearest among the rows before it; itself if there is none
        ("score", pa.float32()),  # the cosine; 0 if there is none
        ("distance", pa.float64()),
    ]
)
GUESTS = pa.schema([(name, SCORES.field(name).type) for name in ("cluster", "uuid", "max_id", "score")])
ROW_GROUP = 65536


class Source(msgspec.Struct, frozen=True, array_like=True):
    """One shard of the stages before; "" for what is not there."""

    shard: str
    embeddings: str
    clips: str
    tar: str
    verdicts: list[str]
    """Tables of layers that drop clips."""


def sources(upstream: Upstream, superseded: Superseded) -> list[Source]:
    """The shards of embeddings, clips and verdicts that a barrier has frozen, in order.

    superseded: (source, etag) of inputs that were replaced since. Raises ValueError where `needs` names neither clips
    nor embeddings, or no clips although inputs were replaced.
    """
    found: dict[str, dict[str, Any]] = {}
    for stage, shards in upstream.items():
        kind = _kind(shards[0][1]) if shards else ""
        for shard, files in shards if kind else ():
            one = found.setdefault(shard, {"embeddings": "", "clips": "", "tar": "", "verdicts": []})
            if kind == "verdicts":
                one["verdicts"].append(files[".parquet"])
            elif one[kind]:
                words = f"`needs` names two stages that make {kind}; {stage} is one of them: leave one out"
                raise ValueError(f"curate.dedup: {words}")
            else:
                one[kind] = files[".parquet"]
                one["tar"] = files.get(".tar", one["tar"])
    out = [Source(shard, **one) for shard, one in found.items()]
    if not any(one.embeddings or one.clips for one in out):
        raise ValueError(f"curate.dedup: `needs` must name a stage that makes embeddings (curate.embed), or clips for "
                         f"copies alone (curate.clips), or both; it has {list(upstream)}")  # fmt: skip
    if superseded and not any(one.clips for one in out):
        raise ValueError("curate.dedup: inputs were replaced since; add the clips stage to `needs`: it knows whose the "
                         "clips are")  # fmt: skip
    return out


def _kind(files: dict[str, str]) -> str:
    if {".tar", ".parquet"} <= files.keys():
        return "clips"
    names = columns_of(files.get(".parquet"))  # none of a part of this stage
    return "embeddings" if "embedding" in names else "verdicts" if {"uuid", "verdict"} <= names else ""


def shapes(sources: list[Source]) -> Iterator[tuple[int, int]]:
    """(rows, dimensions) of the embeddings of each."""
    return layers.map_ahead(lambda one: _shape(one.embeddings), sources)


def _shape(uri: str) -> tuple[int, int]:
    if not uri:
        return 0, 0
    with storage.open(uri) as file, pq.ParquetFile(file) as parquet:
        kind = parquet.schema_arrow.field("embedding").type
        if not pa.types.is_fixed_size_list(kind):
            raise ValueError(f"{uri}: embedding is {kind}, not a list of a fixed size: not made by curate.embed")
        return parquet.metadata.num_rows, kind.list_size


class Read(msgspec.Struct, frozen=True):
    """The kept clips of a shard."""

    uuids: pa.Array
    digests: pa.Array | None
    """Of their coded pictures, in the order of uuids; null where there is none. None without clips."""
    vectors: Floats | None = None
    """Embeddings, 1 long, [M, D]."""
    usable: npt.NDArray[np.bool_] | None = None
    """Whose vectors those are, in the order of uuids: not of NaN, infinity or zeros alone."""


def read(source: Source, superseded: Superseded, vectors: bool = True) -> Read:
    """Of clips that `superseded` or a verdict drops nothing is read: they must not take others with them."""
    gone = pa.array(sorted({uuid for uri in source.verdicts for uuid in dropped(uri)}), pa.string())
    clips = table(source.clips, ["uuid", *CURRENT, "verdict", "digest"]) if source.clips else None
    if clips is not None:
        clips = current(clips.filter(pc.equal(clips["verdict"], KEEP)), superseded)
        clips = clips.filter(pc.invert(pc.is_in(clips["uuid"], gone)))
    if not source.embeddings:
        return Read(_array(clips["uuid"]), _digests(clips))
    embedded = table(source.embeddings, ["uuid", "embedding"] if vectors else ["uuid"])
    keep = pc.invert(pc.is_in(embedded["uuid"], gone))
    if clips is not None:
        keep = pc.and_(keep, pc.is_in(embedded["uuid"], _array(clips["uuid"])))
    embedded = embedded.filter(keep)
    uuids = _array(embedded["uuid"])
    digests = None if clips is None else _digests(clips).take(pc.index_in(uuids, _array(clips["uuid"])))
    if not vectors:
        return Read(uuids, digests)
    cells = _array(embedded["embedding"])
    if cells.null_count:
        raise ValueError(f"{source.embeddings}: {cells.null_count} clips have no embedding; make this shard again")
    matrix = cells.flatten().to_numpy(zero_copy_only=False).reshape(len(uuids), cells.type.list_size)
    return Read(uuids, digests, *unit(matrix.astype(np.float32, copy=False)))


def _array(column: pa.ChunkedArray) -> pa.Array:
    """In one piece."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _digests(clips: pa.Table) -> pa.Array:
    """Of all cameras, where there are several."""
    own = _array(clips["digest"])
    if clips["cameras"].null_count == len(clips):
        return own
    joined = [
        one and "".join([one, *(camera["digest"] for camera in cameras or ())])
        for one, cameras in zip(own.to_pylist(), clips["cameras"].to_pylist(), strict=True)
    ]
    return pa.array(joined, pa.string())


def hash_of(uuids: pa.Array) -> Hashes:
    """64 bits of each."""
    digests = b"".join(hashlib.blake2b(uuid.encode(), digest_size=8).digest() for uuid in uuids.to_pylist())
    return np.frombuffer(digests, "<u8")


def write(path: Path, rows: pa.Table, meta: dict[str, Any]) -> None:
    """As layers.write_table, of columns; in groups of rows, so that a range can be read by itself."""
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
    repeating = [name for name in ("shard", "cluster", "home") if name in rows.schema.names]
    pq.write_table(
        rows.replace_schema_metadata({"hpc": text}), path, compression="zstd", row_group_size=ROW_GROUP,
        use_dictionary=repeating or False,  # of vectors and ids it takes six times as long and half as much room again
    )  # fmt: skip


def clusters(file: BinaryIO, first: int, end: int) -> tuple[pa.Table, int]:
    """(the rows with first <= cluster < end, how many rows stand before them) of a table sorted by cluster."""
    with pq.ParquetFile(file) as parquet:
        metadata, before, groups = parquet.metadata, 0, []
        place = parquet.schema_arrow.names.index("cluster")
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if not group.num_rows:
                continue
            span = group.column(place).statistics
            if span.max < first:
                before += group.num_rows
            elif span.min < end:
                groups.append(number)
        rows = parquet.read_row_groups(groups) if groups else parquet.schema_arrow.empty_table()
    cluster = rows["cluster"].to_numpy()
    low, high = np.searchsorted(cluster, [first, end])
    return rows.slice(low, high - low), before + int(low)


def parts(upstream: Upstream, suffix: str) -> list[str]:
    """What a part of this stage has made."""
    return [files[suffix] for shards in upstream.values() for _, files in shards if suffix in files]
