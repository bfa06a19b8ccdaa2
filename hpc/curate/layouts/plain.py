"""Layouts of our own: plain webdataset tars, and tars of sessions of several cameras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpc.curate.layouts import Entry, Sample, as_json
from hpc.curate.layouts.bins import Unfit
from hpc.curate.settings import ShardMembers
from hpc.data import pickles

PLACES = {"offset", "size", *(f"{kind}_{what}" for kind in ("mp4", "webp") for what in ("offset", "size"))}


def described(sample: Sample) -> dict[str, Any]:
    """The clip's row, and its windows with their captions."""
    windows = [
        {"start_frame": one.start, "end_frame": one.end, "caption": one.caption, "status": one.status}
        | ({"enhanced": one.enhanced} if one.enhanced is not None else {})
        for one in sample.windows
    ]
    labels = {"labels": sample.labels} if sample.labels is not None else {}
    return without_places(sample.clip) | labels | ({"windows": windows} if sample.captioned else {})


def without_places(row: Any) -> Any:
    """A row of the clips' table without what is null, and without where things lie in another tar."""
    if isinstance(row, list):
        return [without_places(one) for one in row]
    if not isinstance(row, dict):
        return row
    return {name: without_places(value) for name, value in row.items() if value is not None and name not in PLACES}


def webdataset(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """The clip's .json with its captions, and a .pickle: a list with the array of each window that has one, in order.

    Without either layer there is nothing to add, and the clip's own members are taken as they are.
    """
    members = {}
    if sample.captioned or sample.embedded or sample.labels is not None:
        members[".json"] = as_json(described(sample))
    if sample.embedded:
        members[".pickle"] = pickles.dumps([one.embedding for one in sample.windows if one.embedding is not None])
    yield Entry(sample.clip["uuid"], members)


def sessions(sample: Sample, settings: ShardMembers) -> Iterator[Entry]:
    """A clip that several cameras saw, with what layers say of it as its .json.

    The tar of the session is written later: <session>.<camera>.mp4 and .json, as of cosmos_curate 29f1358:
    pipelines/av/writers/dataset_writer_stage.py. A session there is a span of a drive; here it is the clip.
    """
    if not sample.clip.get("cameras"):
        raise Unfit("one-camera", "a clip of a single video: `inputs` has no `group_by`, or they have one camera")
    yield Entry(sample.clip["uuid"], {".json": as_json(described(sample))})
