"""Runs on a real Slurm from the first task to the report: what waits for what, what is seen of it meanwhile, and that
nothing is left in the queue whatever fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

from conftest import Cluster
from lab import Lab, wait_until, webhook, worker_of

ECHO = {"kind": "stages:Echo"}
CHAIN = {
    "note": {"kind": "stages:Note", "needs": "echo"},
    "join": {"kind": "stages:Join", "needs": "echo", "lines": 1},
    "shout": {"kind": "stages:Note", "needs": "join", "prompt": "shout"},
}


def test_stages_wait_for_what_they_need_and_no_longer(cluster: Cluster, tmp_path: Path) -> None:
    with webhook() as (url, posted):
        lab = Lab(
            cluster, tmp_path / "lab", {"echo": ECHO | {"flags": str(tmp_path)}, **CHAIN}, ["a", "b", "wait go"],
            secrets=["HOOK"], notify={"webhook": "HOOK", "mail": "someone@example.org"},
        )  # fmt: skip
        jobs = lab.submit(env={"HOOK": url})
        lab.wait_for("note", "done", shards=2)
        wait_until(lambda: not {f"{jobs['note']}_{i}" for i in (0, 1)} & lab.queue().keys(), "two notes have left")
        queue = lab.queue()
        assert queue.pop(f"{jobs['echo']}_2").startswith("RUNNING")
        waiting = {f"{jobs['note']}_2", jobs["join-barrier"], jobs["report"]}
        arrays = {jobs["join"], jobs["shout"]}
        assert {job for job in queue if job.split("_")[0] not in arrays} == waiting
        assert set(queue.values()) == {"PENDING Dependency"}

        mailed = [stage for stage, job in jobs.items() if "MailUser" in lab.shown(job)]
        assert mailed == ["report"] and lab.shown(jobs["report"])["MailUser"] == "someone@example.org"
        for stage, job in jobs.items():
            shown = cluster.run("squeue", "--noheader", "--states=all", "--format=%200j|%1100k", f"--jobs={job}").stdout
            name, comment = (part.strip() for part in shown.splitlines()[0].split("|"))
            assert name == f"{lab.run.name}/{stage}"
            assert json.loads(comment) == {
                "hpc": "1", "run": lab.run.name, "stage": stage.removesuffix("-barrier"), "attempt": 1,
                "spec": lab.run.name[-8:],
            }  # fmt: skip

        (tmp_path / "go").touch()
        assert lab.finish() == "done"
        assert [(call["run"], call["state"]) for call in posted] == [(lab.run.name, "done")]
        assert posted[0]["text"] == (lab.run / "report.txt").read_text().strip()
    lab.exactly_once()
    lab.exactly_once("note")
    notes = {p.name: p.read_text() for p in Path(lab.output, "shout@v1").glob("0*")}
    assert notes == {f"00000{i}.note": "shout 1\n" for i in range(3)}
    fields = cluster.run("sacct", "-nXP", "-o", "JobID,JobName,Comment,Start,End", "-j", ",".join(jobs.values())).stdout
    told = [line.split("|") for line in fields.splitlines()]
    assert all(json.loads(comment)["run"] == lab.run.name and name.startswith(lab.run.name + "/")
               for _, name, comment, *_ in told)  # fmt: skip
    begun = {job: start for job, _, _, start, _ in told}
    ended = {job: end for job, *_, end in told}
    assert begun[f"{jobs['note']}_0"] <= ended[f"{jobs['echo']}_2"] <= begun[f"{jobs['note']}_2"]
    assert ended[f"{jobs['echo']}_2"] <= begun[jobs["join-barrier"]] <= ended[jobs["join-barrier"]]
    assert ended[jobs["join-barrier"]] <= begun[f"{jobs['join']}_0"] <= ended[f"{jobs['shout']}_0"]
    assert ended[f"{jobs['shout']}_0"] <= begun[jobs["report"]]


def test_nothing_stays_in_the_queue_whatever_fails(cluster: Cluster, tmp_path: Path) -> None:
    flags = ECHO | {"flags": str(tmp_path)}
    too_few = Lab(cluster, tmp_path / "few", {"echo": ECHO, **CHAIN}, ["fail", "fail", "b"])
    too_few.submit()
    chain = {"echo": flags, **CHAIN, "join": CHAIN["join"] | {"required": 0.3}}
    killed = Lab(cluster, tmp_path / "killed", chain, ["wait go", "wait go", "c"])
    jobs = killed.submit()
    broken = Lab(cluster, tmp_path / "broken", {"echo": ECHO, **CHAIN}, ["a", "b"])
    broken.hpc("plan", broken.spec)
    (broken.run / "attempt-1" / "code" / "stages" / "echo.py").write_text("import no_such_module\n")
    cluster.run("bash", broken.run / "attempt-1" / "submit.sh")
    no_barrier = Lab(cluster, tmp_path / "barrier", {"echo": ECHO, **CHAIN}, ["a"])
    no_barrier.hpc("plan", no_barrier.spec)
    (no_barrier.run / "attempt-1" / "code" / "stages" / "join.py").unlink()
    cluster.run("bash", no_barrier.run / "attempt-1" / "submit.sh")

    killed.wait_for("echo", "start", shards=3)
    os.kill(worker_of(f"{jobs['echo']}_0"), signal.SIGKILL)
    cluster.run("scancel", f"{jobs['echo']}_1")

    assert too_few.finish() == "failed"
    assert ended(too_few) == {
        "echo": ["COMPLETED"] * 3, "note": ["COMPLETED"] * 3, "join-barrier": ["FAILED"], "join": ["CANCELLED"],
        "shout": ["CANCELLED"], "report": ["COMPLETED"],
    }  # fmt: skip
    assert too_few.states("note", "failed") == {"000000": 1, "000001": 1}
    assert "too few: look at the failures" in too_few.logs()

    assert killed.finish() == "incomplete"
    assert ended(killed) == {
        "echo": ["CANCELLED", "COMPLETED", "FAILED"], "note": ["CANCELLED", "CANCELLED", "COMPLETED"],
        "join-barrier": ["COMPLETED"], "join": ["COMPLETED"], "shout": ["COMPLETED"], "report": ["COMPLETED"],
    }  # fmt: skip
    assert killed.states("join", "done") == {"000000": 1}
    assert "1/3 shards" in (killed.run / "report.txt").read_text()

    assert broken.finish() == "failed"
    assert broken.states("echo", "failed") == {"000000": 1, "000001": 1}
    assert "No module named 'no_such_module'" in broken.hpc("logs", broken.run, "--failed")

    assert no_barrier.finish() == "incomplete"
    assert ended(no_barrier)["join-barrier"] == ["FAILED"] and ended(no_barrier)["shout"] == ["CANCELLED"]
    assert "stages.join" in no_barrier.hpc("logs", no_barrier.run, "--failed")

    # all of it is finished by a retry
    (tmp_path / "go").touch()
    killed.retry()
    assert killed.finish() == "done"
    killed.exactly_once()
    killed.exactly_once("note")
    assert sorted(p.name for p in Path(killed.output).iterdir()) == [
        "_hpc", "echo@v1", "join@v1", "join@v2", "note@v1", "shout@v1", "shout@v2"
    ]  # fmt: skip


def ended(lab: Lab) -> dict[str, list[str]]:
    """{stage: how its tasks ended}"""
    jobs = lab.jobs()
    states: dict[str, list[str]] = {stage: [] for stage in jobs}
    for job, state in lab.cluster.wait(jobs.values()).items():
        states[next(s for s, j in jobs.items() if j == job.split("_")[0])].append(state)
    return {stage: sorted(found) for stage, found in states.items()}


def test_a_live_run_is_seen_throttled_cancelled_and_retried(cluster: Cluster, tmp_path: Path) -> None:
    echo = ECHO | {"flags": str(tmp_path), "throttle": 2, "resources": {"cpus": 1}}
    lab = Lab(cluster, tmp_path / "lab", {"echo": echo, "note": CHAIN["note"]}, ["a", "b", *["wait go"] * 6])
    job = lab.submit()["echo"]
    lab.wait_for("echo", "start", shards=4)
    cluster.wait({f"{job}_0", f"{job}_1"})  # until sacct knows

    calls = tmp_path / "calls"
    for command in ("squeue", "sacct", "scontrol", "sinfo", "sbatch"):
        script = tmp_path / "bin" / command
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\necho {command} >>{calls}\nexec {shutil.which(command)} "$@"\n')
        script.chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    status = json.loads(lab.hpc("status", lab.run, "--json", env=env))
    assert sorted(calls.read_text().split()) == ["sacct", "squeue"]
    assert status["state"] == "running"
    echo_row, note_row = status["stages"]
    assert (echo_row["done"], echo_row["running"], echo_row["missing"]) == (2, 2, 4)
    assert echo_row["tasks"] == {"COMPLETED": 2, "RUNNING": 2, "PENDING": 4}
    assert echo_row["reasons"] == {"JobArrayTaskLimit": 4}
    assert note_row["reasons"] == {"Dependency": 6}
    said = lab.hpc("status", lab.run)
    assert "tasks: COMPLETED 2 PENDING 4 RUNNING 2; pending for: JobArrayTaskLimit 4" in said

    for words in (("retry", lab.run), ("submit", lab.spec), ("plan", lab.spec)):
        said = lab.hpc(*words, check=False)
        assert said.startswith("2 ") and job in said and f"`hpc cancel {lab.run.name}` first" in said
    assert len(lab.attempts()) == 1

    assert lab.shown(job)["ArrayTaskThrottle"] == "2"
    lab.hpc("throttle", lab.run, 3, "--stage=echo")
    assert lab.shown(job)["ArrayTaskThrottle"] == "3"
    lab.wait_for("echo", "start", shards=5)
    lab.hpc("throttle", lab.run, 0)
    lab.wait_for("echo", "start", shards=8)

    lab.hpc("cancel", lab.run)
    assert lab.finish() == "incomplete"
    assert "no jobs to cancel" in lab.hpc("cancel", lab.run)
    assert "CANCELLED" in lab.hpc("logs", lab.run, "--failed")
    (tmp_path / "go").touch()
    lab.retry()
    assert lab.finish() == "done"
    lab.exactly_once()
    lab.exactly_once("note")
    assert "nothing to do" in lab.hpc("retry", lab.run)
    assert len(lab.attempts()) == 2
