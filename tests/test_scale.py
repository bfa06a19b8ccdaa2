"""The README's figures as tests: the goals with room for a busy machine. The large ones are marked `long`."""

from __future__ import annotations

import shutil
from pathlib import Path

import bench
import bench_curate
import pytest

TRAILER = Path(__file__).parents[1] / "jobs/quickstart/trailer_bbb.mp4"


def test_start_up_is_quick() -> None:
    assert bench.start_up(7) < 0.1


def test_a_plan_of_100_000_inputs() -> None:
    assert bench.planning(100_000)["seconds"] < 2


def test_files_at_submit_do_not_grow() -> None:
    assert bench.files_at_submit(10) == bench.files_at_submit(5_000)


def test_an_empty_shard_costs_little() -> None:
    o = bench.overhead(50)
    assert o["first"] < 3 and o["each"] < 0.3 and o["files"] <= 2


@pytest.mark.long
def test_a_plan_of_1_000_000_inputs() -> None:
    p = bench.planning(1_000_000)
    assert p["seconds"] < 12 and p["mib"] < 1000


@pytest.mark.long
def test_a_no_op_resume_of_100_000_shards() -> None:
    assert bench.resume() < 5


@pytest.mark.long
def test_status_of_10_000_array_tasks(cluster) -> None:
    assert bench.status_of_many() < 1.5


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")
def test_curation_beside_other_tools() -> None:
    """One round on ten seconds: that it runs, that all make the same, and ratios far from the goals."""
    rounds, programs, _ = bench_curate.bench(TRAILER, 10, 10, 1)
    assert len(list(bench_curate.table(rounds, programs))) > 8
    name = next(iter(programs))
    assert rounds.ratio(f"{name} decode", "feed") > 0.5
    assert rounds.ratio("stage stride 5", f"{name} one pass 5") < 1.5
    assert rounds.ratio("published network", "network") > 1.0
