"""Where metrics, pictures and videos of a training go beside metrics.jsonl, when asked: TensorBoard, Weights & Biases.

    metrics: [tensorboard, wandb]            # of a trainer's settings; pip install '.[tensorboard]', '.[wandb]'

    <training>/tensorboard/                  tensorboard --logdir OUTPUT
    <training>/wandb/                        without a network: wandb sync <training>/wandb/offline-run-*

TensorBoard: each start of a training writes a file of its own, which begins with the step that it goes on from; readers
forget what earlier files have from there on (tensorboard 2.21: event_processing/event_accumulator.py).

Weights & Biases: the project is $WANDB_PROJECT or hpc, the name $WANDB_NAME or the folder's; the run's id is drawn once
and kept in <training>/wandb/id, so that a training that goes on is the same run. With $WANDB_API_KEY it is sent while
it trains ($WANDB_MODE overrules that); a key is read from the environment alone, and written nowhere. Else, or where
the server does not answer when training starts, it is written to <training>/wandb, and then each start writes all steps
anew: the newest folder has the whole run, each step once. (The server takes later steps than it has, no others.)

Both have  step(step, values)   show(step, files)   close(failed).
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from hpc.data import video
from hpc.train import pictures

log = logging.getLogger(__name__)
WIDEST = 320
"""Pixels of the moving pictures in TensorBoard, which plays no mp4."""
PATIENCE = 30.0
"""Seconds that the end of a training waits for what is still to be sent."""


def missing(names: Sequence[str]) -> None:
    """Raises ValueError naming the extra of a tracker whose package is not installed here."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"metrics: {name}: its package is not installed where this trains: pip install "
                             f"'.[{name}]', or leave it out (metrics.jsonl is always written)")  # fmt: skip


def begun(names: Sequence[str], folder: Path, settings: Any, before: Sequence[dict[str, Any]]) -> list[Any]:
    """Those that are asked for. folder: of the training. settings: as plain values. before: lines of metrics.jsonl of
    the steps that the training goes on from."""
    missing(names)
    resumed = before[-1]["step"] if before else 0
    made: list[Any] = []
    if "tensorboard" in names:
        made.append(TensorBoard(folder / "tensorboard", resumed))
    if "wandb" in names:
        made.append(Wandb(folder, settings, before))
    return made


class TensorBoard:
    """Scalars; pictures; videos as moving pictures."""

    def __init__(self, folder: Path, resumed: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.events, self.summaries = event_pb2, summary_pb2
        self.file = EventFileWriter(str(folder), flush_secs=30)
        begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.file.add_event(event_pb2.Event(wall_time=time.time(), step=resumed + 1, session_log=begin))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [self.summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def show(self, step: int, files: Sequence[Path]) -> None:
        shown = []
        for path in files:
            (width, height), data = moving(path) if path.suffix == ".mp4" else still(path)
            image = self.summaries.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            shown.append(self.summaries.Summary.Value(tag=called(path), image=image))
        self._add(step, shown)

    def close(self, failed: bool) -> None:
        self.file.close()

    def _add(self, step: int, values: list[Any]) -> None:
        summary = self.summaries.Summary(value=values)
        self.file.add_event(self.events.Event(wall_time=time.time(), step=step, summary=summary))


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, settings: Any, before: Sequence[dict[str, Any]]) -> None:
        import wandb

        place = folder / "wandb"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "id").exists():
            (place / "id").write_text(secrets.token_hex(4))
        about: dict[str, Any] = {
            "id": (place / "id").read_text().strip(), "dir": folder, "config": settings,
            "project": os.environ.get("WANDB_PROJECT") or "hpc", "name": os.environ.get("WANDB_NAME") or named(folder),
            "settings": wandb.Settings(console="off", silent=True, finish_timeout=PATIENCE),
        }  # fmt: skip
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        old = sorted(place.glob("offline-run-*"))
        self.wandb, self.run = wandb, None
        if mode != "offline":
            try:
                self.run = wandb.init(mode=mode, resume="allow", **about)
            except Exception as error:  # GPUs do not wait for a server
                log.warning("metrics: wandb: %s: what there is goes to %s, for `wandb sync`", error, place)
                wandb.teardown()
        if self.run is None:
            self.run = wandb.init(mode="offline", **about)
            for one in old:
                shutil.rmtree(one, ignore_errors=True)
        self.first = self.run.step
        """The server has the steps before."""
        shown = pictures.by_step(folder / "pictures") if before else {}
        for line in before:
            self.show(line["step"], shown.get(line["step"], []))
            self.step(line["step"], line)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.first:
            said = {name: float(value) for name, value in values.items() if name not in ("step", "time")}
            self.run.log(said, step=step)

    def show(self, step: int, files: Sequence[Path]) -> None:
        if step >= self.first and files:
            kinds = {".mp4": lambda path: self.wandb.Video(path, format="mp4"), ".webp": self.wandb.Image}
            self.run.log({called(path): kinds[path.suffix](str(path)) for path in files}, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
        self.wandb.teardown()  # returns when all is written (wandb 0.31's `finish` does not wait for that)


def named(folder: Path) -> str:
    """OUTPUT/ar@v1/training -> "OUTPUT/ar@v1"."""
    whole = folder.absolute()
    return "/".join((whole.parent if whole.name == "training" else whole).parts[-2:])


def called(path: Path) -> str:
    """Pictures are named <step>.webp, videos <step>_<which>.mp4."""
    which = path.stem.partition("_")[2]
    return f"video_{which}" if which else "pictures"


def still(path: Path) -> tuple[tuple[int, int], bytes]:
    """((width, height), its png)."""
    out = io.BytesIO()
    with PIL.Image.open(path) as picture:
        picture.convert("RGB").save(out, "PNG")
        return picture.size, out.getvalue()


def moving(path: Path) -> tuple[tuple[int, int], bytes]:
    """((width, height), its gif)."""
    data = path.read_bytes()
    info, count = video.measured(data)
    scale = min(1.0, WIDEST / info.width)
    size = round(info.width * scale), round(info.height * scale)
    frames = [PIL.Image.fromarray(frame) for frame in video.sample(data, range(count), *size)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / info.fps), loop=0)
    return size, out.getvalue()
