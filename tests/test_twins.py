"""A shard that takes far longer than others is begun a second time by a task with nothing left to do: real workers, as
Slurm would start them. Whichever is first publishes, and the other one is ended."""

from __future__ import annotations

import contextlib
import select
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest
import runs

from hpc.batch import prepare, records, twins, worker
from hpc.batch.plan import RowShard
from hpc.batch.runner import Order, Reply
from hpc.data import storage
from hpc.data.work import Stopped

QUICK = {"cpus": 1, "time": "60s"}


def planned(
    folder: Path, first: str, count: int = 8, rows: int = 2, more: dict[str, str] | None = None
) -> prepare.Prepared:
    """So many rows; the first shard of the first one is special, and `more`."""
    (folder / "flags").mkdir()
    texts = runs.numbered(count) | {"000.txt": first} | (more or {})
    settings = {"kind": "stages:Echo", "flags": str(folder / "flags"), "seconds": 0.05, "resources": QUICK}
    made = runs.planned(runs.spec(folder, texts, {"echo": settings}), cores=rows)
    assert made.attempt and made.attempt.rows("inputs") == rows
    return made


def slow_one(made: prepare.Prepared) -> subprocess.Popen[str]:
    """The task of the first row, at work on its first shard: nobody stands by before all rows have begun."""
    one = started(made, 0)
    runs.until(lambda: runs.said(made.run, "start"))
    return one


def started(made: prepare.Prepared, row: int) -> subprocess.Popen[str]:
    """Array task 7_<row>, as far as its environment says."""
    return runs.worker(made, SLURM_JOB_ID=str(8 + row), SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(row),
                       SLURM_JOB_NODELIST="n1", SLURMD_NODENAME=f"n{row}", SLURM_JOB_NUM_NODES="1")  # fmt: skip


def done_by(made: prepare.Prepared) -> dict[str, str]:
    fold = runs.fold(made.run)
    return {shard: fold.where[shard].node for shard in fold.done}


def test_a_shard_whose_process_hangs_is_made_elsewhere(tmp_path: Path) -> None:
    made = planned(tmp_path, "hang 1")
    with runs.ended(slow_one(made)) as hung:
        said = runs.finish(started(made, 1))
        assert "shard 000000 has taken" in said and "it is begun here, too" in said
        said = runs.finish(hung)
    assert "shard 000000: another task, which made it at the same time, was quicker" in said
    assert done_by(made) == {f"{i:06}": "n1" if i in (0, 4, 5, 6, 7) else "n0" for i in range(8)}
    assert sorted(runs.said(made.run, "done")) == [f"{i:06}" for i in range(8)], "each is recorded once"
    assert sorted(runs.objects(tmp_path / "out")) == [f"echo@v1/{i:06}.jsonl" for i in range(8)]
    assert not runs.fold(made.run).kills, "a second one does not mean that the first one vanished"
    assert runs.planned(tmp_path / "t.yaml").attempt is None


def test_a_slow_one_that_publishes_first_wins(tmp_path: Path) -> None:
    made = planned(tmp_path, "wait go")
    with runs.ended(slow_one(made)) as slow, runs.ended(started(made, 1)) as other:
        runs.until(lambda: runs.said(made.run, "start").count("000000") == 2)
        (tmp_path / "flags/go").touch()
        assert slow.wait(120) == 0 and other.wait(120) == 0
    done = runs.said(made.run, "done")
    assert sorted(set(done)) == [f"{i:06}" for i in range(8)]
    assert len(runs.objects(tmp_path / "out")) == 8 and not runs.fold(made.run).failed


def test_nobody_waits_while_rows_have_not_begun(tmp_path: Path) -> None:
    made = planned(tmp_path, "fine")
    begun = time.monotonic()
    runs.finish(started(made, 1))
    assert set(done_by(made)) == {f"{i:06}" for i in range(4, 8)}
    assert not twins.place(made.attempt, "echo").exists() and time.monotonic() - begun < 30  # type: ignore[arg-type]


def test_few_stand_by(tmp_path: Path) -> None:
    """Two tasks are slow and two have nothing left to do: one of these leaves its node."""
    made = planned(tmp_path, "wait go", rows=4, more={"002.txt": "wait go"})
    with contextlib.ExitStack() as ended:
        slow = [ended.enter_context(runs.ended(started(made, row))) for row in (0, 1)]
        runs.until(lambda: {"000000", "000002"} <= set(runs.said(made.run, "start")))
        idle = [ended.enter_context(runs.ended(started(made, row))) for row in (2, 3)]
        runs.until(lambda: any(one.poll() is not None for one in idle))
        time.sleep(1)
        folder = twins.place(made.attempt, "echo")  # type: ignore[arg-type]
        assert [path.name for path in folder.iterdir()] in (["000000"], ["000002"])
        assert [one.poll() is None for one in idle].count(True) == 1
        (tmp_path / "flags/go").touch()
        assert all(one.wait(120) == 0 for one in (*slow, *idle))
    assert len(done_by(made)) == 8


def test_two_that_look_at_the_same_moment_do_not_both_stand_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lists who stands by, then the other does and says that it stands by, then the first one says so."""
    made = planned(tmp_path, "wait go", rows=4, more={"002.txt": "wait go"})
    with contextlib.ExitStack() as ended:
        for row in (0, 1):
            ended.enter_context(runs.ended(started(made, row)))
        runs.until(lambda: {"000000", "000002"} <= set(runs.said(made.run, "start")))
        assert made.attempt
        fold, new = runs.fold(made.run), twins._new
        one, other = (twins.Twins(made.run, made.attempt, made.plan.stage("echo"), me, 1.0) for me in ("9.0", "10.0"))

        def late(file: Path, content: str) -> bool:
            if content == "9.0" and not other.claimed:
                other.claimed = other._claim(fold)
            return new(file, content)

        monkeypatch.setattr(twins, "_new", late)
        assert one._claim(fold) == "" and other.claimed in ("000000", "000002")
        assert [path.name for path in one.folder.iterdir()] == [other.claimed]
        (tmp_path / "flags/go").touch()


def test_who_stands_by_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    made = planned(tmp_path, "wait go")
    with runs.ended(slow_one(made)) as slow, runs.ended(started(made, 1)) as other:
        runs.until(lambda: list(twins.place(made.attempt, "echo").glob("000000")))  # type: ignore[arg-type]
        other.terminate()
        assert other.wait(120) == 0
        (tmp_path / "flags/go").touch()
        assert slow.wait(120) == 0
    assert len(done_by(made)) == 8


def test_what_a_process_says_after_its_shard_was_left_to_a_twin_is_not_heard(tmp_path: Path) -> None:
    """It may be done just then; and it gets no other shard, since it is being killed."""
    made = planned(tmp_path, "fine")
    assert made.attempt and made.plan
    stage, file = made.plan.stage("echo"), tmp_path / "records.jsonl"
    others, log = twins.Twins(made.run, made.attempt, stage, "7_0.0", 1.0), records.Log(file)
    storage.put_new(str(others.folder / "000000.first"), b"7_1.0")
    storage.put_new(twins.last(stage, "000000"), b"published")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin and process.stdout
        child = worker.Child(0, process, process.stdin, process.stdout, tmp_path, ready=True, order=Order("000000", []))
        process.stdin.write(msgspec.json.encode(Reply("done", "000000")) + b"\n")
        runs.until(lambda: select.select([process.stdout], [], [], 0)[0])
        worker.leave_to_twin(child, others, log)
        state = worker.State([RowShard("000001", [])], 1.0)
        assert worker.receive(child, state, log)
        worker.hand_out(child, state, log)
        assert [shard.id for shard in state.todo] == ["000001"]
        runs.until(lambda: not worker.receive(child, state, log))
        assert worker.bury(child, state, log), "another takes its place"
    log.close()
    assert [line.state for line in records.read(file) if isinstance(line, records.Record)] == ["stopped"]


def test_one_at_a_time_goes_through_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, nothing = tmp_path / "out.jsonl", lambda: None
    enter = lambda me, check=nothing: twins.enter(tmp_path / "twins", "000007", me, str(last), check)
    enter("1_0.0")
    assert not (tmp_path / "twins").exists(), "made by one task alone, it costs nothing"
    (tmp_path / "twins").mkdir()
    (tmp_path / "twins/000007").write_text("1_1.0")
    enter("1_1.0")
    enter("1_1.0")
    waiting = threading.Thread(target=enter, args=("1_0.0",))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive() and (tmp_path / "twins/000007.first").read_text() == "1_1.0"
    last.touch()
    waiting.join(5)
    assert not waiting.is_alive()
    last.unlink()

    def stopped() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        enter("1_0.0", stopped)
    monkeypatch.setattr(twins, "WAIT", 0.1)
    enter("1_0.0")  # the first one has died on its way
