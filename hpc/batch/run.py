"""The run folder: every path, and what is written when an attempt is planned. A person can read all of it.

runs/<name>-<hash>/
  spec.yaml               the spec as resolved: overrides applied, defaults as they were
  attempt-1/
    plan.json  plan.jsonl  plan.idx     the stages; row i = array task i; where each row begins
    submit.sh             the exact submission: `bash submit.sh` is what `hpc submit` does
    provenance.json       code, host, versions, command; code.diff: what was not committed
    committed             is there once the output knows of the shards and folders that are planned here
    jobs.jsonl            what submit.sh was told by Slurm
    code/                 the code that runs, laid out as installed
    twins/<stage>/        shards that are made a second time, and by whom (hpc.batch.twins)
    barrier-<stage>.json .jsonl .idx    written by a barrier: what it froze, and its rows
  logs/<stage>/  records/<stage>/
  ranks/<stage>/<start>/              heartbeats of ranks, and their stacks where they hung (hpc.batch.heartbeat)
  report.txt  report.json  report.html
"""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import hpc
from hpc.batch import jsons, masking
from hpc.batch.plan import Group, Row
from hpc.batch.spec import Resources


class StagePlan(msgspec.Struct):
    """What a worker must know of one stage."""

    name: str
    kind: str
    settings: dict
    fingerprint: str
    folder: str
    """The version folder in the output. For a stage that begins with a barrier: filled in by the barrier."""
    objects: tuple[str, ...]
    phases: tuple[str, ...]
    needs: tuple[str, ...]
    domain: str
    resources: Resources
    required: float
    throttle: int | None
    starts: int = 3
    """Of ranks: how many in a row may end without a new checkpoint."""
    done: list[str] = []
    """Behind a barrier: shards in its rows that this stage has made already."""
    width: int = 0
    """Tasks of the array after a barrier, fixed when the attempt is submitted; 0: nothing to do there."""


class Boost(msgspec.Struct, frozen=True):
    """Factors."""

    memory: float
    time: float


class AttemptPlan(msgspec.Struct):
    """attempt-N/plan.json"""

    run: str
    attempt: int
    spec_hash: str
    output: str
    created: float
    stages: list[StagePlan]
    groups: list[Group]
    domain_size: int
    """Shards in the domain "inputs": all, done and missing."""
    scope: str
    """File name of the list of all shard ids of the domain "inputs" that belong to this plan."""
    superseded: list[tuple[str, str]]
    """(uri, etag) of inputs in this scope's shards that are listed no more."""
    generation: int
    """The ledger generation that this plan adds; 0 if it adds none."""
    scratch: str = ""
    cluster: str = ""
    retries: int = 0
    notify: dict = {}
    unreachable: list[str] = []
    """Run folders that wrote to this output and were out of reach when this was planned."""
    env: dict[str, str] = {}
    """The declared environment: what looks at the output later must look at the same store."""

    def boost(self, stage: StagePlan, row: int) -> Boost:
        """What this attempt gives to a row of a stage over what the spec asks for."""
        if stage.domain == "inputs":
            for g in self.groups:
                if any(c.first_row <= row < c.first_row + c.tasks for c in g.chunks):
                    return Boost(g.memory, g.time)
        return Boost(1.0, 1.0)

    def stage(self, name: str) -> StagePlan:
        return next(s for s in self.stages if s.name == name)


class Job(msgspec.Struct):
    """A line of jobs.jsonl."""

    job: str
    stage: str
    phase: str
    """map, barrier, gang or report"""
    first_row: int = 0
    tasks: int = 0


class Run(msgspec.Struct, frozen=True):
    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def spec(self) -> Path:
        return self.folder / "spec.yaml"

    def records(self, stage: str) -> Path:
        return self.folder / "records" / stage

    def logs(self, stage: str) -> Path:
        return self.folder / "logs" / stage

    def ranks(self, stage: str) -> Path:
        return self.folder / "ranks" / stage

    def report(self, form: str) -> Path:
        return self.folder / f"report.{form}"

    def attempts(self) -> list[int]:
        """Numbers of the attempts whose plan is complete (plan.json is written last)."""
        found = [p.parent.name.partition("-")[2] for p in self.folder.glob("attempt-*/plan.json")]
        return sorted(int(n) for n in found if n.isdigit())

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.folder / f"attempt-{number}", number)

    def latest(self) -> Attempt:
        numbers = self.attempts()
        if not numbers:
            raise FileNotFoundError(f"{self.folder}: no attempt has been planned here; is it a run folder?")
        return self.attempt(numbers[-1])


class Attempt(msgspec.Struct, frozen=True):
    folder: Path
    number: int

    @property
    def submit(self) -> Path:
        return self.folder / "submit.sh"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    def plan(self) -> AttemptPlan:
        path = self.folder / "plan.json"
        try:
            return jsons.decode(path.read_bytes(), AttemptPlan)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: damaged, or of another version of hpc ({error}): submit the spec anew, what is "
                             "done stays done") from error  # fmt: skip

    def barrier(self, stage: str) -> Path:
        """What the barrier of this stage's domain froze; exists once it has."""
        return self.folder / f"barrier-{stage}.json"

    def scope(self, plan: AttemptPlan) -> list[str]:
        return (self.folder / plan.scope).read_text().split()

    def jobs(self) -> list[Job]:
        try:
            data = (self.folder / "jobs.jsonl").read_bytes()
        except FileNotFoundError:
            return []
        return msgspec.json.Decoder(Job).decode_lines(data)

    def write_rows(self, domain: str, rows: Iterable[Row]) -> None:
        """A .jsonl, and an .idx with 8 bytes a row: a task reads its row alone however long the plan is."""
        rows_file, index_file = self._rows(domain)
        encode = msgspec.json.Encoder().encode
        starts = array("Q")
        at = 0
        with rows_file.open("wb") as out:
            for row in rows:
                line = encode(row) + b"\n"
                starts.append(at)
                at += out.write(line)
        starts.append(at)
        index_file.write_bytes(starts.tobytes())

    def _rows(self, domain: str) -> tuple[Path, Path]:
        stem = "plan" if domain == "inputs" else f"barrier-{domain}"
        return self.folder / f"{stem}.jsonl", self.folder / f"{stem}.idx"

    def read_row(self, domain: str, number: int) -> Row | None:
        """Row `number`, or None past the end: an array is as wide as was fixed before its barrier knew."""
        rows_file, index_file = self._rows(domain)
        with index_file.open("rb") as f:
            f.seek(8 * number)
            bounds = array("Q", f.read(16))
        if len(bounds) < 2:
            return None
        with rows_file.open("rb") as f:
            f.seek(bounds[0])
            return msgspec.json.decode(f.read(bounds[1] - bounds[0]), type=Row)

    def rows(self, domain: str) -> int:
        return self._rows(domain)[1].stat().st_size // 8 - 1

    def shards(self, domain: str) -> list[list[str]]:
        """The shards of each row, without what they are made of; none where a barrier has still to write them."""
        try:
            data = self._rows(domain)[0].read_bytes()
        except FileNotFoundError:
            return []
        return [[shard.id for shard in row.shards] for row in msgspec.json.Decoder(_RowIds).decode_lines(data)]


class _Id(msgspec.Struct, array_like=True):
    id: str


class _RowIds(msgspec.Struct, array_like=True):
    """A plan.Row, of which the items are passed over."""

    row: int
    shards: list[_Id]


def new_attempt(run: Run) -> Attempt:
    """Make the folder of the next attempt, never one that another planner has begun (it may still be at it)."""
    run.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    run.folder.chmod(0o750)
    number = 1
    while True:
        attempt = run.attempt(number)
        try:
            attempt.folder.mkdir(mode=0o750)
            return attempt
        except FileExistsError:
            number += 1


def package_folder() -> Path:
    return Path(hpc.__file__).parent


def sibling(name: str) -> Path:
    """kernels/ or sbatch/: inside the package when installed, beside it in a checkout."""
    inside = package_folder() / name
    return inside if inside.is_dir() else package_folder().parent / name


def snapshot(attempt: Attempt, extra: Iterable[Path] = ()) -> None:
    """Copy the code that will run, laid out as installed: editing a checkout while jobs are queued changes nothing.

    With what this Python has compiled of it, or each of a job's processes would compile all that it imports again.
    """
    target = attempt.code / "hpc"
    ignore = lambda folder, names: {"kernels", "sbatch"} | _stale(folder, names)
    shutil.copytree(package_folder(), target, ignore=ignore)
    for name in ("kernels", "sbatch"):
        shutil.copytree(sibling(name), target / name, ignore=_stale)
    for path in extra:  # packages of stages that the suite does not ship
        if path.is_dir():
            shutil.copytree(path, attempt.code / path.name, ignore=_stale, dirs_exist_ok=True)
        else:
            shutil.copy2(path, attempt.code / path.name)


def _stale(folder: str, names: list[str]) -> set[str]:
    """Of the files in a folder, what is not compiled by this Python from a source that is there."""
    if Path(folder).name != "__pycache__":
        return set()
    suffix = f".{sys.implementation.cache_tag}.pyc"  # others are of other Pythons, or being written just now
    return {name for name in names if not (
        name.endswith(suffix) and Path(folder).with_name(name.replace(suffix, ".py")).exists())}  # fmt: skip


def provenance(attempt: Attempt, spec_hash: str, command: list[str], images: dict[str, Any]) -> None:
    """Who made this, with what: provenance.json, and code.diff when the checkout had changes."""
    packages = {}
    for name in ("hpc", "torch", "numpy", "av", "pyarrow", "webdataset", "submitit", "boto3", "msgspec"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    root = package_folder().parent
    sha = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else ""
    diff = _git(root, "diff", "HEAD") if sha else ""
    if diff:
        (attempt.folder / "code.diff").write_text(masking.without(diff, masking.values()))
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [masking.masked(word) for word in command],
        "spec_hash": spec_hash,
        "git": {"sha": sha.strip(), "changed": bool(diff), "diff": "code.diff" if diff else ""},
        "host": platform.node(),
        "user": user(),
        "python": {"version": platform.python_version(), "path": sys.executable},
        "platform": platform.platform(),
        "packages": packages,
        "images": images,
    }
    jsons.write(attempt.folder / "provenance.json", facts)


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in some containers
        return str(os.getuid())


def _git(folder: Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def finish(attempt: Attempt, plan: AttemptPlan) -> None:
    """plan.json, last: only now the attempt exists."""
    jsons.write(attempt.folder / "plan.json", plan)


def find(name: str, base: Path) -> Run:
    """A run by its folder, its id, or the beginning of its id under `base`. Raises FileNotFoundError."""
    direct = Path(name)
    if direct.is_dir() and any(direct.glob("attempt-*")):
        return Run(direct.resolve())
    there = sorted(p.name for p in base.glob("*") if any(p.glob("attempt-*"))) if base.is_dir() else []
    match = [n for n in there if n == name] or [n for n in there if n.startswith(name)]
    if len(match) == 1:
        return Run((base / match[0]).resolve())
    what = f"several begin with it: {', '.join(match)}" if match else f"runs there: {', '.join(there) or 'none'}"
    raise FileNotFoundError(f"{name}: no such run under {base} ({what}); --runs names another folder")
