"""A stage in a single file of its own, outside any package: two objects a shard, and bad manners on request."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import ClassVar

import msgspec
from PIL import Image

from hpc.data import storage
from hpc.data.work import Made, Work


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Copies its inputs' text twice. Inputs may say "wrong" (objects of another name) or "chatty" (prints a lot)."""

    KIND: ClassVar[str] = "pair:Pair"
    CODE: ClassVar[str] = "pair"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".one", ".two")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".txt",)
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ("salt", "broken")
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    salt: str = ""
    """A file whose content goes into the objects: a stage that is not deterministic."""
    broken: bool = False
    """Does not start."""


def start(settings: Pair):
    if settings.broken:
        raise RuntimeError("no such model")
    salt = Path(settings.salt).read_text() if settings.salt else ""

    def process(work: Work) -> Made:
        texts = [storage.read(item.uri).decode().strip() for item in work.items]
        if "chatty" in texts:
            for i in range(2000):
                print(json.dumps({"what": "done", "shard": work.shard, "n": i}))
            os.write(1, b"\xff\x00 no text\n")
        paths = []
        for suffix in settings.OBJECTS:
            path = work.scratch / f"{work.shard}{'.three' if 'wrong' in texts else suffix}"
            path.write_text(f"{suffix} {texts} {salt}\n")
            paths.append(path)
        return Made(paths, {"texts": len(texts), "clips": len(texts), "video_seconds": 2.5, "bytes_out": 4096})

    return process


def gallery(open_object, limit: int):
    """As a stage of videos gives its thumbnails to the report: (title, subtitle, webp)."""
    text = open_object(".one").read().decode()
    picture = io.BytesIO()
    Image.new("RGB", (160, 90), (40, 90, 160)).save(picture, "webp")
    return [(f"clip <img src=x onerror=alert(1)> '\"{i}", text, picture.getvalue()) for i in range(min(limit, 3))]
