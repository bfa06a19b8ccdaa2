"""What a training says of itself: a line of JSON a step, which dashboards, reports and people read.

    with Metrics(folder / "metrics.jsonl") as metrics:
        metrics.show(120, [folder / "pictures/000000120.webp"])
        metrics.step(120, loss=0.31, grad_norm=1.2, samples=32, seconds=0.8, waited=0.01)

A run that goes on from a checkpoint first takes back what was written of later steps: every step stands there once.
Each line says besides the time, and the GPU-hours (of ranks, where there are no GPUs) of the training so far: all the
time since it started, in which ranks waited, measured or wrote checkpoints too, lost steps included.

TensorBoard and Weights & Biases get the same where a spec asks for them (hpc.train.trackers); one that fails later on
is left alone, and the training goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

log = logging.getLogger(__name__)
Trackers = tuple[Literal["tensorboard", "wandb"], ...]
CLOCKS = ("time", "seconds", "waited", "checkpoint_seconds", "validation_seconds", "pictures_seconds", "memory_bytes",
          "samples_per_second", "tokens_per_second", "tokens_per_second_per_gpu", "tflops_per_gpu", "mfu",
          "gpu_hours")  # fmt: skip
"""What differs between trainings that are otherwise equal to the last bit."""


class Metrics:
    """Rank 0 writes; other ranks have none. resumed: steps that the checkpoint has, of which lines stay.
    gpus: whose hours are counted; on CPUs none."""

    def __init__(
        self, path: Path, resumed: int = 0, gpus: int = 0, trackers: Sequence[str] = (), settings: Any = None
    ) -> None:
        """settings: as plain values, which trackers show. Raises ValueError for a tracker that is not installed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        there = list(lines(path)) if path.exists() else []
        kept = [line for line in there if line["step"] <= resumed]
        if there:
            beside = path.with_suffix(".part")
            beside.write_text("".join(_encoded(line) for line in kept))
            beside.replace(path)
        self.gpus, self.began = gpus, time.monotonic()
        self.hours = float(there[-1].get("gpu_hours", 0.0)) if there else 0.0
        self.trackers: list[Any] = []
        if trackers:
            from hpc.train.trackers import begun

            self.trackers = begun(trackers, path.parent, settings, kept)
        self.file = path.open("a")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._each("close", kind is not None)

    def step(self, step: int, **values: float) -> None:
        """After `step` steps. NaN and infinities are written as words, so that the line stays JSON."""
        values["gpu_hours"] = self.hours + (time.monotonic() - self.began) * self.gpus / 3600
        said = {"step": step, "time": round(time.time(), 3), **{name: _plain(value) for name, value in values.items()}}
        self.file.write(_encoded(said))
        self.file.flush()
        self._each("step", step, values)

    def show(self, step: int, files: Sequence[Path]) -> None:
        """Pictures and videos, before the line of their step is told."""
        self._each("show", step, files)

    def _each(self, what: str, *values: Any) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, what)(*values)
            except Exception:  # no training ends because a server does not answer
                self.trackers.remove(tracker)
                log.exception("metrics: %s is told nothing any more", type(tracker).__name__)


def opened(settings: Any, folder: Path, resumed: int, here: Any) -> Metrics | None:
    """Those of a trainer; None on other ranks than the first. resumed: the step that it goes on from."""
    if here.rank:
        return None
    from hpc.train.clips import plain

    gpus = here.count if here.device.type == "cuda" else 0
    return Metrics(folder / "metrics.jsonl", resumed, gpus, settings.metrics, plain(settings))


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
