"""A spec with its inputs, and the hpc command, against the test cluster.

    lab = Lab(cluster, tmp_path, {"echo": {"kind": "stages:Echo"}}, ["hello", "sleep 5"])
    lab.submit()
    lab.finish()
    lab.exactly_once()

Every input is a shard of its own, whose number is that of the input; the plan takes it for `planned` seconds of work,
so that `per_task` of them make a row of a first attempt. The hpc command runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import yaml
from conftest import Cluster

TESTS = Path(__file__).parents[1]
CHECKOUT = TESTS.parent
GIB = 1 << 30


class Lab:
    """A folder with a spec, a preset named "site", inputs, and runs/."""

    def __init__(self, cluster: Cluster, folder: Path, stages: dict[str, Any], inputs: Iterable[str], *,
                 per_task: int = 1, planned: int = 1, preset: Mapping[str, Any] | None = None,
                 checkout: Path = CHECKOUT, **spec: Any) -> None:  # fmt: skip
        self.cluster, self.folder, self.checkout = cluster, folder, checkout
        self.path = [checkout, checkout / "tests"]
        (folder / "clusters").mkdir(parents=True)
        (folder / "clusters" / "site.yaml").write_text(yaml.safe_dump({"partition": "main", **(preset or {})}))
        self.texts = list(inputs)
        self.released: dict[str, float] = {}
        (folder / "in").mkdir()
        listed = []
        for i, text in enumerate(self.texts):
            (folder / "in" / f"{i:06}.txt").write_text(text)
            # A list may say how large its inputs are; to the plan, Echo makes a GiB a second.
            listed.append({"uri": f"in/{i:06}.txt", "size": planned * GIB, "etag": "1"})
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in listed))
        self.output = spec.get("output", str(folder / "out"))
        cut = {"size": f"{planned}GiB", "split_above": f"{planned}GiB", "task": f"{per_task * planned}s"}
        whole = {"name": "t", "inputs": "in.jsonl", "output": self.output, "cluster": "site", "shards": cut, **spec}
        self.spec = folder / "spec.yaml"
        self.spec.write_text(yaml.safe_dump(whole | {"stages": stages}, sort_keys=False))

    def hpc(self, *words: str | Path | int, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        """What the command says; with check=False its stderr too, after its exit status."""
        path = {"PYTHONPATH": ":".join(map(str, self.path)), "HPC_RUNS": str(self.folder / "runs")}
        command = [sys.executable, "-m", "hpc.cli", *map(str, words)]
        done = self.cluster.run(*command, cwd=self.folder, env=path | dict(env or {}), check=check, timeout=120)
        return done.stdout if check else f"{done.returncode} {done.stdout}{done.stderr}"

    def submit(self, *overrides: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """{stage: job of its first array}, with "<stage>-barrier" and "report"."""
        self.hpc("submit", self.spec, *overrides, env=env)
        return self.jobs()

    def retry(self) -> dict[str, str]:
        self.hpc("retry", self.run)
        return self.jobs()

    def patch(self, file: str, old: str, new: str) -> None:
        """Changes the code that the latest attempt will run with."""
        path = self.attempts()[-1] / "code" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old} is not in {file}"
        path.write_text(text.replace(old, new))

    @property
    def run(self) -> Path:
        """The run folder."""
        [folder] = (self.folder / "runs").iterdir()
        return folder

    def attempts(self) -> list[Path]:
        return sorted(self.run.glob("attempt-*"))

    def plan(self) -> Any:
        """Of the latest attempt."""
        return json.loads((self.attempts()[-1] / "plan.json").read_text())

    def submitted(self, attempt: Path | None = None) -> list[dict[str, Any]]:
        """The jobs of an attempt, the latest by default."""
        return read_lines((attempt or self.attempts()[-1]) / "jobs.jsonl")

    def jobs(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for job in self.submitted():
            names.setdefault(job["stage"] + ("-barrier" if job["phase"] == "barrier" else ""), job["job"])
        return names

    def queue(self) -> dict[str, str]:
        """{"12_0": "PENDING Resources"}: what has not ended, of all attempts."""
        jobs = [job["job"] for attempt in self.attempts() for job in self.submitted(attempt)]
        command = ("squeue", "--noheader", "--array", "--format=%i %T %r", f"--jobs={','.join(jobs)}")
        done = self.cluster.run(*command, check=False)
        assert done.returncode == 0 or "Invalid job id" in done.stderr, done.stderr
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def hurried(self) -> dict[str, str]:
        """What is in the queue, where requeued tasks need not wait out Slurm's two minutes."""
        left = self.queue()
        for job, state in left.items():
            # each time puts the start off by two seconds more
            if state == "PENDING BeginTime" and time.monotonic() > self.released.get(job, 0.0) + 10:
                self.cluster.release_requeue(job)
                self.released[job] = time.monotonic()
        return left

    def finish(self, timeout: float = 180) -> str:
        """Waits until nothing of the run is in the queue. Returns the state of the run."""
        deadline = time.monotonic() + timeout
        while left := self.hurried():
            assert time.monotonic() < deadline, f"still in the queue after {timeout:g} s: {left}\n{self.logs()}"
            time.sleep(0.2)
        return str(self.status()["state"])

    def status(self) -> Any:
        return json.loads(self.hpc("status", self.run, "--json", check=False).partition(" ")[2])

    def records(self, stage: str) -> list[dict[str, Any]]:
        """All lines of the stage's records; those about shards say whose they are ("job", "restart")."""
        out = []
        for file in sorted((self.run / "records" / stage).glob("*.jsonl")):
            worker: dict[str, Any] = {}
            for line in read_lines(file):
                if line["type"] == "worker":
                    worker = line
                out.append({"job": worker["job"], "restart": worker["restart"], "node": worker["node"]} | line)
        return out

    def states(self, stage: str, state: str) -> Counter[str]:
        """Shards -> how often a record said this of them: start, done, failed, stopped."""
        return Counter(r["shard"] for r in self.records(stage) if r.get("state") == state)

    def wait_for(self, stage: str, state: str, *, job: str = "", restart: int = 0, shards: int = 1,
                 timeout: float = 120) -> None:  # fmt: skip
        """Waits until so many records of a worker's start say this of a shard."""

        def said() -> bool:
            found = [r for r in self.records(stage) if r.get("state") == state and r["restart"] == restart]
            return len([r for r in found if job in ("", r["job"])]) >= shards

        wait_until(said, f"{shards} {state} by {stage} {job} restart {restart}", timeout, self.logs)

    def lines(self, stage: str = "echo") -> dict[str, list[dict[str, Any]]]:
        """{"000003.jsonl": what Echo wrote}"""
        return {p.name: read_lines(p) for p in sorted(Path(self.output, f"{stage}@v1").glob("*.jsonl"))}

    def exactly_once(self, stage: str = "echo") -> None:
        """Every shard is done and recorded once, every input is in the output once, and nothing else is there."""
        names = [f"{i:06}" for i in range(len(self.texts))]
        assert self.states(stage, "done") == dict.fromkeys(names, 1)
        folder = Path(self.output, f"{stage}@v1")
        digests = {r["shard"]: r["objects"] for r in self.records(stage) if r.get("state") == "done"}
        for name in names:
            [made] = digests[name]
            assert hashlib.sha256(Path(made["uri"]).read_bytes()).hexdigest() == made["sha256"]
        [suffix] = {Path(made["uri"]).suffix for [made] in digests.values()}
        made = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".tmp-"))  # kill -9 may leave one
        assert made == [*(name + suffix for name in names), "_stage.json"]
        if suffix == ".jsonl":
            inputs = [line["uri"] for lines in self.lines(stage).values() for line in lines]
            assert sorted(inputs) == [str(self.folder / "in" / f"{name}.txt") for name in names]

    def digests(self, stage: str = "echo", output: Path | None = None) -> dict[str, str]:
        folder = Path(output or self.output, f"{stage}@v1")
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name[0] != "_"}

    def logs(self) -> str:
        files = sorted((self.run / "logs").rglob("*.out"))
        return "\n".join(f"==> {p}\n{p.read_text(errors='replace')[-3000:]}" for p in files)

    def shown(self, job: str) -> dict[str, str]:
        """scontrol show job: {"JobName": ...}. Of an array, its first record."""
        text = self.cluster.run("scontrol", "--oneliner", "show", "job", job).stdout.splitlines()[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)


def worker_of(task: str, restart: int = 0) -> int:
    """The pid of the process that the batch script of an array task became."""
    array, index = task.split("_")
    marks = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"}
    if restart:
        marks.add(f"SLURM_RESTART_COUNT={restart}")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_text(), set((folder / "environ").read_text().split("\0"))
        except OSError:
            continue
        if "hpc.batch.worker" in said[0] and marks <= said[1] and (restart or "SLURM_RESTART_COUNT=1" not in said[1]):
            return int(folder.name)
    raise AssertionError(f"no worker of {task} is running")


def stage_of(worker: int) -> int:
    """The pid of a worker's child, the process that runs the stage."""
    [child] = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return int(child)


def read_lines(file: Path) -> list[Any]:
    """JSON lines; a last one that is being written just now is left out."""
    try:
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return []


@contextmanager
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """A server's URL, and the bodies that were posted to it."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", posted
        server.shutdown()


@contextmanager
def held(cluster: Cluster) -> Iterator[None]:
    """Jobs can be submitted, and wait."""
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        yield
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


def wait_until(so: Callable[[], object], what: str, timeout: float = 120, logs: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout
    while not so():
        assert time.monotonic() < deadline, f"not so after {timeout:g} s: {what}\n{logs()}"
        time.sleep(0.1)
