"""Tokens as Megatron reads them: an IndexedDataset, <shard>.bin and <shard>.idx, one document a window.

    --data-path tokens@v1/000000 --split 4,1,1

<shard>.parquet has a row for each document, in the same order: its number, the clip's uuid, the window, the caption,
and the split that Megatron will put it in. The .bin is written in one pass over the shards of ids, each read from its
beginning to its end, in bounded memory.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hpc.data import layers, storage
from hpc.data.tokens.indexed import HEAD, MAGIC
from hpc.data.work import Made, Work
from hpc.prepare import documents
from hpc.prepare.documents import SCHEMA, DocumentPlan, Shards
from hpc.prepare.settings import Megatron

VERSION = 1
INT32 = 4
"""megatron-core 0.16.1: datasets/indexed_dataset.py, DType."""
PIECE = 8 * 1024**2  # bytes of one read, more than that for a single document of more
GAP = 256 * 1024  # bytes that are read and thrown away rather than asked for around
COLUMNS = pa.schema([("document", pa.int64()), ("split", pa.string()), *(f for f in SCHEMA if f.name != "why")])


def freeze(settings: Megatron, upstream: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    yield from documents.planned(upstream, superseded, settings.hold_out, most_bytes=settings.file)


def start(settings: Megatron) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: Megatron, work: Work) -> Made:
    """Make one .bin with its .idx. Raises ValueError for ids that are not of the tokenizer."""
    plan = documents.plan_of(work.rows)
    count, tokens = len(plan.records), math.prod(plan.meta["shape"])
    bin_path, idx_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    gather(bin_path, plan, work)
    write_index(idx_path, np.full(count, tokens, np.int64))
    table = documents.rows_of(plan).drop_columns("why")
    places = documents.splits(count, settings.split)
    if empty := [name for name, some in places.items() if not some]:
        logging.getLogger(__name__).warning("%d documents by %s: none is for %s", count, settings.split, empty)
    size = plan.records["size"]
    table = table.set_column(table.schema.names.index("offset"), "offset", pa.array(np.cumsum(size) - size))
    table = table.append_column("document", pa.array(np.arange(count)))
    table = table.append_column("split", pa.array([name for name, some in places.items() for _ in some], pa.string()))
    meta = plan.meta | {"stage": settings.KIND, "fingerprint": work.fingerprint, "split": settings.split}
    layers.write_arrow(table_path, table.select(COLUMNS.names).cast(COLUMNS), meta)
    counts = {"documents": count, "tokens": count * tokens, "bytes_out": bin_path.stat().st_size}
    counts |= {f"documents_{name}": len(some) for name, some in places.items()}
    if plan.copies:
        counts |= {"dropped": plan.copies, "dropped_duplicate": plan.copies}
    return Made([bin_path, idx_path, table_path], counts)


class Piece(NamedTuple):
    """One read."""

    table: int
    begin: int
    end: int
    places: npt.NDArray[np.int64]
    """Documents of the new file that are in it."""


def pieces(plan: DocumentPlan) -> Iterator[Piece]:
    """Of all documents, in the order in which they lie in the shards of ids."""
    found = plan.records
    order = np.lexsort([found["offset"], found["table"]])
    table, begin = found["table"][order].astype(np.int64), found["offset"][order]
    end = begin + found["size"][order]
    first = 0
    for i in range(1, len(order) + 1):
        if (
            i == len(order)
            or table[i] != table[first]
            or begin[i] > end[i - 1] + GAP
            or end[i] - begin[first] > PIECE
        ):  # fmt: skip
            yield Piece(int(table[first]), int(begin[first]), int(end[i - 1]), order[first:i])
            first = i


def gather(path: Path, plan: DocumentPlan, work: Work) -> None:
    """Write the ids of all documents, in order: sources are read along, the file is written here and there."""
    size, vocabulary = 4 * math.prod(plan.meta["shape"]), plan.meta["vocabulary"]
    if (plan.records["size"] != size).any():
        raise ValueError(f"not all documents have {size} bytes, as the shape {plan.meta['shape']} asks for")

    def read(piece: Piece) -> tuple[Piece, bytes]:
        return piece, storage.read(plan.tables[piece.table][".bin"], piece.begin, piece.end)

    done = 0
    with path.open("wb") as file:
        file.truncate(size * len(plan.records))
        for piece, data in layers.map_ahead(read, pieces(plan)):
            work.check()
            for place in piece.places.tolist():
                at = int(plan.records["offset"][place]) - piece.begin
                ids = np.frombuffer(data[at : at + size], "<i4")
                if 4 * len(ids) != size or ids.min() < 0 or ids.max() >= vocabulary:
                    uri = plan.tables[piece.table][".bin"]
                    found = f"ids from {ids.min()} to {ids.max()}" if len(ids) else "nothing"
                    raise ValueError(f"{uri}: {found} in the {size} bytes at {piece.begin + at}; the tokenizer has "
                                     f"{vocabulary} ids: make this shard again")  # fmt: skip
                file.seek(place * size)
                file.write(ids)
            done += len(piece.places)
            work.progress(done / len(plan.records), f"{done} of {len(plan.records)} documents")


def write_index(path: Path, lengths: npt.NDArray[np.int64]) -> None:
    """The .idx of documents of so many int32 tokens each, every one of them a sequence."""
    with path.open("wb") as file:
        file.write(HEAD.pack(MAGIC, VERSION, INT32, len(lengths), len(lengths) + 1))
        file.write(lengths.astype("<i4").tobytes())
        file.write(((np.cumsum(lengths) - lengths) * 4).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
