"""Trees of tars in bins, each with wdinfo.json: as Cosmos-Curate writes them, and as Cosmos-Predict2.5 reads them.

cosmos_curate 29f1358: sharding_pipeline.py, dimensions.py, summary_writers.py. cosmos-predict2.5 50369b8:
imaginaire/datasets/webdataset/webdataset.py (wdinfo), utils/iterators.py (tars read side by side),
predict2/datasets/augmentors/video_parsing.py, text_transforms_for_video.py; augmentor_provider.py has the limits.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hpc.curate.layouts import METAS, T5, VIDEO, bins
from hpc.curate.layouts.predict import CAPTION, I2W, I2W_EMBEDDING, T2W, T2W_EMBEDDING
from hpc.data import layers, storage
from hpc.validate import Files, Report, as_json, counts_in, expected, frames
from hpc.validate.folders import shown, unpickled
from hpc.validate.plain import share

BIN = re.compile(r"(?P<bin>(?:.*/)?resolution_(\w+)/aspect_ratio_(\d+_\d+)/(duration|frames)_(\w+))/(?P<rest>.+)")
MEMBER = {VIDEO: ".mp4", METAS: ".json", T5: ".pickle"}
STYLES = {"", "short", "medium", "user", "long", "startframe", "endframe"}
"""What may be left of a key of a window without the caption's name and without "_". "": long."""
MIN_FPS, MAX_FPS, MIN_SECONDS, MOST_SKIPPED = 10, 60, 4.0, 99
AGAIN = "Make the data set again"

Check = Callable[[str, str, dict[str, Any], Any, Report, str], None]
"""check(name of the entry, bin, metadata, value of the pickle or None, report, root)"""


def cosmos(files: Files, report: Report) -> None:
    _tree(files, report, "duration", _curated)


def cosmos_frames(files: Files, report: Report) -> None:
    _tree(files, report, "frames", _curated)


def predict(files: Files, report: Report) -> None:
    _tree(files, report, "duration", _trained_on)


def _tree(files: Files, report: Report, kind: str, check: Check) -> None:
    found: dict[str, list[str]] = {}
    for name in files.sizes:
        match = BIN.fullmatch(name)
        if match and match[4] == kind:
            found.setdefault(match["bin"], []).append(match["rest"])
    if not found:
        report.add("", "no-bins", f"no folder resolution_*/aspect_ratio_*/{kind}_* with files in it",
                   "Give the folder that has v0/ in it; --as says which layout it should be")  # fmt: skip
    tars = [f"{place}/{name}" for place in found for name in found[place] if name.startswith(f"{VIDEO}/")]
    tars = report.pick("tars", sorted(tars))
    chosen = {name: share(report, len(tars), number) for number, name in enumerate(tars)}
    for place in sorted(found):
        _bin(files, report, place, found[place], check, chosen)
    _list(files, report, sorted(found))


def _list(files: Files, report: Report, places: list[str]) -> None:
    """wdinfo_list.csv names the wdinfo.json of each bin."""
    for name in files.named(after="wdinfo_list.csv"):
        rows: list[str] = []
        with expected(name, "wdinfo-list", report):
            rows = [storage.public(row[0]) for row in csv.reader(io.StringIO(files.read(name).decode())) if row]
        wanted = {storage.public(files.uri(f"{place}/wdinfo.json")) for place in places}
        for missing in sorted(wanted - set(rows)):
            report.add(
                name, "wdinfo-list", f"it does not name {missing}", "Write the list again, or the bin is not used"
            )
        for strange in sorted(set(rows) - wanted):
            report.add(name, "wdinfo-list", f"it names {strange}, which is not there", "Write the list again")


def _bin(
    files: Files, report: Report, place: str, names: list[str], check: Check, chosen: dict[str, int]
) -> None:
    """chosen: the tars with videos that are looked into -> of how many keys, of a sample."""
    info = files.json(f"{place}/wdinfo.json", report)
    if info is None:
        return
    where = f"{place}/wdinfo.json"
    for key, kind in (("root", str), ("data_list", list), ("total_key_count", int), ("chunk_size", int)):
        if not isinstance(info.get(key) if isinstance(info, dict) else None, kind):
            report.add(where, "wdinfo", f"the loader reads {key!r}, {kind.__name__}; it is not there", "Write it again")
            return
    root = files.uri(place)
    right = root.removeprefix("s3://").partition("/")[2] if storage.is_s3(root) else root
    if info["root"].rstrip("/") != right:
        report.add(where, "root", f"the loader opens {info['root']}/<key>/<tar>; the tars are in {right}",
                   f'Set "root" to {right!r}: it moves with the data')  # fmt: skip
    keys = info.get("data_keys") or [VIDEO, METAS]
    for key, value in (("data_list", info["data_list"]), ("data_keys", keys)):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            report.add(where, "wdinfo", f"{key} should be a list of names; it is {shown(value)}", "Write it again")
            return
    if _bounds(place) is None:
        report.add(place, "bin", "its name says no bounds: duration_5_10 or frames_0_255, say, would", "Rename it")
    if lacking := {VIDEO, METAS} - set(keys):
        report.add(where, "wdinfo", f"data_keys lacks {', '.join(sorted(lacking))}", "Write it again")
    there = {
        kind: {n[len(kind) + 1 :] for n in names if n.startswith(f"{kind}/") and n.endswith(".tar")} for kind in keys
    }
    listed, seen, count, whole = set(info["data_list"]), set[str](), 0, True
    for kind in keys:
        for tar in sorted(there[kind] - listed):
            report.add(f"{place}/{kind}/{tar}", "not-listed", "wdinfo.json does not list it: it is never read",
                       "Write wdinfo.json again")  # fmt: skip
    for tar in info["data_list"]:
        if not re.fullmatch(r"part_\d{6}/\d{6}\.tar", tar):
            report.add(where, "tar-name", f"data_list has {tar!r}", "Name tars part_000000/000000.tar", error=False)
        if missing := [kind for kind in keys if tar not in there[kind]]:
            for kind in missing:
                report.add(
                    f"{place}/{kind}/{tar}", "tar-missing", "wdinfo.json lists it, and the loader opens it", AGAIN
                )
            continue
        if (share := chosen.get(f"{place}/{VIDEO}/{tar}")) is None:
            whole = False
            continue
        count += _tars(files, report, place, keys, tar, check, info["root"], seen, share)
    if whole and info["total_key_count"] != count:
        report.add(where, "total-key-count", f"it says {info['total_key_count']}; the tars have {count} keys",
                   "Write wdinfo.json again")  # fmt: skip


def _tars(files: Files, report: Report, place: str, keys: list[str], tar: str, check: Check, root: str,
          seen: set[str], share: int) -> int:  # fmt: skip
    """The tars of one name, side by side, as the loader reads them; how many keys they have. share: how many of these
    are looked at, of a sample."""
    names = {kind: f"{place}/{kind}/{tar}" for kind in keys}
    opened = {kind: files.open(name) for kind, name in names.items()}
    try:
        entries = {kind: list(_entries(names[kind], opened[kind], report, MEMBER.get(kind))) for kind in keys}
        picked = dict(report.pick("keys of these", list(enumerate(entries[VIDEO])), share))
        report.entries += len(picked)
        looked = counts_in(files, names[VIDEO], picked.values())
        for number, row in enumerate(itertools.zip_longest(*entries.values())):
            if len({one and one[0] for one in row}) > 1:
                found = ", ".join(
                    f"{kind}: {one[0] if one else 'nothing'}" for kind, one in zip(keys, row, strict=True)
                )
                what = f"entry {number} differs ({found}): the loader would join what does not belong together"
                report.add(
                    names[VIDEO], "keys-differ", what, f"{AGAIN}: the tars of a name have the same keys in order"
                )
                return len(entries[VIDEO])
            key = row[0][0]
            if key in seen:
                report.add(f"{names[VIDEO]}#{key}", "duplicate", "this key is in the bin before", AGAIN, error=False)
            seen.add(key)
            if number not in picked:
                continue
            *_, found = next(looked)
            members = dict(zip(keys, (one[1] for one in row), strict=True))
            if all(MEMBER.get(kind, "") in members[kind].members for kind in keys):
                with expected(f"{names[METAS]}#{key}.json", "metadata", report):
                    _entry(report, place, names, opened, members, key, found[".mp4"], check, root)
        return len(entries[VIDEO])
    finally:
        for file in opened.values():
            file.close()


def _entries(name: str, file: Any, report: Report, suffix: str | None) -> Iterator[tuple[str, layers.Entry]]:
    try:
        for key, entry in layers.index(file):
            if suffix and list(entry.members) != [suffix]:
                what = f"one {suffix} should be there; it has {', '.join(entry.members)}"
                report.add(f"{name}#{key}", "member", what,
                           "Write the tar again: names are <key>.<suffix>, with a single dot")  # fmt: skip
            yield key, entry
    except layers.TornTar as error:
        report.add(name, "tar", str(error), "Write the tar again")


def _entry(report: Report, place: str, names: dict[str, str], opened: dict[str, Any], entries: dict[str, layers.Entry],
           key: str, found: int | str, check: Check, root: str) -> None:  # fmt: skip
    def payload(kind: str) -> bytes:
        offset, size = entries[kind].members[MEMBER[kind]]
        opened[kind].seek(offset)
        return opened[kind].read(size)

    name = f"{names[METAS]}#{key}.json"
    data = as_json(name, payload(METAS), report)
    if not isinstance(data, dict):
        if data is not None:
            report.add(name, "metadata", f"an object should be there; it is {shown(data)}", "Write it again")
        return
    arrays = None
    if T5 in entries:
        arrays = unpickled(f"{names[T5]}#{key}.pickle", payload(T5), report)
        if arrays is None:
            return
    mp4 = f"{names[VIDEO]}#{key}.mp4"
    _, size = entries[VIDEO].members[".mp4"]
    count = frames(mp4, found, report)
    told = data.get("num_frames", data.get("nb_frames"))
    if count is not None and told is not None and told != count:
        report.add(mp4, "frame-count", f"the video has {count} frames, its metadata says {told}", AGAIN)
    if data.get("num_bytes", size) != size:
        report.add(mp4, "num-bytes", f"the video has {size} bytes, its metadata says {data['num_bytes']}", AGAIN)
    _in_bin(name, place, data, report)
    check(name, place, data, arrays, report, root)


def _bounds(place: str) -> tuple[float, float] | None:
    """The least and the most that a bin's name says, in seconds or frames; None where it says none."""
    kind, _, words = place.rpartition("/")[2].partition("_")
    try:
        if kind == "duration":
            return bins.duration_bin(words)
        first, last = map(int, words.split("_"))
    except ValueError:
        return None
    return first, last


def _in_bin(name: str, place: str, data: dict[str, Any], report: Report) -> None:
    """Does the clip belong in this bin?"""
    try:
        width, height = data["width"], data["height"]
        fps, count = data["framerate"], data["num_frames"] if "num_frames" in data else data["nb_frames"]
        shape = f"resolution_{bins.resolution(width, height)}/aspect_ratio_{bins.aspect(width, height)}"
        length, seconds = place.rpartition("/")[2], count / fps
    except KeyError:
        return  # the metadata's own rules tell of it
    except bins.Unfit as unfit:
        report.add(name, "bin", unfit.detail, "Leave it out")
        return
    if not place.rpartition("/")[0].endswith(shape):
        report.add(name, "bin", f"{width}x{height} belongs in {shape}", AGAIN)
    if (bounds := _bounds(place)) is None:
        return
    least, most = bounds
    if length.startswith("duration_"):
        if not least <= seconds <= most:
            report.add(name, "bin", f"{seconds:.3f} s do not belong in {length}", AGAIN)
    elif windows := data.get("windows"):
        if not all(least <= one["start_frame"] <= most for one in windows):
            report.add(
                name, "bin", f"a window that begins at {windows[0]['start_frame']} does not belong in {length}", AGAIN
            )


def _curated(name: str, place: str, data: dict[str, Any], arrays: Any, report: Report, root: str) -> None:
    """What Cosmos-Curate's own metadata hold, and a list with an array for each window."""
    lacking = {"span_uuid", "width", "height", "framerate", "num_frames", "num_bytes", "windows"} - data.keys()
    if lacking:
        report.add(name, "metadata", f"it lacks {', '.join(sorted(lacking))}", AGAIN)
        return
    if data["span_uuid"] != name.rpartition("#")[2].removesuffix(".json"):
        report.add(name, "metadata", f"span_uuid is {data['span_uuid']}", AGAIN)
    if not data.get("valid", True):
        report.add(name, "metadata", '"valid" is false: Cosmos-Curate leaves such clips out', "Leave it out")
    bare = [one for one in data["windows"] if not any(key.endswith("_caption") and one[key] for key in one)]
    if bare or not data["windows"]:
        report.add(name, "no-caption", "a window has no <model>_caption" if bare else "it has no windows",
                   "Caption it (curate.caption), or leave it out")  # fmt: skip
    for one in data["windows"]:
        if not 0 <= one["start_frame"] <= one["end_frame"] < data["num_frames"]:
            what = f"a window of frames {one['start_frame']} to {one['end_frame']} of {data['num_frames']}"
            report.add(name, "window", what, AGAIN)
    if arrays is not None:
        good = isinstance(arrays, list) and all(isinstance(one, np.ndarray) and one.ndim == 2 for one in arrays)
        if not good or len(arrays) != len(data["windows"]):
            what = f"{len(data['windows'])} windows, and for the embeddings {shown(arrays)}"
            report.add(name.replace(METAS, T5).replace(".json", ".pickle"), "embeddings", what,
                       "Write a list with a float16 array of [tokens, 1024] for each window")  # fmt: skip


def _trained_on(name: str, place: str, data: dict[str, Any], arrays: Any, report: Report, root: str) -> None:
    """What Predict2.5 does with a clip until it gives it up."""
    if lacking := {"framerate", "nb_frames"} - data.keys():
        hint = ": this is Cosmos-Curate's dialect" if "num_frames" in data else ""
        report.add(name, "metadata", f"the loader reads {', '.join(sorted(lacking))}{hint}",
                   "Make the data set with layout: predict2.5-webdataset")  # fmt: skip
        return
    fps = data["framerate"]
    if not MIN_FPS <= fps <= MAX_FPS:
        report.add(name, "frame-rate", f"{fps:g} frames per second: the loader drops it ({MIN_FPS} to {MAX_FPS})",
                   "Encode with fps, or leave it out")  # fmt: skip
    told = [key for key in (T2W, I2W) if key in data]
    if not told:
        report.add(name, "windows", f"there is neither {T2W} nor {I2W}",
                   "Make the data set with layout: predict2.5-webdataset")  # fmt: skip
    for key in told:
        _windows(f"{name}:{key}", data[key], data, report, root)
        if arrays is not None:
            wanted = {T2W: T2W_EMBEDDING, I2W: I2W_EMBEDDING}[key]
            good = isinstance(arrays, list) and len(arrays) == len(data[key]) and all(
                isinstance(one, dict) and isinstance(one.get(wanted), np.ndarray) and one[wanted].ndim == 2
                for one in arrays
            )  # fmt: skip
            if not good:
                what = f"{len(data[key])} windows, and for the embeddings {shown(arrays)}"
                beside = name.replace(f"/{METAS}/", f"/{T5}/").replace(".json", ".pickle")
                do = f"Write a list with a dict for each window: {wanted!r} -> array of [tokens, 1024]"
                report.add(beside, "embeddings", what, do)


def _windows(name: str, windows: list[dict[str, Any]], data: dict[str, Any], report: Report, root: str) -> None:
    for number, one in enumerate(windows):
        strange = [key for key in one if key.replace(CAPTION, "").replace("_", "") not in STYLES]
        if strange:
            report.add(name, "window-key", f"window {number} has {', '.join(strange)}: an assert drops the clip",
                       f"A window has start_frame, end_frame, {CAPTION} and no other keys")  # fmt: skip
        captions = [key for key in one if key.startswith(CAPTION)]
        if not captions or not all(one[key] for key in captions):
            report.add(name, "no-caption", f"window {number} has no {CAPTION}, or an empty one: the loader drops it",
                       "Caption it (curate.caption), or leave the window out")  # fmt: skip
        if not 0 <= one["start_frame"] < one["end_frame"] <= data["nb_frames"]:
            what = f"window {number}: frames {one['start_frame']} up to {one['end_frame']} of {data['nb_frames']}"
            report.add(name, "window", f"{what}: decoding fails", "end_frame is the first frame after the window")
    usable = windows[:-1] if len(windows) > 1 else windows
    skip = 5 if "alpamayo" in root else 0
    for one in usable:
        length, num = one["end_frame"] - one["start_frame"], report.settings.num_frames
        if length >= MIN_SECONDS * data["framerate"] and num <= length - skip < (MOST_SKIPPED + 1) * num:
            return
    lengths = ", ".join(str(one["end_frame"] - one["start_frame"]) for one in windows)
    most = max(report.settings.num_frames, MIN_SECONDS * data["framerate"])
    what = f"windows of {lengths or 'no'} frames; the loader wants {most:g}, not counting the last of several"
    do = "The loader drops such clips: leave them out, or train on fewer frames (--num-frames)"
    report.add(name, "no-usable-window", what, do, error=False)
