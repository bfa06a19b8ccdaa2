"""All runs under a folder as Prometheus metrics: served for scraping, or written once for the textfile collector.

    hpc exporter runs --port 9342                                   # http://127.0.0.1:9342/metrics
    hpc exporter runs --textfile /var/lib/node_exporter/hpc.prom    # once, e.g. by cron every minute

Cheap however often it is scraped: a run is read again only when one of its files has changed, and then not before
twenty times as long as reading it took; Slurm is asked once a minute at most, for all runs together. Reading is another
thread's: a scrape that would have to wait for long gets what is known.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from hpc.batch import metrics, report, slurm, status, training
from hpc.batch.run import Run, package_folder

SLURM_EVERY = 60.0
REST = 20.0
"""A run is left alone for so many times as long as reading it took."""
AGAIN = 60.0
"""A run that goes on is read again after so many seconds also if no file changed: workers fall silent."""
PATIENCE = 2.0
"""Seconds that a scrape waits for fresh figures."""
DASHBOARDS = package_folder() / "dashboards"
MOST_JOBS = 10_000
"""In one squeue call: the limit of a command line."""


class Seen(msgspec.Struct):
    """What is known of one run."""

    changes: tuple
    """Of its files, and what Slurm said of its jobs."""
    at: float
    took: float
    state: str
    jobs: set[str]
    files: list[Path]
    """Outside of the run folder: what its trainings write."""
    families: dict[str, metrics.Family]


def changes(run: Run, files: list[Path]) -> tuple[int, ...]:
    """Numbers that differ once anything of a run has changed; the last is the time of the newest change, in ns. () for
    a folder that is no run."""
    paths = [path for entry in _scan(run.folder) if entry.name.startswith("attempt-")
             for path in (entry.path, f"{entry.path}/plan.json", f"{entry.path}/jobs.jsonl")]  # fmt: skip
    there = [entry.path for stage in _scan(run.folder / "records") for entry in _scan(stage.path)]
    abouts = []
    for path in [*paths, *there, *files]:
        try:
            abouts.append(os.stat(path))  # noqa: PTH116  # of a thousand runs, at each scrape
        except OSError:  # compacted just now
            continue
    times = [about.st_mtime_ns for about in abouts]
    sizes = [about.st_size for about in abouts]
    return (len(times), sum(times), sum(sizes), max(times)) if paths and times else ()


def _scan(folder: str | Path) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """`gather` takes over the environment that a run declares: that run's alone, where several are read."""
    env = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(env)


class Exporter:
    """Reads the runs of a folder when asked, and keeps what it found."""

    def __init__(self, folder: Path, days: float) -> None:
        """days: runs in which nothing has changed for so long are left out."""
        self.folder, self.days = folder, days
        self.seen: dict[str, Seen] = {}
        self.told, self.asked_at, self.slurm_up = status.Told(), 0.0, False
        self.page = ""
        self.complained: set[str] = set()
        """Runs that could not be read, each named once."""
        self.wanted, self.fresh = threading.Event(), threading.Event()

    def read(self) -> str:
        """Look at all runs, read those that changed; returns the page."""
        begun, now = time.monotonic(), time.time()
        runs = {entry.name: Run(Path(entry.path)) for entry in _scan(self.folder) if entry.is_dir()}
        marks: dict[str, tuple] = {}
        for name, run in sorted(runs.items()):
            known = self.seen.get(name)
            mark = changes(run, known.files if known else [])
            if mark and now - mark[-1] / 1e9 < self.days * 86400:
                marks[name] = mark
        self.seen = {name: one for name, one in self.seen.items() if name in marks}
        unreadable = anew = 0
        try:
            self.ask([runs[name] for name in marks if name not in self.seen])
        except slurm.SlurmError as error:
            self.slurm_up = False
            print(error, file=sys.stderr)
        for name, mark in marks.items():
            known = self.seen.get(name)
            live = [(t.state, t.reason, t.indices) for t in self.told.tasks if known and t.job in known.jobs]
            if known:
                rested = now - known.at > REST * known.took
                stale = known.state == "running" and now - known.at > AGAIN
                if not rested or not (stale or (mark, live) != known.changes):
                    continue
            try:
                self.seen[name] = self.look(runs[name], mark)
                anew += 1
            except Exception as error:  # one damaged run is no reason to show none
                unreadable += 1
                if name not in self.complained:
                    self.complained.add(name)
                    print(f"{runs[name].folder}: {type(error).__name__}: {error}", file=sys.stderr)
        own = metrics.Families()
        for name, value in {
            "exporter_runs": len(self.seen), "exporter_unreadable_runs": unreadable, "exporter_read_runs": anew,
            "exporter_read_seconds": time.monotonic() - begun, "exporter_last_read_timestamp_seconds": now,
            "exporter_slurm_up": self.slurm_up,
        }.items():  # fmt: skip
            own.add(name, value)
        self.page = metrics.text([own.found, *(self.seen[name].families for name in sorted(self.seen))])
        return self.page

    def look(self, run: Run, mark: tuple) -> Seen:
        begun = time.monotonic()
        with own_environment():
            gathered = status.gather(run, ask_slurm=False, told=self.told)
        made = report.build(run, gathered)
        files = [file for stage in gathered.stages.values() if (file := training.metrics_file(stage))]
        jobs = set(made.status.jobs)
        live = [(t.state, t.reason, t.indices) for t in self.told.tasks if t.job in jobs]
        return Seen((mark if not files else changes(run, files), live), time.time(), time.monotonic() - begun,
                    made.status.state, jobs, files, metrics.of(made))  # fmt: skip

    def ask(self, new: list[Run]) -> None:
        """Slurm, for all jobs of runs that are not done, one squeue call a minute. Raises SlurmError."""
        if (self.asked_at and time.monotonic() - self.asked_at < SLURM_EVERY) or not slurm.available():
            return
        jobs = {job for one in self.seen.values() if one.state != "done" for job in one.jobs}
        for run in new:
            with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):  # said when it is read
                jobs |= {j.job for j in run.latest().jobs()}
        if jobs:
            self.asked_at = time.monotonic()
            self.told = status.Told(slurm.queue(sorted(jobs, key=int)[-MOST_JOBS:]), calls=1)
            self.slurm_up = True

    def scrape(self) -> str:
        """The page, as fresh as can be had within PATIENCE."""
        self.fresh.clear()
        self.wanted.set()
        self.fresh.wait(PATIENCE)
        return self.page

    def work(self) -> None:
        """The reading thread: when a scrape wants it, and for nobody else."""
        while True:
            self.wanted.wait()
            self.wanted.clear()
            try:
                self.read()
            except Exception:  # what was known is served, with its age
                traceback.print_exc()
            self.fresh.set()


def serve(exporter: Exporter, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers /metrics; `serve_forever()` of it runs until it is stopped."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path not in ("/", "/metrics"):
                self.send_error(404, "there is /metrics")
                return
            page = exporter.scrape() if path == "/metrics" else "hpc exporter: see /metrics\n"
            body = page.encode()
            self.send_response(200)
            kind = "text/plain; version=0.0.4; charset=utf-8" if path == "/metrics" else "text/plain"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass  # a line a scrape would fill the log

    exporter.read()
    threading.Thread(target=exporter.work, daemon=True).start()
    return ThreadingHTTPServer((host, port), Answer)


def write(exporter: Exporter, path: Path) -> None:
    """For the textfile collector, which must never see half a file."""
    text = exporter.read()
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    temp.write_text(text)
    temp.chmod(0o644)  # node_exporter is another user
    temp.replace(path)


def copy_dashboards(to: Path) -> list[Path]:
    """Grafana's JSON and the alert rules, as they come with hpc."""
    to.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, to)) for path in sorted(DASHBOARDS.iterdir()) if path.suffix in (".json", ".yaml")]
