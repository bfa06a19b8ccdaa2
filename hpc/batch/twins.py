"""Shards that take far longer than their siblings are made a second time elsewhere; the first to publish wins.

    found = twins.stand_by()            # a task whose row is done: a shard to make, seconds to wait, or None: leave
    enter(folder, shard, me, last)      # hpc.batch.runner, before it publishes: returns when it may
    twins.overtaken(shard)              # the other one has published: this one may leave it

Once all rows of a stage have begun, a task that has nothing left to do stands by for one of the shards that are still
in the making, and begins it, too, when that has taken three times as long as others did: its node may be slow, or its
process hang. Whoever gets to publishing first says so in a file, exclusively, and the other one is ended. One task in
FEW stands by, one at least: the others give their nodes back.

    <attempt>/twins/<stage>/000042          the task that stands by for this shard
    <attempt>/twins/<stage>/000042.first    the task that publishes it
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from hpc.batch import records
from hpc.batch.plan import RowShard
from hpc.batch.run import Attempt, Run, StagePlan
from hpc.data import storage

TIMES = 3.0
"""So many times the median of its siblings is far longer."""
FEW = 50
"""Of so many tasks one stands by: it holds its node meanwhile."""
SIBLINGS = 3
"""Shards that must be done before their median means anything."""
WAIT = 300.0
"""Seconds that the second one at the door waits for the first one to publish. It may have died on the way."""


class Twins:
    """Of one worker. me: "<job>.<restart>"; every: seconds between two looks at what others do."""

    def __init__(self, run: Run, attempt: Attempt, stage: StagePlan, me: str, every: float) -> None:
        self.run, self.attempt, self.stage, self.me, self.every = run, attempt, stage, me, every
        self.folder = place(attempt, stage.name)
        self.claimed = ""
        """The shard that this task stands by for."""
        self.making = ""
        """...and has begun."""
        self.looked = 0.0

    def stand_by(self) -> RowShard | float | None:
        """A shard to make; seconds after which to ask again; or None, where nothing is to be waited for."""
        if self.making:
            return None  # one is enough: a second one says more of the shards than of the nodes
        fold = records.fold([self.run.records(self.stage.name)], self.stage.fingerprint, self.attempt.number)
        begun = {worker.row for worker, _ in fold.workers.values()}
        if len(begun) < self.attempt.rows(self.stage.domain) or len(fold.done) < SIBLINGS:
            return None
        if self.claimed not in fold.running:
            self.claimed = self._claim(fold)
            if not self.claimed:
                return None
        worker, record = fold.running[self.claimed]
        took, median = time.time() - record.t + record.seconds, statistics.median(r.seconds for r in fold.done.values())
        limit = TIMES * median + 2 * self.every
        if took < limit:
            return min(limit - took, self.every)
        if record.fraction and took * (1 - record.fraction) / record.fraction < median:
            return self.every  # it will be done before a second one could be
        row = self.attempt.read_row(self.stage.domain, worker.row)
        self.making = self.claimed
        print(f"shard {self.claimed} has taken {took:.0f} s on {worker.node}, others {median:.0f} s: it is begun here, "
              "too", flush=True)  # fmt: skip
        return next(shard for shard in row.shards if shard.id == self.claimed) if row else None

    def _claim(self, fold: records.Fold) -> str:
        """The one that has been in the making longest, of those for which nobody stands by; "" where there is none,
        or enough tasks stand by."""
        others = {shard: record for shard, (worker, record) in fold.running.items()
                  if f"{worker.job}.{worker.restart}" != self.me}  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        enough = max(1, self.attempt.rows(self.stage.domain) // FEW)
        if len(self._standing(fold)) >= enough:
            return ""
        for shard in sorted(others, key=lambda shard: others[shard].t - others[shard].seconds):
            if _new(self.folder / shard, self.me):
                if shard in self._standing(fold)[:enough]:
                    return shard
                (self.folder / shard).unlink()  # others looked at the same moment, and were the first to say so
                return ""
        return ""

    def _standing(self, fold: records.Fold) -> list[str]:
        """Shards in the making for which a task stands by, in the order in which they said so."""
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # withdrawn
                if path.name in fold.running:
                    found.append((path.stat().st_mtime_ns, path.name))
        return [name for _, name in sorted(found)]

    def overtaken(self, shard: str) -> bool:
        """Another task has published this shard, which is in the making here."""
        first = self.folder / f"{shard}.first"
        try:
            by = first.read_text()
        except FileNotFoundError:
            return False
        return by != self.me and storage.stat(last(self.stage, shard)) is not None

    def due(self) -> bool:
        """Is it time for another look? They cost the file system something."""
        now = time.monotonic()
        if now - self.looked < self.every:
            return False
        self.looked = now
        return True


def place(attempt: Attempt, stage: str) -> Path:
    return attempt.folder / "twins" / stage


def last(stage: StagePlan, shard: str) -> str:
    """The object that is published last: if it is there, all of them are."""
    return storage.join(stage.folder, shard + stage.objects[-1])


def enter(folder: Path, shard: str, me: str, last: str, check: Callable[[], None]) -> None:
    """Returns when this task may publish the shard: at once where it makes it alone or is the first one; else when the
    other one has published it, or has had WAIT seconds to. Raises Stopped when check does."""
    if not (folder / shard).exists() or _new(folder / f"{shard}.first", me):
        return
    if (folder / f"{shard}.first").read_text() == me:  # it had got here before, and was started again
        return
    until = time.monotonic() + WAIT
    while time.monotonic() < until and storage.stat(last) is None:
        check()
        time.sleep(1)


def _new(file: Path, content: str) -> bool:
    """Writes a file unless it is there; it is never seen half written."""
    return storage.put_new(str(file), content.encode())
