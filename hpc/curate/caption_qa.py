"""Which captions of a data set are no good, and why: the last part of curate.caption_qa.

It looks at the tables of the part before, one after the other, twice: once for lengths and for the hashes of words,
which are spilled into files by their first bits and counted file by file; then for the rows that are flagged. Memory
holds a few tables, one of those files, and 12 bytes for each caption that comes too often: 100 M windows or 1 M, alike.

<shard>.parquet has a row for each window that is flagged, <shard>.json what there is to be said of all of them, with
examples. Of clips that `drop` names the verdict is "caption_qa"; all other rows have "keep".

An input that was replaced has captions of two versions, which tables of captions do not tell apart: only a clip's row
says which input it was made of. So name the stage of clips in `needs` too where inputs may be replaced; without it the
captions of both are looked at, and count as repeated where they say the same.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpc.curate.caption_check import CAPTIONS
from hpc.curate.settings.caption_qa import CaptionFind, Flag
from hpc.data import layers
from hpc.data import upstream as needed
from hpc.data.upstream import KEEP
from hpc.data.work import Made, Work

Place = tuple[int, int]
"""Number of a table, and of a row in it."""
Upstream = dict[str, list[tuple[str, dict[str, str]]]]
VERDICT = "caption_qa"
SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("window", pa.int32()),
        ("verdict", pa.string()),  # "keep" or "caption_qa"
        ("reasons", pa.list_(pa.string())),  # the flags that drop the clip
        ("flags", pa.list_(pa.string())),
        ("detail", pa.string()),
    ]
)
FLAGS: tuple[str, ...] = get_args(Flag)
FILES = 64  # of spilled hashes: of 100 M windows 12.5 MB each
LONGEST = 4096  # words; longer captions count as that long
FEWEST = 30  # captions, below which no length is unusual
LEAST_DEVIATION = 0.1  # of the logarithm of lengths: 10 %
SHOWN = 400  # characters of an example
OFTEN = 20  # captions that come too often, which the summary names


class Source(NamedTuple):
    """A shard of captions: uris of its tables."""

    captions: str
    check: str
    clips: str
    """"": not among the needs."""


class Limits(NamedTuple):
    median: float
    short: int
    """Words: fewer are unusual."""
    long: int
    """More are."""


def freeze(
    settings: CaptionFind, upstream: Upstream, superseded: set[tuple[str, str]]
) -> Iterator[list[dict[str, Any]]]:
    """One shard: {"sources": Source..., "superseded": [source, etag]...}. Raises ValueError."""
    first = {name: shards[0][1] for name, shards in upstream.items() if shards}
    tables = []
    for columns, what in ((CAPTIONS, "captions"), (("uuid", "hash", "flags"), "what was checked of captions")):
        tables.append(dict(upstream[needed.stage_with(first, columns, what)]))
    captions, checks = tables
    clips = next((dict(upstream[name]) for name, made in first.items() if {".tar", ".parquet"} <= made.keys()), {})
    sources = [
        Source(captions[shard][".parquet"], made[".parquet"], clips.get(shard, {}).get(".parquet", ""))
        for shard, made in checks.items()
        if shard in captions
    ]
    yield [{"sources": sources, "superseded": sorted(superseded) if clips else []}]


def start(settings: CaptionFind) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: CaptionFind, work: Work) -> Made:
    sources = [Source(*one) for one in work.rows[0]["sources"]]
    stale = {(source, etag) for source, etag in work.rows[0]["superseded"]}
    lengths, windows = spill(sources, stale, work)
    tally = Tally(settings, usual(lengths, settings.length), *count(work, settings.repeated))
    path = work.scratch / f"{work.shard}.parquet"
    meta = {"stage": VERDICT, "fingerprint": work.fingerprint, "drop": list(settings.drop), "windows": windows}
    schema = SCHEMA.with_metadata({"hpc": json.dumps(meta, sort_keys=True)})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for at, found in enumerate(layers.map_ahead(lambda one: table(one.check, one, stale), sources)):
            work.check()
            work.progress(0.5 + 0.5 * at / len(sources), f"{at} of {len(sources)} tables")
            if rows := tally.take(at, found):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    summary = tally.summary(windows, lengths, sources, stale)
    told = work.scratch / f"{work.shard}.json"
    told.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Made([path, told], {"windows": windows, **tally.counts()})


def table(uri: str, source: Source, stale: set[tuple[str, str]], columns: Sequence[str] = ()) -> pa.Table:
    """One of a shard's tables of windows, without those of clips whose inputs were replaced since."""
    found = needed.table(uri, list(dict.fromkeys(["uuid", *columns])) if columns else None)
    if not stale:
        return found
    clips = needed.current(needed.table(source.clips, ["uuid", *needed.CURRENT]), stale)
    return found.filter(pc.is_in(found["uuid"], clips["uuid"].combine_chunks()))


def spill(sources: Sequence[Source], stale: set[tuple[str, str]], work: Work) -> tuple[npt.NDArray[np.int64], int]:
    """Captions by their number of words, and how many windows there are; hashes go into files of the scratch folder."""
    lengths, windows = np.zeros(LONGEST + 1, np.int64), 0
    files = [(work.scratch / f"hashes-{number}").open("wb", buffering=1 << 16) for number in range(FILES)]
    tables = layers.map_ahead(lambda one: table(one.check, one, stale, ["hash", "words"]), sources)
    try:
        for at, found in enumerate(tables):
            work.check()
            work.progress(0.5 * at / len(sources), f"{at} of {len(sources)} tables, first look")
            words, hashes = found["words"].to_numpy(), found["hash"].to_numpy()
            windows += len(words)
            lengths += np.bincount(np.minimum(words[words > 0], LONGEST), minlength=LONGEST + 1)
            hashes = np.sort(hashes[hashes != 0])
            cuts = np.searchsorted(hashes >> np.uint64(58), np.arange(FILES + 1))  # 58: the first 6 bits of 64
            for file, (begin, end) in zip(files, itertools.pairwise(cuts), strict=True):
                file.write(hashes[begin:end].tobytes())
    finally:
        for file in files:
            file.close()
    return lengths, windows


def usual(lengths: npt.NDArray[np.int64], deviations: float) -> Limits:
    """From lengths by their number: the median, and what is far off it, as a logarithm."""
    total = int(lengths.sum())
    if total < FEWEST:
        return Limits(0.0, 0, LONGEST)
    logs = np.log(np.arange(1, LONGEST + 1))
    weights = lengths[1:]
    median = logs[np.searchsorted(weights.cumsum(), (total + 1) // 2)]
    distance = np.abs(logs - median)
    order = np.argsort(distance, kind="stable")
    spread = distance[order][np.searchsorted(weights[order].cumsum(), (total + 1) // 2)]
    far = deviations * max(1.4826 * float(spread), LEAST_DEVIATION)
    return Limits(round(math.exp(median), 1), math.ceil(math.exp(median - far)), math.floor(math.exp(median + far)))


def count(work: Work, least: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """(hash, how often) of the captions that come at least so often, by hash."""
    found = []
    for number in range(FILES):  # in the order of the hashes
        work.check()
        path = work.scratch / f"hashes-{number}"
        hashes, times = np.unique(np.fromfile(path, np.uint64), return_counts=True)
        path.unlink()
        found.append((hashes[times >= least], times[times >= least].astype(np.uint32)))
    return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


class Tally:
    """What is found, table by table: rows to write, counts, and examples, evenly over the data set."""

    def __init__(
        self, settings: CaptionFind, limits: Limits, often: npt.NDArray[np.uint64], times: npt.NDArray[np.uint32]
    ) -> None:
        """often, times: captions that come too often, sorted by their hash, and how often they do."""
        self.settings, self.limits, self.often, self.times = settings, limits, often, times
        self.top = np.argsort(-times.astype(np.int64), kind="stable")[:OFTEN]
        self.first: dict[int, Place] = {}
        """Of the most frequent: hash -> where it was first seen."""
        self.examples: dict[str, list[tuple[int, Place, dict[str, Any]]]] = {}
        """Flag -> (order, place, row) of those with the least order, which is a hash of their names."""
        self.flags: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.flagged = self.clips = 0

    def take(self, at: int, found: pa.Table) -> list[dict[str, Any]]:
        """The rows of the windows of table number `at` that have a flag."""
        hashes, words = found["hash"].to_numpy(), found["words"].to_numpy()
        place, often = np.searchsorted(self.often, hashes), np.zeros(len(hashes), bool)
        if len(self.often):
            often = self.often[np.minimum(place, len(self.often) - 1)] == hashes
        for row in np.flatnonzero(np.isin(hashes, self.often[self.top])):
            self.first.setdefault(int(hashes[row]), (at, int(row)))
        short, long = (words > 0) & (words < self.limits.short), words > self.limits.long
        chosen = np.flatnonzero(often | short | long | pc.greater(pc.list_value_length(found["flags"]), 0).to_numpy())
        out = []
        for number, row in zip(chosen.tolist(), found.take(pa.array(chosen, pa.int64())).to_pylist(), strict=True):
            flags, detail = row["flags"], [row["detail"]] if row["detail"] else []
            if often[number]:
                flags.append("repeated")
                detail.append(f"repeated: {self.times[place[number]]} windows have these words")
            if short[number] or long[number]:
                flags.append("short" if short[number] else "long")
                detail.append(f"{flags[-1]}: {words[number]} words, the median is {self.limits.median:g}")
            reasons = [flag for flag in FLAGS if flag in flags and flag in self.settings.drop]
            out.append({"uuid": row["uuid"], "window": row["window"], "verdict": VERDICT if reasons else KEEP,
                        "reasons": reasons, "flags": flags, "detail": "; ".join(detail)})  # fmt: skip
            for flag in flags:
                self.note(flag, (at, number), out[-1])
        self.flagged += len(out)
        self.languages.update(found["language"].to_pylist())
        if self.settings.drop:
            gone = {row["uuid"]: row["reasons"][0] for row in reversed(out) if row["reasons"]}
            self.dropped.update(gone.values())
            self.clips += len(pc.unique(found["uuid"])) - len(gone)
        return out

    def note(self, flag: str, place: Place, row: dict[str, Any]) -> None:
        self.flags[flag] += 1
        order = zlib.crc32(f"{row['uuid']}/{row['window']}".encode())
        taken = self.examples.setdefault(flag, [])
        if len(taken) < self.settings.examples or (taken and order < taken[-1][0]):
            taken.append((order, place, row))
            taken.sort(key=lambda one: one[:2])
            del taken[self.settings.examples :]

    def counts(self) -> dict[str, float]:
        found: dict[str, float] = {"flagged": self.flagged} | {f"{flag}_captions": n for flag, n in self.flags.items()}
        if self.settings.drop:
            found |= {"clips": self.clips, "dropped": self.dropped.total()}
            found |= {f"dropped_{why}": n for why, n in self.dropped.items()}
        return found

    def summary(
        self, windows: int, lengths: npt.NDArray[np.int64], sources: Sequence[Source], stale: set[tuple[str, str]]
    ) -> dict[str, Any]:
        """sources: in the order in which their tables were taken."""
        wanted = [place for taken in self.examples.values() for _, place, _ in taken]
        texts = texts_at([*wanted, *self.first.values()], sources, stale, self.settings.field)
        return {
            "windows": windows,
            "flagged": self.flagged,
            "flags": {flag: self.flags[flag] for flag in FLAGS if self.flags[flag]},
            "languages": {name or "not told": n for name, n in self.languages.most_common()},
            "words": {"median": self.limits.median, "short_below": self.limits.short, "long_above": self.limits.long,
                      "histogram": binned(lengths)},
            "repeated": [
                {"caption": texts[self.first[int(self.often[at])]], "windows": int(self.times[at])} for at in self.top
            ],
            "examples": {
                flag: [
                    {"uuid": row["uuid"], "window": row["window"], "caption": texts[place], "detail": row["detail"]}
                    for _, place, row in self.examples[flag]
                ]
                for flag in FLAGS
                if flag in self.examples
            },
        }  # fmt: skip


def texts_at(
    places: Sequence[Place], sources: Sequence[Source], stale: set[tuple[str, str]], field: str
) -> dict[Place, str]:
    """The captions at these places, cut short."""
    found = {}
    for at in sorted({at for at, _ in places}):
        texts = table(sources[at].captions, sources[at], stale, [field])[field]
        for row in {row for number, row in places if number == at}:
            text = texts[row].as_py() or ""
            found[at, row] = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return found


def binned(lengths: npt.NDArray[np.int64]) -> dict[str, int]:
    """Captions by words, in steps of a factor of two: {"1-1": n, "2-3": n, "4-7": n, ...}."""
    bins = {}
    for power in range(LONGEST.bit_length()):
        if n := int(lengths[2**power : 2 ** (power + 1)].sum()):
            bins[f"{2**power}-{2 ** (power + 1) - 1}"] = n
    return bins


def findings(shards: Mapping[str, Callable[[str], BinaryIO]]) -> list[dict[str, Any]]:
    """For the report: [{"word", "count", "of", "examples": [...]}], a flag each."""
    out = []
    for open_object in shards.values():
        with open_object(".json") as file:
            summary = json.load(file)
        for flag, n in summary["flags"].items():
            examples = [
                f"{one['uuid']} window {one['window']}: {one['caption'] or '(no caption)'}"
                + (f" [{one['detail']}]" if one["detail"] else "")
                for one in summary["examples"].get(flag, ())
            ]
            out.append({"word": flag, "count": n, "of": summary["windows"], "examples": examples})
    return out
