"""What a layout wants beside the videos, made once for each shard of clips, and packed so that it can be copied.

A data set is in another order than the clips. So that a tar of it can be made from byte ranges alone, whatever layers
say of a clip (captions, text embeddings) is written here, shard by shard and each layer read once, in the form that the
layout has: <shard>.tar holds tar entries, <key>.json, <key>.pickle, ... side by side, and <shard>.parquet where they
lie, in which bin a clip belongs, and of what is left out the reason. (A clip with an entry for each of its windows
has as many of the same name, so that the .tar is not meant to be unpacked.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from hpc.curate import layouts, left_out
from hpc.curate.layouts import Entry, Sample, Window
from hpc.curate.settings import ShardMembers
from hpc.data import layers, storage, upstream
from hpc.data.upstream import columns_of, meta_of
from hpc.data.work import Made, Work

Shards = dict[str, list[tuple[str, dict[str, str]]]]
"""Stage -> (shard id, {suffix: uri}) of each of its shards."""

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the clip's uuid; where windows are files of their own, <uuid>_<start>_<end>
        ("uuid", pa.string()),
        ("source", pa.string()),
        ("etag", pa.string()),
        ("cameras", pa.list_(pa.struct([("source", pa.string()), ("etag", pa.string())]))),  # the others of a session
        ("why", pa.string()),  # it is left out; null for what is in the data set
        ("detail", pa.string()),
        ("bin", pa.string()),  # folder, "" for none
        ("start_frame", pa.int64()),  # of a video that is cut out of the clip's, both inclusive; null for all of it
        ("end_frame", pa.int64()),
        ("offset", pa.int64()),  # of the clip in its tar, all members, as in the clips' table
        ("size", pa.int64()),
        ("video_size", pa.int64()),  # of the first member, which begins at `offset`, with header and padding
        ("video_bytes", pa.int64()),
        ("rest_offset", pa.int64()),  # of what stands in the clip's tar behind its .json
        ("meta_offset", pa.int64()),  # of what is new, in this shard's tar
        ("json_size", pa.int64()),  # of the first of it, with header and padding
        ("more_size", pa.int64()),  # of the others
    ]
)
MALFORMED = "malformed_model_output"
OWN_SHARDS = ("a stage with shards of its own can be joined by its verdicts alone, and has the column max_id (string; "
              "null where there is none) beside uuid and verdict. One over the clips' shards has theirs")  # fmt: skip
CAPTIONS = ["uuid", "window", "start_frame", "end_frame", "caption", "status", "prompt_tokens", "output_tokens",
            "enhanced", "enhanced_status"]  # fmt: skip


def freeze(settings: ShardMembers, upstream: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """A shard for each shard of clips; its row is what each needed stage made for it: {stage: {suffix: uri}}.

    Stages with shards of their own (dedup, whose tables have `max_id`) are left for the tars, though their shards have
    the same names. Raises ValueError where no stage makes clips, and for tables about other clips than those of the
    shard that they are called after.
    """
    clips = clips_stage(upstream)
    others = {
        name: dict(shards)
        for name, shards in upstream.items()
        if name != clips and shards and not {"verdict", "max_id"} <= columns_of(shards[0][1].get(".parquet"))
    }
    for name, shards in others.items():
        if strange := sorted(shards.keys() - dict(upstream[clips]).keys()):
            raise ValueError(f"{name} has shards that {clips} has not, e.g. {strange[0]}: {OWN_SHARDS}")
    for shard, files in upstream[clips]:
        yield [{clips: files} | {name: shards[shard] for name, shards in others.items() if shard in shards}]


def clips_stage(upstream: Shards) -> str:
    """Of the stages, the one that makes clips. Raises ValueError."""
    for name, shards in upstream.items():
        if not shards or ({".tar", ".parquet"} <= shards[0][1].keys() and not is_members(shards[0][1])):
            return name
    made = {name: sorted(shards[0][1]) for name, shards in upstream.items()}
    raise ValueError(f"curate.shard needs a stage that makes .tar and .parquet, curate.clips; it has {made}")


def is_members(files: dict[str, str]) -> bool:
    """Is this a shard of what is made here?"""
    return ".parquet" in files and "meta_offset" in columns_of(files[".parquet"])


def start(settings: ShardMembers) -> Callable[[Work], Made]:
    def process(work: Work) -> Made:
        return make(settings, work)

    return process


def make(settings: ShardMembers, work: Work) -> Made:
    (objects,) = work.rows
    work.upstream = objects
    tar_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(entries=0)
    with tar_path.open("wb") as tar:
        for number, sample in enumerate(samples(settings, work)):
            work.check()
            work.progress(0.0, f"{number} clips")
            for entry in layouts.entries(sample, settings):
                rows.append(row(sample, entry, tar.tell()))
                counts.update(["dropped", f"dropped_{entry.why}"] if entry.why else ["entries"])
                if not entry.why:
                    for block in packed(entry, rows[-1]):
                        tar.write(block)
        tar.write(layers.END_OF_ARCHIVE)
    for one in judged(objects):
        rows.append(one)
        counts.update(["dropped", f"dropped_{one['why']}"])
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "layout": settings.layout, "made_of": objects}
    layers.write_table(table_path, rows, meta, SCHEMA)
    return Made([tar_path, table_path], {**counts, "bytes_out": tar_path.stat().st_size})


def row(sample: Sample, entry: Entry, at: int) -> dict[str, Any]:
    clip = sample.clip
    same = {"key": entry.key, **{name: clip[name] for name in ("uuid", *upstream.CURRENT, "offset", "size")}}
    if entry.why:
        return same | {"why": entry.why, "detail": entry.detail}
    blocks = -clip["mp4_size"] % layers.BLOCK
    return same | {
        "bin": entry.bin,
        "start_frame": entry.start,
        "end_frame": entry.end,
        "video_size": clip["mp4_offset"] + clip["mp4_size"] + blocks - clip["offset"],
        "video_bytes": clip["mp4_size"],
        "rest_offset": clip["webp_offset"] - layers.BLOCK,  # its header: a name of 41 letters needs no more
        "meta_offset": at,
    }


def judged(objects: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows of the clips that a layer over them drops: they are named among what is left out."""
    if found := left_out.judged(objects):
        table = upstream.table(upstream.clips_of(objects)[".parquet"], ["uuid", *upstream.CURRENT, "verdict"])
        for clip in table.to_pylist():
            if clip.pop("verdict") == upstream.KEEP and clip["uuid"] in found:
                yield clip | found[clip["uuid"]]


def packed(entry: Entry, row: dict[str, Any]) -> list[bytes]:
    """The members of an entry as tar entries; their sizes go into the row."""
    blocks = [layers.entry(entry.key, suffix, data) for suffix, data in entry.members.items()]
    sizes = [len(block) for block in blocks] or [0]
    row |= {"json_size": sizes[0], "more_size": sum(sizes[1:])}
    return blocks


def samples(settings: ShardMembers, work: Work) -> Iterator[Sample]:
    """The kept clips of a shard, with all that layers say of them. Raises ValueError for layers that do not fit."""
    made = upstream.clips_of(work.upstream)
    with storage.open(made[".parquet"]) as file:
        columns = layers.columns(file)
    tables = {name: objects[".parquet"] for name, objects in work.upstream.items() if objects is not made}
    names = {name: columns_of(uri) for name, uri in tables.items()}
    told = [captions(tables[name]) for name, has in names.items() if {"window", "caption"} <= has]
    texts = [embeddings(tables[name]) for name, has in names.items() if {"window", "embedding"} <= has]
    labelled = [labels(tables[name]) for name, has in names.items() if {"labels", "verdict"} <= has]
    if len(told) > 1 or len(texts) > 1:
        raise ValueError(f"`needs` has several layers of captions or of text embeddings: {', '.join(tables)}; name one")
    for name, has in names.items():
        if {"window", "embedding"} <= has and (field := meta_of(tables[name]).get("field", "")) != settings.field:
            raise ValueError(f"{name} embeds the field {field!r} of captions, and this stage takes {settings.field!r}: "
                             "write the same `field` for both")  # fmt: skip
    seen = judged_windows(work.upstream) if settings.layout in layouts.COSMOS else {}
    here = set(upstream.table(made[".parquet"], ["uuid"])["uuid"].to_pylist())
    for name, uri in tables.items():
        if "uuid" in names[name] and (strange := set(upstream.table(uri, ["uuid"])["uuid"].to_pylist()) - here):
            raise ValueError(f"{name}: shard {work.shard} is about {len(strange)} clips that are not in that shard of "
                             f"the clips, e.g. {sorted(strange)[0]}: {OWN_SHARDS}")  # fmt: skip
    for clip in upstream.clips(work, columns):
        windows = told[0].get(clip.uuid, []) if told else []
        for number, window in enumerate(windows):
            window.choose(settings.field)
            if texts and (array := texts[0].get((clip.uuid, number))) is not None:
                window.embedding = array()
        words = [word for one in labelled for word in one.get(clip.uuid) or ()]
        yield Sample(clip.row, clip.tar, windows, bool(told), bool(texts), words if labelled else None,
                     seen.get(clip.uuid, []))  # fmt: skip


def captions(uri: str) -> dict[str, list[Window]]:
    """The windows of each clip, in order."""
    found: dict[str, list[Window]] = {}
    have = columns_of(uri)
    table = upstream.table(uri, [name for name in CAPTIONS if name in have])
    for one in sorted(table.to_pylist(), key=lambda row: row["window"]):
        window = Window(
            one["start_frame"], one["end_frame"], one["caption"] or "", one.get("status") or "success",
            one.get("prompt_tokens") or 0, one.get("output_tokens") or 0,
            one.get("enhanced") if one.get("enhanced_status", "success") in layouts.USABLE else None,
        )  # fmt: skip
        found.setdefault(one["uuid"], []).append(window)
    return found


def embeddings(uri: str) -> Mapping[tuple[str, int], Callable[[], layouts.Arrays]]:
    """(uuid, window) -> how to get the array, so that one at a time is in memory beside the table."""
    table = upstream.table(uri, ["uuid", "window", "tokens", "embedding"])
    cells = table["embedding"].combine_chunks()
    if isinstance(cells, pa.ChunkedArray):
        cells = pa.concat_arrays(cells.chunks)
    found = {}
    keys = zip(*(table[name].to_pylist() for name in ("uuid", "window", "tokens")), strict=True)
    for i, (uuid, window, tokens) in enumerate(keys):
        found[uuid, window] = Cell(cells, i, tokens)
    return found


class Cell(msgspec.Struct):
    column: Any
    row: int
    tokens: int

    def __call__(self) -> layouts.Arrays:
        """float16 [tokens, width]."""
        return np.frombuffer(self.column[self.row].as_buffer(), "<f2").reshape(self.tokens, -1)


def judged_windows(objects: Mapping[str, Mapping[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """uuid -> `filtered_windows` of the clip's metadata, of all layers that judge windows (hpc.curate.judge).

    As cosmos_curate 29f1358: semantic_filter_postprocess.py: of a criterion or blocked label that a window has, "yes";
    of an allowed one that it has not, "no"; written as Python writes a dict. A later layer adds to what earlier ones
    said of the same window.
    """
    found: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for one in upstream.tables_of(objects):
        if not {"uuid", "verdict", "seen"} <= columns_of(one[".parquet"]):
            continue
        meta = meta_of(one[".parquet"])
        against = set(meta.get("block", meta.get("names", ())))
        for row in upstream.table(one[".parquet"], ["uuid", "seen"]).to_pylist():
            windows = found.setdefault(row["uuid"], {})
            for seen in row["seen"]:
                place = seen["start_frame"], seen["end_frame"]
                told = windows.setdefault(place, {"start_frame": place[0], "end_frame": place[1], "reasons": {}})
                if seen["status"] != "parsed":
                    told["errors"] = {"qwen": {"unparsed": MALFORMED}.get(seen["status"], seen["status"])}
                    continue
                told["reasons"] |= {name: "yes" for name in seen["yes"] if name in against}
                told["reasons"] |= {name: "no" for name in meta.get("allow", ()) if name not in seen["yes"]}
    for windows in found.values():
        for told in windows.values():
            reasons = told.pop("reasons")
            if reasons or "errors" not in told:
                told["qwen_rejection_reasons"] = str(reasons)
    return {uuid: list(windows.values()) for uuid, windows in found.items()}


def labels(uri: str) -> dict[str, list[str]]:
    table = upstream.table(uri, ["uuid", "labels"])
    return dict(zip(*(table[name].to_pylist() for name in ("uuid", "labels")), strict=True))
