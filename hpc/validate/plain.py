"""Plain tars for webdataset, and tars of sessions of several cameras.

webdataset splits names at the first dot and groups neighbours. Sessions: cosmos_curate 29f1358:
pipelines/av/writers/dataset_writer_stage.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from hpc.data import layers
from hpc.validate import Files, Report, as_json, counts_in, expected, frames
from hpc.validate.folders import shown, unpickled

LATE = 1.5
"""Frames by which cameras may begin or end apart."""


def _keys(files: Files, report: Report) -> Iterator[tuple[str, BinaryIO, str, layers.Entry, dict[str, int | str]]]:
    """(tar, file, key, entry, {suffix: what `count` finds of a video}) of each key of each tar."""
    names = files.named(after=".tar")
    if not names:
        report.add("", "no-tars", "there are no tars", "Give the folder of the data set")
    tars = report.pick("tars", names)
    for number, name in enumerate(tars):
        with files.open(name) as file:
            entries: list[tuple[str, layers.Entry]] = []
            try:
                entries.extend(layers.index(file))
            except layers.TornTar as error:
                report.add(name, "tar", str(error), "Write the tar again")
            entries = report.pick("keys of these", entries, share(report, len(tars), number))
            report.entries += len(entries)
            for key, entry, found in counts_in(files, name, entries):
                yield name, file, key, entry, found


def share(report: Report, tars: int, number: int) -> int:
    """Of so many tars, how many keys of this one a sample has."""
    most = report.settings.sample or 0
    return most // tars + (number < most % tars)


def webdataset(files: Files, report: Report) -> None:
    kinds: Counter[tuple[str, ...]] = Counter()
    seen: set[int] = set()
    for tar, file, key, entry, looked in _keys(files, report):
        name = f"{tar}#{key}"
        kinds[tuple(sorted(suffix for suffix in entry.members if ".preview_" not in suffix))] += 1
        if hash(key) in seen:
            report.add(name, "duplicate", "the key is in the data set before", "Make the data set again")
        seen.add(hash(key))
        for suffix in (".mp4", ".json"):
            if suffix not in entry.members:
                what = f"there is no {suffix} among {', '.join(entry.members)}"
                report.add(name, "member", what, "Each key has a .mp4 and a .json")
        about: Any = None
        told: int | None = None
        for suffix, (offset, size) in entry.members.items():
            file.seek(offset)
            if suffix.endswith(".mp4"):
                count = frames(f"{name}{suffix}", looked[suffix], report)
            elif suffix.endswith(".json"):
                data = as_json(f"{name}{suffix}", file.read(size), report)
                about = data if suffix == ".json" else about
            elif suffix.endswith(".pickle"):
                _arrays(f"{name}{suffix}", file.read(size), about, report)
            if suffix == ".mp4" and count is not None:
                told = count
        if told is not None and isinstance(about, dict) and about.get("num_frames", told) != told:
            what = f"the video has {told} frames, its .json says {about['num_frames']}"
            report.add(f"{name}.mp4", "frame-count", what, "Make the data set again")
    if len(kinds) > 1:
        words = "; ".join(f"{count}: {' '.join(suffixes)}" for suffixes, count in kinds.most_common(5))
        report.add("", "members-differ", f"keys have different members ({words}): batches of them cannot be made",
                   "Make the data set again, or read only what all of them have", error=False)  # fmt: skip


def _arrays(name: str, data: bytes, about: Any, report: Report) -> None:
    value = unpickled(name, data, report)
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(one, np.ndarray) and one.ndim == 2 for one in value):
        report.add(name, "pickle", f"a list of arrays should be there; it is {shown(value)}", "Write it again")
    elif isinstance(about, dict):
        with expected(name, "embeddings", report):
            if len(value) > len(about.get("windows", value)):
                what = f"{len(value)} arrays for {len(about['windows'])} windows"
                report.add(name, "embeddings", what, "Make the data set again")


def sessions(files: Files, report: Report) -> None:
    """One tar a session: <session>.<camera>.mp4 and <session>.<camera>.json with the times of its frames."""
    rigs: Counter[tuple[str, ...]] = Counter()
    found: dict[str, tuple[str, ...]] = {}
    for tar, file, key, entry, looked in _keys(files, report):
        stem = tar.rpartition("/")[2].removesuffix(".tar")
        if key != stem:
            report.add(f"{tar}#{key}", "session", f"the tar of session {stem} has one of {key}", "One tar a session")
        cameras = tuple(sorted(name[1:-4] for name in entry.members if name.endswith(".mp4") and name != ".mp4"))
        rigs[cameras] += 1
        found[tar] = cameras
        spans = {}
        for camera in cameras:
            with expected(f"{tar}#{key}.{camera}.json", "timestamps", report):
                if span := _camera(f"{tar}#{key}.{camera}", file, entry, camera, looked[f".{camera}.mp4"], report):
                    spans[camera] = span
        _shared(f"{tar}#{key}", spans, report)
    if len(rigs) > 1:
        usual = rigs.most_common(1)[0][0]
        for tar, cameras in found.items():
            if lacking := set(usual) - set(cameras):
                report.add(tar, "camera-missing", f"it lacks {', '.join(sorted(lacking))}, which other sessions have",
                           "Leave the session out, or read only what all of them have", error=False)  # fmt: skip


def _camera(
    name: str, file: BinaryIO, entry: layers.Entry, camera: str, found: int | str, report: Report
) -> tuple[int, int, float] | None:
    """Time of its first and last frame, and between two, in milliseconds."""
    count = frames(f"{name}.mp4", found, report)
    if f".{camera}.json" not in entry.members:
        report.add(f"{name}.mp4", "timestamps", f"there is no {name}.json", "Make the data set again")
        return None
    offset, size = entry.members[f".{camera}.json"]
    file.seek(offset)
    told = as_json(f"{name}.json", file.read(size), report)
    if told is None:
        return None
    try:
        times = [one["timestamp"] for one in told]
        numbers = [one["frame_num"] for one in told]
        times[-1] + 0.0  # numbers
    except (TypeError, LookupError):
        report.add(
            f"{name}.json", "timestamps", 'a list of {"frame_num", "timestamp"} should be there', "Write it again"
        )
        return None
    if numbers != list(range(len(numbers))) or times != sorted(times) or not times:
        report.add(f"{name}.json", "timestamps", "frames should count from 0 and their times rise", "Write it again")
        return None
    if count is not None and count != len(times):
        what = f"the video has {count} frames, there are times of {len(times)}"
        report.add(f"{name}.json", "timestamps", what, "Make the data set again")
    return times[0], times[-1], (times[-1] - times[0]) / max(1, len(times) - 1)


def _shared(name: str, spans: dict[str, tuple[int, int, float]], report: Report) -> None:
    if not spans:
        return
    (first, span), *others = spans.items()
    for camera, other in others:
        late = LATE * max(span[2], other[2]) + 1
        if abs(span[0] - other[0]) > late or abs(span[1] - other[1]) > late:
            what = f"{first} has {span[0]} to {span[1]} ms, {camera} {other[0]} to {other[1]} ms"
            report.add(name, "span", f"cameras should see the same span: {what}", "Cut the session again")
