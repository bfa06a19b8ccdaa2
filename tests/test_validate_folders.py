"""Every rule of `hpc validate` for folders of videos (predict2, predict2.5, predict2-multiview)."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from broken_sets import broken, found, good, uuid

from hpc import validate
from hpc.data import pickles

__all__ = ["broken", "good"]  # fixtures


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
