"""Which shard holds which inputs, and which folder holds which version of a stage: kept with the output, never changed.

    <output>/_hpc/shards/000001.jsonl    generation 1: one line a shard, [id, [item, ...]]; new inputs make generation 2
    <output>/_hpc/runs/<run>.json        a pointer to each run that writes here, so that its records are found
    <output>/<stage>@v1/_stage.json      what the stage was when this folder was begun: its fingerprint, its settings

Everything is published exclusively: of two planners at once, the second is told to plan again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from hpc.data import storage
from hpc.data.work import Item

HOME = "_hpc"
MAX_ITEMS = 10_000
"""Inputs in one shard at most: a row of the plan stays readable, and a shard stays minutes of work."""


class Shard(msgspec.Struct, array_like=True, frozen=True):
    id: str
    items: list[Item]


class Ledger(msgspec.Struct):
    """All shards of an output, in the order of their ids."""

    shards: list[Shard]
    generation: int
    """The newest one; 0 if there is none yet."""


class Pointer(msgspec.Struct, frozen=True):
    run: str
    """Absolute path of the run folder."""


class StageInfo(msgspec.Struct, frozen=True):
    """_stage.json: the identity card of one version of a stage's output."""

    stage: str
    kind: str
    fingerprint: str
    settings: Any
    objects: tuple[str, ...]
    frozen: str = ""
    """What a barrier froze: digest of the exact list of shards that this version was made from."""


class Conflict(Exception):
    """Somebody else planned for the same output in between."""


_line = msgspec.json.Decoder(Shard)


def load(output: str) -> Ledger:
    shards: list[Shard] = []
    generation = 0
    while True:
        try:
            data = storage.read(storage.join(output, HOME, "shards", f"{generation + 1:06}.jsonl"))
        except FileNotFoundError:
            return Ledger(shards, generation)
        shards.extend(_line.decode_lines(data))
        generation += 1


def assign(ledger: Ledger, entries: Iterable[storage.Entry], size: int, split_above: int,
           weights: dict[str, float] | None = None) -> list[Shard]:  # fmt: skip
    """New shards for the entries that the ledger does not know (by uri and etag). Pure.

    Inputs larger than `split_above` become spans of about `size`, each a shard. The others are dealt out, heaviest
    first, always to the lightest shard; so shards differ by one input at most, whatever order the listing had.
    weights: uri -> work, in the units of size, where more is known than bytes.
    """
    known = {(item.uri, item.etag) for shard in ledger.shards for item in shard.items}
    fresh = sorted((e for e in entries if not known or (e.uri, e.etag) not in known), key=lambda e: e.uri)
    weight = (lambda e: (weights or {}).get(e.uri, e.size)) if weights else (lambda e: e.size)
    spans: list[list[Item]] = []
    small: list[storage.Entry] = []
    for e in fresh:
        work = weight(e)
        if work > split_above:
            parts = -(-int(work) // size)
            spans.extend([Item(e.uri, e.size, e.etag, part, parts)] for part in range(parts))
        else:
            small.append(e)
    bins: list[list[Item]] = []
    if small:
        total = sum(map(weight, small))
        count = min(len(small), max(1, round(total / size), -(-len(small) // MAX_ITEMS)))
        bins = [[] for _ in range(count)]
        heap = [(0.0, 0, i) for i in range(count)]  # (work, inputs, bin): ties go to the bin with fewer inputs
        for e in sorted(small, key=lambda e: (-weight(e), e.uri)):
            work, items, i = heap[0]
            bins[i].append(Item(e.uri, e.size, e.etag))
            if items + 1 < MAX_ITEMS:
                heapq.heapreplace(heap, (work + max(weight(e), 1), items + 1, i))
            else:
                heapq.heappop(heap)
        for b in bins:
            b.sort(key=lambda item: item.uri)
        bins.sort(key=lambda b: b[0].uri)
    first = int(ledger.shards[-1].id) + 1 if ledger.shards else 0
    return [Shard(f"{first + i:06}", items) for i, items in enumerate(bins + spans)]


def encode(shards: list[Shard]) -> bytes:
    return msgspec.json.Encoder().encode_lines(shards)


def commit(output: str, generation: int, shards: Path) -> None:
    """Publish a new generation of shards. Raises Conflict."""
    uri = storage.join(output, HOME, "shards", f"{generation:06}.jsonl")
    if not storage.put_new(uri, shards) and storage.read(uri) != shards.read_bytes():
        raise Conflict(f"{uri} was published by another plan in between: run the same command again")


def superseded(shards: Iterable[Shard]) -> set[tuple[str, str]]:
    """(uri, etag) of inputs that were replaced: the same uri stands in a later shard with another etag."""
    newest: dict[str, str] = {}
    old = set()
    for shard in shards:
        for item in shard.items:
            before = newest.get(item.uri)
            if before is not None and before != item.etag:
                old.add((item.uri, before))
            newest[item.uri] = item.etag
    return {(uri, etag) for uri, etag in old if newest[uri] != etag}


def register(output: str, run_id: str, folder: Path) -> None:
    storage.put(storage.join(output, HOME, "runs", f"{run_id}.json"), msgspec.json.encode(Pointer(str(folder))))


def runs(output: str) -> list[Path]:
    """Folders of all runs that wrote to this output and can still be reached."""
    found = []
    for entry in storage.listing(storage.join(output, HOME, "runs")):
        folder = Path(msgspec.json.decode(storage.read(entry.uri), type=Pointer).run)
        if folder.is_dir():
            found.append(folder)
    return sorted(found)


def version(output: str, stage: str, fingerprint: str) -> tuple[str, bool]:
    """The folder for a stage with this fingerprint, and whether it exists: an earlier version's, or the next free."""
    n = 1
    while True:
        folder = storage.join(output, f"{stage}@v{n}")
        info = info_of(folder)
        if info is None or info.fingerprint == fingerprint:
            return folder, info is not None
        n += 1


def info_of(folder: str) -> StageInfo | None:
    try:
        return msgspec.json.decode(storage.read(storage.join(folder, "_stage.json")), type=StageInfo)
    except FileNotFoundError:
        return None


def claim(folder: str, info: StageInfo) -> None:
    """Begin a version folder. Raises Conflict if it was begun with other settings."""
    uri = storage.join(folder, "_stage.json")
    if not storage.put_new(uri, msgspec.json.format(msgspec.json.encode(info), indent=1)):
        there = info_of(folder)
        if there is None or there.fingerprint != info.fingerprint:
            raise Conflict(f"{folder} was begun with other settings by another run in between: try again")
