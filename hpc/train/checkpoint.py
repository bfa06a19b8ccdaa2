"""When checkpoints are written, when they count, and which are kept. How the bytes of a state are written is another
matter: each trainer has its own `save(state, folder)` and `load(state, folder)` (megatron's, or torch's distributed).

    <folder>/iter_000000500/           as the saver writes it; training.json; complete
    <folder>/iter_000000750.part/      being written, or removed; if the job dies then, the next one removes it
    <folder>/latest_checkpoint.txt     the name of the newest complete one

A checkpoint counts once every rank has said that its part is on disk: only then it gets its name and the file
`complete`, and whoever started the ranks is told (hpc.data.work.SAVED). The order of samples and all draws follow from
the step's number (hpc.train.order, hpc.train.randomness), so the number and what must not change under it are the whole
state of the data.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from hpc.data.storage import ADVICE, StorageError
from hpc.data.units import Seconds
from hpc.data.work import SAVED

COMPLETE = "complete"
LATEST = "latest_checkpoint.txt"
"""Names of folders, and this, are those of the published trainers (cosmos_predict2.5 50369b8: checkpointer/dcp.py)."""


class Checkpoints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When, and which are kept."""

    every: int = 500
    """Steps from one to the next; there is also one at the end, and one when the job must leave."""
    at_least: Seconds = Seconds(3600)
    """...and never longer than this without one, however slow the steps are."""
    keep: int = 3
    """The newest so many stay; older ones are removed."""
    keep_every: int | None = None
    """Steps: multiples of this stay for ever."""

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} must be 1 or more")


class Resumed(ValueError):
    """A checkpoint of another training, or one that is damaged."""


class Ranks(msgspec.Struct, frozen=True):
    """What the policy needs of the process group."""

    rank: int
    ranks: int
    barrier: Callable[[], None]


ALONE = Ranks(0, 1, lambda: None)


class Keeper:
    """Of one training's checkpoints: all ranks have one, and call it at the same steps.

    identity: what must be equal for a checkpoint to be continued (seed, batch, model, data), plain JSON.
    """

    def __init__(
        self, folder: Path, policy: Checkpoints, identity: dict[str, Any], ranks: Ranks = ALONE
    ) -> None:
        self.folder, self.policy, self.identity, self.ranks = folder, policy, identity, ranks
        self.last_time = time.monotonic()
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for torn in folder.glob("iter_*.part"):
                shutil.rmtree(torn)
        ranks.barrier()

    def due(self, step: int, last: int) -> bool:
        """Is one due after `step` steps, of `last` in all? Rank 0's clock decides: ask there and tell the others."""
        late = time.monotonic() - self.last_time >= self.policy.at_least
        return step == last or step % self.policy.every == 0 or late

    def save(self, step: int, write: Callable[[Path], None], more: dict[str, Any] | None = None) -> Path:
        """After `step` steps: write(folder) puts the state there, on every rank at once, and returns when its part is
        on disk. more: plain JSON, e.g. the loss. Returns where it is."""
        part = self.begin(step)
        if part is not None:
            with writing(part):
                write(part)
            self.finish(step, part, more)
        return self.folder / called(step)

    def begin(self, step: int) -> Path | None:
        """The folder where every rank now puts its part, on its own time, before all of them `finish`; None where this
        step's checkpoint is complete: of a requeued job that had just saved."""
        final = self.folder / called(step)
        part = final.with_suffix(".part")
        self.last_time = time.monotonic()
        if (final / COMPLETE).exists():
            return None
        if self.ranks.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            with writing(part):
                part.mkdir()
        self.ranks.barrier()
        return part

    def finish(self, step: int, part: Path, more: dict[str, Any] | None = None) -> None:
        """When this rank's part is on disk; returns when all are, and the checkpoint counts."""
        with writing(part):
            (part / f"rank_{self.ranks.rank:05}.done").touch()
        self.ranks.barrier()
        if self.ranks.rank == 0:
            with writing(part):
                self._finish(step, part, part.with_suffix(""), more or {})
        self.ranks.barrier()

    def _finish(self, step: int, part: Path, final: Path, more: dict[str, Any]) -> None:
        done = sorted(part.glob("rank_*.done"))
        if len(done) != self.ranks.ranks:
            raise RuntimeError(f"{part}: {len(done)} of {self.ranks.ranks} ranks wrote their part: it does not count")
        for marker in done:
            marker.unlink()
        files = {str(path.relative_to(part)): path.stat().st_size for path in part.rglob("*") if path.is_file()}
        facts = {"step": step, "ranks": self.ranks.ranks, "identity": self.identity, "files": files, **more}
        (part / "training.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
        for path in [*part.rglob("*"), part]:
            _flush(path)
        part.rename(final)
        (final / COMPLETE).touch()
        _flush(final)
        beside = self.folder / f".{LATEST}.{os.getpid()}"
        beside.write_text(final.name)
        _flush(beside)
        beside.replace(self.folder / LATEST)
        _flush(self.folder)
        if told := os.environ.get(SAVED):
            Path(told).write_text(final.name)
        self._tidy()

    def _tidy(self) -> None:
        steps = complete(self.folder)
        for step in steps[: -self.policy.keep]:
            if not self.policy.keep_every or step % self.policy.keep_every:
                old = self.folder / called(step)
                shutil.rmtree(old.rename(old.with_suffix(".part")))  # half of one must not look like one

    def newest(self) -> tuple[int, Path] | None:
        """(steps, folder) of the newest complete checkpoint, None where there is none. Raises Resumed where it belongs
        to a training with another identity, and on rank 0 where files of it are gone or cut off."""
        steps = complete(self.folder)
        if not steps:
            return None
        folder = self.folder / called(steps[-1])
        facts = json.loads((folder / "training.json").read_text())
        there = facts["identity"]
        if there != self.identity:
            names = sorted(key for key in there.keys() | self.identity.keys()
                           if there.get(key) != self.identity.get(key))  # fmt: skip
            words = "; ".join(f"{n}: {there.get(n)!r} there, {self.identity.get(n)!r} now" for n in names)
            raise Resumed(f"{folder} is of another training: {words}. Change it back, or train into another folder")
        if self.ranks.rank == 0:
            lost = [f"{name} has {found:,} of {size:,} bytes" for name, size in facts.get("files", {}).items()
                    if (found := _size(folder / name)) != size]  # fmt: skip
            if lost:
                before = f"go on from {called(steps[-2])}" if steps[1:] else "begin anew"
                more = f", and {len(lost) - 1} more files" if lost[1:] else ""
                raise Resumed(f"{folder} is damaged: {lost[0]}{more}. Remove the folder to {before}")
        return steps[-1], folder


@contextlib.contextmanager
def writing(part: Path) -> Iterator[None]:
    """Around what writes a checkpoint. Raises StorageError, with what to do, for a file system that is full or fails,
    whatever the libraries between made of it."""
    try:
        yield
    except StorageError:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception; it has those of ranks
        cause: Any = next(iter(getattr(error, "failures", {}).values()), [error])[0]
        while cause and not (isinstance(cause, OSError) and cause.errno in ADVICE):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        what = f"the checkpoint could not be written: {cause.strerror}"
        raise StorageError(str(part), what, ADVICE[cause.errno], errno.errorcode[cause.errno]) from error


def called(step: int) -> str:
    """The folder of a checkpoint."""
    return f"iter_{step:09}"


def complete(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, rising; none of those that are written or removed right now."""
    return sorted(int(path.parent.name.removeprefix("iter_")) for path in folder.glob(f"iter_*[0-9]/{COMPLETE}"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
