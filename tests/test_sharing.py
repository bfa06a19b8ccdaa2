"""Several runs, planners and people over one output: what was found in review, held for good."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import msgspec
import pytest
import runs

from hpc.batch import barrier, commit, ledger, prepare, records
from hpc.batch.cluster import LOCAL
from hpc.batch.run import Run
from hpc.batch.spec import load


def test_one_spec_run_from_two_folders(tmp_path: Path) -> None:
    """Two run folders of one run id: the output knows both."""
    spec = runs.spec(tmp_path, runs.numbered(3), {"echo": runs.ECHO, "join": runs.JOIN})
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    runs.hpc("run", spec, cwd=here)
    runs.write(tmp_path / "in", {"009.txt": "late"})
    said = runs.hpc("run", spec, cwd=there).stdout
    assert "echo: 3 done, 1 to do" in said
    assert len((b"".join(p.read_bytes() for p in (tmp_path / "out/join@v2").glob("0*"))).splitlines()) == 4
    assert "nothing to do" in runs.hpc("run", spec, cwd=here).stdout


def test_a_run_folder_out_of_reach(tmp_path: Path) -> None:
    """A planner says so; a barrier that misses one that the planner saw does not freeze less than there is."""
    spec = runs.spec(tmp_path, runs.numbered(3), {"echo": runs.ECHO, "join": runs.JOIN})
    runs.hpc("run", spec, "stages.join.lines=2")
    made = runs.planned(spec)
    [old] = [p for p in (tmp_path / "runs").glob("t-*") if p != made.run.folder]
    old.rename(tmp_path / "unmounted")
    said = runs.finish(runs.worker(made, "join", "barrier"), 1)
    assert f"with records that count: {old}" in said and not made.attempt.barrier("join").exists()  # type: ignore
    assert runs.planned(spec).unreachable == [str(old)]


def test_a_stage_that_is_added_behind_a_barrier(tmp_path: Path) -> None:
    stages = {"echo": runs.ECHO, "join": runs.JOIN}
    runs.go(runs.spec(tmp_path, runs.numbered(4), stages))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("join@v1/0*")}
    spec = runs.spec(tmp_path, {}, stages | {"note": runs.NOTE | {"needs": "join"}})
    made = runs.planned(spec)
    runs.finish(runs.worker(made, "join", "barrier"))
    for stage in ("join", "note"):
        runs.finish(runs.worker(made, stage))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not runs.said(made.run, "start", "join"), "join's shards were there"
    assert len(list((tmp_path / "out/note@v1").glob("0*"))) == len(before)
    assert runs.planned(spec).attempt is None


def test_a_map_stage_over_different_shards_is_refused(tmp_path: Path) -> None:
    stages = {"echo": runs.ECHO, "join": runs.JOIN, "again": runs.NOTE | {"needs": ["join", "echo"]}}
    spec = runs.spec(tmp_path, runs.numbered(2), stages)
    assert "which have different shards" in runs.hpc("check", spec, code=2).stderr
    lonely = runs.spec(tmp_path, {}, {"join": {"kind": "stages:Join"}}, name="lonely")
    assert "give `needs`" in runs.hpc("check", lonely, code=2).stderr


def test_deleted_version_folders(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(2))
    runs.go(spec)
    runs.go(spec, "stages.echo.prompt=b")
    shutil.rmtree(tmp_path / "out/echo@v1")
    assert runs.planned(spec, "stages.echo.prompt=b").attempt is None, "v2 is found beyond the gap"
    made = runs.go(spec)
    assert made.missing == {"echo": 2} and made.folders["echo"].endswith("echo@v3")
    shutil.rmtree(tmp_path / "out/echo@v2")
    assert runs.planned(spec, "stages.echo.prompt=b").missing == {"echo": 2}, "recorded, but gone: made again"


def test_a_limit_limits_the_data_set_too(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(4), {"echo": runs.ECHO, "join": runs.JOIN}, shards={"size": "1KiB"})
    runs.go(spec)
    limited = runs.spec(tmp_path, {}, {"echo": runs.ECHO, "join": runs.JOIN}, name="few", shards={"size": "1KiB"},
                        inputs={"uri": "in", "limit": 1})  # fmt: skip
    made = runs.planned(limited)
    assert made.plan and [Path(uri).name for uri, _ in made.plan.superseded] == ["001.txt", "002.txt", "003.txt"]


def test_two_planners_at_once(tmp_path: Path) -> None:
    """Each has an attempt of its own, and of their submissions the newest alone may go on."""
    [spec] = load(runs.spec(tmp_path, runs.numbered(3)))
    made: list[prepare.Prepared] = []

    def plan() -> None:
        made.append(prepare.prepare(spec, LOCAL, tmp_path / "runs", on_slurm=False, command=[], cores=1))

    threads = [threading.Thread(target=plan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.attempt.number for p in made if p.attempt) == [1, 2, 3, 4]
    for one in made:
        assert one.attempt and (one.attempt.folder / "plan.json").exists()
        if one.attempt.number < 4:
            with pytest.raises(ledger.Conflict, match="is out of date: submit attempt 4"):
                commit.commit(one.run, one.attempt)
        else:
            commit.commit(one.run, one.attempt)


def test_folding_while_others_compact(tmp_path: Path) -> None:
    folder = tmp_path / "echo"

    def write(number: int) -> None:
        log = records.Log(folder / f"1_{number}.0.jsonl")
        log.write(records.Worker(1.0, "r", 1, "echo", "f", f"1_{number}", 0, number, "n1"))
        log.write(records.Record("done", f"{number:06}", 2.0))
        log.close()

    for number in range(200):
        write(number)
    stop = threading.Event()

    def compact() -> None:
        number = 200
        while not stop.is_set():
            write(number)
            records.compact(folder)
            number += 1

    threads = [
        threading.Thread(target=compact),
        threading.Thread(target=lambda: [records.compact(folder) for _ in range(50)]),
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            assert len(records.fold([folder], "f").done) >= 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(records.fold([folder], "f").done) >= 200


def test_a_barrier_that_is_started_again_changes_nothing(tmp_path: Path) -> None:
    made = runs.planned(runs.spec(tmp_path, runs.numbered(3), {"echo": runs.ECHO, "join": runs.JOIN}))
    runs.finish(runs.worker(made))
    assert made.attempt
    runs.finish(runs.worker(made, "join", "barrier"))
    frozen = {p: p.stat().st_mtime_ns for p in made.attempt.folder.glob("barrier-*")}
    assert "has run already" in runs.finish(runs.worker(made, "join", "barrier"))
    assert {p: p.stat().st_mtime_ns for p in made.attempt.folder.glob("barrier-*")} == frozen
    assert barrier.run(Run(made.run.folder), made.attempt, "join") == 0


def test_remedies_count_from_what_was_given(tmp_path: Path) -> None:
    """Twice the memory of what the worker had, not of what the spec says by now."""
    (tmp_path / "flags").mkdir()
    spec = runs.spec(tmp_path, {"0.txt": "oom"}, {"echo": runs.ECHO | {"flags": str(tmp_path / "flags")}})
    made = runs.planned(spec, "stages.echo.resources.memory=1GiB")
    runs.finish(runs.worker(made))
    [again] = runs.planned(spec, "stages.echo.resources.memory=1GiB").plan.groups  # type: ignore[union-attr]
    assert again.memory == 2.0
    [raised] = runs.planned(spec, "stages.echo.resources.memory=8GiB").plan.groups  # type: ignore[union-attr]
    assert raised.memory == 1.0
    assert (
        msgspec.json.decode((made.run.records("echo") / "local1_0.0.jsonl").read_bytes().split(b"\n")[0])["memory"]
        == 2**30
    )
