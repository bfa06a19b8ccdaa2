"""Tokens and instructions: the form of video2world, with what a robot is told for prompts.

Instructions are found by the place of the video that a clip is of:

    robot/videos/id1.mp4             robot/instructions/id1.json            {"language_instruction_0": "..."}
    bridge/videos/train/5873/rgb.mp4 bridge/annotation/train/5873.json      {"texts": ["..."], ...}

NVIDIA/Cosmos 71f19b0: diffusion/nemo/post_training/prepare_instruction_dataset.py; models/POST_TRAINING.md says that
instruction control is post-training on pairs of instruction and video, with the model and its reader as they are.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from hpc.data import layers, storage, upstream
from hpc.data.work import BadInput, Made, Work
from hpc.prepare import bridge, documents
from hpc.prepare.documents import Shards
from hpc.prepare.forms import video2world
from hpc.prepare.forms.video2world import Rows
from hpc.prepare.settings import Instruction

KEY = "language_instruction_0"


def freeze(settings: Instruction, stages: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """Videos without an instruction are left out, and named in the barrier's log. Raises ValueError where none has
    one."""
    inputs: set[tuple[str, str]] = set()
    for _, files in documents.ids_of(stages):
        table = upstream.table(files[".parquet"], ["source", "etag"])
        inputs |= set(zip(*(table[name].to_pylist() for name in ("source", "etag")), strict=True))
    bare = []
    for pair, problem in layers.map_ahead(lambda pair: (pair, problem_of(pair[0])), sorted(inputs - superseded)):
        if problem:
            logging.getLogger(__name__).warning("left out: %s", problem)
            bare.append((pair, problem))
    if len(bare) == len(inputs - superseded):
        raise ValueError(f"not one of {len(bare)} videos has an instruction: {bare[0][1] if bare else 'there is none'}")
    yield from video2world.freeze(settings, stages, superseded | {pair for pair, _ in bare})


def start(settings: Instruction) -> Callable[[Work], Made]:
    """Raises as `video2world.start` does."""
    return functools.partial(video2world.process, settings, video2world.encoder_of(settings), instructions)


def instructions(rows: Rows) -> list[str]:
    """Raises BadInput for a row without one."""
    found = {source: instruction(source) for source in sorted({row["source"] for row in rows})}
    return [found[row["source"]] for row in rows]


def problem_of(video: str) -> str:
    """Why a video has no instruction; "" where it has one."""
    try:
        instruction(video)
    except BadInput as error:
        return str(error)
    return ""


def instruction(video: str) -> str:
    """What goes with a video. Raises BadInput."""
    if place := bridge.placed(video):
        words = bridge.text_of(bridge.annotation(place))
        where = place.annotation
    else:
        folder, _, name = video.rpartition("/")
        root = folder.removesuffix("videos").rstrip("/")
        where = f"{root}/instructions/{name.rpartition('.')[0]}.json"
        try:
            words = str(json.loads(storage.read(where))[KEY]).strip()
        except FileNotFoundError:
            raise BadInput(video, "no-instruction", f"there is no {where}") from None
        except (ValueError, LookupError, TypeError) as error:
            raise BadInput(video, "instruction", f"{where}: {{{KEY!r}: text}} is expected: {error!r}") from error
    if not words:
        raise BadInput(video, "instruction", f"{where}: it is empty")
    return words
