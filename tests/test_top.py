"""`hpc top` in a real terminal (a pseudo-terminal, whose screen pyte keeps), and where there is none."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import figures
import pyte
import pytest
import runs
import shown

from hpc.batch import slurm, top
from hpc.batch.run import Run
from hpc.batch.top import Screen

DOWN, UP, ESC = "\x1b[B", "\x1b[A", "\x1b"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: one of 2,000 shards that Slurm is at, and twenty that ended."""
    folder = tmp_path_factory.mktemp("large")
    run = shown.large(folder, shards=2000)
    shown.many(figures.site(tmp_path_factory.mktemp("small")), 20, run.folder.parent)
    return run.folder.parent


class Terminal:
    def __init__(self, command: list[str], env: dict[str, str], columns: int, rows: int) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.own, theirs = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        own = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, preexec_fn=own,
                                        start_new_session=True)  # fmt: skip

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hear(self, seconds: float = 0.2) -> None:
        while select.select([self.own], [], [], seconds)[0]:
            data = os.read(self.own, 65536)
            self.raw += data
            self.stream.feed(data)
            seconds = 0.05

    def type(self, *keys: str) -> None:
        for key in keys:
            os.write(self.own, key.encode())
            self.hear(0.15)

    def until(self, happened: Callable[[str], object], timeout: float = 30) -> str:
        end = time.monotonic() + timeout
        while not happened(text := "\n".join(self.screen.display)):
            assert time.monotonic() < end and self.process.poll() is None, text
            self.hear()
        return text


@contextlib.contextmanager
def terminal(place: Path, columns: int = 120, rows: int = 30, **env: str) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "hpc.cli", "top", str(place), "--every", "1"]
    its = runs.environment(**{"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"} | env)
    one = Terminal(command, its, columns, rows)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait(60)
        os.close(one.own)
        os.close(one.theirs)


def test_a_session(place: Path, tmp_path: Path) -> None:
    fake = runs.Slurm(tmp_path / "slurm")
    fake.answers(squeue=shown.queue(2000))
    with terminal(place, PATH=fake.path) as one:
        text = one.until(lambda t: "large-" in t and "twin0001" in t and "running" in t)
        assert re.search(r">running +large-\w+ +█+▒*×*·* +\d+%", text), text
        assert "80 GPUs, 640 CPUs held; 80 shards in flight; 415 tasks pending: " in text
        assert "done" in text and text.splitlines()[-1].startswith("q leave")
        one.type(DOWN, "j", UP)
        one.until(lambda t: re.search(r"^>failed|^>done", t, re.MULTILINE))
        one.type("G")
        one.until(lambda t: re.search(r"^>\w+ +twin00", t, re.MULTILINE))
        one.type("/", *"large", "\r")
        one.until(lambda t: "twin" not in t and "large-" in t)
        one.type("\r")
        text = one.until(lambda t: "echo: each mark the worst of 3 shards" in t)
        assert re.search(r"^>echo +█+", text, re.MULTILINE) and "pending for: " in text
        assert "again, with twice the memory" in text and "× failed" in text and "░ queued" in text
        one.type("j")
        one.until(lambda t: re.search(r"^>note", t, re.MULTILINE) and "note: each mark" in t)
        for columns, rows in ((80, 24), (40, 10), (200, 50), (12, 3)):
            one.resize(columns, rows)
            one.hear(0.5)
            text = one.until(lambda t: "large-" in t)
            assert len(one.screen.display) == rows and "Traceback" not in text
        one.resize(100, 20)
        one.type(ESC)
        one.until(lambda t: "RUN" in t and "filter: large" in t)
        one.type(ESC)
        one.until(lambda t: "twin0001" in t)
        one.type("q")
        assert one.process.wait(60) == 0
        one.hear()
        assert one.raw.endswith(b"\x1b[?25h\x1b[?1049l"), "the screen from before, and its cursor"
        assert termios.tcgetattr(one.theirs) == one.before
    assert len(fake.calls("squeue")) == 1


def test_slurm_that_does_not_answer(place: Path, tmp_path: Path) -> None:
    """What is complained of has a line of its own: it is not written across the screen."""
    fake = runs.Slurm(tmp_path / "slurm")
    fake.answers(squeue="!slurm_load_jobs error: Unable to contact slurm controller")
    (place / "broken-1" / "attempt-1").mkdir(parents=True)
    (place / "broken-1" / "attempt-1" / "plan.json").write_text("{")
    with terminal(place, PATH=fake.path) as one:
        text = one.until(lambda t: "Unable to contact" in t and "cannot read broken-1" in t and "twin0001" in t)
        assert text.count("Unable to contact") == 1
        assert text.splitlines()[-1].startswith("q leave") and re.search(r"^STATE ", text, re.MULTILINE)
        one.type("q")
        assert one.process.wait(60) == 0
    shutil.rmtree(place / "broken-1")


def test_it_sees_what_is_new(tmp_path: Path) -> None:
    made = runs.planned(runs.spec(tmp_path, runs.numbered(4), {"echo": runs.ECHO}))
    with terminal(made.run.folder.parent) as one:
        one.until(lambda t: "0/4" in t)
        drawn = len(one.raw)
        one.hear(1.5)
        assert len(one.raw) - drawn < 400, "what has not changed is not drawn again"
        runs.finish(runs.worker(made))
        one.until(lambda t: "4/4" in t and "done" in t)


def test_it_is_stopped_and_ended(place: Path) -> None:
    with terminal(place) as one:
        one.until(lambda t: "large-" in t)
        one.type("\x1a")  # ctrl-z
        one.hear(0.5)
        assert one.raw.endswith(b"\x1b[?25h\x1b[?1049l") and termios.tcgetattr(one.theirs) == one.before
        one.process.send_signal(signal.SIGCONT)
        one.until(lambda t: "large-" in t)
        one.process.terminate()
        assert one.process.wait(60) == 128 + signal.SIGTERM
        assert termios.tcgetattr(one.theirs) == one.before
    with terminal(place) as one:
        one.until(lambda t: "large-" in t)
        one.type("\x03")
        one.process.wait(60)
        one.hear()
        assert termios.tcgetattr(one.theirs) == one.before and b"Traceback" not in one.raw


def test_without_colours_and_without_unicode(place: Path) -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    with terminal(place, NO_COLOR="1", **ascii_alone) as one:
        text = one.until(lambda t: "large-" in t)
        assert re.search(r"large-\w+ +#+o*x*\.* +\d+%", text), text
        assert text.isascii() and not re.search(rb"\x1b\[[0-9;]*[1-9][0-9;]*m", one.raw)


def test_plain_text_where_there_is_no_terminal(place: Path) -> None:
    done = runs.hpc("top", place, cwd=place)
    assert "\x1b" not in done.stdout and done.stdout.isascii()
    assert len([line for line in done.stdout.splitlines() if " twin00" in line]) == 20
    found = json.loads(runs.hpc("top", place, "--json", cwd=place).stdout)
    assert len(found["runs"]) == 21 and found["totals"]["states"]["done"] == 15
    assert "no such folder" in runs.hpc("top", place / "nothing", cwd=place, code=2).stderr


def test_names_move_no_cursor(place: Path) -> None:
    """A run folder may be called anything, and an error may say anything."""
    row = {"run": "a\x1b[2Jb\rc\n" + "長" * 40, "state": "done", "fraction": 1.0, "done": 1, "shards": 1, "failed": 0,
           "running": 0, "eta": 0, "rate": 0, "gpus": 0, "last": 1.0, "created": 1.0, "user": "", "cluster": "",
           "stages": []}  # fmt: skip
    found = {"folder": "/x\x1b]0;title\x07", "runs": [row], "problems": [{"run": "\x1b[1m", "why": "\x9b5A"}],
             "totals": {"states": {}, "reasons": {}, "gpus": 0, "cpus": 0, "running": 0, "pending": 0}}  # fmt: skip
    for width in (20, 60, 100):
        for line in top.listed(found, Screen(colour=False), width, 20):
            assert line.isprintable() and top.breadth(line) <= width, line


def test_no_slurm_no_call(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)
    here = top.Watch(place)
    here.read()
    lines = top.draw(here, Screen(), 100, 12)
    assert len(lines) == 12 and "large" in "".join(lines)
    assert isinstance(next(iter(here.known)), str) and Run(place / next(iter(here.known))).attempts()
