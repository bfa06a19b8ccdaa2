"""Records fold to one truth: whatever order files are read in, wherever a writer was killed, compacted or not."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.batch import records
from hpc.batch.records import End, Fold, Log, Record, Worker
from hpc.data.work import Bad, Object


def worker(job: str = "7_0", restart: int = 0, t: float = 0.0, attempt: int = 1, fingerprint: str = "f") -> Worker:
    return Worker(t, "r-1", attempt, "clips", fingerprint, job, restart, 0, "n1", 2)


def write(folder: Path, by: Worker, *lines: records.Line) -> Path:
    log = Log(folder / f"{by.job}.{by.restart}.jsonl")
    for line in (by, *lines):
        log.write(line)
    log.close()
    return log.path


def fold(folder: Path, fingerprint: str | None = "f", attempt: int | None = None) -> Fold:
    return records.fold([folder], fingerprint, attempt)


def summary(fold: Fold) -> dict:
    """All but `kills`, which counts in the order of one task's starts only."""
    return {name: getattr(fold, name) for name in Fold.__struct_fields__ if name != "kills"}


def start(shard: str, t: float) -> Record:
    return Record("start", shard, t)


def done(shard: str, t: float) -> Record:
    objects = [Object(f"/out/{shard}.tar", 3, "00ff")]
    return Record("done", shard, t, 2.5, {"work": 2.0}, objects, {"clips": 3.0}, [Bad("/in/x", "empty-file", "é")])


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    by = worker(t=5.0)
    lines = [start("a", 6.0), done("a", 7.0), Record("failed", "b", 8.0, failure="code", detail="line\nbreak, \u2028"),
             End(9.0, "row finished")]  # fmt: skip
    path = write(tmp_path, by, *lines)
    assert list(records.read(path)) == [by, *lines]
    assert len(path.read_text().split("\n")) == 6, "one line each, whatever is in it"
    found = fold(tmp_path)
    assert found.done == {"a": lines[1]} and found.failed == {"b": lines[2]} and not found.running
    assert found.where == {"a": by, "b": by} and found.workers == {("7_0", 0): (by, 9.0)}
    assert found.ended == {("7_0", 0): "row finished"}


def test_a_start_has_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, worker())
    with pytest.raises(FileExistsError):
        Log(tmp_path / "7_0.0.jsonl")


def test_the_last_word_counts_and_done_is_final(tmp_path: Path) -> None:
    write(tmp_path, worker("7_0", 0, 0), start("a", 1), start("b", 1.5))  # vanished
    write(tmp_path, worker("7_0", 1, 2), start("a", 3), Record("failed", "a", 4, failure="crash"))
    write(tmp_path, worker("8_0", 0, 5, attempt=2), start("a", 6), done("a", 7), start("b", 8))
    write(tmp_path, worker("9_0", 0, 9, attempt=3), start("a", 10), Record("failed", "a", 11, failure="code"))
    found = fold(tmp_path)
    assert set(found.done) == {"a"} and not found.failed and not found.stopped
    assert found.running["b"][0].job == "8_0"
    assert found.kills == {"a": 1, "b": 1}
    assert set(fold(tmp_path, attempt=1).failed) == {"a"} and fold(tmp_path, attempt=3).failed["a"].failure == "code"


def test_a_failure_after_a_newer_start_ends_nothing(tmp_path: Path) -> None:
    """A zombie's last words don't say that its requeued twin has left."""
    write(tmp_path, worker("10_0", 0, 5), start("a", 6))
    write(tmp_path, worker("9_0", 0, 0), start("a", 1), Record("stopped", "a", 4))  # sorts behind 10_0
    found = fold(tmp_path)
    assert found.running["a"][0].job == "10_0" and not found.stopped


def test_progress(tmp_path: Path) -> None:
    note = Record("progress", "a", 2, detail="frame 7", fraction=0.5)
    write(tmp_path, worker(), start("a", 1), note)
    assert fold(tmp_path).running["a"] == (worker(), note)


def test_other_settings_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, worker("1_0", fingerprint="old"), done("a", 1), End(2))
    write(tmp_path, worker("2_0"), done("b", 1))
    assert set(fold(tmp_path).done) == {"b"} and set(fold(tmp_path).workers) == {("2_0", 0)}
    assert set(fold(tmp_path, None).done) == {"a", "b"}
    records.compact(tmp_path)  # now both stand in one file
    assert len(records.files(tmp_path)) == 1
    assert set(fold(tmp_path).done) == {"b"} and not fold(tmp_path).ended
    assert set(fold(tmp_path, "old").done) == {"a"} and set(fold(tmp_path, None).done) == {"a", "b"}


def test_several_folders_and_none(tmp_path: Path) -> None:
    write(tmp_path / "x", worker("1_0"), done("a", 1))
    write(tmp_path / "y", worker("1_0"), done("b", 1))
    assert set(records.fold([tmp_path / "x", tmp_path / "y", tmp_path / "no"], "f").done) == {"a", "b"}
    assert summary(records.fold([], "f")) == summary(Fold())


def test_a_torn_line_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    lines = [worker(t=1), start("é", 2), done("é", 3), start("b", 4), Record("failed", "b", 5, detail="日本"), End(6)]
    path = write(tmp_path / "whole", *lines)  # type: ignore[arg-type]
    data = path.read_bytes()
    torn = tmp_path / "torn" / path.name
    torn.parent.mkdir()
    for size in range(len(data)):
        torn.write_bytes(data[:size])
        whole = data[: size + 1].count(b"\n")  # a line that lacks but its line break can be read
        expected = Fold()
        records.fold_lines(expected, lines[:whole], "f", None)
        assert summary(fold(torn.parent)) == summary(expected), size
    damaged = data[:20] + b"\xff\x00{" + data[23:]
    torn.write_bytes(damaged)
    fold(torn.parent)  # whatever it says, it can be read


def test_a_line_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    log = Log(tmp_path / "x.jsonl")
    log.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        log.fd = full.fileno()
        with pytest.raises(OSError, match="No space left"):
            log.write(worker())


# Histories: several workers, some of them at once, some of them killed


@st.composite
def histories(draw: st.DrawFn) -> list[list[records.Line]]:
    """One list of lines a worker. All times differ."""
    clock = 0.0
    files: list[list[records.Line]] = []
    alive: list[dict] = []
    for job in range(draw(st.integers(1, 5))):
        by = worker(f"{draw(st.sampled_from([9, 10, 99, 100]))}_{job}", attempt=job // 2 + 1)
        alive.append({"by": by, "lines": [], "at": ""})
    for _ in range(draw(st.integers(0, 40))):
        if not alive:
            break
        clock += 1.0
        one = draw(st.sampled_from(alive))
        if not one["lines"]:
            one["lines"].append(msgspec.structs.replace(one["by"], t=clock))
        elif not one["at"]:
            ended = {r.shard for r in one["lines"] if isinstance(r, Record) and r.state in ("done", "failed")}
            left = [s for s in "abc" if s not in ended]
            if left and draw(st.integers(0, 5)):
                one["at"] = draw(st.sampled_from(left))
                one["lines"].append(start(one["at"], clock))
            else:
                one["lines"].append(End(clock, "row finished"))
                alive.remove(one)
                files.append(one["lines"])
        else:
            state = draw(st.sampled_from(["progress", "done", "failed", "stopped"]))
            one["lines"].append(Record(state, one["at"], clock, fraction=0.5 if state == "progress" else 0.0))
            one["at"] = one["at"] if state == "progress" else ""
    return files + [one["lines"] for one in alive if one["lines"]]


def lay(folder: Path, files: list[list[records.Line]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for lines in files:
        write(folder, *lines)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_show(files: list, by: random.Random) -> None:
    ordered, shuffled = Fold(), Fold()
    for lines in files:
        records.fold_lines(ordered, lines, "f", None)
    by.shuffle(files)
    for lines in files:
        records.fold_lines(shuffled, lines, "f", None)
    a, b = summary(ordered), summary(shuffled)
    for shard in a["done"]:  # of two that are done either may stand: their objects have the same digests
        for part in (a, b):
            part["done"][shard], part["where"][shard] = "done", "somebody"
    for name in a:
        assert a[name] == b[name], name
    states = [set(a[name]) for name in ("done", "running", "stopped")]
    assert sum(map(len, states)) == len(set().union(*states)), "one shard in two states"
    assert not states[0] & set(a["failed"])


@settings(deadline=None, max_examples=60)
@given(histories(), st.data())
def test_compacting_changes_nothing(tmp_path_factory: pytest.TempPathFactory, files: list, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "compacting"
    lay(folder, files)
    expected = summary(fold(folder)) if files else summary(Fold())
    originals = {path.name: path.read_bytes() for path in records.files(folder)}
    assert records.compact(folder) == len(originals)
    assert len(records.files(folder)) == min(1, len(originals))
    assert summary(fold(folder)) == expected

    # a crash before all of the originals were gone: any of them may be back beside the compacted file
    for name in data.draw(st.sets(st.sampled_from(sorted(originals)))) if originals else ():
        (folder / name).write_bytes(originals[name])
    assert summary(fold(folder)) == expected
    records.compact(folder)
    assert summary(fold(folder)) == expected
    if originals:  # and again with what a later worker wrote
        lines = [worker("200_0", 0, 1000), start("z", 1001)]
        write(folder, *lines)  # type: ignore[arg-type]
        records.compact(folder)
        assert {p.name for p in records.files(folder)} >= {records.files(folder)[0].name}
        later = summary(fold(folder))
        assert later["running"].pop("z") and later["workers"].pop(("200_0", 0)) and later == expected


def test_a_crash_while_compacting(tmp_path: Path) -> None:
    """Before the rename there is a hidden file with half of it; it is not looked at, and not in the way."""
    write(tmp_path, worker("1_0"), done("a", 1))
    write(tmp_path, worker("2_0"), start("b", 1))
    (tmp_path / ".compact-0001.jsonl.123").write_bytes(b'{"type":"worker","t":1')
    before = summary(fold(tmp_path))
    assert records.compact(tmp_path) == 2
    assert summary(fold(tmp_path)) == before
    assert [p.name for p in records.files(tmp_path)] == ["compact-0001.jsonl"]


def test_compacting_drops_passing_lines_and_keeps_the_rest(tmp_path: Path) -> None:
    notes = [Record("progress", "a", 2 + i / 100, fraction=i / 100) for i in range(90)]
    write(tmp_path, worker("1_0"), start("a", 1), *notes, done("a", 3), start("b", 4), Record("progress", "b", 5))
    write(tmp_path, worker("2_0"), start("b", 7), Record("stopped", "b", 8))
    records.compact(tmp_path)
    [path] = records.files(tmp_path)
    said = [(line.get("state"), line.get("shard")) for line in map(json.loads, path.read_text().splitlines())]
    assert said == [(None, None), ("done", "a"), ("start", "b"), ("progress", "b"),
                    (None, None), ("start", "b"), ("stopped", "b")]  # fmt: skip
    records.compact(tmp_path)
    assert [p.name for p in records.files(tmp_path)] == ["compact-0001.jsonl"], "one file is compact already"


def test_a_worker_that_lives_on_keeps_its_file(tmp_path: Path) -> None:
    """A line that is written while the files are joined stays in the file it was written to."""
    late = Log(tmp_path / "1_0.0.jsonl")
    late.write(worker("1_0"))
    notes = b"".join(msgspec.json.encode(Record("progress", "a", i)) + b"\n" for i in range(200_000))
    write(tmp_path, worker("2_0"), start("a", 1)).open("ab").write(notes)

    def speak() -> None:
        while not any(p.stat().st_size for p in tmp_path.glob(".compact-*")):
            time.sleep(0.001)
        late.write(done("b", 2))
        late.close()

    thread = threading.Thread(target=speak)
    thread.start()
    records.compact(tmp_path)
    thread.join()
    assert [p.name for p in records.files(tmp_path)] == ["compact-0001.jsonl", "1_0.0.jsonl"]
    assert set(fold(tmp_path).done) == {"b"} and set(fold(tmp_path).running) == {"a"}
