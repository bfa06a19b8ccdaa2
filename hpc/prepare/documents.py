"""Documents: windows of clips as ids, as the first part of prepare.tokens leaves them; their order in a data set.

A shard of ids is <shard>.bin, the ids of all its documents one after the other (int32, little endian, each document in
the order time, height, width), and <shard>.parquet with a row of SCHEMA for each, and for each clip, or rest of one,
that was left out. The table's meta has `tokenizer`, `vocabulary`, `shape` ([t, h, w] of each document), `frames`,
`size`, `fps`, `fit`, `windows`, `precision`.

In a data set documents are in the order of a hash: of the video that a clip is of, then of the clip. So the order does
not depend on how many tasks or shards there were, and each part of it is a fair sample: Megatron takes the first
documents for training, those behind them for validation, and the last ones for the test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import layers, upstream
from hpc.data.latents import SUFFIX
from hpc.data.shard_plan import RECORD, Plan, Records, groups, local, packed, unpacked
from hpc.data.upstream import CURRENT, current, meta_of

Shards = dict[str, list[tuple[str, dict[str, str]]]]
"""Stage -> (shard id, {suffix: uri}) of each of its shards."""
SPLITS = ("train", "valid", "test")
SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),  # of the clip
        ("start", pa.int32()),  # the window's first frame, counted from the clip's
        ("frames", pa.int32()),  # of the clip
        ("fps", pa.float32()),  # of the frames that were taken
        ("source_fps", pa.float32()),  # of the clip
        ("width", pa.int32()),  # of the clip, pixels
        ("height", pa.int32()),
        ("left", pa.int32()),  # where its picture lies in what was encoded
        ("top", pa.int32()),
        ("right", pa.int32()),
        ("bottom", pa.int32()),
        ("caption", pa.string()),  # of the caption window that the first frame is in; null for none
        ("media", pa.string()),  # the file that the clip is in, and with "#" its name there
        ("source", pa.string()),  # the video that the clip was cut from
        ("etag", pa.string()),
        ("cameras", pa.list_(pa.struct([("source", pa.string()), ("etag", pa.string())]))),
        ("offset", pa.int64()),  # of the ids in the .bin, bytes
        ("size", pa.int64()),
        ("why", pa.string()),  # it was left out: "too-short", ...; null for documents
    ]
)

NAMES = {SUFFIX: "", ".json": "json_", ".pickle": "pickle_"}
"""Members of a tar of latents -> what their columns begin with."""
LATENTS = pa.schema([
    ("key", pa.string()), *SCHEMA,
    *((f"{name}{what}", pa.int64()) for name in NAMES.values() if name for what in ("offset", "size")),
])  # fmt: skip
"""Of a shard of latents, the same columns and where members lie: hpc.prepare.latents has them."""


class DocumentPlan(msgspec.Struct):
    """What one shard of a form is made of."""

    tables: list[dict[str, str]]
    """{".bin": uri, ".parquet": uri} of shards of ids."""
    records: Records
    """Its documents, in order: `table` is a place in `tables`, `row` a row there, `offset` and `size` bytes of its
    .bin."""
    first: int
    """The place of its first document in the data set."""
    total: int
    """Documents in the data set."""
    copies: int
    """Documents of the data set that were left out since they were there already; told with the first shard alone."""
    meta: dict[str, Any]
    """Of the tables."""


def ids_of(upstream: Shards) -> list[tuple[str, dict[str, str]]]:
    """The shards of ids among what a form needs. Raises ValueError."""
    for shards in upstream.values():
        if shards and {".bin", ".parquet"} == set(shards[0][1]):
            return shards
    raise ValueError(f"a form of tokens is made of shards of ids; there are none among {list(upstream)}")


def planned(
    upstream: Shards, superseded: set[tuple[str, str]], hold_out: str, most_bytes: int, most: int = 2**31 - 1
) -> Iterator[list[Any]]:
    """Rows of the shards of a form, for `plan_of`: all documents in order, in groups of at most so many bytes of ids,
    and at most so many. Bounded in memory, as hpc.data.shard_plan is.

    Raises ValueError where there is not one document, and where shards were not made alike.
    """
    shards = ids_of(upstream)
    metas = {msgspec.json.encode(_shared(meta_of(files[".parquet"]))): shard for shard, files in shards}
    if len(metas) > 1:
        raise ValueError(f"shards {', '.join(metas.values())} of the ids were not made alike: {list(metas)}")
    with Plan() as plan:
        numbered = enumerate(files[".parquet"] for _, files in shards)
        for records in layers.map_ahead(lambda one: _records(*one, superseded, hold_out), numbered):
            plan.add(records)
        plan.bin("")
        plan.sort(shuffle=True)
        total, copies = plan.sorted.counts.get(0, 0), plan.copies.counts.get(0, 0)
        if not total:
            raise ValueError("there is not one document: every clip was left out. The tables of ids say why of each, "
                             f"e.g. {shards[0][1]['.parquet']}")  # fmt: skip
        first = 0
        for some in groups(plan.entries(""), most_bytes, most, "size"):
            near, records = local(some, [files for _, files in shards])
            yield [{"tables": near, "first": first, "total": total, "copies": 0 if first else copies}, packed(records)]
            first += len(some)


def _shared(meta: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name not in ("stage", "fingerprint")}


def _records(number: int, uri: str, superseded: set[tuple[str, str]], hold_out: str) -> Records:
    table = upstream.table(uri, ["uuid", "start", *CURRENT, "offset", "size", "why"])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    table = current(table.filter(pc.is_null(table["why"])), superseded)
    found = np.zeros(len(table), RECORD)
    together = table["source" if hold_out == "source" else "uuid"].to_pylist()
    pairs = zip(together, table["uuid"].to_pylist(), strict=True)
    found["hash"] = np.array([_hash(group) + _hash(uuid) for group, uuid in pairs], "S16")
    found["table"] = number
    for name in ("row", "start", "offset", "size"):
        found[name] = table[name]
    return found


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def plan_of(rows: list[Any]) -> DocumentPlan:
    head, records = rows
    return DocumentPlan(records=unpacked(records), meta=meta_of(head["tables"][0][".parquet"]), **head)


def rows_of(plan: DocumentPlan) -> pa.Table:
    """The documents' rows of SCHEMA, in order."""
    parts, order = [SCHEMA.empty_table()], [np.empty(0, np.int64)]
    for number, files in enumerate(plan.tables):
        places = np.flatnonzero(plan.records["table"] == number)
        parts.append(upstream.table(files[".parquet"]).take(pa.array(plan.records["row"][places])).cast(SCHEMA))
        order.append(places)
    return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))


def splits(total: int, split: str) -> dict[str, range]:
    """Which documents of so many, in order, are for training, validation and test: {"train": range(0, 67), ...}.

    As megatron-core 0.16.1 counts (blended_megatron_dataset_builder.py, blended_megatron_dataset_config.py): shares are
    added up in floating point, and the ends are rounded, halves to even.
    """
    shares = [float(one) for one in split.split(",")]
    shares = [one / sum(shares) for one in shares + [0.0] * (len(SPLITS) - len(shares))]
    ends = [0.0]
    for share in shares:
        ends.append(ends[-1] + share)
    places = [round(end * float(total)) for end in ends]
    return {name: range(a, b) for name, a, b in zip(SPLITS, places[:-1], places[1:], strict=True)}


def split_of(place: int, total: int, split: str) -> str:
    """Of the document at this place of a data set. Raises ValueError for a place behind the end."""
    for name, places in splits(total, split).items():
        if place in places:
            return name
    raise ValueError(f"there is no document {place}: the data set has {total}")
