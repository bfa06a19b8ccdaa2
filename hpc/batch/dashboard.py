"""What `hpc dashboard` shows of all runs under a folder, as JSON values and open files: hpc.batch.dashboard_server
gives them to browsers, hpc.batch.dashboard_export writes them down.

    board = Dashboard(folder)
    answer(board, ["run", "film-7f3a91c2"], {})     # of /api/run/film-7f3a91c2

It reads, and changes nothing. Files are found by name of run, stage and shard, never by path: reports of runs, objects
of shards that are done, pictures of trainings; what a link leads to elsewhere is refused. Whatever is shown has its
secrets masked. Nobody looking, nothing is read.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hpc.batch import exporter, logs, masking, status, watch
from hpc.batch.curves import Curves
from hpc.batch.gallery import PAGE, Gallery, open_object
from hpc.batch.run import Run
from hpc.batch.watch import Known, Watch
from hpc.data import storage

LOOKED, LINES, AFTER = 5000, 200, 5
"""Lines of a log's end in which a shard is looked for; that are shown; and of these, after the last word about it."""
PICTURE = re.compile(r"\d{1,12}(?:_\d{1,4}_[a-z_]{1,20})?\.(?:webp|mp4|png)")


class Refused(Exception):
    """An answer that is no page: its HTTP status, and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Dashboard:
    """What the server knows, and its answers as JSON values and open files."""

    def __init__(self, folder: Path) -> None:
        self.watch = Watch(folder)
        self.curves: dict[Path, Curves] = {}
        self.galleries: dict[str, tuple[str, Gallery]] = {}

    @contextlib.contextmanager
    def declared(self, known: Known) -> Iterator[None]:
        """With the environment that a run declares, by which its store is reached."""
        with self.watch.environment, exporter.own_environment():
            os.environ.update(known.env)
            yield

    def run(self, name: str) -> Known:
        try:
            return self.watch.known[name]
        except KeyError:
            raise Refused(404, f"no run {name[:80]!r} here") from None

    def place(self, name: str, stage: str) -> watch.StagePlace:
        try:
            return self.run(name).folders[stage]
        except KeyError:
            raise Refused(404, f"{name} has no stage {stage[:80]!r}") from None

    def log(self, name: str, stage: str, shard: str) -> dict[str, Any]:
        """The end of the log of the task that said the last word about a shard."""
        known, place = self.run(name), self.place(name, stage)
        if shard not in place.jobs:
            raise Refused(404, f"nothing was said about shard {shard[:80]!r} of {stage} yet")
        run = Run(self.watch.folder / name)
        path = logs.of_task(run, stage, place.jobs[shard])
        if path is None:
            return {"path": "", "lines": [], "job": place.jobs[shard], "after": 0}
        watch.inside(path, run.folder)
        lines = logs.tail(path, LOOKED)
        told = [i for i, line in enumerate(lines) if f"shard {shard}:" in line]  # a task has other shards after it
        end = min(len(lines), told[-1] + AFTER) if told else len(lines)
        shown = [masking.masked(line, known.secrets) for line in lines[max(0, end - LINES) : end]]
        return {"path": str(path.relative_to(run.folder)), "lines": shown, "job": place.jobs[shard],
                "after": len(lines) - end}  # fmt: skip

    def shard(self, name: str, stage: str, shard: str) -> dict[str, Any]:
        """All that is known of one shard; the run is read for it."""
        known = self.run(name)
        self.place(name, stage)
        with self.watch.environment, exporter.own_environment():
            gathered = status.gather(Run(self.watch.folder / name), ask_slurm=False, told=self.watch.told)
        fold = gathered.folds[stage]
        ended = fold.done.get(shard) or fold.failed.get(shard) or fold.stopped.get(shard)
        worker, record = fold.running.get(shard, (fold.where.get(shard), ended))
        found: dict[str, Any] = {"shard": shard, "stage": stage, "vanished": fold.kills.get(shard, 0)}
        if record:
            found |= {
                "said": record.state, "t": record.t, "seconds": record.seconds, "times": record.times,
                "counts": record.counts, "failure": record.failure, "detail": record.detail[:2000],
                "fraction": record.fraction, "memory": record.memory, "gpu": record.gpu,
                "bytes": sum(o.bytes for o in record.objects), "bad": len(record.bad),
            }  # fmt: skip
        if worker:
            found |= {"node": worker.node, "job": worker.job, "attempt": worker.attempt, "restart": worker.restart,
                      "run": worker.run}  # fmt: skip
        return masking.everywhere(found, known.secrets)

    def metrics(self, name: str, stage: str) -> dict[str, Any]:
        """The curves of a training, and which steps have pictures."""
        place = self.place(name, stage)
        if place.metrics is None:
            raise Refused(404, f"{stage} trains nothing")
        curves = self.curves.setdefault(place.metrics, Curves(place.metrics))
        shown: dict[int, list[str]] = {}
        if place.pictures:
            try:
                names = sorted(p.name for p in place.pictures.iterdir() if PICTURE.fullmatch(p.name))
            except OSError:
                names = []
            for one in names:
                shown.setdefault(int(re.split(r"[_.]", one)[0]), []).append(one)
        return curves.read() | {"pictures": [{"step": step, "files": files} for step, files in sorted(shown.items())]}

    def gallery(self, name: str) -> Gallery:
        known = self.run(name)
        version, gallery = self.galleries.get(name, ("", None))
        if gallery is None:
            gallery = Gallery(known.folders)
            self.galleries = dict(list(self.galleries.items())[-3:])
        elif version != known.version:
            gallery.update(known.folders)
        self.galleries[name] = (known.version, gallery)
        return gallery

    def clips(self, name: str, **wanted: Any) -> dict[str, Any]:
        known, gallery = self.run(name), self.gallery(name)
        if any("://" in place.folder for place in known.folders.values()):
            with self.declared(known):
                gallery.extend()
        else:
            gallery.extend()
        return masking.everywhere(gallery.search(**wanted), known.secrets)

    def media(self, name: str, stage: str, shard: str, member: str) -> tuple[BinaryIO | Far, int, int, str]:
        """(file, offset, size, suffix) of a member "<clip>.<kind>" of a shard's tar; kind: mp4, webp, preview."""
        known, place = self.run(name), self.place(name, stage)
        key, _, kind = member.rpartition(".")
        suffix = ".mp4" if kind == "mp4" else ".webp"
        try:
            if "://" not in place.folder:
                offset, size = self.gallery(name).clip(stage, shard, key).media[kind]
                return open_object(place, shard, ".tar"), offset, size, suffix
            with self.declared(known):
                offset, size = self.gallery(name).clip(stage, shard, key).media[kind]
        except KeyError:
            raise Refused(404, f"no {member[:80]!r} in shard {shard[:80]!r}") from None
        return Far(self, known, watch.objects(place, shard, ".tar")), offset, size, suffix

    def file(self, name: str, words: list[str]) -> tuple[BinaryIO, int, str]:
        """(file, size, suffix) of run/<report>, stage/<stage>/<page>, pictures/<stage>/<picture>."""
        self.run(name)
        folder = self.watch.folder / name
        match words:
            case ["run", file] if file in watch.FILES:
                number = Run(folder).attempts()[-1]
                path = folder / f"attempt-{number}" / file if file in watch.IN_ATTEMPT else folder / file
            case ["stage", stage, page] if page in watch.pages(place := self.place(name, stage)):
                folder = Path(place.folder)
                path = folder / page
            case ["pictures", stage, file] if PICTURE.fullmatch(file) and (p := self.place(name, stage).pictures):
                folder, path = p, p / file
            case _:
                raise Refused(404, f"no file {'/'.join(words)[:120]!r} of {name}")
        if not watch.regular(watch.inside(path, folder)):
            raise Refused(404, f"no file {'/'.join(words)[:120]!r} of {name}")
        return path.open("rb"), path.stat().st_size, path.suffix


class Far(io.RawIOBase):
    """An object of a store, read piece by piece, each with the environment of its run."""

    def __init__(self, board: Dashboard, known: Known, uri: str) -> None:
        self.board, self.known, self.uri, self.at = board, known, uri, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        with self.board.declared(self.known):
            data = storage.read(self.uri, self.at, self.at + size)
        self.at += len(data)
        return data


def answer(board: Dashboard, words: list[str], query: dict[str, str]) -> Any:
    """The JSON value of /api/<words>. Raises Refused, and whatever reading raises."""
    number = lambda key: float(query[key]) if query.get(key) else None
    match words:
        case ["runs"]:
            board.watch.scrape()
            return board.watch.runs()
        case ["run", name]:
            board.watch.scrape()
            return board.run(name).detail
        case ["log", name]:
            return board.log(name, query.get("stage", ""), query.get("shard", ""))
        case ["shard", name]:
            return board.shard(name, query.get("stage", ""), query.get("shard", ""))
        case ["metrics", name]:
            return board.metrics(name, query.get("stage", ""))
        case ["clips", name]:
            return board.clips(
                name, text=query.get("text", "")[:500], column=query.get("column", ""), low=number("low"),
                high=number("high"), verdict=query.get("verdict", "keep"), stage=query.get("stage", ""),
                sort=query.get("sort", ""),
                offset=max(0, int(query.get("offset") or 0)), limit=min(500, int(query.get("limit") or PAGE)),
            )  # fmt: skip
    raise Refused(404, f"nothing at /api/{'/'.join(words)[:80]}")
