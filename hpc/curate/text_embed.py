"""Captions -> embeddings of their words: one row for each window that has a caption, as a table beside the captions.

An embedding is the float16 array [tokens, dim] of an encoder of the T5 family, as bytes, little endian, in C order:

    np.frombuffer(row["embedding"], "<f2").reshape(row["tokens"], -1)

hpc.data.pickles makes of it what a data set's reader wants.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from hpc.curate.settings.text_embed import TextEmbed
from hpc.data import layers, upstream
from hpc.data.work import Made, Work
from hpc.models.t5 import Encoder, load_encoder

SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("window", pa.int32()),
        ("tokens", pa.int32()),
        ("embedding", pa.large_binary()),  # a shard's may be more than 2 GiB
    ]
)
COLUMNS = ["uuid", "window", "caption", "status", "enhanced", "enhanced_status"]


def start(settings: TextEmbed) -> Callable[[Work], Made]:
    """Raises as `load_encoder` does."""
    return functools.partial(process, settings, load_encoder(settings.model, settings.precision))


def process(settings: TextEmbed, encoder: Encoder, work: Work) -> Made:
    """Make one shard."""
    began = time.monotonic()
    windows = captions(work.upstream)
    said = [(row, words) for row in windows if (words := upstream.chosen(row, settings.field))]
    ids = encoder.tokens([words for _, words in said])
    cut = [one if len(one) <= settings.max_length else [*one[: settings.max_length - 1], one[-1]] for one in ids]
    rows: list[dict[str, Any]] = [{"uuid": row["uuid"], "window": row["window"]} for row, _ in said]
    waited, began = time.monotonic() - began, time.monotonic()
    for done, (i, array) in enumerate(encoder.encode(cut), 1):
        work.check()
        rows[i] |= {"tokens": len(array), "embedding": array.astype("<f2").tobytes()}
        work.progress(done / len(rows), f"{done} of {len(rows)} captions")
    counts = {
        "windows": len(windows),
        "embedded": len(rows),
        "without_caption": len(windows) - len(rows),
        "cut": sum(len(one) > settings.max_length for one in ids),
        "tokens": sum(map(len, cut)),
        "data_wait_seconds": waited,
        "model_seconds": time.monotonic() - began,
    }
    path = work.scratch / f"{work.shard}.parquet"
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "model": settings.model,
            "revision": encoder.revision, "dim": encoder.dim, "max_length": settings.max_length,
            "field": settings.field}  # fmt: skip
    layers.write_table(path, rows, meta, SCHEMA)
    return Made([path], counts)


def captions(stages: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """The rows of the needed stage that makes captions, without those of clips that another one drops. Raises
    ValueError where `needs` names no such stage, or two."""
    told = stages[upstream.stage_with(stages, COLUMNS, "captions")][".parquet"]
    gone = {uuid for other in upstream.tables_of(stages) for uuid in upstream.dropped(other[".parquet"])}
    return [row for row in upstream.table(told, COLUMNS).to_pylist() if row["uuid"] not in gone]
