"""Chaos: two chained stages and a barrier, while a seeded villain kills what it can. HPC_TEST_CHAOS_SEED repeats a run.

The villain kills workers and their stage processes (-9), kills slurmd and declares its node dead while the orphan lives
on, requeues, cancels single tasks, warns tasks of a time limit, fills the disk of the output. In the end, after
`hpc retry` as often as a person would, every clip id and digest is that of an undisturbed run, and each is there once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.lab import Lab
from conftest import Cluster, own_cluster

SHARDS = 48
STAGES = {
    "echo": {"kind": "stages:Echo", "seconds": 0.6, "resources": {"memory": "256MiB", "workers": 2}, "required": 0.0},
    "note": {"kind": "stages:Note", "needs": "echo", "resources": {"memory": "256MiB"}},
    "join": {"kind": "stages:Join", "needs": "echo", "lines": 5, "required": 1.0, "resources": {"memory": "256MiB"}},
}
RETRIES = 12


@pytest.fixture
def disk(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A small disk for the output, which can be filled without harm to anybody else."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def arena(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of its own: nodes see the mounts that were there when they started."""
    with own_cluster() as own:
        monkeypatch.setenv("SLURM_CONF", str(own.conf))
        yield own


def processes(lab: Lab, module: str) -> list[int]:
    """Workers or stage processes of this run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            mine = str(lab.run) in (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if module in words and mine:
            found.append(int(folder.name))
    return found


def kill(pids: list[int], chance: random.Random) -> None:
    if pids:
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            pass


def running(lab: Lab) -> list[str]:
    return [job for job, state in lab.queue().items() if state.startswith("RUNNING") and "_" in job]


class Villain:
    def __init__(self, lab: Lab, cluster: Cluster, chance: random.Random, disk: Path) -> None:
        self.lab, self.cluster, self.chance, self.disk = lab, cluster, chance, disk
        self.done: Counter[str] = Counter()
        self.dead = ""

    def strike(self) -> None:
        name = self.chance.choice(
            ["kill_worker", "kill_stage", "kill_stage", "node_dies", "requeue", "cancel", "warn", "fill_disk"]
        )
        getattr(self, name)()
        self.done[name] += 1

    def kill_worker(self) -> None:
        kill(processes(self.lab, "hpc.batch.worker"), self.chance)

    def kill_stage(self) -> None:
        kill(processes(self.lab, "hpc.batch.runner"), self.chance)

    def node_dies(self) -> None:
        if self.dead:
            self.cluster.node_up(self.dead)
            self.dead = ""
            return
        self.dead = self.chance.choice(["n1", "n2", "n3", "n4"])
        self.cluster.kill_slurmd(self.dead)
        self.cluster.run("scontrol", "update", f"NodeName={self.dead}", "State=DOWN", "Reason=chaos")

    def pick(self, *command: str) -> None:
        tasks = running(self.lab)
        if tasks:  # it may have ended since; and a command to a dead node waits for it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.cluster.run(*command, self.chance.choice(tasks), check=False)

    def requeue(self) -> None:
        self.pick("scontrol", "requeue")

    def cancel(self) -> None:
        self.pick("scancel")

    def warn(self) -> None:
        self.pick("scancel", "--signal=USR2", "--batch")

    def fill_disk(self) -> None:
        stuffing = self.disk / "stuffing"
        with stuffing.open("wb", buffering=0) as out:
            try:
                while True:
                    out.write(bytes(1 << 16))
            except OSError:
                pass
        time.sleep(1.5)
        stuffing.unlink()

    def rest(self) -> None:
        if self.dead:
            self.cluster.node_up(self.dead)
            self.dead = ""


def release(lab: Lab) -> None:
    """Requeued tasks need not wait out Slurm's two minutes."""
    for job, state in lab.queue().items():
        if state == "PENDING BeginTime":
            lab.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+2", check=False)


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.long)])
def test_nothing_is_lost_or_doubled(arena: Cluster, tmp_path: Path, disk: Path, seconds: int) -> None:
    output = disk / "out"
    seed = int(os.environ.get("HPC_TEST_CHAOS_SEED", random.randrange(10**6)))
    print(f"HPC_TEST_CHAOS_SEED={seed}")
    chance = random.Random(seed)
    shards = SHARDS * (1 if seconds < 100 else 24)
    texts = [f"hello {i}" for i in range(shards)]
    calm = Lab(arena, tmp_path / "calm", STAGES, texts, per_task=8)
    calm.submit()
    lab = Lab(arena, tmp_path / "chaos", STAGES, texts, per_task=4, output=str(output))
    lab.submit()
    villain = Villain(lab, arena, chance, disk)
    until = time.monotonic() + seconds
    try:
        attempts = 1
        while time.monotonic() < until:
            villain.strike()
            release(lab)
            time.sleep(chance.uniform(0.2, 1.5))
            if not lab.queue() and attempts < RETRIES:  # all ended before the time was over: a person would go on
                villain.rest()
                if lab.status()["state"] == "done":
                    break
                lab.retry()
                attempts += 1
    finally:
        villain.rest()
        (disk / "stuffing").unlink(missing_ok=True)
    state = lab.finish(180)
    while state != "done" and attempts < RETRIES + 3:
        lab.retry()
        attempts += 1
        state = lab.finish(180)
    print(f"{attempts} attempts; the villain: {dict(villain.done)}")
    assert state == "done", lab.logs()
    assert calm.finish(180) == "done"

    assert lab.digests("note") == calm.digests("note")
    assert contents(lab) == contents(calm)
    names = [f"{i:06}" for i in range(shards)]
    made = sorted(p.name for p in (output / "echo@v1").iterdir() if not p.name.startswith("_"))
    assert [n for n in made if not n.startswith(".tmp-")] == [f"{n}.jsonl" for n in names]
    assert set(lab.states("echo", "done")) == set(names)
    # what was recorded is what is there
    for record in lab.records("echo"):
        if record.get("state") == "done":
            [thing] = record["objects"]
            assert hashlib.sha256(Path(thing["uri"]).read_bytes()).hexdigest() == thing["sha256"]
    # the data set behind the barrier: every line once
    joined = [p.read_text() for p in sorted((output / "join@v1").glob("*.txt"))]
    assert sorted("".join(joined).splitlines()) == sorted(
        line for p in (output / "echo@v1").glob("0*.jsonl") for line in p.read_text().splitlines()
    )


def contents(lab: Lab) -> dict[str, list[str]]:
    """What Echo wrote, without the paths, which differ."""
    return {name: [line["text"] for line in lines] for name, lines in lab.lines("echo").items()}
