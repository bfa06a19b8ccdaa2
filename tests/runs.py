"""Runs for tests: inputs and a spec in a folder, the `hpc` command, workers, and what came of them. Without Slurm.

    spec = runs.spec(tmp_path, {"a.txt": "one", "b.txt": "crash"}, stages={"echo": runs.ECHO})
    runs.hpc("run", spec)                       # the command, as a process
    prepared = runs.planned(spec)               # planned and committed, all shards in one row
    runs.worker(prepared).wait()                # the real worker on that row
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import CALLERS, RENDEZVOUS

from hpc.batch import commit, finale, launch, prepare, records, status
from hpc.batch.cluster import load_cluster
from hpc.batch.run import Run
from hpc.batch.spec import load

TESTS = Path(__file__).parent
ECHO: dict[str, Any] = {"kind": "stages:Echo", "resources": {"cpus": 1}}
NOTE: dict[str, Any] = {"kind": "stages:Note", "needs": "echo", "resources": {"cpus": 1}}
JOIN: dict[str, Any] = {"kind": "stages:Join", "needs": "echo", "resources": {"cpus": 1}}
SIZE = 16
"""Bytes of every input: each is a shard of its own, number i in the order of names is shard i."""
REQUEUE = 144
"""The exit status by which a worker asks submitit to start it again."""


def environment(**more: str) -> dict[str, str]:
    """What a process under test sees: this Python, the test stages, nothing of the caller's Slurm or hpc."""
    keep = {k: v for k, v in os.environ.items() if k not in RENDEZVOUS and not k.startswith(CALLERS)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return keep | {"PYTHONPATH": str(TESTS), "PATH": path, "HOME": tempfile.gettempdir(), "USER": "tester"} | more


def write(folder: Path, inputs: dict[str, str]) -> None:
    for name, content in inputs.items():
        assert len(content.encode()) <= SIZE
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + " " * (SIZE - len(content.encode())))


def numbered(count: int) -> dict[str, str]:
    return {f"{i:03}.txt": f"text {i}" for i in range(count)}


def spec(folder: Path, texts: dict[str, str], stages: dict[str, Any] | None = None, name: str = "t",
         **more: Any) -> Path:  # fmt: skip
    """folder/NAME.yaml over folder/in, with one shard an input. `more` are keys of the spec."""
    write(folder / "in", texts)
    keys = {"name": name, "inputs": "in", "output": "out", "shards": {"size": f"{SIZE}B", "split_above": "1KiB"},
            "stages": stages or {"echo": ECHO}}  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(keys | more, sort_keys=False, allow_unicode=True))
    return file


def hpc(*words: str | Path, cwd: Path | None = None, code: int | None = 0, timeout: float = 300,
        env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The command. The run folders are beside the spec, or in `cwd`."""
    place = cwd or next(Path(w).parent for w in words if Path(w).is_absolute())
    done = subprocess.run([sys.executable, "-m", "hpc.cli", *map(str, words)], cwd=place, env=env or environment(),
                          capture_output=True, text=True, timeout=timeout)  # fmt: skip
    assert code in (None, done.returncode), f"exit {done.returncode}: {words}\n{done.stdout}{done.stderr}"
    return done


def facts(*words: str | Path, **more: Any) -> Any:
    """What the command prints with --json."""
    return json.loads(hpc(*words, "--json", **more).stdout)


def planned(file: Path, *overrides: str, cores: int = 1, lost: dict | None = None) -> prepare.Prepared:
    """Planned as `hpc run` does, into folder/runs, and committed. cores: rows at most."""
    [one] = load(file, overrides)
    made = prepare.prepare(one, load_cluster(one.cluster, file), file.parent / "runs", on_slurm=False,
                           command=["test"], cores=cores, lost=lost)  # fmt: skip
    if made.attempt:
        commit.commit(made.run, made.attempt)
    return made


def again(file: Path, *overrides: str) -> prepare.Prepared:
    """The next attempt, with what `hpc` itself finds out about lost workers."""
    [one] = load(file, overrides)
    return launch.plan(one, load_cluster(one.cluster, file), file.parent / "runs", on_slurm=False, command=["test"])


def worker(prepared: prepare.Prepared, stage: str = "echo", row: int | str = 0, **env: str) -> subprocess.Popen[str]:
    """The worker of one row, or the barrier of a stage, as a process."""
    assert prepared.attempt
    scratch = prepared.run.folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "hpc.batch.worker", str(prepared.run.folder), stage,
               str(prepared.attempt.number), str(row)]  # fmt: skip
    more = {"PYTHONPATH": str(prepared.attempt.code), "TMPDIR": str(scratch)} | env
    return subprocess.Popen(command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            errors="replace")  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 180) -> str:
    """Wait for a worker and return what it said."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, f"exit {process.returncode}\n{out}{err}"
    return out + err


def go(file: Path, *overrides: str) -> prepare.Prepared:
    """Plan, run every worker and barrier one after the other, and report: `hpc run` without its waiting."""
    made = planned(file, *overrides)
    if made.attempt is None or made.plan is None:
        return made
    for group in made.plan.groups:
        for chunk in group.chunks:
            for row in range(chunk.first_row, chunk.first_row + chunk.tasks):
                for name in group.stages:
                    finish(worker(made, name, row))
    ended: set[str] = set()
    for stage in made.plan.stages:
        if stage.domain != "inputs" and not ended & {stage.domain, *stage.needs}:
            if "barrier" in stage.phases and worker(made, stage.name, "barrier").wait(60):
                ended.add(stage.name)
                continue
            for row in range(made.attempt.rows(stage.domain)):
                finish(worker(made, stage.name, row))
    finale.finale(made.run, ask_slurm=False, say=False)
    return made


def until(happened: Callable[[], Any], timeout: float = 120) -> Any:
    """Wait until something is true; returns it."""
    deadline = time.monotonic() + timeout
    while not (found := happened()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)
    return found


def lines(run: Run, stage: str = "echo") -> list[records.Line]:
    """All records of a stage, by file."""
    return [line for path in records.files(run.records(stage)) for line in records.read(path)]


def said(run: Run, state: str, stage: str = "echo") -> list[str]:
    """Shards of the records in this state, by time."""
    found = [r for r in lines(run, stage) if isinstance(r, records.Record) and r.state == state]
    return [r.shard for r in sorted(found, key=lambda r: r.t)]


def fold(run: Run, stage: str = "echo") -> records.Fold:
    return records.fold([run.records(stage)], None)


def states(run: Run) -> dict[str, str]:
    """Stage -> "done/failed/missing" shards."""
    found = status.gather(run, ask_slurm=False).status.stages
    return {s.stage: f"{s.done}/{s.failed}/{s.missing + s.running}" for s in found}


def objects(output: Path) -> dict[str, str]:
    """Everything published, with digests: relative path -> sha256. Nothing temporary may be left."""
    files = [p for p in sorted(output.rglob("*")) if p.is_file() and "_hpc" not in p.parts]
    assert not [p for p in files if p.name.startswith(".")], "temporary files are left"
    return {str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
            if not p.name.startswith("_")}  # fmt: skip


def content(output: Path) -> dict[str, str]:
    """The texts that Echo wrote: input's name -> text."""
    rows = [json.loads(line) for p in output.rglob("*.jsonl") if "_hpc" not in p.parts and not p.name.startswith("_")
            for line in p.read_text().splitlines()]  # fmt: skip
    assert len({row["uri"] for row in rows}) == len(rows), "an input stands in two shards"
    return {Path(row["uri"]).name: row["text"] for row in rows}


def processes(words: str) -> dict[int, str]:
    """Live processes whose command line or environment has these words in it, e.g. the path of a run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            said = (folder / "cmdline").read_bytes() + b"\0" + (folder / "environ").read_bytes()
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if words.encode() in said and not zombie and int(folder.name) != os.getpid():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill the process if the test leaves it running."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


class Slurm:
    """Fake Slurm commands: they write down how they were called, and answer what `answers` says.

    sbatch counts job ids up from 101; `refuse` is the number of the sbatch call that fails (1 is the first).
    """

    COMMANDS = ("sbatch", "scancel", "squeue", "sacct", "scontrol")

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        script = f"#!{sys.executable} -IS\n" + (TESTS / "fake_slurm.py").read_text()
        for name in self.COMMANDS:
            (self.bin / name).write_text(script)
            (self.bin / name).chmod(0o755)
        self.answers(scontrol="MaxArraySize            = 1001\nSLURM_VERSION           = 22.05.8\n")

    def answers(self, **texts: str) -> None:
        """command -> what it prints; "!..." is printed as an error, with exit status 1."""
        for name, text in texts.items():
            (self.bin / f"{name}.says").write_text(text)

    def refuse(self, call: int) -> None:
        (self.bin / "refuse").write_text(str(call))

    def calls(self, *commands: str) -> list[dict[str, Any]]:
        """What was called, in order: {"command", "argv", "env"}."""
        file = self.bin / "calls.jsonl"
        made = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call for call in made if not commands or call["command"] in commands]

    def forget(self) -> None:
        (self.bin / "calls.jsonl").unlink(missing_ok=True)
        (self.bin / "refuse").unlink(missing_ok=True)

    @property
    def path(self) -> str:
        return f"{self.bin}:{environment()['PATH']}"
