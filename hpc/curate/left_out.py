"""What is not in a data set, and why: clips without a place in its layout, clips that a verdict drops (of a filter by
a model, or of the dedup), and second clips of the same uuid.

The barrier notes in bounded memory which rows of which tables tell of them (hpc.data.shard_plan); the array reads
those rows and writes them out. Of clips that several stages drop, the first one is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import layers, shard_plan, storage, upstream
from hpc.data.shard_plan import JUDGED, RECORD, Plan
from hpc.data.upstream import KEEP, columns_of

COPY, UNFIT, DROPPED = "copy", "unfit", "dropped"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uuid", pa.string()),
        ("path", pa.string()),  # of the tar with its video, or of the video, in the stage's folder; null: left out
        ("place", pa.int32()),  # in its tar
        ("why", pa.string()),  # it is left out
        ("detail", pa.string()),
    ]
)
VERDICT = ("uuid", "verdict", "reasons", "max_id", "score")
"""Columns that say what was decided, as far as a table has them; the last three say why."""
Judges = list[tuple[str, str]]
"""(stage, uri of its table) of each table with verdicts."""


def judges(upstream: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]]) -> Judges:
    """Of these stages. A stage's first table says whether it has verdicts."""
    return [
        (name, files[".parquet"])
        for name, shards in upstream.items()
        if shards and {"uuid", "verdict"} <= columns_of(shards[0][1].get(".parquet"))
        for _, files in shards
    ]


def drops(judges: Judges) -> Iterator[np.ndarray[Any, Any]]:
    """shard_plan.JUDGED of the clips that verdicts drop, table by table."""

    def dropped(numbered: tuple[int, tuple[str, str]]) -> np.ndarray[Any, Any]:
        number, (_, uri) = numbered
        table = upstream.table(uri, ["uuid", "verdict"])
        rows = np.flatnonzero(pc.not_equal(table["verdict"], KEEP).to_numpy())
        found = np.zeros(len(rows), JUDGED)
        found["hash"] = shard_plan.hashes(table["uuid"].take(pa.array(rows)).to_pylist())
        found["table"], found["row"] = number, rows
        return found

    return layers.map_ahead(dropped, enumerate(judges))


def pieces(plan: Plan, tables: Sequence[str], judges: Judges) -> Iterator[tuple[str, list[Any], str]]:
    """(kind, tables, packed places in them) of what a sorted plan left out, some at a time, for `rows`. tables: those
    of the entries, in order."""
    all_of = (COPY, plan.copies, tables), (UNFIT, plan.unfit, tables), (DROPPED, plan.dropped, judges)
    for kind, files, sources in all_of:
        for some in files.pieces(0):
            near, places = shard_plan.local(some, sources)
            places["hash"] = b""  # half of its bytes, of no more use
            yield kind, near, shard_plan.packed(places)


def rows(kind: str, sources: Sequence[Any], packed: str) -> list[dict[str, Any]]:
    """What is told of each: key, uuid, why, detail."""
    places, found = shard_plan.unpacked(packed, JUDGED if kind == DROPPED else RECORD), []
    for number, source in enumerate(sources):
        stage, uri = source if kind == DROPPED else ("", source)
        with storage.open(uri) as file:
            have = set(layers.columns(file))
            wanted = [name for name in (VERDICT if stage else ("key", "uuid", "why", "detail")) if name in have]
            table = layers.read_table(file, wanted)
        some = table.take(pa.array(places["row"][places["table"] == number].astype("i8"))).to_pylist()
        if stage:
            some = [told(stage, row) for row in some]
        elif kind == COPY:
            words = "a clip of this uuid, from an earlier shard, is in the data set"
            some = [{"key": row.get("key", row["uuid"]), "uuid": row["uuid"], "why": "duplicate", "detail": words}
                    for row in some]  # fmt: skip
        found += some
    return found


def told(stage: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Of a row with VERDICT, or a part of it."""
    words = f"{stage}: {', '.join(row.get('reasons') or ()) or row['verdict']}"
    if row.get("max_id"):
        words += f", like {row['max_id']}"
    if row.get("score") is not None:
        words += f" (cosine {row['score']:.4f})"
    return {"key": row["uuid"], "uuid": row["uuid"], "why": row["verdict"], "detail": words}


def judged(made: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """uuid -> what is told of it, of the clips of a shard that layers over it drop. made: {stage: {suffix: uri}}."""
    found: dict[str, dict[str, str]] = {}
    for stage, uri in judges({stage: [("", objects)] for stage, objects in made.items() if ".tar" not in objects}):
        have = columns_of(uri)
        table = upstream.table(uri, [name for name in VERDICT if name in have])
        for row in table.filter(pc.not_equal(table["verdict"], KEEP)).to_pylist():
            found.setdefault(row["uuid"], told(stage, row))
    return found


def counted(reasons: Counter[str]) -> dict[str, int]:
    """For the report: how many are left out, and of them for each reason."""
    return {"dropped": reasons.total(), **{f"dropped_{why}": count for why, count in reasons.items()}}


def write(path: Path, rows: Sequence[Mapping[str, Any]], meta: dict[str, Any]) -> Counter[str]:
    """A table of what was left out; how often for each reason."""
    reasons = Counter(row["why"] for row in rows)
    layers.write_table(path, rows, meta | {"left_out": reasons}, SCHEMA)
    return reasons
