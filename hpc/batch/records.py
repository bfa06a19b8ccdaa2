"""Records: what became of each shard. Append-only JSON lines, one file per worker start, folded to {shard: last word}.

    records/<stage>/<job>.<restart>.jsonl      first line a Worker, then Records

A file belongs to one start of one worker, so a worker that a dead node left behind and its requeued twin never share
one. The barrier and the report job compact a stage's files by concatenating them: a Worker line switches the context,
wherever it stands. A torn last line (the writer was killed) is skipped; what it would have said is found again by
looking at the objects.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from hpc.batch import masking
from hpc.data.work import Bad, Object


class Worker(msgspec.Struct, tag="worker", omit_defaults=True):
    """One start of one worker: the first line of its file, valid for the lines that follow."""

    t: float
    run: str
    attempt: int
    stage: str
    fingerprint: str
    job: str
    """As Slurm prints it, e.g. "123_45"; "local..." without Slurm."""
    restart: int
    row: int
    node: str
    cpus: int = 0
    gpus: int = 0
    memory: float = 0.0
    """Bytes that each of its processes was given."""
    time: float = 0.0
    """Its time limit, in seconds."""
    raw_job: str = ""
    """Slurm's unique number of this array task (accounting and GPU monitors know it by this one), or the process's."""


class Record(msgspec.Struct, tag="shard", omit_defaults=True):
    """One line about one shard."""

    state: Literal["start", "progress", "done", "failed", "stopped"]
    """start and progress are passing; done is final; failed may be tried again; stopped: given up for now."""
    shard: str
    t: float
    seconds: float = 0.0
    """Wall time of this shard, publishing included."""
    times: dict[str, float] = {}
    """Where they went: {"work": 12.1, "publish": 0.3}; a worker process's first shard carries {"start": ...} too."""
    objects: list[Object] = []
    counts: dict[str, float] = {}
    bad: list[Bad] = []
    failure: str = ""
    """A class of hpc.batch.failure."""
    detail: str = ""
    fraction: float = 0.0
    gpu: dict[str, float] = {}
    """What NVML said while it was made: {"seconds", "busy", "joules", "bytes"}, as hpc.batch.gpus has it."""
    memory: float = 0.0
    """Bytes: the most that the process which made it has held so far, and its largest child."""
    node: str = ""
    """Of ranks: the one that failed, where it is known."""
    twin: bool = False
    """Of a start: it goes on elsewhere, too (hpc.batch.twins)."""
    checkpoint: str = ""
    """The newest one when ranks were started; hpc.batch.gang.NONE for none."""


class End(msgspec.Struct, tag="end", omit_defaults=True):
    """The worker left in an orderly way."""

    t: float
    why: str = ""


Line = Worker | Record | End
_decode = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


class Log:
    """The record file of one worker start. Terminal lines are on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError if another start already has this name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)

    def write(self, line: Line) -> None:
        data = _encode(_masked(line)) + b"\n"
        if os.write(self.fd, data) != len(data):
            raise OSError(28, f"{self.path}: only a part of a record could be written: is the disk full?")
        if not (isinstance(line, Record) and line.state in ("start", "progress")):
            os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def _masked(line: Line) -> Line:
    """Without secrets in what a stage or an error says."""
    if not isinstance(line, Record) or not (line.detail or line.bad):
        return line
    hidden = masking.values()
    bad = [msgspec.structs.replace(b, uri=masking.cleaned(b.uri, hidden), detail=masking.cleaned(b.detail, hidden))
           for b in line.bad]  # fmt: skip
    return msgspec.structs.replace(line, detail=masking.cleaned(line.detail, hidden), bad=bad)


class Fold(msgspec.Struct):
    """What the records of one stage add up to, for one fingerprint."""

    done: dict[str, Record] = {}
    failed: dict[str, Record] = {}
    """Last failure of the shards that are not done."""
    where: dict[str, Worker] = {}
    """shard -> the worker that wrote its record in `done` or `failed`."""
    running: dict[str, tuple[Worker, Record]] = {}
    """Started and not heard of since: in flight, or lost with their worker. The Record is the last progress."""
    kills: dict[str, int] = {}
    """shard -> how often a worker vanished while it was on it, and a later one started it again."""
    stopped: dict[str, Record] = {}
    """Given up for now (time limit, another try); not started again since."""
    workers: dict[tuple[str, int], tuple[Worker, float]] = {}
    """(job, restart) -> (the worker, time of its last line)."""
    ended: dict[tuple[str, int], str] = {}
    """(job, restart) -> why it left, for those that left in an orderly way."""
    starts: dict[str, list[tuple[int, str]]] = {}
    """Shard that ranks make -> (restart, newest checkpoint) of each of their starts."""


def read(path: Path) -> Iterator[Line]:
    """The lines of one record file; damaged ones are skipped (a killed writer tears only its last)."""
    for raw in path.read_bytes().split(b"\n"):
        if raw:
            try:
                yield _decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


def files(folder: Path) -> list[Path]:
    """Record files of one stage, compacted ones first."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".jsonl")]
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names, key=lambda n: (not n.startswith("compact-"), n))]


def fold(folders: Iterable[Path], fingerprint: str | None, attempt: int | None = None) -> Fold:
    """Fold the record files of a stage over all runs that wrote to the same output.

    fingerprint: only records made with it count; None takes all. attempt: only this attempt's.
    """
    folders = list(folders)
    while True:
        out = Fold()
        paths = [path for folder in folders for path in files(folder)]
        try:
            for path in paths:
                fold_lines(out, read(path), fingerprint, attempt)
        except FileNotFoundError:
            continue
        # What was compacted while we looked is in a file that was not there when we began, and maybe nowhere else.
        new = {path for folder in folders for path in files(folder)} - set(paths)
        if not any(path.name.startswith("compact-") for path in new):
            return out


def fold_lines(out: Fold, lines: Iterable[Line], fingerprint: str | None, attempt: int | None) -> None:
    worker, wanted, key = None, False, ("", 0)
    for line in lines:
        if isinstance(line, Worker):
            worker, key = line, (line.job, line.restart)
            wanted = fingerprint in (None, line.fingerprint) and attempt in (None, line.attempt)
        if worker is None or not wanted:
            continue
        out.workers[key] = (worker, max(line.t, out.workers[key][1] if key in out.workers else 0.0))
        if isinstance(line, Record):
            _add(out, worker, line)
            if line.checkpoint:
                out.starts.setdefault(line.shard, []).append((worker.restart, line.checkpoint))
        elif isinstance(line, End):
            out.ended[key] = line.why


def _add(out: Fold, worker: Worker, line: Record) -> None:
    """By time, not by the order of files: what was said last about a shard counts, but done is done."""
    shard = line.shard
    if shard in out.done:
        return
    if line.state == "done":
        out.done[shard], out.where[shard] = line, worker
        for passing in (out.running, out.failed, out.stopped):
            passing.pop(shard, None)  # type: ignore[attr-defined]
        return
    began, failed, stopped = out.running.get(shard), out.failed.get(shard), out.stopped.get(shard)
    ended = max(failed.t if failed else 0.0, stopped.t if stopped else 0.0)
    if line.state in ("start", "progress"):
        if line.t < (began[1].t if began else ended):
            return
        if line.state == "start" and began and began[0] != worker and not line.twin:
            out.kills[shard] = out.kills.get(shard, 0) + 1
        out.running[shard] = (worker, line)
        out.stopped.pop(shard, None)
        return
    if began and began[1].t <= line.t:
        del out.running[shard]
    if line.state == "failed":
        if failed is None or line.t >= failed.t:
            out.failed[shard], out.where[shard] = line, worker
        if stopped and stopped.t <= line.t:
            del out.stopped[shard]
    elif line.t >= ended and shard not in out.running:
        out.stopped[shard] = line


def compact(folder: Path) -> int:
    """Join the files of one stage into one, when no worker of the stage is running. Returns how many there were.

    Passing lines of finished shards go, all others stay. A crash in between leaves both, which folds to the same.
    """
    paths = files(folder)
    if len(paths) < 2:
        return len(paths)
    serial = 1 + max((int(p.stem.split("-")[1]) for p in paths if p.name.startswith("compact-")), default=0)
    target = folder / f"compact-{serial:04}.jsonl"
    temp = folder / f".{target.name}.{os.urandom(6).hex()}"
    try:
        sizes = _join(paths, temp)
        os.link(temp, target)  # never over the file of another that compacts at the same time
        for path, size in sizes.items():
            if path.stat().st_size == size:  # a worker that outlived its job may have added a line: keep its file
                path.unlink()
    except (FileNotFoundError, FileExistsError):
        pass  # another was quicker; what both have left folds to the same
    finally:
        temp.unlink(missing_ok=True)
    return len(paths)


def _join(paths: list[Path], temp: Path) -> dict[Path, int]:
    """Write what must stay of all these files into one. Returns how large each was when it was read."""
    sizes = {}
    with temp.open("wb") as out:
        for path in paths:
            sizes[path] = path.stat().st_size
            lines = list(read(path))
            starts = [i for i, line in enumerate(lines) if isinstance(line, Worker)]
            for a, b in itertools.pairwise([*starts, len(lines)]):
                own = [line for line in lines[a:b] if isinstance(line, Record)]
                ended = {line.shard for line in own if line.state in ("done", "failed")}
                for line in lines[a:b]:
                    passing = isinstance(line, Record) and line.state in ("start", "progress") and line.shard in ended
                    if not passing:
                        out.write(_encode(line) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    return sizes
