"""What a training says of itself: a line of JSON a step, which dashboards, reports and people read.

    with Metrics(folder / "metrics.jsonl") as metrics:
        metrics.step(120, loss=0.31, grad_norm=1.2, samples=32, seconds=0.8, waited=0.01)

A run that goes on from a checkpoint first takes back what was written of later steps: every step stands there once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


class Metrics:
    """Rank 0 writes; other ranks have none. resumed: steps that the checkpoint has, of which lines stay."""

    def __init__(self, path: Path, resumed: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line in lines(path) if line["step"] <= resumed]
            beside = path.with_suffix(".part")
            beside.write_text("".join(_encoded(line) for line in kept))
            beside.replace(path)
        self.file = path.open("a")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def step(self, step: int, **values: float) -> None:
        """After `step` steps. NaN and infinities are written as words, so that the line stays JSON."""
        said = {"step": step, "time": round(time.time(), 3), **{name: _plain(value) for name, value in values.items()}}
        self.file.write(_encoded(said))
        self.file.flush()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; a torn last one, of a job that was killed, is left out."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _encoded(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"


def _plain(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)
