"""What a layer of columns is made from: the kept clips of a shard, in the order of their tar, and their videos.

A stage over clips needs the stage that made them, and may need stages that judge them too (tables with the columns
`uuid` and `verdict`): clips that one of those dropped are passed over.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from hpc.data import layers, storage
from hpc.data.work import Work

KEEP = "keep"
"""The verdict of a clip, or of a layer about it, that lets it stay."""
USABLE = ("success", "truncated")
"""Of a caption's status: there are words."""
CURRENT = ("source", "etag", "cameras")
"""Columns that say which inputs a clip was made of."""


class Clip(msgspec.Struct, frozen=True):
    """A kept clip."""

    uuid: str
    row: dict[str, Any]
    """The columns that were asked for, of the clips' table."""
    tar: str
    offset: int
    """Of its .mp4 in the tar, bytes."""
    size: int


def clips(work: Work, columns: Sequence[str] = ()) -> list[Clip]:
    """The kept clips of a shard. Raises ValueError where `needs` names no stage that makes clips."""
    made = clips_of(work.upstream)
    wanted = ["uuid", "verdict", "mp4_offset", "mp4_size"]
    rows = table(made[".parquet"], list(dict.fromkeys([*wanted, *columns]))).to_pylist()
    gone = {uuid for objects in tables_of(work.upstream) for uuid in dropped(objects[".parquet"])}
    return [
        Clip(row["uuid"], row, made[".tar"], row["mp4_offset"], row["mp4_size"])
        for row in rows
        if row["verdict"] == KEEP and row["uuid"] not in gone
    ]


def videos(clips: Sequence[Clip]) -> Iterator[tuple[Clip, bytes]]:
    """Each clip with its .mp4; the next ones are read meanwhile, a few at a time."""
    return layers.map_ahead(lambda one: (one, storage.read(one.tar, one.offset, one.offset + one.size)), clips)


def current(table: pa.Table, superseded: Collection[tuple[str, str]]) -> pa.Table:
    """Without what was made of inputs, of any camera, that were replaced since. Where there are such inputs, the table
    needs the columns of CURRENT."""
    if not superseded:
        return table
    rows = zip(*(table[name].to_pylist() for name in CURRENT), strict=True)
    stay = [
        (source, etag) not in superseded
        and not any((other["source"], other["etag"]) in superseded for other in cameras or ())
        for source, etag, cameras in rows
    ]
    return table.filter(pa.array(stay, pa.bool_()))


def clips_of(upstream: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    """{".tar": uri, ".parquet": uri} of the needed stage that makes clips. Raises ValueError."""
    for objects in upstream.values():
        if {".tar", ".parquet"} <= objects.keys():
            return objects
    raise ValueError(f"this stage works on clips: add the stage that makes them to `needs` (it has {list(upstream)})")


def tables_of(upstream: Mapping[str, Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The objects of each needed stage that makes a table and no clips."""
    return [objects for objects in upstream.values() if ".parquet" in objects and ".tar" not in objects]


def stage_with(upstream: Mapping[str, Mapping[str, str]], columns: Collection[str], what: str) -> str:
    """The name of the needed stage whose table has these columns. Raises ValueError where there is none, or several."""
    found = []
    for name, objects in upstream.items():
        if ".tar" not in objects and set(columns) <= columns_of(objects.get(".parquet")):
            found.append(name)
    if len(found) > 1:
        raise ValueError(f"`needs` names {len(found)} stages that make {what}: {', '.join(found)}; keep one of them")
    if not found:
        words = f"this stage looks at {what}: add the stage that makes them to `needs`"
        raise ValueError(f"{words} (it has {list(upstream)})")
    return found[0]


def table(uri: str, columns: list[str] | None = None) -> pa.Table:
    with storage.open(uri) as file:
        return layers.read_table(file, columns)


def columns_of(uri: str | None) -> set[str]:
    """The names of a table's columns; none of no table."""
    if uri is None:
        return set()
    with storage.open(uri) as file:
        return set(layers.columns(file))


def meta_of(uri: str) -> dict[str, Any]:
    """What a table says of itself."""
    with storage.open(uri) as file:
        return layers.read_meta(file)


def dropped(uri: str) -> set[str]:
    """Uuids that a layer's verdict drops; none if it has no verdicts."""
    if not {"uuid", "verdict"} <= columns_of(uri):
        return set()
    judged = table(uri, ["uuid", "verdict"])
    return {uuid for uuid, verdict in zip(*(judged[name].to_pylist() for name in ("uuid", "verdict")), strict=True)
            if verdict != KEEP}  # fmt: skip


def trained(shards: Iterable[tuple[str, Mapping[str, str]]], what: str) -> dict[str, Any]:
    """What a stage that trains says of itself; `what` it has made is one of its keys, a folder. Raises ValueError."""
    [(_, objects)] = shards
    told = json.loads(storage.read(objects[".json"]))
    if not isinstance(told, dict) or what not in told:
        raise ValueError(f"{objects['.json']} names no {what}: the stage in `needs` trains something else")
    return told


def held_out(shards: Iterable[tuple[str, Mapping[str, str]]], stage: str) -> tuple[str, set[str]]:
    """(uri of the list, uuids) of the clips that a stage has trained without. Raises ValueError where it does not say,
    or held nothing out."""
    uris = [uri for _, objects in shards if ".json" in objects
            if (uri := json.loads(storage.read(objects[".json"])).get("held_out"))]  # fmt: skip
    if not uris:
        raise ValueError(f"held_out: {stage} does not say which clips it held out: stages of kinds train.ar and "
                         "train.diffusion do, but for those that an earlier version of hpc has trained")  # fmt: skip
    if not (found := listed(uris[0])):
        advice = "give train.diffusion a `validation` with a share above 0, the tokens of train.ar a `split` with one"
        raise ValueError(f"held_out: {stage} held no clips out ({uris[0]}): {advice}")
    return uris[0], found


def listed(uri: str) -> set[str]:
    """The clips of a training's held_out.json."""
    return set(json.loads(storage.read(uri))["clips"])


class Located(msgspec.Struct, frozen=True):
    """A video in a tar of a stage."""

    name: str
    """The uuid of a clip, the name of a generated video; of other tars its key."""
    uri: str
    offset: int = 0
    size: int = -1
    """Bytes in the tar."""
    beside: tuple[int, int] | None = None
    """(offset, size) of the .json with it, of tars alone."""
    why: str = ""
    """It is not there: a word, and maybe more after a colon."""
    held_out: str = ""
    """Of generated ones: the list of a training's held-out clips, with the one that it goes on from."""


def located(
    shards: Iterable[tuple[str, Mapping[str, str]]], superseded: Collection[tuple[str, str]], suffixes: tuple[str, ...]
) -> Iterator[Located]:
    """The videos of a stage: of tables with where each lies in the tar beside them, without what is dropped or made of
    inputs that were replaced, or of tars alone, whose members with such suffixes are videos. Raises ValueError."""

    def look(files: Mapping[str, str]) -> list[Located]:
        if ".tar" not in files:
            raise ValueError(f"videos are in tars; a stage in `needs` makes {', '.join(files)}: name one that makes "
                             "clips, a plain data set, or generates videos")  # fmt: skip
        has = columns_of(files.get(".parquet"))
        if "mp4_offset" not in has:
            return list(of_tar(files[".tar"], suffixes))
        rows = table(files[".parquet"])
        if "cameras" in has:
            rows = current(rows, superseded)
        return [_of_row(row, files[".tar"]) for row in rows.to_pylist() if row.get("verdict", KEEP) == KEEP]

    for found in layers.map_ahead(look, (files for _, files in shards)):
        yield from found


def _of_row(row: Mapping[str, Any], tar: str) -> Located:
    name = row.get("uuid") or row["name"]
    if row["mp4_offset"] is None:
        why = f"not-made: {row.get('why') or 'its row has no video'}"
        return Located(name, tar, why=why, held_out=row.get("held_out") or "")
    return Located(name, tar, row["mp4_offset"], row["mp4_size"], held_out=row.get("held_out") or "")


def of_tar(uri: str, suffixes: tuple[str, ...], etag: str | None = None) -> Iterator[Located]:
    """Each member that is a video, by its name without suffix; a tar that breaks off is one video that is not there."""
    try:
        with storage.open(uri, etag) as file:
            for key, entry in layers.index(file):
                for suffix, (offset, size) in entry.members.items():
                    if suffix.lower().endswith(suffixes):
                        name = key + suffix.rpartition(".")[0]
                        yield Located(name, uri, offset, size, entry.members.get(".json"))
    except layers.TornTar as error:
        yield Located(posixpath.splitext(uri.rpartition("/")[2])[0], uri, why=f"torn-tar: {error}")


def chosen(row: Mapping[str, Any], field: str = "best") -> str:
    """The words of a caption's window: the enhanced caption where there is one (best), the first one, or only enhanced
    ones; "" for none. Blank ones are none: before the better caption is chosen."""
    enhanced = (row.get("enhanced") or "").strip() if row.get("enhanced_status", "success") in USABLE else ""
    caption = (row.get("caption") or "").strip() if row.get("status", "success") in USABLE else ""
    return {"best": enhanced or caption, "caption": caption, "enhanced": enhanced}[field]
