"""Frames of a Bridge data set as tokens, and what was done between them, as hpc.data.tokens.action has them:

    train/tokenized-frames.pt  actions.pt  state.pt  gripper.pt      test/ ...  val/ ...      000000.parquet

The splits are those of the data set. A shard is one of them, since its files are not in parts; <shard>.parquet has a
row for each trajectory. Trajectories whose film and annotation are not of as many frames are left out, by name.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import layers, storage, tensors, upstream
from hpc.data.tokens import action as form
from hpc.data.upstream import CURRENT, current
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.prepare import bridge, documents
from hpc.prepare.bridge import Trajectory
from hpc.prepare.documents import Shards
from hpc.prepare.settings import Action

COLUMNS = pa.schema(
    [("split", pa.string()), ("id", pa.string()), ("first", pa.int64()), ("frames", pa.int32()), ("text", pa.string()),
     ("source", pa.string()), ("etag", pa.string())]
)  # fmt: skip
"""first: the row of its first frame in the files."""


def freeze(settings: Action, stages: Shards, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """One shard a split. Raises ValueError where there is no film of a Bridge data set, and for ids of windows rather
    than of frames."""
    shards = documents.ids_of(stages)
    meta = upstream.meta_of(shards[0][1][".parquet"])
    if meta["shape"][0] != 1 or meta["frames"] != 1:
        raise ValueError(f"documents are of {meta['frames']} frames; actions go from one to the next: set `frames: 1` "
                         "and `windows: all`")  # fmt: skip
    films: dict[str, list[tuple[bridge.Place, list[Any]]]] = defaultdict(list)
    strange: list[str] = []
    for number, (_, files) in enumerate(shards):
        table = upstream.table(files[".parquet"], [*CURRENT, "start", "offset", "size", "why"])
        table = current(table.filter(pc.is_null(table["why"])), superseded)
        rows: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
        columns = (table[name].to_pylist() for name in ("source", "etag", "start", "offset", "size"))
        for source, etag, start, offset, size in zip(*columns, strict=True):
            rows[source, etag].append((start, offset, size))
        for (source, etag), frames in rows.items():
            frames.sort()
            _, offset, size = frames[0]
            whole = frames == [(i, offset + i * size, size) for i in range(len(frames))]
            if (place := bridge.placed(source)) is None or not whole:
                strange.append(source)
            else:
                films[place.split].append((place, [source, etag, number, offset, len(frames)]))
    for source in strange:
        logging.getLogger(__name__).warning("left out: %s is no videos/<split>/<id>/rgb.mp4, or lacks frames", source)
    if not films:
        raise ValueError(f"there is no film of a Bridge data set, videos/<{'|'.join(bridge.SPLITS)}>/<id>/rgb.mp4, "
                         f"among {len(strange)}, e.g. {strange[0] if strange else 'none'}")  # fmt: skip
    for split in bridge.SPLITS:
        if split in films:
            found = [row for _, row in sorted(films[split], key=lambda one: by_number(one[0].id))]
            yield [{"split": split, "tables": [files for _, files in shards], "films": found}]


def by_number(name: str) -> tuple[bool, int, str]:
    """2 before 10."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def start(settings: Action) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: Action, work: Work) -> Made:
    """Make the files of a split. Raises ValueError where not one trajectory can be taken."""
    [task] = work.rows
    meta = upstream.meta_of(task["tables"][0][".parquet"])
    good: list[tuple[list[Any], Trajectory]] = []
    bad: list[Bad] = []

    def told(film: list[Any]) -> tuple[list[Any], Trajectory | Bad]:
        place = bridge.placed(film[0])
        assert place is not None, film
        try:
            return film, bridge.read(place, film[4])
        except BadInput as error:
            return film, error.bad

    for film, found in layers.map_ahead(told, task["films"]):
        work.check()
        if isinstance(found, Bad):
            bad.append(found)
        elif good and found.state.shape[1] != good[0][1].state.shape[1]:
            width = good[0][1].state.shape[1]
            detail = f"its state.npy has {found.state.shape[1]} columns, that of the first one {width}"
            bad.append(Bad(film[0], "state", detail))
        else:
            good.append((film, found))
    if not good:
        words = f"{bad[0].uri}: {bad[0].detail}"
        raise ValueError(f"{task['split']}: none of {len(bad)} trajectories can be taken, e.g. {words}")

    def ids(pair: tuple[list[Any], Trajectory]) -> npt.NDArray[np.int32]:
        (_, _, table, offset, frames), _ = pair
        size = frames * 4 * int(np.prod(meta["shape"]))
        data = storage.read(task["tables"][table][".bin"], offset, offset + size)
        return np.frombuffer(data, "<i4").reshape(frames, *meta["shape"])

    def frames() -> Iterator[npt.NDArray[np.int32]]:
        for done, found in enumerate(layers.map_ahead(ids, good), 1):
            work.check()
            work.progress(done / len(good), f"{done} of {len(good)} trajectories")
            yield found

    tree: dict[str, Path] = {}
    parts: dict[str, tuple[Iterator[npt.NDArray[Any]], str, tuple[int, ...]]] = {
        form.FRAMES: (frames(), "int32", tuple(meta["shape"])),
        form.ACTIONS: ((form.ended(one.actions) for _, one in good), "float32", (form.ACTION,)),
        form.STATE: ((one.state for _, one in good), "float32", good[0][1].state.shape[1:]),
        form.GRIPPER: ((one.gripper for _, one in good), "float32", ()),
    }
    for name, (some, dtype, row) in parts.items():
        path = work.scratch / name
        count = tensors.write(path, some, dtype, row)
        tree[storage.join(work.folder, task["split"], name)] = path
    lines, first = [], 0
    for (source, etag, _, _, length), one in good:
        place = bridge.placed(source)
        lines.append({"split": task["split"], "id": place and place.id, "first": first, "frames": length,
                      "text": one.text, "source": source, "etag": etag})  # fmt: skip
        first += length
    path = work.scratch / f"{work.shard}.parquet"
    layers.write_table(path, lines, meta | {"stage": settings.KIND, "fingerprint": work.fingerprint}, COLUMNS)
    counts: dict[str, float] = {"trajectories": len(good), "frames": count, "pairs": count - len(good),
              "tokens": count * int(np.prod(meta["shape"]))}  # fmt: skip
    return Made([path], counts, bad, tree)
