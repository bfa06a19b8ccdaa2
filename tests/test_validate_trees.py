"""Every rule of `hpc validate` for trees of tars in bins (cosmos, cosmos-frames, predict2.5-webdataset)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from broken_sets import TAR, TREE, a_tar, about, broken, change, found, good, only_first, retar, uuid

from hpc import validate
from hpc.data import layers, pickles

__all__ = ["broken", "good"]  # fixtures


@pytest.mark.parametrize("layout", ["cosmos", "predict2.5-webdataset"])
@pytest.mark.parametrize(
    "rule",
    ["missing", "json", "wdinfo", "root", "not-listed", "tar-missing", "keys-differ", "member", "tar",
     "total-key-count",
     "frame-count", "bin", "wdinfo-list", "tar-name", "duplicate", "metadata-json", "embeddings", "video"],
)  # fmt: skip
def test_trees(broken: Callable[[str], Path], layout: str, rule: str) -> None:
    """Clips of 400 and 300 frames are in this bin, in the order of their hashes."""
    place = broken(layout)
    info, video, metas, t5 = (
        place / TREE / "wdinfo.json",
        *(a_tar(place, kind) for kind in ("video", "metas", "t5_xxl")),
    )
    where = str(video.relative_to(place))
    with video.open("rb") as file:
        first, second = [key for key, _ in layers.index(file)]
    expected = {(rule, f"{TREE}/wdinfo.json")}
    if rule == "missing":
        info.unlink()
    elif rule == "json":
        info.write_text("{")
    elif rule == "wdinfo":
        change(info, chunk_size=...)
    elif rule == "root":
        change(info, root="/elsewhere")
    elif rule == "not-listed":
        (video.parent / "000001.tar").write_bytes(video.read_bytes())
        expected = {(rule, where.replace("000000.tar", "000001.tar"))}
    elif rule == "tar-missing":
        t5.unlink()
        expected = {(rule, where.replace("/video/", "/t5_xxl/")), ("total-key-count", f"{TREE}/wdinfo.json")}
    elif rule == "keys-differ":
        retar(metas, lambda key, members: None if key == first else members)
        expected = {(rule, where)}
    elif rule == "member":
        retar(t5, lambda key, members: {".t5.pickle": members[".pickle"]} if key == second else members)
        expected = {(rule, f"{where.replace('/video/', '/t5_xxl/')}#{second}")}
    elif rule == "tar":
        data = metas.read_bytes()
        metas.write_bytes(data[: len(data) // 2])
        expected = {(rule, where.replace("/video/", "/metas/")), ("keys-differ", where)}
    elif rule == "total-key-count":
        change(info, total_key_count=3)
    elif rule == "frame-count":
        retar(video, lambda key, members: {".mp4": datasets.mp4(250)} if key == first else members)
        expected = {(rule, f"{where}#{first}.mp4")}
        expected |= {("num-bytes", f"{where}#{first}.mp4")} if layout == "cosmos" else set()
    elif rule == "bin":
        about(metas, width=640, height=360)
        expected = {(rule, f"{where.replace('/video/', '/metas/')}#{key}.json") for key in (first, second)}
    elif rule == "wdinfo-list":
        (place / "v0/wdinfo_list.csv").write_text(f"{info}\r\n/gone/wdinfo.json\r\n")
        expected = {(rule, "v0/wdinfo_list.csv")}
    elif rule == "tar-name":
        for tar in (video, metas, t5):
            tar.rename(tar.with_name("a.tar"))
        change(info, data_list=["part_000000/a.tar"])
    elif rule == "duplicate":
        for tar in (video, metas, t5):
            (tar.parent / "000001.tar").write_bytes(tar.read_bytes())
        change(info, data_list=[TAR, TAR.replace("000000.", "000001.")], total_key_count=4)
        expected = {(rule, f"{where.replace('000000.tar', '000001.tar')}#{key}") for key in (first, second)}
    elif rule == "metadata-json":
        retar(metas, lambda key, members: {".json": b"[1]" if key == first else b"{"})
        there = where.replace("/video/", "/metas/")
        expected = {("metadata", f"{there}#{first}.json"), ("json", f"{there}#{second}.json")}
    elif rule == "embeddings":
        three = pickles.dumps([np.zeros((3, 8))] * 3)
        retar(t5, lambda key, members: {".pickle": three} if key == first else members)
        expected = {(rule, f"{where.replace('/video/', '/t5_xxl/')}#{first}.pickle")}
    else:
        retar(video, lambda key, members: {".mp4": b"no video"} if key == first else members)
        expected = {(rule, f"{where}#{first}.mp4")}
        expected |= {("num-bytes", f"{where}#{first}.mp4")} if layout == "cosmos" else set()
    assert found(place, layout) == expected


@pytest.mark.parametrize(
    ("more", "rule"),
    [({"framerate": ...}, "metadata"), ({"span_uuid": "x"}, "metadata"), ({"valid": False}, "metadata"),
     ({"windows": []}, "no-caption"), ({"windows": lambda told: [told["windows"][0] | {"qwen_caption": ""}] * 2},
      "no-caption"), ({"windows": lambda told: [told["windows"][0] | {"end_frame": 400}] * 2}, "window"),
     ({"num_bytes": 7}, "num-bytes")],
)  # fmt: skip
def test_metadata_of_cosmos(broken: Callable[[str], Path], more: dict[str, Any], rule: str) -> None:
    place = broken("cosmos")
    only_first(place)
    about(a_tar(place, "metas"), **more)
    kind, suffix = ("video", ".mp4") if rule == "num-bytes" else ("metas", ".json")
    expected = {(rule, f"{TREE}/{kind}/{TAR}#{uuid(0, 0)}{suffix}")}
    if more.get("windows") == []:
        expected |= {("embeddings", f"{TREE}/t5_xxl/{TAR}#{uuid(0, 0)}.pickle")}
    assert found(place, "cosmos") == expected


def window(key: str, value: Any) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    return lambda told: [one | {key: value} for one in told["t2w_windows"]]


@pytest.mark.parametrize(
    ("more", "rule", "error"),
    [({"nb_frames": ..., "num_frames": 400}, "metadata", True), ({"framerate": 9.9}, "frame-rate", True),
     ({"framerate": 60.1}, "frame-rate", True),
     ({"t2w_windows": ..., "i2w_windows_later_frames": ...}, "windows", True),
     ({"t2w_windows": window("qwen_prompt_tokens", 5)}, "window-key", True),
     ({"t2w_windows": window("qwen2p5_7b_caption_short", "few words")}, "", True),
     ({"t2w_windows": window("qwen2p5_7b_caption", "")}, "no-caption", True),
     ({"t2w_windows": window("end_frame", 401)}, "window", True),
     ({"t2w_windows": lambda told: [one | {"end_frame": one["start_frame"] + 95} for one in told["t2w_windows"]]},
      "no-usable-window", False)],
)  # fmt: skip
def test_metadata_of_predict25(broken: Callable[[str], Path], more: dict[str, Any], rule: str, error: bool) -> None:
    place = broken("predict2.5-webdataset")
    only_first(place)
    about(a_tar(place, "metas"), **more)
    told = {one for one in found(place, "predict2.5-webdataset") if one[0] != "bin"}  # a frame rate moves it
    name = f"{TREE}/metas/{TAR}#{uuid(0, 0)}.json"
    where = f"{name}:t2w_windows" if rule in ("window-key", "no-caption", "window", "no-usable-window") else name
    assert told == ({(rule, where)} if rule else set())
    report = validate.validate(str(place), "predict2.5-webdataset")
    assert bool(report.errors) == (error and bool(rule))


def test_a_tree_of_another_layout_has_no_bins(broken: Callable[[str], Path]) -> None:
    assert found(broken("cosmos"), "cosmos-frames") == {("no-bins", "")} | {("wdinfo-list", "v0/wdinfo_list.csv")}


def test_a_window_in_the_wrong_bin_of_frames(broken: Callable[[str], Path]) -> None:
    place = broken("cosmos-frames")
    tree = TREE.replace("duration_10_30", "frames_256_511")
    about(place / tree / "metas" / TAR, windows=lambda told: [told["windows"][0] | {"start_frame": 0}])
    assert found(place, "cosmos-frames") == {("bin", f"{tree}/metas/{TAR}#{uuid(0, 0)}.json")}


def without_start(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: one[key] for key in one if key != "start_frame"} for one in told]


@pytest.mark.parametrize(
    "more",
    [{"num_frames": "x"}, {"width": None}, {"windows": 5}, {"windows": ["x"]}, {"framerate": "24"},
     {"windows": lambda told: without_start(told["windows"])}],
)  # fmt: skip
def test_values_that_no_reader_expects(broken: Callable[[str], Path], more: dict[str, Any]) -> None:
    """They are a problem of their clip, and the next one is looked at."""
    place = broken("cosmos")

    def edit(key: str, members: dict[str, bytes]) -> dict[str, bytes]:
        told = json.loads(members[".json"])
        if key == uuid(0, 0):
            told |= {name: value(told) if callable(value) else value for name, value in more.items()}
        return members | {".json": json.dumps(told | ({} if key == uuid(0, 0) else {"num_bytes": 7})).encode()}

    retar(a_tar(place, "metas"), edit)
    told = found(place, "cosmos")
    where = f"{TREE}/{{}}/{TAR}#{{}}"
    assert ("metadata", where.format("metas", uuid(0, 0)) + ".json") in told
    assert ("num-bytes", where.format("video", uuid(1, 0)) + ".mp4") in told


@pytest.mark.parametrize("windows", [5, [5], [{"qwen2p5_7b_caption": "x"}], [{"start_frame": "0", "end_frame": 9}]])
def test_windows_that_predict25_does_not_expect(broken: Callable[[str], Path], windows: Any) -> None:
    place = broken("predict2.5-webdataset")
    about(a_tar(place, "metas"), t2w_windows=windows)
    told = found(place, "predict2.5-webdataset")
    assert told >= {("metadata", f"{TREE}/metas/{TAR}#{key}.json") for key in (uuid(0, 0), uuid(1, 0))}


def test_a_folder_without_bounds(broken: Callable[[str], Path]) -> None:
    place = broken("cosmos")
    there = TREE.replace("duration_10_30", "duration_abc")
    (place / TREE).rename(place / there)
    change(place / there / "wdinfo.json", root=str(place / there))
    assert {one for one in found(place, "cosmos") if one[0] != "wdinfo-list"} == {("bin", there)}
    (place / "v0/wdinfo_list.csv").write_bytes(b"\xff\xfe\n")
    assert ("wdinfo-list", "v0/wdinfo_list.csv") in found(place, "cosmos")


@pytest.mark.parametrize("more", [{"data_list": [5]}, {"data_list": [["x"]]}, {"data_keys": 5}, {"data_keys": [[]]}])
def test_lists_of_no_names(broken: Callable[[str], Path], more: dict[str, Any]) -> None:
    place = broken("cosmos")
    change(place / TREE / "wdinfo.json", **more)
    assert found(place, "cosmos") == {("wdinfo", f"{TREE}/wdinfo.json")}
