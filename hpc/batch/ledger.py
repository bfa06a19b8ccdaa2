"""Which shard holds which inputs, and which folder holds which version of a stage: kept with the output, never changed.

    <output>/_hpc/shards/000001.jsonl    generation 1: one line a shard, [id, [item, ...]]; new inputs make generation 2
    <output>/_hpc/runs/<run>.json        a pointer to each run that writes here, so that its records are found
    <output>/<stage>@v1/_stage.json      what the stage was when this folder was begun: its fingerprint, its settings

Everything is published exclusively: of two planners at once, the second is told to plan again.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hpc.data import storage
from hpc.data.work import Item

T = TypeVar("T")

HOME = "_hpc"
GAP = 3
"""Version numbers without a folder after which no further one is looked for."""
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


class Grown(ValueError):
    """A session of several cameras has changed since it was planned."""


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
           weights: dict[str, float] | None = None,
           sessions: dict[str, tuple[str, str]] | None = None,
           captions: dict[str, str] | None = None) -> list[Shard]:  # fmt: skip
    """New shards for the entries that the ledger does not know (by uri and etag). Pure.

    Inputs larger than `split_above` become spans of about `size`, each a shard. The others are dealt out, heaviest
    first, always to the lightest shard; so shards differ by one input at most, whatever order the listing had.
    weights: uri -> work, in the units of size, where more is known than bytes. sessions: uri -> (session, camera); a
    session is dealt out whole, however large. captions: uri -> what a list says of it. Raises Grown.
    """
    known = {(item.uri, item.etag) for shard in ledger.shards for item in shard.items}
    fresh = sorted((e for e in entries if not known or (e.uri, e.etag) not in known), key=lambda e: e.uri)
    weight = (lambda e: (weights or {}).get(e.uri, e.size)) if weights else (lambda e: e.size)
    shards: list[list[Item]] = []
    if sessions:
        together: dict[str, list[storage.Entry]] = {}
        for e in fresh:
            if e.uri in sessions:
                together.setdefault(sessions[e.uri][0], []).append(e)
        _refuse_grown(ledger, together)
        bins = _deal(list(together.values()), lambda es: sum(map(weight, es)), lambda es: sessions[es[0].uri][0], size)
        shards += [[Item(e.uri, e.size, e.etag, 0, 1, *sessions[e.uri]) for es in b for e in es] for b in bins]
        fresh = [e for e in fresh if e.uri not in sessions]
    spans: list[list[Item]] = []
    small: list[storage.Entry] = []
    for e in fresh:
        work = weight(e)
        if work > split_above:
            parts = -(-int(work) // size)
            spans.extend([Item(e.uri, e.size, e.etag, part, parts)] for part in range(parts))
        else:
            small.append(e)
    shards += [[Item(e.uri, e.size, e.etag) for e in b] for b in _deal(small, weight, lambda e: e.uri, size)]
    if captions:
        words = captions.get
        shards, spans = ([[msgspec.structs.replace(i, caption=words(i.uri, "")) for i in some] for some in all_of_them]
                         for all_of_them in (shards, spans))  # fmt: skip
    first = int(ledger.shards[-1].id) + 1 if ledger.shards else 0
    return [Shard(f"{first + i:06}", items) for i, items in enumerate(shards + spans)]


def _deal(things: list[T], weight: Callable[[T], float], name: Callable[[T], str], size: int) -> list[list[T]]:
    """Into bins of about `size`: heaviest first, always to the lightest bin; sorted by name."""
    if not things:
        return []
    total = sum(map(weight, things))
    count = min(len(things), max(1, round(total / size), -(-len(things) // MAX_ITEMS)))
    bins: list[list[T]] = [[] for _ in range(count)]
    heap = [(0.0, 0, i) for i in range(count)]  # (work, things, bin): ties go to the bin with fewer things
    for thing in sorted(things, key=lambda x: (-weight(x), name(x))):
        work, held, i = heap[0]
        bins[i].append(thing)
        if held + 1 < MAX_ITEMS:
            heapq.heapreplace(heap, (work + max(weight(thing), 1), held + 1, i))
        else:
            heapq.heappop(heap)
    for b in bins:
        b.sort(key=name)
    bins.sort(key=lambda b: name(b[0]))
    return bins


def _refuse_grown(ledger: Ledger, sessions: dict[str, list[storage.Entry]]) -> None:
    """A session whose clips are there already cannot get another camera."""
    there = {item.session for shard in ledger.shards for item in shard.items}
    for session, entries in sessions.items():
        if session in there:
            raise Grown(
                f"{session}: {entries[0].uri} is new or was replaced, but this session was planned without it, and its "
                "clips may be there. Give the whole session a new name, or choose another output"
            )


def encode(shards: list[Shard]) -> bytes:
    return msgspec.json.Encoder().encode_lines(shards)


def commit(output: str, generation: int, shards: Path) -> None:
    """Publish a new generation of shards. Raises Conflict."""
    uri = storage.join(output, HOME, "shards", f"{generation:06}.jsonl")
    storage.put_new(uri, shards)
    if storage.read(uri) != shards.read_bytes():  # looked at also when it was new: some stores let two be first
        raise Conflict(f"{uri} was published by another plan in between: run the same command again")


def superseded(shards: Iterable[Shard], listed: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """(uri, etag) of inputs of these shards that are listed no more, as they are: replaced, deleted, beyond a limit.

    What is made of whole data sets leaves their clips out.
    """
    return {(item.uri, item.etag) for shard in shards for item in shard.items} - listed


def register(output: str, folder: Path) -> None:
    """Leave a pointer to a run folder. Two folders may be runs of one spec: the pointer's name tells them apart."""
    name = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}.json"
    storage.put(storage.join(output, HOME, "runs", name), msgspec.json.encode(Pointer(str(folder))))


def runs(output: str) -> tuple[list[Path], list[Path]]:
    """Folders of all runs that wrote to this output: those that can be reached from here, and those that can't."""
    pointers = storage.listing(storage.join(output, HOME, "runs"))
    folders = sorted(Path(msgspec.json.decode(storage.read(e.uri), type=Pointer).run) for e in pointers)
    return [f for f in folders if f.is_dir()], [f for f in folders if not f.is_dir()]


def version(output: str, stage: str, fingerprint: str) -> tuple[str, bool]:
    """The folder for a stage with this fingerprint, and whether it exists: an earlier version's, or the next free."""
    n, last = 1, 0
    while n <= last + GAP:  # somebody may have deleted an old version: look past it
        folder = storage.join(output, f"{stage}@v{n}")
        info = info_of(folder)
        if info is not None:
            last = n
            if info.fingerprint == fingerprint:
                return folder, True
        n += 1
    return storage.join(output, f"{stage}@v{last + 1}"), False


def info_of(folder: str) -> StageInfo | None:
    try:
        return msgspec.json.decode(storage.read(storage.join(folder, "_stage.json")), type=StageInfo)
    except FileNotFoundError:
        return None


def claim(folder: str, info: StageInfo) -> None:
    """Begin a version folder. Raises Conflict if it was begun with other settings."""
    uri = storage.join(folder, "_stage.json")
    storage.put_new(uri, msgspec.json.format(msgspec.json.encode(info), indent=1))
    there = info_of(folder)
    if there is None or there.fingerprint != info.fingerprint:
        raise Conflict(f"{folder} was begun with other settings by another run in between: try again")
