"""Packing: whatever the weights, every shard stands in exactly one row, and rows and arrays keep to their limits."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.batch import plan
from hpc.batch.ledger import Shard
from hpc.batch.spec import Resources
from hpc.data.units import Seconds
from hpc.data.work import Item

SECONDS = st.lists(st.floats(0.001, 1e5), min_size=1, max_size=300)


@settings(deadline=None)
@given(SECONDS, st.floats(0.01, 1e5), st.floats(1, 50), st.integers(1, 400))
def test_pack(weights: list[float], target: float, above: float, most: int) -> None:
    limit = target * above
    cuts = plan.pack(weights, target, limit, most)
    assert cuts == plan.pack(list(weights), target, limit, most)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(weights)
    assert all(a < b for a, b in cuts), "an empty row"
    assert all(before[1] == after[0] for before, after in pairwise(cuts)), "rows overlap or leave shards out"
    total = sum(weights)
    if total / most <= limit:
        assert len(cuts) <= most
    else:
        assert len(cuts) <= total / limit + 1
    even = total / len(cuts) + max(weights)
    assert all(sum(weights[a:b]) <= even * (1 + 1e-9) for a, b in cuts), "a row is longer than it need be"


def test_pack_nothing() -> None:
    assert plan.pack([], 10, 100, 5) == []


@pytest.mark.parametrize(
    ("weights", "target", "limit", "most", "cuts"),
    [
        ([1] * 6, 2, 9, 99, [(0, 2), (2, 4), (4, 6)]),
        ([1] * 6, 2, 9, 2, [(0, 3), (3, 6)]),  # rows grow rather than become more than an array has
        ([5] * 6, 5, 5, 2, [(i, i + 1) for i in range(6)]),  # they can't grow: more arrays
        ([9, 1, 1, 1], 3, 9, 99, [(0, 1), (1, 2), (2, 3), (3, 4)]),  # a heavy one first does not starve the rest
        ([1, 1, 1, 9], 6, 99, 99, [(0, 3), (3, 4)]),
        ([7], 1, 1, 1, [(0, 1)]),
        ([0.02] * 6, 0.07, 9, 99, [(0, 3), (3, 6)]),  # 3 x 0.02 < 0.12 / 2 in floating point
        ([0.1] * 30, 0.3, 9, 99, [(i, i + 3) for i in range(0, 30, 3)]),
    ],
)
def test_pack_examples(weights: list[float], target: float, limit: float, most: int, cuts: list) -> None:
    assert plan.pack(weights, target, limit, most) == cuts


@settings(deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 500), st.integers(1, 1001))
def test_chunks(rows: int, first: int, limit: int) -> None:
    made = plan.chunks(rows, first, limit)
    assert [row for c in made for row in range(c.first_row, c.first_row + c.tasks)] == list(range(first, first + rows))
    assert all(0 < c.tasks <= limit for c in made), "array indices are 0..tasks-1 and must stay below the limit"
    assert len(made) == -(-rows // limit), "more arrays than needed"
    assert not made or max(c.tasks for c in made) - min(c.tasks for c in made) <= 1


def shards(count: int, gib: float = 1.0) -> list[Shard]:
    return [Shard(f"{i:06}", [Item(f"/in/{i}", int(gib * 2**30), "e")]) for i in range(count)]


def grouped(members: list[Shard], missing: dict, boosts: dict | None = None, rates: dict | None = None,
            resources: dict | None = None, task: float = 60.0, most: int = 1001) -> tuple:  # fmt: skip
    rates = rates or {"a": 1.0, "b": 1.0}
    resources = resources or dict.fromkeys(rates, Resources(time=Seconds(3600)))
    return plan.group(members, missing, boosts or {}, rates, resources, task, most)


@settings(deadline=None)
@given(st.data())
def test_group(data: st.DataObject) -> None:
    """Every missing shard is in exactly one row, of the group that misses the same stages; rows count through."""
    members = [Shard(f"{i:06}", [Item(f"/in/{i}", size, "e", 0, parts)]) for i, (size, parts) in enumerate(
        data.draw(st.lists(st.tuples(st.integers(0, 2**36), st.integers(1, 3)), max_size=120)))]  # fmt: skip
    wanted = st.sampled_from([(), ("a",), ("b",), ("a", "b")])
    missing = {s.id: stages for s in members if (stages := data.draw(wanted))}
    boosts = {s: (2.0, 1.0) for s in missing if data.draw(st.integers(0, 5)) == 0}
    most = data.draw(st.integers(1, 30))
    groups, rows = grouped(members, missing, boosts, {"a": 10.0, "b": 100.0}, task=600.0, most=most)
    assert (groups, rows) == grouped(list(members), dict(missing), dict(boosts), {"a": 10.0, "b": 100.0}, task=600.0,
                                     most=most)  # fmt: skip
    assert [row.row for row in rows] == list(range(len(rows)))
    assert sorted(s.id for row in rows for s in row.shards) == sorted(missing)
    chunks = [(group, chunk) for group in groups for chunk in group.chunks]
    assert [row for _, c in chunks for row in range(c.first_row, c.first_row + c.tasks)] == list(range(len(rows)))
    for group, chunk in chunks:
        assert chunk.tasks <= most
        for row in rows[chunk.first_row : chunk.first_row + chunk.tasks]:
            assert row.shards
            for shard in row.shards:
                assert missing[shard.id] == group.stages
                assert boosts.get(shard.id, (1.0, 1.0)) == (group.memory, group.time)
                assert shard.items == members[int(shard.id)].items
    assert sum(group.shards for group in groups) == len(missing)


def test_the_slowest_stage_decides() -> None:
    members = shards(60)
    both = {s.id: ("a", "b") for s in members}
    resources = {"a": Resources(time=Seconds(36_000)), "b": Resources(time=Seconds(36_000), workers=4)}
    for rates, rows in (({"a": 10.0, "b": 10.0}, 10), ({"a": 1.0, "b": 40.0}, 10), ({"a": 1.0, "b": 4.0}, 1)):
        [group], made = grouped(members, both, rates=rates, resources=resources)
        assert len(made) == rows, rates
        assert group.task_seconds == pytest.approx(60)


def test_rows_stay_within_the_time_limit() -> None:
    """Whatever the target, packing leaves a fifth of the shortest stage's time limit unused."""
    members = shards(100)
    both = {s.id: ("a", "b") for s in members}
    resources = {"a": Resources(time=Seconds(3600)), "b": Resources(time=Seconds(600))}
    [group], rows = grouped(members, both, rates={"a": 60.0, "b": 1.0}, resources=resources, task=1e9)
    assert max(len(row.shards) for row in rows) * 60 <= 480 and group.task_seconds <= 480
    [group], rows = grouped(members, both, dict.fromkeys(both, (1.0, 2.0)), {"a": 60.0, "b": 1.0}, resources, 1e9)
    assert group.time == 2 and 480 < group.task_seconds <= 960


def test_no_more_rows_than_the_machine_has_room_for() -> None:
    members = shards(40, gib=0.0)
    one = {s.id: ("a",) for s in members}
    resources = {"a": Resources(cpus=2)}
    _, rows = plan.group(members, one, {}, {"a": 1.0}, resources, 60.0, 1001, 8)
    assert len(rows) == 4
    _, rows = plan.group(members, one, {}, {"a": 1.0}, resources, 60.0, 1001, 1)
    assert len(rows) == 1


def test_a_group_that_misses_more_comes_first() -> None:
    members = shards(4)
    groups, rows = grouped(members, {"000000": ("b",), "000001": ("a", "b"), "000002": ("b",)})
    assert [(g.stages, g.shards) for g in groups] == [(("a", "b"), 1), (("b",), 2)]
    assert [[s.id for s in row.shards] for row in rows] == [["000001"], ["000000", "000002"]]
    assert grouped(members, {}) == ([], [])
