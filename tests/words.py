"""A stage in a single file: captions of clips without a model, which fails, or runs out of memory, on clips of inputs
that are called so, and prints a secret that it was given."""

from __future__ import annotations

import os
from typing import ClassVar

import msgspec

from hpc.data import layers, upstream
from hpc.data.work import Made, Work

SEEN = ("a rabbit stands in a meadow", "a tree under a blue sky", "the film's title over <b>grass</b> & stones")


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One caption a clip."""

    KIND: ClassVar[str] = "words:Words"
    CODE: ClassVar[str] = "words"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0


def start(settings: Words):
    def process(work: Work) -> Made:
        clips = upstream.clips(work, ("source",))
        print(f"{work.shard}: {len(clips)} clips, with password={os.environ.get('WORDS_KEY', 'open-sesame-1')}")
        for clip in clips:
            if "fail" in clip.row["source"]:
                raise RuntimeError("no words for <img src=x onerror=alert(1)> this clip")
            if "oom" in clip.row["source"]:
                raise MemoryError("out of memory: 80.00 GiB asked for, 79.15 GiB there")
        rows = [{"uuid": clip.uuid, "window": 0, "caption": f"{SEEN[i % len(SEEN)]}, number {i}", "status": "success"}
                for i, clip in enumerate(clips)]  # fmt: skip
        out = work.scratch / f"{work.shard}.parquet"
        layers.write_table(out, rows or [{"uuid": "", "window": 0, "caption": "", "status": "error"}], {})
        return Made([out], {"captions": len(rows)})

    return process
