"""The worker, as a process: whatever happens to it or its stage, every shard is made once, and no other one suffers."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import runs

from hpc.batch import prepare, records, runner
from hpc.batch.records import End, Record
from hpc.batch.run import Run
from hpc.data import storage
from hpc.data.work import Made

ROW = 5
"""Shards of most of the runs here."""


def echo(**settings) -> dict:
    return {"echo": runs.ECHO | settings}


def echo_on(workers: int, **settings) -> dict:
    return {"echo": runs.ECHO | settings | {"resources": {"cpus": 1, "workers": workers}}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of inputs, and the objects of a run over them to which nothing happened."""
    place = tmp_path_factory.mktemp("undisturbed")
    made = runs.planned(runs.spec(place, runs.numbered(ROW)))
    runs.finish(runs.worker(made))
    found = runs.objects(place / "out")
    assert list(found) == [f"echo@v1/{i:06}.jsonl" for i in range(ROW)]
    assert runs.content(place / "out") == {name: text.strip() for name, text in runs.numbered(ROW).items()}
    return place, found


def over(undisturbed: tuple[Path, dict], folder: Path, stages: dict | None = None, **more) -> Path:
    """A spec over the same inputs with an output of its own."""
    return runs.spec(folder, {}, stages or echo(), inputs=str(undisturbed[0] / "in"), **more)


def whole(folder: Path, undisturbed: tuple[Path, dict]) -> None:
    """The output is exactly that of the undisturbed run, and the records say so."""
    storage.sweep(str(folder / "out"), 0)  # what a kill -9 leaves goes at the end of a run, once it is old
    assert runs.objects(folder / "out") == undisturbed[1]
    [run] = [p for p in (folder / "runs").iterdir() if p.name != "scratch"]
    done = records.fold([run / "records" / "echo"], None).done
    assert {f"echo@v1/{shard}.jsonl": r.objects[0].sha256 for shard, r in done.items()} == undisturbed[1]
    assert runs.planned(folder / "t.yaml").attempt is None, "something is left to do"


# What a stage may do


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> tuple[prepare.Prepared, str]:
    """One row in which nearly everything goes wrong, and what its worker said."""
    place = tmp_path_factory.mktemp("trouble")
    (place / "flags").mkdir()
    inputs = ["fine", "crash", "crash 1", "fail", "bad <x>", "oom 1", "oom", "fine too"]
    stages = echo(flags=str(place / "flags"))
    made = runs.planned(runs.spec(place, {f"{i}.txt": text for i, text in enumerate(inputs)}, stages))
    return made, runs.finish(runs.worker(made))


def test_one_bad_shard_costs_no_other(trouble: tuple[prepare.Prepared, str]) -> None:
    fold = runs.fold(trouble[0].run)
    source = (runs.TESTS / "stages/echo.py").read_text().splitlines()
    line = 1 + next(i for i, code in enumerate(source) if "told to fail" in code)
    assert sorted(fold.done) == ["000000", "000002", "000004", "000005", "000007"]
    assert {s: (r.failure, r.detail) for s, r in fold.failed.items()} == {
        "000001": ("crash", "its process ended with signal SIGSEGV"),
        "000003": ("code", f"RuntimeError: told to fail (echo.py:{line})"),
        "000006": ("memory", "its process ended with signal SIGKILL"),
    }
    assert not fold.running and list(fold.ended.values()) == ["row finished"]
    assert "row 0 of echo: 5 shards done, 0 left (finished)" in trouble[1]


def test_what_may_pass_is_tried_twice(trouble: tuple[prepare.Prepared, str]) -> None:
    starts = runs.said(trouble[0].run, "start")
    assert [starts.count(f"{i:06}") for i in range(8)] == [1, 2, 2, 1, 1, 2, 2, 1]
    assert starts[:8] == [f"{i:06}" for i in range(8)], "second tries come last"
    assert "shard 000001: crash: its process ended with signal SIGSEGV (try 2)" in trouble[1]
    assert "RuntimeError: told to fail" in trouble[1] and "Traceback" in trouble[1], "the log has the whole story"


def shared(folder: Path, texts: list[str], lanes: int = 1) -> prepare.Prepared:
    """One shard of all these inputs, worked on."""
    (folder / "flags").mkdir()
    inputs = {f"{i}.txt": text for i, text in enumerate(texts)}
    sizes = {"size": "1MiB", "split_above": "2MiB"}
    made = runs.planned(runs.spec(folder, inputs, echo(flags=str(folder / "flags"), lanes=lanes), shards=sizes))
    runs.finish(runs.worker(made))
    return made


def test_an_input_that_kills_the_process_twice_is_quarantined(tmp_path: Path) -> None:
    """The other inputs of its shard come out as if it were not there."""
    made = shared(tmp_path, ["fine", "crash", "fine too", "crash", "bad <x>"])
    fold = runs.fold(made.run)
    assert list(fold.done) == ["000000"] and not fold.failed
    found = [(Path(bad.uri).name, bad.reason) for bad in fold.done["000000"].bad]
    assert found == [("4.txt", "no-good"), ("1.txt", "crash"), ("3.txt", "crash")]
    assert runs.content(tmp_path / "out") == {"0.txt": "fine", "2.txt": "fine too"}
    assert len(runs.said(made.run, "start")) == 5, "two tries for each of the two, and one without them"


def test_the_culprit_is_found_among_inputs_worked_on_at_the_same_time(tmp_path: Path) -> None:
    made = shared(tmp_path, ["sleep 1", "sleep 1", "crash", *["sleep 1"] * 3], lanes=4)
    fold = runs.fold(made.run)
    assert [(Path(bad.uri).name, bad.reason) for bad in fold.done["000000"].bad] == [("2.txt", "crash")]
    assert list(runs.content(tmp_path / "out")) == ["0.txt", "1.txt", "3.txt", "4.txt", "5.txt"]
    assert len(runs.said(made.run, "start")) == 3


def test_one_crash_quarantines_nothing(tmp_path: Path) -> None:
    made = shared(tmp_path, ["fine", "crash 1", "fine too"])
    assert runs.fold(made.run).done["000000"].bad == []
    assert list(runs.content(tmp_path / "out")) == ["0.txt", "1.txt", "2.txt"]


@pytest.mark.parametrize("texts", [["crash", "crash"], ["fine", "crash", "crash", "crash", "crash", "fine"]])
def test_crashes_everywhere_are_not_the_inputs_fault(tmp_path: Path, texts: list[str]) -> None:
    """Where nothing, or too little, comes out without a crash, the shard fails, and nothing is quarantined."""
    fold = runs.fold(shared(tmp_path, texts).run)
    assert {s: r.failure for s, r in fold.failed.items()} == {"000000": "crash"} and not fold.done


def test_bad_inputs_are_quarantined(trouble: tuple[prepare.Prepared, str]) -> None:
    [bad] = runs.fold(trouble[0].run).done["000004"].bad
    assert (Path(bad.uri).name, bad.reason, bad.detail) == ("4.txt", "no-good", "bad <x>")
    output = Path(trouble[0].folders["echo"])
    assert (output / "000004.jsonl").read_text() == "", "its shard is there, without it"


def test_failures_publish_nothing_and_leave_no_scratch(trouble: tuple[prepare.Prepared, str]) -> None:
    output = Path(trouble[0].folders["echo"])
    assert sorted(p.name for p in output.iterdir()) == ["000000.jsonl", "000002.jsonl", "000004.jsonl", "000005.jsonl",
                                                        "000007.jsonl", "_stage.json"]  # fmt: skip
    assert not list((trouble[0].run.folder.parent / "scratch").iterdir())


def test_failed_shards_and_no_others_are_planned_again(trouble: tuple[prepare.Prepared, str]) -> None:
    made = runs.planned(trouble[0].run.folder.parents[1] / "t.yaml")
    assert made.attempt and made.plan
    planned = {s.id: (g.memory, g.time) for g in made.plan.groups for c in g.chunks
               for row in range(c.first_row, c.first_row + c.tasks)
               for s in made.attempt.read_row("inputs", row).shards}  # fmt: skip
    assert planned == {"000001": (1.0, 1.0), "000003": (1.0, 1.0), "000006": (2.0, 1.0)}


def on_node(node: str, job: int, restart: int = 0) -> dict[str, str]:
    """What Slurm sets in array task 0."""
    return {"SLURM_JOB_ID": str(job + 1), "SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": "0",
            "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": node, "SLURMD_NODENAME": node,
            "SLURM_RESTART_COUNT": str(restart)}  # fmt: skip


def test_a_sick_node_is_left(tmp_path: Path) -> None:
    """Three failures of the node's own in a row: the rest of the row is for another node."""
    texts = ["fine"] * 4 + ["disk"] * 3 + ["fine"]
    spec = runs.spec(tmp_path, {f"{i}.txt": text for i, text in enumerate(texts)})
    made = runs.planned(spec, cores=2)
    runs.finish(runs.worker(made, row=0, **on_node("n1", 100)))
    said = runs.finish(runs.worker(made, row=1, **on_node("n2", 200)))
    fold = runs.fold(made.run)
    assert sorted(fold.done) == [f"{i:06}" for i in range(4)] and "000007" not in runs.said(made.run, "start")
    assert "row 1 of echo: 0 shards done, 3 left (node)" in said and list(fold.ended.values()).count("node") == 1
    assert {s: (r.failure, fold.where[s].node) for s, r in fold.failed.items()} == {"000006": ("node", "n2")}
    again = runs.planned(spec)
    assert again.missing == {"echo": 4} and again.excluded == {"echo": ["n2"]}


PAIR = {"pair": {"kind": "pair:Pair", "resources": {"cpus": 1}}}


def test_a_stage_in_a_file_of_its_own_with_two_objects(tmp_path: Path) -> None:
    made = runs.planned(runs.spec(tmp_path, {"0.txt": "a", "1.txt": "chatty", "2.txt": "wrong", "3.txt": "b"}, PAIR))
    assert made.attempt and (made.attempt.code / "pair.py").exists() and not (made.attempt.code / "runs.py").exists()
    said = runs.finish(runs.worker(made, "pair"))
    fold = runs.fold(made.run, "pair")
    assert sorted(fold.done) == ["000000", "000001", "000003"], "what a stage prints does not get between"
    assert [Path(o.uri).suffix for o in fold.done["000000"].objects] == [".one", ".two"]
    [failed] = fold.failed.values()
    assert failed.detail.startswith("ValueError: the stage made ['000002.three', '000002.three'], its settings promise "
                                    "['000002.one', '000002.two']")  # fmt: skip
    assert '"n": 1999' in said, "it is in the log"


def test_a_stage_that_does_not_start(tmp_path: Path) -> None:
    made = runs.planned(runs.spec(tmp_path, runs.numbered(3), {"pair": PAIR["pair"] | {"broken": True}}))
    said = runs.finish(runs.worker(made, "pair"))
    fold = runs.fold(made.run, "pair")
    assert {(r.failure, r.detail) for r in fold.failed.values()} == {
        ("code", "the stage did not start (RuntimeError: no such model): see the log")}  # fmt: skip
    assert len(fold.failed) == 3 and "RuntimeError: no such model" in said


def test_without_its_shard_of_the_stage_before(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, {"0.txt": "fine", "1.txt": "fail"}, {"echo": runs.ECHO, "note": runs.NOTE})
    made = runs.planned(spec)
    runs.finish(runs.worker(made))
    runs.finish(runs.worker(made, "note"))
    fold = runs.fold(made.run, "note")
    assert list(fold.done) == ["000000"]
    assert (fold.failed["000001"].failure, fold.failed["000001"].detail) == (
        "upstream", f"echo has no shard 000001: {tmp_path}/out/echo@v1/000001.jsonl")  # fmt: skip
    assert runs.planned(spec).missing == {"echo": 1, "note": 1}


def test_workers_of_a_task_share_its_row(tmp_path: Path) -> None:
    made = runs.planned(runs.spec(tmp_path, runs.numbered(6), echo_on(3, seconds=0.3)), cores=3)
    begun = time.monotonic()
    runs.finish(runs.worker(made))
    assert runs.states(made.run) == {"echo": "6/0/0"}
    spans = []
    for shard in runs.fold(made.run).done:
        spans.append([r.t for r in runs.lines(made.run) if isinstance(r, Record) and r.shard == shard
                      and r.state in ("start", "done")])  # fmt: skip
    most = max(sum(a <= t < b for a, b in spans) for t in [a for a, _ in spans])
    assert most == 3, "they did not work at the same time"
    assert time.monotonic() - begun < 20


# Kills


def test_killed_at_any_moment_nothing_is_lost_or_doubled(undisturbed: tuple[Path, dict], tmp_path: Path) -> None:
    spec = over(undisturbed, tmp_path, echo(seconds=0.1))
    dice = random.Random(7)
    born: dict[str, tuple[int, int]] = {}
    kills = 0
    while (made := runs.planned(spec)).attempt:
        process = runs.worker(made)
        time.sleep(dice.uniform(0.1, 1.0))
        if process.poll() is None and kills < 6:
            kills += 1
            process.kill()
        process.communicate(timeout=180)
        now = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out/echo@v1").glob("[0-9]*")}
        assert born.items() <= now.items(), "a published object was replaced"
        born = now
    assert kills >= 2
    whole(tmp_path, undisturbed)
    assert len(runs.said(made.run, "start")) <= ROW + kills, "more than the shard in flight was done again"
    assert len(runs.said(made.run, "done")) == ROW


def test_killed_between_publishing_and_recording(undisturbed: tuple[Path, dict], tmp_path: Path) -> None:
    """The worker is stopped while its stage works: the object is published, the record never written."""
    spec = over(undisturbed, tmp_path, echo(seconds=0.15))
    made = runs.planned(spec)
    process = runs.worker(made)
    runs.until(lambda: runs.said(made.run, "start"))
    process.send_signal(signal.SIGSTOP)
    orphan = tmp_path / "out/echo@v1/000000.jsonl"
    runs.until(orphan.exists)
    process.kill()
    process.communicate()
    assert not runs.said(made.run, "done")
    before = orphan.stat()
    runs.finish(runs.worker(runs.planned(spec)))
    assert (orphan.stat().st_ino, orphan.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "it is adopted"
    assert runs.said(made.run, "start").count("000000") == 2 and len(runs.said(made.run, "start")) == ROW + 1
    whole(tmp_path, undisturbed)


@pytest.mark.parametrize("left", [[".one"], [".one", ".two"]])
def test_objects_of_two_makings_are_not_mixed(tmp_path: Path, left: list[str]) -> None:
    """A stage that makes other bytes each time: what another worker left half made goes, what it left whole stands."""
    salt = tmp_path / "salt"
    salt.write_text("new")
    made = runs.planned(runs.spec(tmp_path, {"0.txt": "a"}, {"pair": PAIR["pair"] | {"salt": str(salt)}}))
    for suffix in left:
        storage.put(f"{tmp_path}/out/pair@v1/000000{suffix}", f"{suffix} ['a'] old\n".encode())
    runs.finish(runs.worker(made, "pair"))
    texts = {p.name: p.read_text() for p in (tmp_path / "out/pair@v1").glob("0*")}
    age = "old" if ".two" in left else "new"
    assert texts == {"000000.one": f".one ['a'] {age}\n", "000000.two": f".two ['a'] {age}\n"}
    recorded = {Path(o.uri).name: o.sha256 for o in runs.fold(made.run, "pair").done["000000"].objects}
    assert {f"pair@v1/{name}": digest for name, digest in recorded.items()} == runs.objects(tmp_path / "out")


def test_a_shard_does_not_replace_what_another_one_made(tmp_path: Path) -> None:
    """...in the stage's tree; its own, which a kill left behind, and that of the stage before it may."""
    out = tmp_path / "out"

    def publish(shard: str, text: str, name: str = "stage@v1/tree.txt", killed: bool = False) -> None:
        file, last = tmp_path / "file", tmp_path / f"{shard}.txt"
        file.write_text(text)
        last.write_text(text)
        suffixes = (".gone", ".txt") if killed else (".txt",)
        objects = [tmp_path / f"{shard}.gone", last] if killed else [last]
        runner.publish(str(out / "stage@v1"), shard, suffixes, Made(objects, {}, tree={str(out / name): file}))

    publish("000000", "one")
    publish("000001", "one")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"stage@v1/tree.txt is there with other bytes .* of shard 000002"):
            publish("000002", "two")
    publish("000000", "two")
    assert (out / "stage@v1/tree.txt").read_text() == "one", "it was complete"
    with pytest.raises(FileNotFoundError):
        publish("000003", "one", "stage@v1/other.txt", killed=True)
    publish("000003", "two", "stage@v1/other.txt")
    assert (out / "stage@v1/other.txt").read_text() == "two"
    for shard, text in (("000004", "one"), ("000005", "two")):
        publish(shard, text, "index@v1/index.json")
    assert (out / "index@v1/index.json").read_text() == "two"
    assert not list((out / "stage@v1").glob(".*"))


def test_a_whole_object_of_another_making_stands(undisturbed: tuple[Path, dict], tmp_path: Path) -> None:
    made = runs.planned(over(undisturbed, tmp_path))
    storage.put(f"{tmp_path}/out/echo@v1/000000.jsonl", b"other bytes\n")
    runs.finish(runs.worker(made))
    [done] = runs.fold(made.run).done["000000"].objects
    assert (tmp_path / "out/echo@v1/000000.jsonl").read_bytes() == b"other bytes\n" and done.bytes == 12
    assert done.sha256 == storage.sha256(done.uri)[0]


@pytest.mark.parametrize("wait", [0.0, 0.5])
def test_a_stage_process_does_not_outlive_its_worker(tmp_path: Path, wait: float) -> None:
    """Neither while it starts nor while it hangs: its requeued twin must not meet it."""
    process = runs.worker(runs.planned(runs.spec(tmp_path, {"0.txt": "hang"})))
    [child] = runs.until(lambda: runs.children(process.pid))
    time.sleep(wait)
    process.kill()
    process.communicate()
    runs.until(lambda: not Path(f"/proc/{child}").exists(), timeout=60)


def test_a_shard_that_takes_its_workers_along_is_given_up(tmp_path: Path) -> None:
    """The kernel may choose the worker for memory. After three that vanished on one shard the others get their turn."""
    inputs = {"0.txt": "hang", "1.txt": "fine"}
    made = runs.planned(runs.spec(tmp_path, inputs))
    for _ in range(3):
        count = len(runs.said(made.run, "start"))
        process = runs.worker(made)
        runs.until(lambda count=count: len(runs.said(made.run, "start")) > count)
        process.kill()
        process.communicate()
    runs.finish(runs.worker(made))  # the same task, started for the fourth time
    fold = runs.fold(made.run)
    assert list(fold.done) == ["000001"]
    assert (fold.failed["000000"].failure, fold.failed["000000"].detail) == (
        "lost", "3 workers vanished while they were on it")  # fmt: skip


def test_killed_under_hpc_run(undisturbed: tuple[Path, dict], tmp_path: Path) -> None:
    """While one run works, a second one waits for nothing and says so; a worker that is gone is known to be gone."""
    spec = over(undisturbed, tmp_path, echo(seconds=1.0))
    command = [sys.executable, "-m", "hpc.cli", "run", str(spec), "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, env=runs.environment(), text=True, stdout=subprocess.PIPE)
    with runs.ended(process):
        run = Run(runs.until(lambda: next(iter((tmp_path / "runs").glob("t-*/attempt-1/plan.json")), None)).parents[1])
        runs.until(lambda: runs.said(run, "start"))
        busy = runs.hpc("run", spec, code=2).stderr
        workers = {int(line.raw_job) for line in runs.lines(run) if isinstance(line, records.Worker)}
        assert f"{run.id} is being worked on by a local run right now: process " in busy
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=180)
    assert process.returncode == 1 and json.loads(out)[0]["state"] == "incomplete"
    assert runs.facts("run", spec)[0]["state"] == "done", "at once"
    whole(tmp_path, undisturbed)
    assert len(runs.said(run, "start")) <= ROW + 2


# Signals


def test_before_the_time_limit_the_shard_in_flight_is_finished(undisturbed: tuple[Path, dict], tmp_path: Path) -> None:
    made = runs.planned(over(undisturbed, tmp_path, echo(seconds=0.6)))
    process = runs.worker(made)
    runs.until(lambda: len(runs.said(made.run, "start")) == 2)
    process.send_signal(signal.SIGUSR2)
    said = runs.finish(process, runs.REQUEUE)
    assert "row 0 of echo: 2 shards done, 3 left (time limit)" in said and "got SIGUSR2" in said
    fold = runs.fold(made.run)
    assert sorted(fold.done) == ["000000", "000001"] and list(fold.ended.values()) == ["time limit"]
    assert runs.said(made.run, "progress"), "a shard of a second tells how far it is"
    runs.finish(runs.worker(made))  # what the requeue does
    assert runs.said(made.run, "start") == [f"{i:06}" for i in range(ROW)], "what is done is not done again"
    assert sorted(restart for _, restart in runs.fold(made.run).workers) == [0, 1]
    whole(tmp_path, undisturbed)


def test_a_row_that_is_finished_after_the_warning_is_finished(tmp_path: Path) -> None:
    """A status other than 0 would cancel what waits for this task."""
    made = runs.planned(runs.spec(tmp_path, runs.numbered(1), echo(seconds=0.5)))
    process = runs.worker(made)
    runs.until(lambda: runs.said(made.run, "start"))
    process.send_signal(signal.SIGUSR2)
    assert "1 shards done, 0 left (time limit)" in runs.finish(process, 0)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_leave_it_leaves(undisturbed: tuple[Path, dict], tmp_path: Path, signum: signal.Signals) -> None:
    made = runs.planned(over(undisturbed, tmp_path, echo(seconds=0.3)))
    process = runs.worker(made)
    runs.until(lambda: len(runs.said(made.run, "start")) == 2)
    begun = time.monotonic()
    process.send_signal(signum)
    said = runs.finish(process, 128 + signal.SIGTERM)
    assert time.monotonic() - begun < 5, "Slurm kills after KillWait, often 30 s"
    assert "1 shards done, 4 left (stopped by signal)" in said
    fold = runs.fold(made.run)
    assert list(fold.stopped) == ["000001"] and not fold.running and not fold.failed
    assert not (tmp_path / "out/echo@v1/000001.jsonl").exists()
    assert not list((tmp_path / "runs/scratch").iterdir())
    runs.finish(runs.worker(made, echo="0"))
    whole(tmp_path, undisturbed)


def test_a_signal_while_the_stage_starts(tmp_path: Path) -> None:
    made = runs.planned(runs.spec(tmp_path, runs.numbered(2)))
    process = runs.worker(made)
    runs.until(lambda: runs.children(process.pid))
    process.send_signal(signal.SIGTERM)
    runs.finish(process, 128 + signal.SIGTERM)
    assert not runs.said(made.run, "start")
    runs.finish(runs.worker(made))
    assert runs.states(made.run) == {"echo": "2/0/0"}


def test_a_shard_that_never_fits_the_time_limit_is_given_up(tmp_path: Path) -> None:
    """Two starts that ended at the time limit without finishing anything: the third one leaves that shard out."""
    made = runs.planned(runs.spec(tmp_path, runs.numbered(3)))
    assert made.plan
    worker = records.Worker(0.0, made.run.id, 1, "echo", made.plan.stages[0].fingerprint, "local1_0", 0, 0, "n")
    for restart in (0, 1):
        log = records.Log(made.run.records("echo") / f"local1_0.{restart}.jsonl")
        t = 10.0 * restart
        log.write(msgspec.structs.replace(worker, t=t, restart=restart))
        for line in Record("start", "000001", t + 1), Record("stopped", "000001", t + 2), End(t + 3, "time limit"):
            log.write(line)
        log.close()
    runs.finish(runs.worker(made))
    fold = runs.fold(made.run)
    assert sorted(fold.done) == ["000000", "000002"]
    assert (fold.failed["000001"].failure, fold.failed["000001"].detail) == (
        "timeout", "not finished in 2 starts of this task in a row: it needs more time, or smaller shards")  # fmt: skip
    again = runs.planned(tmp_path / "t.yaml")
    assert again.plan and [(g.memory, g.time, g.shards) for g in again.plan.groups] == [(1.0, 2.0, 1)]


def test_twins(undisturbed: tuple[Path, dict], tmp_path: Path) -> None:
    """A worker that a lost node left behind, and its requeued twin, both alive on the same row."""
    made = runs.planned(over(undisturbed, tmp_path, echo(seconds=0.1)))
    twins = [runs.worker(made, **on_node("n1", 500, restart)) for restart in (0, 1)]
    for twin in twins:
        runs.finish(twin)
    assert sorted(p.name for p in made.run.records("echo").iterdir()) == ["500_0.0.jsonl", "500_0.1.jsonl"]
    assert {w.node for w, _ in runs.fold(made.run).workers.values()} == {"n1"}
    whole(tmp_path, undisturbed)


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as f:
        while True:
            f.write(b"x" * 4096)
    return filler


def test_a_full_output(undisturbed: tuple[Path, dict], tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "out").symlink_to(small_disk)
    spec = over(undisturbed, tmp_path, echo(seconds=0.15))
    made = runs.planned(spec)
    process = runs.worker(made)
    runs.until(lambda: len(runs.said(made.run, "done")) == 2)
    filler = fill(small_disk)
    said = runs.finish(process)
    fold = runs.fold(made.run)
    assert {r.failure for r in fold.failed.values()} == {"storage"} and len(fold.failed) + len(fold.done) == ROW
    assert "The file system is full (df -h): free some space, then retry" in said
    assert not [p for p in small_disk.rglob(".*") if p.is_file()], "half-written files are taken away"
    filler.unlink()
    runs.finish(runs.worker(runs.planned(spec)))
    whole(tmp_path, undisturbed)


def test_full_scratch(undisturbed: tuple[Path, dict], tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/site.yaml").write_text(f"scratch: {small_disk}")
    made = runs.planned(over(undisturbed, tmp_path, cluster="site"))
    fill(small_disk)
    runs.finish(runs.worker(made))
    fold = runs.fold(made.run)
    assert not fold.done and {r.failure for r in fold.failed.values()} == {"node"}


@pytest.mark.parametrize("room", [900, 2000])
def test_records_that_do_not_fit(undisturbed: tuple[Path, dict], tmp_path: Path, room: int) -> None:
    """The run folder takes no more in the middle of a record: the worker ends, and what is torn is done again."""
    spec = over(undisturbed, tmp_path)
    made = runs.planned(spec)
    process = runs.worker(made)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1, out + err
    assert "only a part of a record could be written: is the disk full?" in err or "File too large" in err
    [file] = records.files(made.run.records("echo"))
    assert file.stat().st_size <= room
    recorded = len(runs.said(made.run, "done"))
    assert recorded < ROW and recorded <= len(list((tmp_path / "out/echo@v1").glob("0*"))) <= recorded + 1
    runs.finish(runs.worker(runs.planned(spec)))
    whole(tmp_path, undisturbed)
