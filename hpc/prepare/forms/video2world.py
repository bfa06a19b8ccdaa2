"""Tokens and prompts for the models of video from text and a first frame, as hpc.data.tokens.video2world has them:

    train_video_0.pt  train_prompt_0.pt  ...  test_*  val_*  metadata.json  000000.parquet

Each window is a sample; its place in the data set's order gives its split and its number, so that they do not depend
on how many tasks there were. A shard has samples of one shard of ids, and <shard>.parquet a row for each: its split and
number, the clip, the window, the words. Embeddings are made here, or are those of a stage curate.text_embed, or those
beside the clips in plain tars of curate.shard.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hpc.data import layers, pickles, storage, upstream
from hpc.data.shard_plan import unpacked
from hpc.data.tokens import CALLED, VOCABULARY
from hpc.data.tokens import video2world as form
from hpc.data.work import Made, Work
from hpc.models.t5 import Encoder, load_encoder
from hpc.prepare import documents, inputs
from hpc.prepare.documents import SCHEMA, Shards
from hpc.prepare.settings import Video2World

SAMPLES = 1000
"""Of a shard: a GiB of files."""
AT_ONCE = 50_000  # documents that are put in order at a time
COLUMNS = pa.schema(
    [("split", pa.string()), ("index", pa.int64()), ("prompt", pa.string()), ("prompt_tokens", pa.int32()),
     *(field for field in SCHEMA if field.name not in ("caption", "offset", "size", "why"))]
)  # fmt: skip
"""split: as the files are called."""
EMBEDDINGS = ["uuid", "window", "tokens", "embedding"]

Rows = list[dict[str, Any]]
"""Of documents.SCHEMA."""
Embedded = Iterator[tuple[int, npt.NDArray[np.float16]]]
"""(place in the rows, float16 [tokens, 1024]) of each that has an embedding, in any order."""


def freeze(settings: Video2World, stages: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """Raises ValueError as `documents.planned` does, for ids that the models have no room for, and where no encoder is
    named and no stage makes embeddings."""
    shards = documents.ids_of(stages)
    meta = upstream.meta_of(shards[0][1][".parquet"])
    if meta["vocabulary"] > VOCABULARY:
        raise ValueError(f"{meta['tokenizer']} has {meta['vocabulary']:,} ids, and {VOCABULARY:,} begins a video: take "
                         f"a tokenizer with {VOCABULARY:,} at most, such as DV8x16x16")  # fmt: skip
    tars = any(set(some[0][1]) == {".tar"} for some in stages.values() if some)  # of curate.shard
    made = {} if settings.text_encoder or tars else embeddings_of(stages)
    numbers = {files[".parquet"]: number for number, (_, files) in enumerate(shards)}
    rows, places = defaultdict(list), defaultdict(list)
    total = copies = 0
    for head, packed in documents.planned(stages, superseded, settings.hold_out, 2**62, AT_ONCE):
        total, copies = head["total"], copies + head["copies"]
        near = [numbers[files[".parquet"]] for files in head["tables"]]
        for place, record in enumerate(unpacked(packed)[["table", "row"]].tolist(), head["first"]):
            rows[near[record[0]]].append(record[1])
            places[near[record[0]]].append(place)
    for number in sorted(rows):
        for begin in range(0, len(rows[number]), SAMPLES):
            shard, files = shards[number]
            some = slice(begin, begin + SAMPLES)
            yield [{"ids": files, "embedded": made.get(shard), "rows": rows[number][some],
                    "places": places[number][some], "total": total, "copies": copies}]  # fmt: skip
            copies = 0


def embeddings_of(stages: Shards) -> dict[str, tuple[str, str]]:
    """Shard -> (table of embeddings, table of their windows). Raises ValueError where no stage makes them."""
    first = {name: shards[0][1] for name, shards in stages.items() if shards}
    what = "embeddings of captions (curate.text_embed), or name a text_encoder, which makes them here"
    texts = dict(stages[upstream.stage_with(first, EMBEDDINGS, what)])
    windows = dict(stages[upstream.stage_with(first, inputs.CAPTIONS, "captions")])
    return {shard: (files[".parquet"], windows[shard][".parquet"]) for shard, files in texts.items()
            if shard in windows}  # fmt: skip


def start(settings: Video2World) -> Callable[[Work], Made]:
    """Raises as `load_encoder` does, and ValueError for an encoder of another width."""
    return functools.partial(process, settings, encoder_of(settings), captions)


def encoder_of(settings: Video2World) -> Encoder | None:
    if settings.text_encoder is None:
        return None
    encoder = load_encoder(settings.text_encoder, settings.text_precision)
    if encoder.dim != form.WIDTH:
        raise ValueError(f"text_encoder: {settings.text_encoder} gives {encoder.dim} numbers a token, the models take "
                         f"{form.WIDTH}: T5-XXL (google-t5/t5-11b) has them")  # fmt: skip
    return encoder


def captions(rows: Rows) -> list[str]:
    return [(row["caption"] or "").strip() for row in rows]


def process(settings: Video2World, encoder: Encoder | None, words: Callable[[Rows], list[str]], work: Work) -> Made:
    """Make the files of some samples. words: the prompt of each row."""
    [task] = work.rows
    table = upstream.table(task["ids"][".parquet"])
    meta = upstream.meta_of(task["ids"][".parquet"])
    rows = table.take(pa.array(task["rows"])).to_pylist()
    prompts = words(rows)
    places = documents.splits(task["total"], settings.split)
    tree, began = {}, time.monotonic()
    for row, place in zip(rows, task["places"], strict=True):
        split = documents.split_of(place, task["total"], settings.split)
        row |= {"split": CALLED[split], "index": place - places[split].start, "prompt_tokens": 0}

    def publish(name: str, data: bytes) -> None:
        path = work.scratch / name
        path.write_bytes(data)
        tree[storage.join(work.folder, name)] = path

    def ids(row: dict[str, Any]) -> npt.NDArray[np.int32]:
        data = storage.read(task["ids"][".bin"], row["offset"], row["offset"] + row["size"])
        return np.frombuffer(data, "<i4").reshape(meta["shape"])

    for done, (row, found) in enumerate(zip(rows, layers.map_ahead(ids, rows), strict=True), 1):
        work.check()
        publish(form.names(row["split"], row["index"])[0], form.video(found))
        work.progress(done / len(rows) / 2, f"{done} of {len(rows)} videos")
    began, ids_seconds = time.monotonic(), time.monotonic() - began
    if encoder:
        made = encoded(encoder, prompts)
    else:
        tables = task["embedded"]
        made = taken(tables[0], tables[1], rows) if tables else beside(rows)
    for done, (i, array) in enumerate(made, 1):
        work.check()
        rows[i]["prompt_tokens"] = len(array)
        publish(form.names(rows[i]["split"], rows[i]["index"])[1], form.prompt(array))
        work.progress(0.5 + done / len(rows) / 2, f"{done} of {len(rows)} prompts")
    if any(prompts) and not any(row["prompt_tokens"] for row in rows):
        raise ValueError(f"not one of {len(rows)} windows has an embedding, e.g. of {rows[0]['media']}: embed the "
                         "captions of these clips (curate.text_embed), or name a text_encoder")  # fmt: skip
    for row in rows:
        if not row["prompt_tokens"]:
            publish(form.names(row["split"], row["index"])[1], form.prompt(None))
    prompts_seconds = time.monotonic() - began
    if 0 in task["places"]:
        publish(form.METADATA, form.metadata({CALLED[name]: len(some) for name, some in places.items()}))
        if empty := [CALLED[name] for name, some in places.items() if not some]:
            message = "%d samples by %s: none is for %s"
            logging.getLogger(__name__).warning(message, task["total"], settings.split, empty)
    lines = [{name: row.get(name) for name in COLUMNS.names} | {"prompt": said}
             for row, said in zip(rows, prompts, strict=True)]  # fmt: skip
    path = work.scratch / f"{work.shard}.parquet"
    about = {"stage": settings.KIND, "fingerprint": work.fingerprint, "split": settings.split,
             "text_encoder": settings.text_encoder}  # fmt: skip
    layers.write_table(path, lines, meta | about, COLUMNS)
    counts: dict[str, float] = {
        "samples": len(rows),
        "tokens": len(rows) * int(np.prod(meta["shape"])),
        "without_prompt": sum(not row["prompt_tokens"] for row in rows),
        "ids_seconds": ids_seconds,
        "prompts_seconds": prompts_seconds,
    }
    counts |= {f"samples_{name}": sum(row["split"] == name for row in rows) for name in CALLED.values()}
    if task["copies"]:
        counts |= {"dropped": task["copies"], "dropped_duplicate": task["copies"]}
    return Made([path], counts, tree=tree)


def encoded(encoder: Encoder, prompts: list[str]) -> Embedded:
    """Each prompt once, however many samples have it."""
    rows = defaultdict(list)
    for i, text in enumerate(prompts):
        rows[text].append(i)
    texts = list(rows)
    ids = [one if len(one) <= form.TOKENS else [*one[: form.TOKENS - 1], one[-1]] for one in encoder.tokens(texts)]
    for which, array in encoder.encode(ids):
        yield from ((i, array) for i in rows[texts[which]])


def taken(embeddings: str, windows: str, rows: Rows) -> Embedded:
    """Of tables of both. A sample has the embedding of the window that its first frame is in."""
    texts = upstream.table(embeddings, EMBEDDINGS)
    pairs = zip(*(texts[name].to_pylist() for name in ("uuid", "window")), strict=True)
    at = {pair: place for place, pair in enumerate(pairs)}
    spans = defaultdict(list)
    for one in upstream.table(windows, ["uuid", "window", "start_frame", "end_frame"]).to_pylist():
        spans[one["uuid"]].append(one)
    for i, row in enumerate(rows):
        for one in spans[row["uuid"]]:
            place = at.get((row["uuid"], one["window"]))
            if place is not None and one["start_frame"] <= row["start"] <= one["end_frame"]:
                tokens = texts["tokens"][place].as_py()
                yield i, np.frombuffer(texts["embedding"][place].as_py(), "<f2").reshape(tokens, -1)
                break


def beside(rows: Rows) -> Embedded:
    """Of the .pickle beside each clip in a plain tar: an array for each window of its .json that has words. Raises
    ValueError, naming the clip, for one that cannot be read."""
    tars = defaultdict(list)
    for i, row in enumerate(rows):
        tars[row["media"].rpartition("#")[0]].append(i)
    for tar, some in tars.items():
        entries = dict(inputs.indexed(tar))
        for i in some:
            row = rows[i]
            members = entries[row["media"].rpartition("#")[2].partition(".")[0]].members
            if not {".json", ".pickle"} <= members.keys():
                continue
            try:
                said, arrays = (read(storage.read(tar, place, place + size)) for read, (place, size) in
                                ((json.loads, members[".json"]), (pickles.loads, members[".pickle"])))  # fmt: skip
                windows = [one for one in said["windows"] if upstream.chosen(one)]
                if len(windows) == len(arrays):
                    yield from ((i, array) for one, array in zip(windows, arrays, strict=True)
                                if one["start_frame"] <= row["start"] <= one["end_frame"])  # fmt: skip
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"{row['media']}: its .json or .pickle: {error!r}") from error
