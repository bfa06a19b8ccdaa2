"""Ranks that hang, whatever they hang in: who is behind is found out, all say where they are, and they start again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import runs
from test_gang import begun, made, stages, states

from hpc.batch import heartbeat, metrics, records, report, status
from hpc.batch.heartbeat import Beat, behind, slowest
from hpc.batch.run import Run

PATIENT: dict[str, Any] = {"cpus": 1, "workers": 2, "time": "10m", "patience": "2s"}


def run_of(folder: Path) -> Run:
    [found] = (folder / "runs").glob("t-*")
    return Run(found)


def recorded(folder: Path) -> list[records.Record]:
    found = [line for line in runs.lines(run_of(folder), "train") if isinstance(line, records.Record)]
    return [line for line in sorted(found, key=lambda line: line.t) if line.failure]


def test_ranks_of_which_one_hangs_tell_where_they_are_and_start_again(tmp_path: Path) -> None:
    """Rank 0 waits in a collective for rank 1, which sleeps."""
    (tmp_path / "hang-1").touch()
    runs.hpc("run", runs.spec(tmp_path, runs.numbered(1), stages(tmp_path, resources=PATIENT)))
    assert made(tmp_path)["total"] == 60 and states(tmp_path) == ["start", "stopped", "start", "done"]
    [hung] = recorded(tmp_path)
    assert hung.failure == "hang" and hung.node
    assert hung.detail.startswith("rank 1: no rank got on for ") and 'after "step ' in hung.detail
    assert "behind: rank 1 on " in hung.detail and "it is at gang.py:" in hung.detail and "for_ever" in hung.detail
    assert "it has not entered 1 collective in which others wait" in hung.detail
    first = min((run_of(tmp_path).folder / "ranks/train").iterdir())
    stacks = [(first / f"{rank:05}.stacks").read_text() for rank in (0, 1)]
    assert "all_reduce" in stacks[0] and "in for_ever" not in stacks[0]
    assert "in for_ever" in stacks[1] and "all_reduce" not in stacks[1]
    assert all(text.count("Thread 0x") >= 1 for text in stacks), "of all threads: the heart's own, too"
    said = "".join(path.read_text() for path in (run_of(tmp_path).folder / "logs/train").glob("*.out"))
    assert "no rank got on for" in said and "--- rank 1 on" in said and "in for_ever" in said


def test_a_rank_whose_process_stands_still_is_told_from_one_that_waits(tmp_path: Path) -> None:
    (tmp_path / "stop-0").touch()
    runs.hpc("run", runs.spec(tmp_path, runs.numbered(1), stages(tmp_path, resources=PATIENT)))
    assert made(tmp_path)["total"] == 60
    [hung] = recorded(tmp_path)
    assert hung.failure == "hang" and hung.detail.startswith("rank 0: ")
    assert "its process does not run" in hung.detail


@pytest.mark.parametrize(("silent", "gets_on"), [(5.0, True), (50.0, False)])
def test_a_silent_rank_is_not_given_the_patience_of_a_first_step(tmp_path: Path, silent: float, gets_on: bool) -> None:
    now = time.time()
    last = heartbeat.Beat(0, 2, "n1", 1, now - silent, steps=1, advanced=now - silent, limit=heartbeat.MOST)
    (tmp_path / "00000.json").write_bytes(msgspec.json.encode(last))
    assert heartbeat._some_get_on(tmp_path, now, 10.0) == gets_on


def test_ranks_that_always_hang_are_given_up(tmp_path: Path) -> None:
    """The guard against crash loops counts hangs: each of two starts came to no checkpoint."""
    prepared = begun(tmp_path, starts=2, resources=PATIENT | {"patience": "1s"}, steps=4000)
    worker = runs.worker(prepared, "train")
    for _ in range(2):
        (tmp_path / "hang-1").touch()
        runs.until(lambda: not (tmp_path / "hang-1").exists())
    said = runs.finish(worker)
    [failed] = runs.fold(prepared.run, "train").failed.values()
    assert failed.failure == "stuck" and "2 starts in a row came to no checkpoint" in failed.detail
    assert "the last one: hang: rank 1: " in failed.detail and "hang" in said


def test_a_slow_step_is_no_hang_and_the_slow_rank_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow-1").write_text("0.2")
    settings = stages(tmp_path, resources=PATIENT | {"workers": 3}, steps=30)
    runs.hpc("run", runs.spec(tmp_path, runs.numbered(1), settings))
    assert states(tmp_path) == ["start", "done"]
    run = run_of(tmp_path)
    slow = slowest(heartbeat.newest(run.ranks("train")))
    assert slow and [name.split(" on ")[0] for name in slow.ranks] == ["rank 1"] and not slow.nodes
    assert 0.2 < slow.slowest < 0.3 and slow.median < 0.1, "outside of collectives; all have the same steps"
    beats = heartbeat.newest(run.ranks("train"))
    assert all(beat.step_seconds and 0.2 < beat.step_seconds < 0.4 for beat in beats)
    said = report.build(run, status.gather(run, ask_slurm=False))
    assert "slow: rank 1 on " in report.text(said) and "outside of collectives" in report.text(said)
    exported = metrics.text([metrics.of(said)])
    assert 'hpc_train_own_seconds{cluster="local",run="' in exported and 'of="slowest"' in exported


def test_a_heart_costs_next_to_nothing(tmp_path: Path) -> None:
    heart = heartbeat.Heart(tmp_path, 0, 1, 10.0, None, lambda *told: None)
    with heart.watched():
        begun = time.perf_counter()
        for _ in range(10_000):
            heart.beat()
        each = (time.perf_counter() - begun) / 10_000
    assert each < 20e-6
    assert json.loads((tmp_path / "00000.json").read_text())["steps"] == 10_000


def test_patience_follows_from_the_steps(tmp_path: Path) -> None:
    heart = heartbeat.Heart(tmp_path, 0, 1, 10.0, None, lambda *told: None)
    with heart.watched():
        assert heart.limit() == heartbeat.MOST, "nobody knows yet what a step takes"
        heart.beat()
        heart.beat()
        assert heart.limit() == heartbeat.LEAST
        heart.times.extend([60.0] * 50)
        assert heart.limit() == 1200
        heart.times.extend([600.0] * 100)
        assert heart.limit() == heartbeat.MOST
        heart.patience = 7200.0
        assert heart.limit() == 7200


def beats(*changes: dict[str, Any]) -> list[Beat]:
    common = {"ranks": len(changes), "pid": 1, "t": 100.0, "steps": 5, "collectives": {"0": 9}, "inside": True}
    return [Beat(**common | {"rank": i, "node": f"n{i // 2}"} | one) for i, one in enumerate(changes)]  # type: ignore


@pytest.mark.parametrize(("changes", "late", "words"), [
    (({}, {"steps": 4}, {}), [1], "has done 4 steps"),
    (({}, {"collectives": {"0": 7, "tp": 3}}, {"collectives": {"0": 9, "tp": 3}}), [1], "not entered 2 collectives"),
    (({}, {"collectives": {"0": 9}}, {"inside": False}), [2], "in no collective, as others are"),
    (({}, {"t": 50.0}, {"inside": False}), [1], "does not run"),
    (({}, {"t": 50.0, "dumped": True}, {}), [], ""),
    (({}, {}, {}), [], ""),
])  # fmt: skip
def test_who_is_behind(changes: tuple[dict[str, Any], ...], late: list[int], words: str) -> None:
    found, why = behind(beats(*changes), 110.0, 10.0)
    assert [beat.rank for beat in found] == late and words in why


def test_nodes_whose_ranks_are_all_slow(tmp_path: Path) -> None:
    own = [1.0, 1.02, 1.3, 1.4, 1.01, 1.0]
    found = slowest(beats(*({"own_seconds": value} for value in own)))
    assert found and list(found.ranks) == ["rank 3 on n1", "rank 2 on n1"] and list(found.nodes) == ["node n1"]
    assert found.nodes["node n1"] == pytest.approx(1.35)
    assert found.words() == ("slow: node n1 1.35 s, rank 3 on n1 1.4 s, rank 2 on n1 1.3 s of a step outside of "
                             "collectives, the median is 1.01 s")  # fmt: skip
    assert slowest(beats({"own_seconds": 1.0}, {})) is None
    same = slowest(beats({"own_seconds": 1.0}, {"own_seconds": 1.1}))
    assert same and same.words() == ""
