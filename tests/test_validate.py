"""Every rule of `hpc validate`: a data set that breaks it is named, by file, and one that breaks none passes."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import runs
from datasets import Clip

from hpc import validate
from hpc.curate.settings.shard import LAYOUTS
from hpc.data import layers, pickles, video

CLIPS = [[Clip(frames=400), Clip()], [Clip(frames=300)]]
RIG = [[Clip(cameras=("front", "left")) for _ in range(3)]]
OF_RIGS = ("sessions", "predict2-multiview")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A data set of each layout, made once."""
    base, made = tmp_path_factory.mktemp("good"), {}

    def make(layout: str) -> Path:
        if layout not in made:
            (base / layout).mkdir()
            width, datasets.WIDTH = datasets.WIDTH, 1024
            try:
                stages = datasets.publish(base / layout, RIG if layout in OF_RIGS else CLIPS)
            finally:
                datasets.WIDTH = width
            made[layout] = Path(datasets.shard(base / layout, stages, layout=layout, join=True))
        return made[layout]

    return make


@pytest.fixture
def broken(good: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy, whose wdinfo.json know of it."""

    def copy(layout: str) -> Path:
        place = tmp_path / "set"
        shutil.copytree(good(layout), place)
        for path in place.rglob("wdinfo.json"):
            change(path, root=str(path.parent))
        for path in place.rglob("wdinfo_list.csv"):
            path.write_text("".join(f"{one}\r\n" for one in sorted(place.rglob("wdinfo.json"))))
        for path in (place / "metas/v0").glob("*.json"):
            change(path, clip_location=str(place / "clips" / f"{path.stem}.mp4"))
        return place

    return copy


def change(path: Path, **more: Any) -> None:
    told = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: value for name, value in (told | more).items() if value is not ...}))


def uuid(shard: int, number: int, clips: list[list[Clip]] = CLIPS) -> str:
    return clips[shard][number].uuid


def found(place: Path, layout: str, **more: int) -> set[tuple[str, str]]:
    """(rule, file without what all of these have in common)"""
    report = validate.validate(str(place), layout, **more)
    assert report.errors + report.warnings == sum(report.rules.values())
    assert all(one.what and one.do for one in report.problems)
    words = "\n".join(validate.lines(report))
    assert all(one.file in words and one.do in words for one in report.problems)
    return {(one.rule, one.file) for one in report.problems}


def retar(path: Path, edit: Callable[[str, dict[str, bytes]], dict[str, bytes] | None]) -> None:
    """Write a tar again, with other members of its keys."""
    with path.open("rb") as file:
        entries = list(layers.read_tar(file))
    with layers.TarWriter(path) as tar:
        for key, members in entries:
            if (made := edit(key, members)) is not None:
                tar.add(key, made)


def about(path: Path, **more: Any) -> None:
    """Change the metadata in a tar."""

    def edit(key: str, members: dict[str, bytes]) -> dict[str, bytes]:
        told = json.loads(members[".json"])
        return members | {
            ".json": json.dumps(
                {n: v(told) if callable(v) else v for n, v in (told | more).items() if v is not ...}
            ).encode()
        }

    retar(path, edit)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_ones_pass(broken: Callable[[str], Path], layout: str) -> None:
    assert found(broken(layout), layout) == set()


@pytest.mark.parametrize(
    "rule", ["no-videos", "no-embedding", "not-a-video", "name", "video", "too-few-frames", "orphan"]
)
def test_folders(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("predict2")
    stem = f"{uuid(0, 1)}_0_199"
    mp4 = place / f"videos/{stem}.mp4"
    expected = f"videos/{stem}.mp4"
    if rule == "no-videos":
        shutil.rmtree(place / "videos")
        assert {one for one in found(place, "predict2") if one[0] != "orphan"} == {("no-videos", "videos/")}
        return
    if rule == "no-embedding":
        (place / f"t5_xxl/{stem}.pickle").unlink()
    elif rule == "not-a-video":
        mp4.with_suffix(".MP4").write_bytes(b"")
        expected = f"videos/{stem}.MP4"
    elif rule == "name":
        for kind, suffix in (("videos", ".mp4"), ("t5_xxl", ".pickle")):
            shutil.copy(place / f"{kind}/{stem}{suffix}", place / f"{kind}/x.mp4{suffix}")
        expected = "videos/x.mp4.mp4"
    elif rule == "video":
        mp4.write_bytes(b"this is no video")
    elif rule == "too-few-frames":
        mp4.write_bytes(datasets.mp4(93))
    else:
        shutil.copy(place / f"t5_xxl/{stem}.pickle", place / "t5_xxl/x.pickle")
        expected = "t5_xxl/x.pickle"
    assert found(place, "predict2") == {(rule, expected)}
    if rule == "too-few-frames":
        assert found(place, "predict2", num_frames=92) == set()


@pytest.mark.parametrize(
    "rule",
    ["not-a-video", "camera-missing", "frame-count", "too-few-frames", "no-embedding", "pickle", "too-few-videos"],
)
def test_folders_of_cameras(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("predict2-multiview")
    stems = sorted(path.stem for path in place.glob("videos/left/*.mp4"))
    assert len(stems) == 3 and sorted(path.name for path in place.glob("t5_xxl/*")) == ["front"]
    mp4, pickled = place / f"videos/left/{stems[0]}.mp4", place / f"t5_xxl/front/{stems[0]}.pkl"
    expected = f"videos/*/{stems[0]}.mp4"
    if rule == "not-a-video":
        (place / "videos/left/x.txt").write_bytes(b"")
        expected = "videos/left/x.txt"
    elif rule == "camera-missing":
        mp4.unlink()
    elif rule == "frame-count":
        mp4.write_bytes(datasets.mp4(199))
    elif rule == "too-few-frames":
        for camera in ("front", "left"):
            (place / f"videos/{camera}/{stems[0]}.mp4").write_bytes(datasets.mp4(92))
    elif rule == "no-embedding":
        pickled.unlink()
        expected = f"videos/front/{stems[0]}.mp4"
        assert found(place, "predict2-multiview") == {(rule, expected)}
        shutil.rmtree(place / "t5_xxl")
        expected = "t5_xxl/"
    elif rule == "pickle":
        pickled.write_bytes(b"x")
        expected = f"t5_xxl/front/{stems[0]}.pkl"
    else:
        for path in [path for path in place.rglob("*") if path.is_file() and stems[0] not in path.name]:
            path.unlink()
        expected = "videos/"
    assert found(place, "predict2-multiview") == {(rule, expected)}
    if rule == "too-few-frames":
        assert found(place, "predict2-multiview", num_frames=92) == set(), "as many as are trained on will do"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("gone-off",))


@pytest.mark.parametrize(
    ("value", "rule"),
    [(b"no pickle", "pickle"), (pickle.dumps([Evil()]), "pickle"), (pickle.dumps({"a": 1}), "pickle"),
     ([np.zeros((3, 1024)), np.zeros((3, 1024))], "pickle"), ([], "pickle"), ([np.zeros(1024)], "pickle"),
     ([np.zeros((3, 768))], "shape"), ([np.zeros((513, 1024))], "shape"), ([np.zeros((0, 1024))], "shape"),
     ([np.zeros((512, 1024))], "dtype")],
)  # fmt: skip
def test_pickles_of_predict2(
    broken: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = broken("predict2")
    name = f"t5_xxl/{uuid(0, 1)}_0_199.pickle"
    (place / name).write_bytes(value if isinstance(value, bytes) else pickles.dumps(value))
    assert found(place, "predict2") == {(rule, name)}
    assert not (tmp_path / "gone-off").exists(), "it was not run"
    assert bool(validate.validate(str(place), "predict2").errors) == (rule != "dtype")


@pytest.mark.parametrize(("text", "rule"), [(None, "no-caption"), (b" \n", "caption"), (b"\xff\xfe", "caption")])
def test_captions_of_predict25(broken: Callable[[str], Path], text: bytes | None, rule: str) -> None:
    place = broken("predict2.5")
    stem = f"{uuid(0, 0)}_256_399"
    if text is None:
        (place / f"metas/{stem}.txt").unlink()
    else:
        (place / f"metas/{stem}.txt").write_bytes(text)
    expected = f"videos/{stem}.mp4" if rule == "no-caption" else f"metas/{stem}.txt"
    assert found(place, "predict2.5") == {(rule, expected)}


TREE = "v0/resolution_720/aspect_ratio_16_9/duration_10_30"
TAR = "part_000000/000000.tar"


def a_tar(place: Path, kind: str) -> Path:
    return place / TREE / kind / TAR


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
    retar(a_tar(place, "video"), lambda key, members: members if key == uuid(0, 0) else None)
    retar(a_tar(place, "metas"), lambda key, members: members if key == uuid(0, 0) else None)
    retar(a_tar(place, "t5_xxl"), lambda key, members: members if key == uuid(0, 0) else None)
    change(place / TREE / "wdinfo.json", total_key_count=1)
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
    for kind in ("video", "metas", "t5_xxl"):
        retar(a_tar(place, kind), lambda key, members: members if key == uuid(0, 0) else None)
    change(place / TREE / "wdinfo.json", total_key_count=1)
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


@pytest.mark.parametrize("rule", ["no-tars", "tar", "duplicate", "member", "json", "pickle", "embeddings",
                                  "frame-count", "video", "members-differ"])  # fmt: skip
def test_webdataset(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("webdataset")
    tar, id = place / "000000.tar", uuid(0, 1)
    only = lambda suffix, data: retar(tar, lambda key, m: m | {suffix: data} if key == id else m)
    expected = {(rule, f"000000.tar#{id}")}
    if rule == "no-tars":
        tar.rename(place / "x")
        expected = {(rule, "")}
    elif rule == "tar":
        tar.write_bytes(tar.read_bytes()[:-2000])
        expected = {(rule, "000000.tar")}
    elif rule == "duplicate":
        (place / "1.tar").write_bytes(tar.read_bytes())
        expected = {(rule, f"1.tar#{one.uuid}") for one in [*CLIPS[0], *CLIPS[1]]}
    elif rule in ("member", "members-differ"):
        drop = ".json" if rule == "member" else ".webp"
        retar(tar, lambda key, m: {s: d for s, d in m.items() if s != drop} if key == id else m)
        expected = {("members-differ", "")} | ({(rule, f"000000.tar#{id}")} if rule == "member" else set())
    elif rule == "json":
        only(".json", b"{")
        expected = {(rule, f"000000.tar#{id}.json")}
    elif rule in ("pickle", "embeddings"):
        only(".pickle", pickles.dumps([np.zeros((2, 4))] * 2) if rule == "embeddings" else b"x")
        expected = {(rule, f"000000.tar#{id}.pickle")}
    else:
        only(".mp4", datasets.mp4(50) if rule == "frame-count" else b"no video")
        expected = {(rule, f"000000.tar#{id}.mp4")}
    told = found(place, "webdataset")
    if rule == "tar":
        told = {one for one in told if one[0] == rule}
    assert told == expected


@pytest.mark.parametrize(
    "rule", ["session", "timestamps", "no-timestamps", "order", "count", "span", "camera-missing", "json"]
)
def test_sessions(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("sessions")
    id = uuid(0, 0, RIG)
    tar = place / f"{id}.tar"
    name = f"{id}.tar#{id}.left"
    with tar.open("rb") as file:
        ((_, members),) = layers.read_tar(file)
    times = json.loads(members[".left.json"])
    only = lambda told: retar(tar, lambda key, m: m | {".left.json": json.dumps(told).encode()})
    expected = {("timestamps", f"{name}.json")}
    if rule == "session":
        tar.rename(place / "x.tar")
        expected = {(rule, f"x.tar#{id}")}
    elif rule == "timestamps":
        only([[1, 2]])
    elif rule == "no-timestamps":
        retar(tar, lambda key, m: {s: d for s, d in m.items() if s != ".left.json"})
        expected = {("timestamps", f"{name}.mp4")}
    elif rule == "order":
        only(times[::-1])
    elif rule == "count":
        only(times[:-1])
    elif rule == "span":
        only([one | {"timestamp": one["timestamp"] + 200} for one in times])
        expected = {(rule, f"{id}.tar#{id}")}
    elif rule == "camera-missing":
        retar(tar, lambda key, m: {s: d for s, d in m.items() if "left" not in s})
        expected = {(rule, f"{id}.tar")}
    else:
        retar(tar, lambda key, m: m | {".left.json": b"{"})
        expected = {(rule, f"{name}.json")}
    assert found(place, "sessions") == expected


@pytest.mark.parametrize(
    "rule",
    ["no-summary", "keys", "no-clips", "unprocessed", "record", "chunk", "chunks", "metadata", "not-valid",
     "clip-location", "missing", "num-bytes", "frame-count", "caption-gap", "no-caption", "window", "captions",
     "orphan"],
)  # fmt: skip
def test_the_clip_tree(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("cosmos-curate")
    id = uuid(0, 0)  # of 400 frames, with two windows
    meta, mp4, summary = place / f"metas/v0/{id}.json", place / f"clips/{id}.mp4", place / "summary.json"
    record, chunk = place / "processed_videos/one.mp4.json", place / "processed_clip_chunks/one.mp4_0.json"
    windows = json.loads(meta.read_bytes())["windows"]
    bare = [{"start_frame": one["start_frame"], "end_frame": one["end_frame"]} for one in windows]
    at = {"meta": f"metas/v0/{id}.json", "mp4": f"clips/{id}.mp4"}
    if rule == "no-summary":
        summary.unlink()
        expected = {("missing", "summary.json")}
    elif rule == "keys":
        change(summary, total_clip_duration=...)
        expected = {(rule, "summary.json")}
    elif rule == "no-clips":
        change(summary, **{"one.mp4": ...})
        expected = {(rule, "summary.json"), ("captions", "v0/all_window_captions.json")}
        expected |= {("orphan", f"clips/{one.uuid}.mp4") for some in CLIPS for one in some}
    elif rule == "unprocessed":
        change(summary, **{"two.mp4": {"source_video": "/two.mp4", "processed": False}})
        expected = {(rule, "summary.json")}
    elif rule == "record":
        record.unlink()
        expected = {("missing", "processed_videos/one.mp4.json")}
    elif rule == "chunk":
        change(chunk, clips=...)
        expected = {("keys", "processed_clip_chunks/one.mp4_0.json"), ("chunks", "processed_videos/one.mp4.json")}
    elif rule == "chunks":
        change(chunk, clips=[id])
        expected = {(rule, "processed_videos/one.mp4.json")}
    elif rule == "metadata":
        change(meta, span_uuid="x")
        expected = {(rule, at["meta"])}
    elif rule == "not-valid":
        change(meta, valid=False, windows=[])
        expected = {(rule, at["meta"])}
    elif rule == "clip-location":
        change(meta, clip_location="/gone/x.mp4")
        expected = {(rule, at["meta"])}
    elif rule == "missing":
        mp4.unlink()
        expected = {(rule, at["mp4"]), ("clip-location", at["meta"])}
        change(meta, clip_location=str(place / "elsewhere.mp4"))
    elif rule == "num-bytes":
        change(meta, num_bytes=7)
        expected = {(rule, at["mp4"])}
    elif rule == "frame-count":
        change(meta, num_frames=401)
        expected = {(rule, at["mp4"])}
    elif rule == "caption-gap":
        change(meta, windows=[bare[0], windows[1]])
        expected = {(rule, at["meta"])}
    elif rule == "no-caption":
        change(meta, windows=[windows[0], bare[1]])
        expected = {(rule, at["meta"])}
    elif rule == "window":
        change(meta, windows=[windows[0], windows[1] | {"end_frame": 400}])
        expected = {(rule, at["meta"])}
    elif rule == "captions":
        change(place / "v0/all_window_captions.json", **{"x.mp4": {}})
        expected = {(rule, "v0/all_window_captions.json")}
    else:
        (place / "clips/x.mp4").write_bytes(b"")
        expected = {(rule, "clips/x.mp4")}
    assert found(place, "cosmos-curate") == expected


@pytest.mark.parametrize(
    "table",
    [pa.table({"id": ["x"]}), pa.table({"id": [1], "embedding": [[1.0]]}), pa.table({"id": ["x"], "embedding": [1.0]}),
     pa.table({"id": ["x"], "embedding": [[1.0]]})],
)  # fmt: skip
def test_embeddings_of_the_clip_tree(broken: Callable[[str], Path], table: pa.Table) -> None:
    place = broken("cosmos-curate")
    (place / "iv2_embd_parquet").mkdir()
    layers.pq.write_table(table, place / "iv2_embd_parquet/x.parquet")
    assert found(place, "cosmos-curate") == {("embeddings", "iv2_embd_parquet/x.parquet")}


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


@pytest.mark.parametrize(
    ("file", "more"),
    [("meta", {"windows": [{"qwen_caption": "x"}]}), ("meta", {"windows": [5]}), ("meta", {"framerate": "24"}),
     ("meta", {"clip_location": 5}), ("record", {"num_clip_chunks": "1"}), ("chunk", {"clips": 5}),
     ("chunk", {"clips": [5, "x"]}), ("summary", {"one.mp4": {"clips": 5}}), ("summary", {"one.mp4": {"clips": [5]}})],
)  # fmt: skip
def test_values_that_the_curator_does_not_expect(
    broken: Callable[[str], Path], file: str, more: dict[str, Any]
) -> None:
    place = broken("cosmos-curate")
    path = {"meta": f"metas/v0/{uuid(0, 0)}.json", "record": "processed_videos/one.mp4.json",
            "chunk": "processed_clip_chunks/one.mp4_0.json", "summary": "summary.json"}[file]  # fmt: skip
    change(place / path, **more)
    rule = "metadata" if file == "meta" else "keys"
    told = found(place, "cosmos-curate")
    assert (rule, "processed_videos/one.mp4.json" if file == "chunk" else path) in told
    assert file == "summary" or {one for one in told if uuid(1, 0) in one[1]} == set()


def test_a_table_of_embeddings_that_is_none(broken: Callable[[str], Path]) -> None:
    place = broken("cosmos-curate")
    (place / "iv2_embd_parquet").mkdir()
    (place / "iv2_embd_parquet/x.parquet").write_bytes(b"no table")
    assert found(place, "cosmos-curate") == {("embeddings", "iv2_embd_parquet/x.parquet")}


@pytest.mark.parametrize(("value", "rule"), [(b"x", "pickle"), (np.zeros((2, 4)), "pickle"), (np.zeros((1, 5)), "")])
def test_files_of_embeddings(broken: Callable[[str], Path], value: Any, rule: str) -> None:
    place = broken("cosmos-curate")
    (place / "ce1_embd_224p").mkdir()
    for name, one in (("x", value), ("y", np.zeros((1, 4), np.float16))):
        data = one if isinstance(one, bytes) else pickles.dumps_array(one)
        (place / f"ce1_embd_224p/{name}.pickle").write_bytes(data)
    expected = ("pickle", "ce1_embd_224p/x.pickle") if rule else ("embeddings", "")
    assert found(place, "cosmos-curate") == {expected}


def test_times_that_are_none(broken: Callable[[str], Path]) -> None:
    place, key = broken("sessions"), uuid(0, 0, RIG)
    with (place / f"{key}.tar").open("rb") as file:
        ((_, members),) = layers.read_tar(file)
    times = [one | {"timestamp": str(one["timestamp"])} for one in json.loads(members[".left.json"])]
    for wrong in (times, [*json.loads(members[".left.json"])[:-1], times[-1]], 5):
        retar(place / f"{key}.tar", lambda key, m, wrong=wrong: m | {".left.json": json.dumps(wrong).encode()})  # type: ignore[misc]
        assert found(place, "sessions") == {("timestamps", f"{key}.tar#{key}.left.json")}


SAMPLED = {
    "webdataset": {"tars": (1, 1), "keys of these": (2, 3)},
    "sessions": {"tars": (2, 3), "keys of these": (2, 2)},
    "cosmos": {"tars": (2, 2), "keys of these": (2, 3)},
    "cosmos-frames": {"tars": (2, 2), "keys of these": (2, 4)},
    "predict2.5-webdataset": {"tars": (2, 2), "keys of these": (2, 3)},
    "cosmos-curate": {"videos": (1, 1), "clips": (2, 3), "tables of embeddings": (0, 0),
                      "files of embeddings": (0, 0)},
    "predict2": {"videos": (2, 4)},
    "predict2.5": {"videos": (2, 4)},
    "predict2-multiview": {"sessions": (2, 3)},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_is_looked_at(
    good: Callable[[str], Path], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, opened = video.index, []
    monkeypatch.setattr(video, "index", lambda source: opened.append(source) or index(source))
    report = validate.validate(str(good(layout)), layout, sample=2)
    assert report.sampled == SAMPLED[layout] and report.entries == 2
    assert len(opened) == (4 if layout in OF_RIGS else 2)
    told = ", ".join(f"{n} of {of} {what}" for what, (n, of) in SAMPLED[layout].items())
    assert list(validate.lines(report))[-1].endswith(f"will do for {layout}, as far as a sample tells ({told})")
    whole = [validate.validate(str(good(layout)), layout, sample=most) for most in (99, None)]
    assert whole[0].entries == whole[1].entries > 2 and whole[1].sampled == {}


def test_a_sample_is_spread_evenly() -> None:
    def pick(count: int, most: int) -> list[int]:
        report = validate.Report("x", "x", validate.Settings(sample=most))
        return report.pick("x", range(count))

    assert pick(1000, 10) == pick(1000, 10) != pick(1000, 11)[:10]
    for count, most in ((1000, 10), (10**6, 999), (7, 7), (7, 6), (5, 9), (0, 3)):
        places = pick(count, most)
        assert len(places) == min(count, most) == len(set(places)) and places == sorted(places)
        for i, place in enumerate(places):
            assert i * count // len(places) <= place < (i + 1) * count // len(places)


def test_a_sample_leaves_the_rules_about_names(broken: Callable[[str], Path]) -> None:
    """What can be told by names alone is told of all; what is not looked into breaks no rule."""
    place = broken("predict2")
    for path in sorted(place.glob("t5_xxl/*"))[1:]:
        path.write_bytes(b"x")
    assert len(found(place, "predict2")) == 3
    (place / "t5_xxl/x.pickle").write_bytes(b"")
    some = found(place, "predict2", sample=2)
    assert ("orphan", "t5_xxl/x.pickle") in some and 1 <= len(some) - 1 <= 2
    shutil.rmtree(place)
    place = broken("cosmos")
    for path in place.rglob("wdinfo.json"):
        change(path, total_key_count=7)
    assert {rule for rule, _ in found(place, "cosmos")} == {"total-key-count"}
    assert found(place, "cosmos", sample=1) != found(place, "cosmos"), "of a bin that is not counted nothing is said"


@pytest.mark.parametrize("layout", ["predict2", "cosmos-curate", "cosmos", "webdataset"])
def test_videos_are_looked_at_side_by_side(
    broken: Callable[[str], Path], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, lock, now, most = video.index, threading.Lock(), [0], [0]

    def slow(source: Any) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return index(source)

    monkeypatch.setattr(video, "index", slow)
    assert found(broken(layout), layout) == set() and most[0] > 1


def test_the_command(broken: Callable[[str], Path], tmp_path: Path) -> None:
    place = broken("predict2.5")
    told = runs.hpc("validate", place, "--as", "predict2.5", cwd=tmp_path).stdout
    assert told.endswith("0 errors, 0 warnings: will do for predict2.5\n")
    (place / "videos/short.mp4").write_bytes(datasets.mp4(93))
    (place / "metas/short.txt").write_text("short")
    told = runs.hpc("validate", "set", "--as", "predict2.5", cwd=tmp_path, code=1).stdout
    assert "error: too-few-frames (1 time)\n  videos/short.mp4: 93 frames" in told
    assert "-> Leave out videos with fewer than 94 frames (min_frames: 94)" in told
    facts = json.loads(runs.hpc("validate", place, "--as", "predict2.5", "--json", cwd=tmp_path, code=1).stdout)
    assert facts["errors"] == 1 and facts["rules"] == {"too-few-frames": 1} and facts["entries"] == 5
    assert facts["problems"][0]["file"] == "videos/short.mp4" and facts["settings"]["num_frames"] == 93
    runs.hpc("validate", place, "--as", "predict2.5", "--num-frames", "92", cwd=tmp_path)
    told = runs.hpc("validate", place, "--as", "predict2.5", "--sample", "2", "--num-frames", "92", cwd=tmp_path).stdout
    assert told.endswith("2 entries, 0 errors, 0 warnings: will do for predict2.5, as far as a sample tells "
                         "(2 of 5 videos)\n")  # fmt: skip
    assert "1 at least" in runs.hpc("validate", place, "--as", "predict2.5", "--sample", "0", code=2).stderr
    refused = runs.hpc("validate", place, "--as", "predict3", cwd=tmp_path, code=2).stderr
    assert "--as predict3: the rules are known of webdataset, sessions, cosmos" in refused
    assert "there are no files" in runs.hpc("validate", tmp_path / "no", "--as", "cosmos", cwd=tmp_path, code=2).stderr


def test_many_problems_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "KEPT", 30)
    for i in range(50):
        path = tmp_path / f"videos/{i:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    report = validate.validate(str(tmp_path), "predict2")
    assert report.rules["not-a-video"] == 50 and len(report.problems) == 31
    assert "... and 30 more" in "\n".join(validate.lines(report))


def test_a_slice_is_a_file() -> None:
    part = io.BufferedReader(validate.Slice(io.BytesIO(b"0123456789"), 2, 5))
    assert part.read() == b"23456" and part.seek(-2, 2) == 3 and part.read(9) == b"56"
    assert part.seek(1) == 1 and part.read(2) == b"34" and part.seek(1, 1) == 4
