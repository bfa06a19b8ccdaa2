"""The scores that filters wrote into the tables of a run: histograms, what limits keep, which limits to take.

Read from a sample of shards spread over the run, columns only. A clip counts if the filters saw it: it was kept, or a
filter dropped it (those that the split dropped, "short" and the like, were not measured).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hpc.curate.settings.filters import FILTERS, INFINITY, Filter, Filters, Score
from hpc.data import layers
from hpc.data.units import Seconds

Shards = dict[str, Callable[[str], BinaryIO]]
"""Shard -> open_object(suffix), which opens the shard's object with that suffix."""
Values = npt.NDArray[np.float64]

ALL = (-INFINITY, INFINITY)
SAMPLE = 200  # shards at most: some ten thousand clips, a few seconds
GIVE_UP = 5  # tables that cannot be read, when no other could: the storage is out of reach
BINS = 48
SHARES = (0.99, 0.95, 0.9, 0.8, 0.5)
EXAMPLES = 6  # clips on each side of a proposed threshold
BEYOND = 5  # clips that must lie beyond a threshold for it to be worth anything


class Limit(msgspec.Struct):
    """One side of what a filter keeps, and the setting that says where it is."""

    filter: str
    setting: str
    column: str
    side: str
    """min: what is below is dropped. max: what is above."""
    now: float | None
    """None: no limit."""
    keeps: float
    """Share of the measured clips that `now` keeps."""
    thresholds: list[tuple[float, float]]
    """(threshold, share of the measured clips that it keeps): the strictest that keep at least SHARES."""


class Histogram(msgspec.Struct):
    filter: str
    mode: str
    column: str
    words: str
    low: float
    high: float
    log: bool
    bins: list[int]
    """Clips, from low to high; what lies outside is in the first and the last one."""
    measured: int
    """Clips that have this score."""
    clips: int
    median: float | None
    limits: list[Limit]


class Sampled(msgspec.Struct):
    """What numbers rest on."""

    shards: int
    of: int
    """Shards that are done."""
    clips: int
    unreadable: list[str]
    """Of the sample: which table, and why."""


class Summary(msgspec.Struct):
    sampled: Sampled
    histograms: list[Histogram]


class Example(msgspec.Struct):
    """A clip near a threshold."""

    uuid: str
    source: str
    start_seconds: float
    end_seconds: float
    score: float
    shard: str
    webp: tuple[int, int] | None
    """(offset, size) of its thumbnail in the shard's tar; a dropped clip has none."""


class Proposal(msgspec.Struct):
    limit: Limit
    words: str
    value: float | None
    """None: the present limit keeps the wanted share, and no threshold that drops some clips does."""
    text: str
    """As in a spec, e.g. "2.5s"."""
    keeps: float
    gap: float | None
    """Where few clips lie between two heaps of them, if there is such a place."""
    gap_keeps: float
    dropped: list[Example]
    """The clips right beyond the threshold, the nearest first."""
    kept: list[Example]


class Calibration(msgspec.Struct):
    sampled: Sampled
    keep: float
    keeps_now: float
    """Share of the clips that all present limits together keep, whatever the mode."""
    keeps: float
    """Share of the clips that all proposals together keep."""
    proposals: list[Proposal]
    histograms: list[Histogram]
    yaml: str
    """The block `filter: {...}` with the proposals."""


def summary(filters: Filters, shards: Shards) -> Summary | None:
    """What the report shows; None if no filter measures anything."""
    if not filters.named():
        return None
    table, sampled = read(filters, shards, [])
    return Summary(sampled, histograms(filters, table))


def calibrate(filters: Filters, shards: Shards, keep: float) -> Calibration:
    """Thresholds that each keep at least the share `keep` of the clips. Raises ValueError if there are no filters, or
    too few clips."""
    if not filters.named():
        raise ValueError("the spec names no filter: name some, e.g. filter: {motion: {mode: score-only}}")
    facts = ["uuid", "source", "member", "start_seconds", "end_seconds", "webp_offset", "webp_size"]
    table, sampled = read(filters, shards, facts)
    least = max(30, math.ceil(BEYOND / (1 - keep) - 1e-9))
    if table.num_rows < least:
        bad = sampled.unreadable
        raise ValueError(
            f"{table.num_rows} clips with scores, in {sampled.shards} of {sampled.of} shards, are too few to tell a "
            f"threshold that keeps {keep:.4g}: it takes {least}; score more of the data, with mode: score-only"
            + (f"; {len(bad)} tables cannot be read: {bad[0]}" if bad else "")
        )
    shown = histograms(filters, table)
    proposals = [propose(table, one.words, limit, filters, keep) for one in shown for limit in one.limits]
    return Calibration(
        sampled=sampled, keep=keep, proposals=proposals, histograms=shown, yaml=block(filters, proposals),
        keeps_now=together(table, [(p.limit, p.limit.now) for p in proposals]),
        keeps=together(table, [(p.limit, p.value if p.value is not None else p.limit.now) for p in proposals]),
    )  # fmt: skip


def read(filters: Filters, shards: Shards, facts: list[str]) -> tuple[pa.Table, Sampled]:
    """The named filters' columns, "verdict", `facts` and "shard" of the clips that the filters saw."""
    columns = [column for name in filters.named() for column in FILTERS[name].SCORES]
    names = list(shards)
    chosen = [names[k * len(names) // min(SAMPLE, len(names))] for k in range(min(SAMPLE, len(names)))]

    def one(shard: str) -> pa.Table | str:
        try:
            with shards[shard](".parquet") as file:
                table = layers.read_table(file, ["verdict", *columns, *facts])
            return table.append_column("shard", pa.array([shard] * table.num_rows, pa.string()))
        except Exception as error:  # whatever is wrong with a table, the rest of the run is worth looking at
            return f"{shard}.parquet: {type(error).__name__}: {error}"

    tables: list[pa.Table] = []
    unreadable: list[str] = []
    for found in layers.map_ahead(one, chosen):
        if isinstance(found, str):
            unreadable.append(found)
        else:
            tables.append(found)
        if len(unreadable) >= GIVE_UP and not tables:
            break
    empty = pa.table({name: pa.array([], pa.float64()) for name in columns} | {"verdict": pa.array([], pa.string())})
    table = pa.concat_tables(tables) if tables else empty
    seen = np.isin(table["verdict"].to_pylist(), ["keep", *FILTERS])
    table = table.filter(pa.array(seen.astype(bool)))
    return table, Sampled(len(tables), len(names), table.num_rows, unreadable)


def values(table: pa.Table, column: str) -> Values:
    """One for each clip; nan: not measured."""
    return np.array(table[column].to_numpy(), np.float64)


def histograms(filters: Filters, table: pa.Table) -> list[Histogram]:
    """One for each score of the filters that are named."""
    found = []
    for name, one in filters.named().items():
        for column, score in one.SCORES.items():
            known = np.sort(values(table, column))
            known = known[~np.isnan(known)]
            found.append(
                Histogram(
                    filter=name, mode=one.mode, column=column, words=score.words, low=score.low, high=score.high,
                    log=score.log, bins=counted(known, score), measured=len(known), clips=table.num_rows,
                    median=float(np.median(known)) if len(known) else None, limits=limits(name, one, column, known),
                )
            )  # fmt: skip
    return found


def counted(known: Values, score: Score, bins: int = BINS) -> list[int]:
    at = scaled(known, score)
    low, high = scaled(np.array([score.low, score.high]), score)
    return np.bincount(np.clip((at - low) / (high - low) * bins, 0, bins - 1).astype(int), minlength=bins).tolist()


def scaled(numbers: Values, score: Score) -> Values:
    return np.log10(np.maximum(numbers, score.low)) if score.log else numbers


def limits(name: str, one: Filter, column: str, known: Values) -> list[Limit]:
    """Of one score: the sides that a setting moves. known: sorted."""
    found = []
    for (moved, side), setting in settings_of(one).items():
        if moved == column:
            now = one.limits().get(column, ALL)[side]
            strictest = [value for share in SHARES if (value := threshold(known, side, share)) is not None]
            found.append(
                Limit(
                    filter=name, setting=setting, column=column, side=("min", "max")[side],
                    now=float(now) if abs(now) < INFINITY else None, keeps=share_kept(known, side, now),
                    thresholds=[(value, share_kept(known, side, value)) for value in dict.fromkeys(strictest)],
                )
            )  # fmt: skip
    return found


def settings_of(one: Filter) -> dict[tuple[str, int], str]:
    """(column, 0 for the least or 1 for the most that is kept) -> the setting that says it: found by moving each."""
    before, found = one.limits(), {}
    for setting in one.__struct_fields__:
        value = getattr(one, setting)
        if setting == "mode" or isinstance(value, bool) or not isinstance(value, int | float | None):
            continue
        moved = (value or 0.0) * 1.001 + 1e-7
        try:
            after = msgspec.structs.replace(one, **{setting: moved}).limits()
        except ValueError:  # the check of two settings against each other: the other way
            moved = (value or 0.0) * 0.999 - 1e-7
            after = msgspec.structs.replace(one, **{setting: moved}).limits()
        for column, pair in after.items():
            for side in (0, 1):
                if pair[side] == moved != before.get(column, ALL)[side]:
                    found[column, side] = setting
    return found


def share_kept(known: Values, side: int, limit: float) -> float:
    """known: sorted."""
    if not len(known):
        return 1.0
    if side == 0:
        return 1 - int(np.searchsorted(known, limit, "left")) / len(known)
    return int(np.searchsorted(known, limit, "right")) / len(known)


def threshold(known: Values, side: int, share: float) -> float | None:
    """The strictest that keeps at least this share, in as few digits as tell it from the clips around it; None if every
    one that drops a clip keeps less. known: sorted."""
    spare = int(len(known) * (1 - share) + 1e-9)
    if not len(known) or not spare:
        return None
    if side == 0:
        kept = known[spare]
        beyond = known[: np.searchsorted(known, kept, "left")]
        return rounded(float(beyond[-1]), float(kept)) if len(beyond) else None
    kept = known[-1 - spare]
    beyond = known[np.searchsorted(known, kept, "right") :]
    return rounded(float(beyond[0]), float(kept)) if len(beyond) else None


def rounded(beyond: float, kept: float) -> float:
    """A number of few digits around the middle of `kept` and `beyond`, but not `beyond` itself."""
    low, high = min(beyond, kept), max(beyond, kept)
    for digits in range(1, 17):
        number = float(f"{(low + high) / 2:.{digits}g}")
        if low <= number <= high and number != beyond:
            return number
    return kept


def loosest(known: Values, side: int) -> float | None:
    """A limit of few digits that keeps every clip. known: sorted."""
    if not len(known) or not (end := float(known[-1] if side else known[0])):
        return 0.0 if len(known) else None
    step = 10.0 ** (math.floor(math.log10(abs(end))) - 2)
    return float(f"{step * (math.ceil(end / step) if side else math.floor(end / step)):.3g}")


def propose(table: pa.Table, words: str, limit: Limit, filters: Filters, keep: float) -> Proposal:
    numbers = values(table, limit.column)
    known = np.sort(numbers[~np.isnan(numbers)])
    side = ("min", "max").index(limit.side)
    value = threshold(known, side, keep)
    if value is None and limit.keeps < keep:  # then none is dropped
        value = loosest(known, side)
    now = getattr(getattr(filters, limit.filter), limit.setting)
    if isinstance(now, int) and value is not None:
        value = float(math.ceil(value) if side == 0 else math.floor(value))  # no whole number changes side by it
    at = gap(known, FILTERS[limit.filter].SCORES[limit.column])
    near: tuple[list[Example], list[Example]] = ([], [])
    if value is not None:
        order = np.argsort(np.abs(numbers - value), kind="stable")[: len(known)]  # nan: last
        out = numbers < value if side == 0 else numbers > value
        for examples, wanted in zip(near, (out, ~out), strict=True):
            examples += [example(table, int(n), float(numbers[n])) for n in order[wanted[order]][:EXAMPLES]]
    return Proposal(
        limit=limit, words=words, value=value, text=written(value, now), dropped=near[0], kept=near[1],
        keeps=share_kept(known, side, value) if value is not None else limit.keeps,
        gap=at, gap_keeps=share_kept(known, side, at) if at is not None else 1.0,
    )  # fmt: skip


def example(table: pa.Table, row: int, score: float) -> Example:
    one = table.slice(row, 1).to_pylist()[0]
    return Example(
        uuid=one["uuid"], source=one["source"] + (f"#{one['member']}" if one["member"] else ""),
        start_seconds=one["start_seconds"], end_seconds=one["end_seconds"], score=score, shard=one["shard"],
        webp=(one["webp_offset"], one["webp_size"]) if one["webp_size"] else None,
    )  # fmt: skip


def gap(known: Values, score: Score) -> float | None:
    """The valley between two heaps of clips, on the score's own scale; None if there is only one heap.

    The place where a smoothed histogram falls deepest below the lower of the peaks on its two sides: to less than half
    of it, and by more than chance does (three standard deviations of the counts). known: sorted.
    """
    at = scaled(known, score)
    if len(at) < 2 * BEYOND or at[0] == at[-1]:
        return None
    heights, edges = np.histogram(at, 64, (float(at[0]), float(at[-1])))
    smooth = np.convolve(np.pad(heights.astype(float), 3), [1, 2, 3, 4, 3, 2, 1], "valid") / 4  # sums of 4 bins' worth
    left, right = np.maximum.accumulate(smooth), np.maximum.accumulate(smooth[::-1])[::-1]
    lower = np.minimum(left, right)
    depth = lower - smooth
    deepest = np.flatnonzero(depth >= depth.max() - 1e-9)
    valley = deepest[len(deepest) // 2]
    if smooth[valley] >= lower[valley] / 2 or depth[valley] < 3 * math.sqrt(lower[valley] + smooth[valley]):
        return None
    middle = float(edges[valley] + edges[valley + 1]) / 2
    split = int(np.searchsorted(at, middle))
    return rounded(float(known[split - 1]), float(known[split]))


def together(table: pa.Table, bounds: list[tuple[Limit, float | None]]) -> float:
    """Share of the clips that break none of these limits; what was not measured breaks none."""
    broken = np.zeros(table.num_rows, bool)
    for limit, value in bounds:
        if value is not None:
            numbers = values(table, limit.column)
            broken |= numbers < value if limit.side == "min" else numbers > value
    return 1 - int(broken.sum()) / table.num_rows


def written(value: float | None, now: Any) -> str:
    """As in a spec."""
    if value is None:
        return ""
    return np.format_float_positional(value, trim="-") + ("s" if isinstance(now, Seconds) else "")


def block(filters: Filters, proposals: list[Proposal]) -> str:
    """YAML: every filter that is named, with its settings as they are, the proposals in their place, enabled."""
    lines = ["filter:"]
    for name, one in filters.named().items():
        new = {p.limit.setting: p.text for p in proposals if p.limit.filter == name and p.value is not None}
        kind = type(one)()
        old = {
            setting: written(value, value) if type(value) in (int, float, Seconds) else json.dumps(value)
            for setting in one.__struct_fields__
            if setting != "mode" and (value := getattr(one, setting)) != getattr(kind, setting)
        }
        inside = ", ".join(f"{setting}: {text}" for setting, text in (old | new).items())
        lines.append(f"  {name}: {{{inside}}}")
    return "\n".join(lines) + "\n"
