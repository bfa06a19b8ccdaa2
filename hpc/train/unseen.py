"""Which clips a training held out, told beside its checkpoints:

    <output>/<stage>@v1/training/held_out.json   from its first step on: {"by": "clip", "clips": [uuid, ...]}
    <output>/<stage>@v1/held_out.json            the same in the end; the stage's .json says where it is, "held_out"

A clip is in the list when training takes nothing of it: a clip of which one window is held out and another one is
trained on is not. Clips are in order, and a training that goes on writes the same bytes again. Stages generate.* go on
from these clips alone where their `held_out` names the training (hpc.data.upstream reads the list).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import storage
from hpc.data.upstream import columns_of, table
from hpc.train.samples import clips

FILE = "held_out.json"
NAMES = ("uuid", "source")
"""Columns by which tables of tokens name clips, the better one first. Those of actions have films alone."""


def of_samples(known: pa.Table, held: pa.Table) -> list[str]:
    """Of the two tables that hpc.train.samples.held_out makes."""
    return sorted(set(clips(held)) - set(clips(known)))


def of_tokens(rows: list[Any]) -> list[str]:
    """Of what train.ar was planned with: clips of all splits but train. None of tables that do not name their clips."""
    tables = rows[1:] if isinstance(rows[0], str) else [files[".parquet"] for files in rows]
    known, held = [pa.array([], pa.string())], [pa.array([], pa.string())]
    for uri in tables:
        there = columns_of(uri)
        if name := next((one for one in NAMES if {one, "split"} <= there), None):
            found = table(uri, [name, "split"])
            trained = pc.equal(found["split"], "train")
            known.append(pc.unique(found[name].filter(trained)))
            held.append(pc.unique(found[name].filter(pc.invert(trained))))
    some = pc.unique(pa.chunked_array(held))
    return sorted(some.filter(pc.invert(pc.is_in(some, value_set=pa.chunked_array(known)))).to_pylist())


def write(folder: Path, by: str, found: list[str]) -> None:
    """Into a training's folder, at once. by: what was held out together: clips, sources, or splits of the data set."""
    storage.put(str(folder / FILE), (json.dumps({"by": by, "clips": found}, indent=1) + "\n").encode())


def published(folder: Path, to: str) -> dict[str, Path]:
    """For a Work's tree."""
    return {storage.join(to, FILE): folder / FILE}
