"""The list of all samples of a data set of latents, behind a barrier: which samples there are, and where they lie.

<shard>.parquet has a row of SCHEMA for each. What was made of inputs that were replaced since is not in it, nor is a
window that is there twice: so training reads this list, which costs one read however many tars there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import layers, upstream
from hpc.data.work import Made, Work
from hpc.prepare.documents import LATENTS as ENCODED
from hpc.prepare.documents import Shards
from hpc.prepare.settings import LatentsList

SCHEMA = pa.schema([
    ("tar", pa.string()),  # uri
    ("num_frames", pa.int32()),  # that were encoded, and their size; `frames`, `width` and `height` are the clip's
    ("encoded_height", pa.int32()),
    ("encoded_width", pa.int32()),
    *(field for field in ENCODED if field.name != "why"),
])  # fmt: skip


def freeze(settings: LatentsList, upstream: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """One shard: [what was replaced, the shards of latents]."""
    for shards in upstream.values():
        if shards and {".tar", ".parquet"} == set(shards[0][1]) and is_latents(shards[0][1][".parquet"]):
            yield [sorted(superseded), [files for _, files in shards]]
            return
    raise ValueError(f"there are no shards of latents among {list(upstream)}")


def is_latents(uri: str) -> bool:
    return "json_offset" in upstream.columns_of(uri)


def start(settings: LatentsList) -> Callable[[Work], Made]:
    return process


def process(work: Work) -> Made:
    """Raises ValueError where there is not one sample."""
    pairs, shards = work.rows
    superseded = {(source, etag) for source, etag in pairs}
    parts = []
    for done, (files, table, meta) in enumerate(layers.map_ahead(_read, shards)):
        work.check()
        work.progress(done / len(shards), f"{done} of {len(shards)} tables")
        table = upstream.current(table.filter(pc.is_null(table["why"])), superseded)
        same = {"tar": files[".tar"], "num_frames": meta["frames"], "encoded_height": meta["size"][0],
                "encoded_width": meta["size"][1]}  # fmt: skip
        for name, value in same.items():
            table = table.append_column(name, pa.array([value] * len(table), SCHEMA.field(name).type))
        parts.append(table.select(SCHEMA.names).cast(SCHEMA))
    table = pa.concat_tables(parts)
    if not len(table):
        where = shards[0][".parquet"]
        raise ValueError(f"there is not one sample: every clip was left out. The tables say why of each, e.g. {where}")
    first = {key: place for place, key in reversed(list(enumerate(table["key"].to_pylist())))}
    copies = len(table) - len(first)
    table = table.take(pa.array(sorted(first.values())))
    path = work.scratch / f"{work.shard}.parquet"
    layers.write_arrow(path, table, meta | {"stage": LatentsList.KIND, "fingerprint": work.fingerprint})
    told = {"dropped": copies, "dropped_duplicate": copies} if copies else {}
    return Made([path], {"samples": len(table), **told})


def _read(files: dict[str, str]) -> tuple[dict[str, str], pa.Table, dict[str, Any]]:
    return files, upstream.table(files[".parquet"]), upstream.meta_of(files[".parquet"])
