"""Where a training stands, from the end of its metrics.jsonl: a file that grows by a line a step; and which of its
ranks are slow, from their heartbeats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import heartbeat
from hpc.batch.run import Run, StagePlan

TAIL = 1 << 16
"""Bytes at the end of the file that are read, however long it is."""
MEASURED = ("validation_nll", "held_out")
"""Losses on held-out samples, as trainers call them."""
STEPS = 20
"""Rates are means over so many steps."""


class Training(msgspec.Struct, omit_defaults=True):
    """What the last steps said. None: this trainer, or this machine, does not say."""

    stage: str
    step: int
    time: float
    """Of the last step."""
    steps: int | None = None
    """At which it ends."""
    loss: float | None = None
    validation_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    samples_per_second: float | None = None
    step_seconds: float | None = None
    data_wait: float | None = None
    """Share of the time in which ranks waited for data."""
    checkpoint_stall: float | None = None
    """Share of the time in which checkpoints held training up."""
    mfu: float | None = None
    tflops: float | None = None
    """TFLOP/s of a GPU."""
    tokens_per_second_per_gpu: float | None = None
    z_loss: float | None = None
    gpu_hours: float | None = None
    """So far, lost steps included."""
    skipped: float | None = None
    memory: float | None = None
    """Bytes on a GPU, at most."""
    slow: heartbeat.Slow | None = None
    """Of its last start."""

    def words(self) -> str:
        of = f" of {self.steps:,}" if self.steps else ""
        said = [f"step {self.step:,}{of}"]
        said += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        said += [f"validation {self.validation_loss:.4g}"] if self.validation_loss is not None else []
        said += [f"{self.tokens_per_second:,.0f} tokens/s"] if self.tokens_per_second else []
        said += [f"{self.samples_per_second:,.1f} samples/s"] if self.samples_per_second else []
        said += [f"MFU {self.mfu:.1%}"] if self.mfu is not None else []
        said += [f"waited for data {self.data_wait:.1%}"] if self.data_wait is not None else []
        said += [f"held up by checkpoints {self.checkpoint_stall:.1%}"] if self.checkpoint_stall else []
        said += [f"{self.gpu_hours:,.3g} GPU-hours"] if self.gpu_hours else []
        said += [f"{self.skipped:,.0f} steps skipped"] if self.skipped else []
        said += [words] if self.slow and (words := self.slow.words()) else []
        return ", ".join(said)


def metrics_file(stage: StagePlan) -> Path | None:
    """Where the ranks of a stage write (hpc.train: `place`); None for stages that do not train, or are not begun."""
    if "gang" not in stage.phases or not stage.folder:
        return None
    if folder := stage.settings.get("folder"):
        return Path(folder).expanduser() / stage.fingerprint / "metrics.jsonl"
    return None if "://" in stage.folder else Path(stage.folder, "training", "metrics.jsonl")


def tail(path: Path) -> list[dict[str, Any]]:
    """The last lines, complete ones only; [] where there is no file yet, or it is no one's to read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            raw = file.read(TAIL).split(b"\n")
    except OSError:
        return []
    found = []
    for line in raw[1:] if size > TAIL else raw:
        try:
            said = json.loads(line)
        except ValueError:  # cut off, or being written
            continue
        if isinstance(said, dict) and isinstance(said.get("step"), int):
            found.append(said)
    return found


def look(run: Run, stage: StagePlan) -> Training | None:
    path = metrics_file(stage)
    lines = tail(path) if path else []
    beats = heartbeat.newest(run.ranks(stage.name))
    slow = heartbeat.slowest(beats)
    if not lines:  # a stage of one's own
        if not beats:
            return None
        return Training(stage.name, beats[0].steps, beats[0].t, step_seconds=beats[0].step_seconds, slow=slow)
    some, last = lines[-STEPS:], lines[-1]
    took = [_sum(some, name) for name in ("seconds", "waited", "checkpoint_seconds")]
    total = sum(filter(None, took))
    rate = lambda name: done / total if total and (done := _sum(some, name)) else None
    newest = lambda name: next((_number(line[name]) for line in reversed(lines) if name in line), None)
    measured = [value for name in MEASURED if (value := newest(name)) is not None]
    mean = lambda name: sum(found) / len(found) if (found := [
        value for line in some if (value := _number(line.get(name))) is not None]) else None  # fmt: skip
    share = lambda value: value / total if total and value is not None else None
    return Training(
        stage=stage.name, step=last["step"], time=_number(last.get("time")) or 0.0, steps=stage.settings.get("steps"),
        loss=newest("loss"), validation_loss=measured[0] if measured else None,
        grad_norm=newest("grad_norm"), learning_rate=newest("rate"),
        tokens_per_second=rate("tokens"), samples_per_second=rate("samples"),
        step_seconds=total / len(some) if total else None, data_wait=share(took[1]), checkpoint_stall=share(took[2]),
        mfu=mean("mfu"), tflops=mean("tflops_per_gpu"), z_loss=newest("z_loss"), gpu_hours=newest("gpu_hours"),
        tokens_per_second_per_gpu=mean("tokens_per_second_per_gpu"), skipped=newest("skipped"),
        memory=newest("memory_bytes"), slow=slow,
    )  # fmt: skip


def _sum(lines: list[dict[str, Any]], name: str) -> float | None:
    found = [value for line in lines if (value := _number(line.get(name))) is not None and math.isfinite(value)]
    return sum(found) if found else None


def _number(value: Any) -> float | None:
    """NaN and infinities stand there as words."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
