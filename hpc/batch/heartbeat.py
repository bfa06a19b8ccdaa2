"""Heartbeats of the ranks of a gang: how far each is, whether any of them gets on, and which one the others wait for.

    heart = Heart(folder, rank, count, every, patience, tell)   # in each rank: hpc.batch.runner
    with heart.watched():                                       # while it makes a shard...
        heart.beat()                                            # ...at each Work.check
    slowest(newest(run / "ranks" / stage))                      # what reports say

A thread of each rank writes what it sees into a file of its own on the run's file system; the training's loop only
counts. A rank gets on when it counts a step, or enters a collective (of torch.distributed, whatever the backend: its
process groups number them). When none has for longer than `patience`, all ranks write down the stacks of all their
threads, one of them finds out who is behind, and the gang ends with failure class "hang".

    <run>/ranks/<stage>/<start>/00003.json       a Beat
    <run>/ranks/<stage>/<start>/00003.stacks     by faulthandler: also of a process that holds on to Python's lock
    <run>/ranks/<stage>/<start>/alarm            is there once somebody called for stacks
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

LEAST, MOST = 600.0, 1700.0
"""Seconds: patience that follows from step times is between these. Process groups give up after 1800 (hpc.train.ranks),
and until the first step there is no other limit."""
TIMES = 20
"""...and so many median steps."""
STEPS = 100
"""Of which the median is taken."""
LOOKED = 0.05
"""Seconds between two looks at where the main thread is."""
SILENT = 4
"""A rank that has not written for so many intervals is silent."""
SLOW = 1.15
"""A rank whose own part of a step takes so many times the median is named."""
NAMED = 5
"""Of them at most."""
NODE = "HPC_NODE"
"""Environment variable with the name by which Slurm knows this node (hpc.batch.rank)."""
LEAVE = 5.0
"""Seconds that the end of a shard waits for the thread, which may wait for a disk."""
DEPTH = 6
"""Frames of Python up from the innermost, in which a thread that waits in a collective shows torch.distributed."""


class Beat(msgspec.Struct, omit_defaults=True):
    """What one rank says of itself."""

    rank: int
    ranks: int
    node: str
    pid: int
    t: float
    """When this was written."""
    steps: int = 0
    """Of this start."""
    advanced: float = 0.0
    """When it last counted a step or entered a collective."""
    limit: float = 0.0
    """Its patience."""
    collectives: dict[str, int] = {}
    """Process group -> how many it has entered. The groups that a rank is in have the same names on all others."""
    inside: bool = False
    """Its main thread waits in a collective."""
    where: str = ""
    """Its main thread is: "loader.py:88 next"."""
    words: str = ""
    """The last that the stage said of its progress."""
    step_seconds: float | None = None
    """Mean of the last steps."""
    own_seconds: float | None = None
    """...of which it did not wait for others: outside of collectives."""
    dumped: bool = False
    """Its stacks are written."""
    done: bool = False
    """It has done its part of the shard."""


class Heart:
    """Of one rank. tell(rank, node, words, stacks): called in one rank when the gang hangs; it ends the process."""

    def __init__(self, folder: Path, rank: int, count: int, every: float, patience: float | None,
                 tell: Callable[[int, str, str, str], None]) -> None:  # fmt: skip
        """every: seconds between two beats written. patience: None where it follows from the step times."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.every, self.patience, self.tell = folder, every, patience, tell
        node = os.environ.get(NODE) or os.uname().nodename.partition(".")[0]
        self.mine = Beat(rank, count, node, os.getpid(), time.time())
        self.stacks = (folder / f"{rank:05}.stacks").open("w")
        self.ended = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around the making of a shard, by the main thread."""
        self.main = threading.get_ident()
        self.mine.steps, self.mine.advanced, self.mine.words, self.mine.done = 0, time.time(), "", False
        self.times: collections.deque[float] = collections.deque(maxlen=STEPS)
        self.looked: collections.deque[tuple[int, int]] = collections.deque([(0, 0)], maxlen=STEPS)
        self.looks = self.waits = 0
        self.last = self.called = 0.0
        self.seen: tuple[int, dict[str, int]] = (0, {})
        self.ended.clear()
        thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            thread.join(LEAVE)
            faulthandler.cancel_dump_traceback_later()
            self.mine.done = True
            with contextlib.suppress(OSError):
                self._say()

    def beat(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        if self.last:
            self.times.append(now - self.last)
            self.looked.append((self.looks, self.waits))
        self.last = now
        self.mine.steps += 1

    def _watch(self) -> None:
        written = 0.0
        while not self.ended.wait(LOOKED):
            frames = _frames(self.main)
            self.looks += 1
            self.waits += _in_collective(frames)
            if (now := time.time()) - written >= self.every:
                written = now
                try:
                    self._write(frames, now)
                except OSError:  # of a full disk, say, the training itself will tell
                    continue

    def _write(self, frames: list[FrameType], now: float) -> None:
        alarm, mine = self.folder / "alarm", self.mine
        entered = _collectives()
        if (mine.steps, entered) != self.seen:
            mine.advanced, self.seen = now, (mine.steps, entered)
        mine.collectives, mine.inside, mine.where = entered, _in_collective(frames), _place(frames)
        mine.limit = self.limit()
        self._measure()
        if not mine.dumped:
            # by a thread of C, should this one not run any more, since something holds on to Python's lock
            faulthandler.dump_traceback_later(SILENT * self.every + 1, file=self.stacks)
            if alarm.exists():
                self._dump()
            elif now > mine.advanced + mine.limit and not _some_get_on(self.folder, now, self.every):
                self.called = now if _first(alarm) else 0.0
        self._say()
        if self.called:
            beats = read(self.folder)
            if sum(b.dumped or b.done for b in beats) == mine.ranks or now > self.called + self.every * SILENT:
                self.tell(*verdict(beats, now, self.every, self.folder))

    def _say(self) -> None:
        self.mine.t = time.time()
        beside = self.folder / f".{self.mine.rank:05}"
        beside.write_bytes(msgspec.json.encode(self.mine))
        beside.replace(self.folder / f"{self.mine.rank:05}.json")

    def limit(self) -> float:
        """Seconds."""
        if self.mine.steps < 2:
            return max(self.patience or 0.0, MOST)
        return self.patience or min(max(LEAST, TIMES * statistics.median(list(self.times))), MOST)

    def _measure(self) -> None:
        """Of the last steps, without the first one, which is like no other."""
        if len(times := list(self.times)) < 2:
            return
        self.mine.step_seconds = statistics.fmean(times)
        share, cuda = _waited_on_gpu(), getattr(sys.modules.get("torch"), "cuda", None)
        # where GPUs wait, the main thread does not show it
        if not (cuda and cuda.is_initialized()) and self.looked[-1][0] > self.looked[0][0]:
            share = (self.looked[-1][1] - self.looked[0][1]) / (self.looked[-1][0] - self.looked[0][0])
        self.mine.own_seconds = None if share is None else self.mine.step_seconds * (1 - share)

    def _dump(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.stacks.truncate(0)
        self.stacks.seek(0)
        faulthandler.dump_traceback(self.stacks, all_threads=True)
        self.mine.dumped = True


def read(folder: Path) -> list[Beat]:
    """Of all ranks that have written any."""
    out = []
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            out.append(msgspec.json.decode(path.read_bytes(), type=Beat))
        except (OSError, msgspec.DecodeError):  # on some file systems a file that is being replaced is away for a while
            continue
    return out


def newest(folder: Path) -> list[Beat]:
    """...of the last start of a stage: folder is <run>/ranks/<stage>."""
    starts = [path for path in folder.glob("*") if path.is_dir()]
    return read(max(starts, key=lambda path: path.stat().st_mtime)) if starts else []


def behind(beats: list[Beat], now: float, every: float) -> tuple[list[Beat], str]:
    """The ranks for which the others wait, and how one knows; none where nobody is behind anybody."""
    if silent := [b for b in beats if now - b.t > SILENT * every and not b.dumped]:
        return silent, "its process does not run: it is stopped, or something holds on to Python's lock"
    most = max(b.steps for b in beats)
    if late := [b for b in beats if b.steps < most]:
        return late, f"it has done {late[0].steps} steps of this start, the first one {most}"
    entered: dict[str, int] = {}
    for beat in beats:
        for group, count in beat.collectives.items():
            entered[group] = max(count, entered.get(group, 0))
    missing = {b.rank: sum(entered[g] - n for g, n in b.collectives.items()) for b in beats}
    if worst := max(missing.values()):
        late = [b for b in beats if missing[b.rank] == worst]
        return late, f"it has not entered {worst} collective{'s' * (worst > 1)} in which others wait"
    outside = [b for b in beats if not b.inside]
    if len(outside) < len(beats):
        return outside, "it is in no collective, as others are"
    return [], ""


def verdict(beats: list[Beat], now: float, every: float, folder: Path) -> tuple[int, str, str, str]:
    """(rank, node, words, stacks) of a gang that hangs."""
    ranks, there = beats[0].ranks, {b.rank for b in beats}
    beats = [b for b in beats if not b.done]
    since = now - max(b.advanced for b in beats)
    said = f"no rank got on for {since:.0f} s (patience: {beats[0].limit:.0f} s)"
    last = next((f", after \"{b.words}\"" for b in beats if b.words), "")
    if absent := sorted(set(range(ranks)) - there):
        return absent[0], "", f"{said}{last}; ranks {absent} never said anything: stacks of the others: {folder}", ""
    late, why = behind(beats, now, every)
    if not late:
        words = "all ranks wait in the same collective: a GPU, or the network between them, does not do its part"
        return beats[0].rank, "", f"{said}{last}; {words}; stacks: {folder}", _stacks(folder, beats[:1])
    first = late[0]
    names = ", ".join(f"rank {b.rank} on {b.node}" for b in late[:NAMED]) + ", ..." * (len(late) > NAMED)
    words = f"{said}{last}; behind: {names}: {why}; it is at {first.where or '?'}; stacks of all: {folder}"
    return first.rank, first.node, words, _stacks(folder, late[:2])


def _stacks(folder: Path, of: Iterable[Beat]) -> str:
    texts = [(beat, folder / f"{beat.rank:05}.stacks") for beat in of]
    return "".join(f"--- rank {b.rank} on {b.node}, pid {b.pid}\n{path.read_text(errors='replace')}"
                   for b, path in texts if path.exists())  # fmt: skip


class Slow(msgspec.Struct, omit_defaults=True):
    """Who takes longest for a step, of all ranks."""

    median: float
    """Seconds of a step that ranks do not wait for others."""
    slowest: float
    ranks: dict[str, float] = {}
    """"rank 3 on n2" -> its seconds, of those that are SLOW, the slowest first."""
    nodes: dict[str, float] = {}
    """...and of nodes, the median of their ranks, where each has several."""

    def words(self) -> str:
        """"" where none stands out."""
        some = {**self.nodes, **self.ranks}
        named = ", ".join(f"{name} {value:.3g} s" for name, value in some.items())
        return f"slow: {named} of a step outside of collectives, the median is {self.median:.3g} s" if some else ""


def slowest(beats: list[Beat]) -> Slow | None:
    """None where ranks do not say, or there is one alone."""
    own = [(b, b.own_seconds) for b in beats if b.own_seconds is not None]
    if len(own) < 2:
        return None
    # the lower one of two in the middle: of two ranks, too, the slow one stands out
    median = statistics.median_low(value for _, value in own)
    by_node: dict[str, list[float]] = {}
    for beat, value in own:
        by_node.setdefault(beat.node, []).append(value)
    nodes = [(f"node {name}", statistics.median(some)) for name, some in by_node.items() if len(some) > 1]
    pick = lambda some: dict(sorted(((n, v) for n, v in some if v > SLOW * median), key=lambda p: -p[1])[:NAMED])
    ranks = pick((f"rank {beat.rank} on {beat.node}", value) for beat, value in own)
    return Slow(median, max(value for _, value in own), ranks, pick(nodes if len(nodes) > 1 else ()))


def _some_get_on(folder: Path, now: float, every: float) -> bool:
    """Silent ranks do not: the patience that one wrote down before its second step is a long one."""
    return any(now <= min(b.advanced + b.limit, b.t + SILENT * every) for b in read(folder) if not b.done)


def _first(alarm: Path) -> bool:
    try:
        alarm.open("x").close()
    except FileExistsError:
        return False
    return True


def _frames(thread: int) -> list[FrameType]:
    """The innermost ones of a thread."""
    out: list[FrameType] = []
    frame = sys._current_frames().get(thread)
    while frame is not None and len(out) < 3 * DEPTH:
        out.append(frame)
        frame = frame.f_back
    return out


def _in_collective(frames: list[FrameType]) -> bool:
    return any("/torch/distributed/" in frame.f_code.co_filename for frame in frames[:DEPTH])


def _place(frames: list[FrameType]) -> str:
    """The innermost line outside of torch."""
    for frame in frames:
        if "/torch/" not in (file := frame.f_code.co_filename):
            return f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
    return ""


def _collectives() -> dict[str, int]:
    """Process group -> how many collectives this rank has entered; {} without torch.distributed."""
    c10d: Any = sys.modules.get("torch.distributed.distributed_c10d")
    out = {}
    for group, name in list(c10d._world.pg_names.items()) if c10d else ():
        try:
            out[name] = int(group._get_sequence_number_for_group())
        except (RuntimeError, AttributeError, TypeError):  # a group that this rank is not in, or one without numbers
            continue
    return out


def _waited_on_gpu() -> float | None:
    """The share of time in which NCCL's kernels ran, by its flight recorder, if it keeps their times
    (TORCH_NCCL_ENABLE_TIMING): the rank that others wait for comes last, and has the shortest ones. None without."""
    c10d: Any = sys.modules.get("torch._C._distributed_c10d")
    dump = getattr(c10d, "_dump_nccl_trace_json", None)
    if dump is None:
        return None
    try:
        entries = json.loads(dump(includeCollectives=True, onlyActive=False)).get("entries", ())
        timed = [e for e in entries if e.get("duration_ms") is not None]
        begun = min(int(e["time_created_ns"]) for e in timed)
        ended = max(int(e["time_created_ns"]) for e in timed)
    except (RuntimeError, TypeError, ValueError, KeyError):
        return None
    if ended <= begun:
        return None
    return min(1.0, sum(float(e["duration_ms"]) for e in timed) * 1e6 / (ended - begun))
