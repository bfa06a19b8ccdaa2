"""Curves of a training's metrics.jsonl, however long it is: read on from where the last look ended, thinned on the way.

Neighbouring steps share a point once there are many; a point knows the mean, the least and the largest of its steps, so
that a spike of one step stays in sight.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import msgspec

MOST = 1200
"""Points of a curve; twice as many make room by joining pairs."""
KEPT_APART = ("step", "time")
PIECE = 1 << 22


class Point(msgspec.Struct, array_like=True):
    step: int
    """The last of its steps."""
    count: int
    mean: float
    low: float
    high: float


class Curves:
    """`read` follows one file. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.at, self.inode, self.rest = 0, 0, b""
        self.points: dict[str, list[Point]] = {}
        self.each: dict[str, int] = {}
        """Name -> steps that a full point has."""
        self.odd: dict[str, int] = {}
        """Name -> values that were no numbers, or not finite."""
        self.step, self.time = 0, 0.0
        self.times: list[tuple[int, float]] = []

    def read(self) -> dict[str, Any]:
        """{"step", "time", "times": [[step, time], ...], "curves": {name: [[step, mean, low, high], ...]}, "odd"}"""
        with self.lock:
            self._follow()
            curves = {name: [[p.step, _short(p.mean), _short(p.low), _short(p.high)] for p in points]
                      for name, points in self.points.items() if points}  # fmt: skip
            thin = self.times[:: max(1, len(self.times) // 200)]
            return {"step": self.step, "time": self.time, "times": thin, "curves": curves, "odd": self.odd}

    def _follow(self) -> None:
        try:
            about = self.path.stat()
        except OSError:
            return
        if about.st_ino != self.inode or about.st_size < self.at:  # a run that goes on writes the file anew
            self._begin()
            self.inode = about.st_ino
        decode = msgspec.json.Decoder().decode
        with self.path.open("rb") as file:
            file.seek(self.at)
            while piece := file.read(PIECE):
                self.at += len(piece)
                *lines, self.rest = (self.rest + piece).split(b"\n")
                for line in lines:
                    try:
                        said = decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        continue
                    if isinstance(said, dict) and isinstance(said.get("step"), int):
                        self._add(said)

    def _add(self, said: dict[str, Any]) -> None:
        self.step = said["step"]
        if isinstance(t := said.get("time"), (int, float)):
            self.time = float(t)
            self.times.append((self.step, self.time))
            if len(self.times) > 2 * MOST:
                del self.times[1::2]
        for name, value in said.items():
            if name in KEPT_APART or isinstance(value, bool):
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                self.odd[name] = self.odd.get(name, 0) + 1
                continue
            points = self.points.setdefault(name, [])
            each = self.each.setdefault(name, 1)
            if points and points[-1].count < each:
                points[-1] = _join(points[-1], Point(self.step, 1, value, value, value))
            else:
                points.append(Point(self.step, 1, value, value, value))
            if len(points) > 2 * MOST:
                self.points[name] = [_join(*points[i : i + 2]) for i in range(0, len(points) - 1, 2)] + (
                    points[-1:] if len(points) % 2 else [])  # fmt: skip
                self.each[name] = 2 * each


def _join(a: Point, b: Point) -> Point:
    count = a.count + b.count
    mean = (a.mean * a.count + b.mean * b.count) / count
    return Point(b.step, count, mean, min(a.low, b.low), max(a.high, b.high))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
