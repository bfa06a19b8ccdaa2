"""Echo's work. An input's content may ask for trouble: "crash", "fail", "oom 1" (the first time only), "sleep 5",
"wait go" (until there is a file `go` in the folder `flags`)."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc.curate import lanes
from hpc.data import storage
from hpc.data.work import Bad, Item, Made, Work

TROUBLE = ("crash", "fail", "oom", "disk", "hang")


def start(settings):
    def process(work: Work) -> Made:
        lines, bad = [], []
        steps = max(1, int(settings.seconds / 0.02))
        for i in range(steps if settings.seconds else 0):
            work.check()
            work.progress(i / steps, "working")
            time.sleep(settings.seconds / steps)

        def one(item: Item, check: Callable[[], None]) -> dict[str, Any] | Bad:
            with work.on(item):
                text = storage.read(item.uri).decode(errors="replace").strip()
                word, _, times = text.partition(" ")
                if word == "sleep":
                    for _ in range(int(float(times) * 50)):
                        check()
                        time.sleep(0.02)
                elif word == "wait":
                    while not Path(settings.flags, times).exists():
                        check()
                        time.sleep(0.02)
                elif word in TROUBLE and _again(settings.flags, work.shard, word, times):
                    _misbehave(word)
            if word == "bad":
                return Bad(item.uri, "no-good", text)
            line = {"uri": item.uri, "part": item.part, "parts": item.parts, "text": text[:200]}
            return line | {"prompt": settings.prompt}

        for done in lanes.in_order(work.items, one, 1 if work.alone else settings.lanes, work.check):
            (bad if isinstance(done, Bad) else lines).append(done)
        out = work.scratch / f"{work.shard}.jsonl"
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Made([out], {"lines": len(lines)}, bad)

    return process


def _again(flags: str, shard: str, word: str, times: str) -> bool:
    """Whether to misbehave this time: always, or the first `times` times."""
    if not times:
        return True
    seen = Path(flags) / f"{shard}.{word}"
    n = int(seen.read_text()) if seen.exists() else 0
    seen.write_text(str(n + 1))
    return n < int(times)


def _misbehave(word: str) -> None:
    if word == "crash":
        signal.raise_signal(signal.SIGSEGV)  # in this very thread, as a real one
    if word == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if word == "hang":
        time.sleep(10_000)
    raise RuntimeError("told to fail")
