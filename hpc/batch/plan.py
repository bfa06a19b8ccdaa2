"""From what is there and what is missing to rows of shards, arrays of rows, and how they depend on one another.

Pure. A *domain* is a set of shards that stages share: "inputs", or the name of a barrier stage, which plans its own.
Within the domain "inputs", shards that miss the same stages form a *group*: a chain of arrays of the same width,
row i of one waiting for row i of the one before (aftercorr). A first attempt is one group; a retry is a few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import msgspec

from hpc.batch.ledger import Shard
from hpc.batch.spec import Resources

LEAST_SECONDS = 0.02
LONGEST_SHARE = 0.8
"""Packing plans array tasks of at most this share of their time limit."""


class Row(msgspec.Struct, array_like=True, frozen=True):
    """What one array task does, in order. `row` is its number in the plan."""

    row: int
    shards: list[RowShard]


class RowShard(msgspec.Struct, array_like=True, frozen=True):
    id: str
    items: list = []
    """Items for shards of inputs; what the barrier planned for others."""


class Chunk(msgspec.Struct, frozen=True):
    """Rows first_row .. first_row + tasks - 1: one array (per stage) with indices 0 .. tasks - 1."""

    first_row: int
    tasks: int


class Group(msgspec.Struct, frozen=True):
    """Shards that miss the same stages."""

    stages: tuple[str, ...]
    """In the order of the chain."""
    shards: int
    memory: float
    """Factors for this attempt: what failed for memory or time gets more."""
    time: float
    chunks: tuple[Chunk, ...]
    task_seconds: float
    """Expected duration of one task of the slowest stage."""


def shard_seconds(shard: Shard, seconds_per_gib: float, workers: int) -> float:
    """Expected time that a shard adds to its array task. Even an empty one costs a little."""
    return max(sum(item.size / item.parts for item in shard.items) / 2**30 * seconds_per_gib, LEAST_SECONDS) / workers


def pack(weights: Sequence[float], target: float, limit: float, max_tasks: int) -> list[tuple[int, int]]:
    """Cut a list of shards (by expected seconds each) into rows [first, last) of about `target` seconds.

    If that makes more rows than max_tasks, rows grow, up to `limit` seconds; what is left over goes into more arrays.
    Consecutive shards stay together and every row has one at least.
    """
    if not weights:
        return []
    total = sum(weights) * (1 - 1e-9)  # so that equal weights, whose sums round either way, make equal rows
    rows = max(1, math.ceil(total / target))
    if rows > max_tasks:
        rows = max(max_tasks, math.ceil(total / limit))
    rows = min(rows, len(weights))
    out: list[tuple[int, int]] = []
    first, done = 0, 0.0
    for i, w in enumerate(weights):
        done += w
        left_shards, left_rows = len(weights) - i - 1, rows - len(out) - 1
        if i + 1 == len(weights) or left_shards == left_rows or (left_rows and done >= total * (len(out) + 1) / rows):
            out.append((first, i + 1))
            first = i + 1
    return out


def chunks(rows: int, first_row: int, max_array_size: int) -> tuple[Chunk, ...]:
    """Split rows into arrays whose indices start at 0 and stay below the site's limit, as equal as can be."""
    if rows == 0:
        return ()
    count = math.ceil(rows / max_array_size)
    bounds = [rows * i // count for i in range(count + 1)]
    return tuple(Chunk(first_row + a, b - a) for a, b in itertools.pairwise(bounds))


def group(
    shards: Iterable[Shard],
    missing: dict[str, tuple[str, ...]],
    boosts: dict[str, tuple[float, float]],
    seconds_per_gib: dict[str, float],
    resources: dict[str, Resources],
    task_seconds: float,
    max_array_size: int,
    cores: int | None = None,
) -> tuple[list[Group], list[Row]]:
    """All rows of an attempt for the domain "inputs".

    missing: shard -> stages to do, in chain order (shards that miss nothing are not in it). boosts: shard -> (memory,
    time) factors where an earlier failure asks for more. The slowest stage decides how many shards make a row.
    cores: of this machine, for a local run: no more rows than they need to be busy.
    """
    keyed: dict[tuple, list[Shard]] = {}
    for shard in shards:
        stages = missing.get(shard.id)
        if stages:
            keyed.setdefault((stages, boosts.get(shard.id, (1.0, 1.0))), []).append(shard)
    groups: list[Group] = []
    rows: list[Row] = []
    for (stages, (memory, time)), members in sorted(keyed.items(), key=lambda kv: (-len(kv[0][0]), kv[0])):
        slowest = max(stages, key=lambda s: seconds_per_gib[s] / resources[s].workers)
        rate, r = seconds_per_gib[slowest], resources[slowest]
        seconds = [shard_seconds(shard, rate, r.workers) for shard in members]
        limit = LONGEST_SHARE * time * min(resources[s].time for s in stages)
        target = min(task_seconds, limit)
        if cores:
            target = min(limit, sum(seconds) / max(1, cores // (r.cpus * r.workers)) + LEAST_SECONDS / 2)
        cuts = pack(seconds, target, limit, max_array_size)
        first = len(rows)
        rows += [Row(first + i, [RowShard(s.id, s.items) for s in members[a:b]]) for i, (a, b) in enumerate(cuts)]
        groups.append(
            Group(stages, len(members), memory, time, chunks(len(cuts), first, max_array_size),
                  max(sum(seconds[a:b]) for a, b in cuts))
        )  # fmt: skip
    return groups, rows
