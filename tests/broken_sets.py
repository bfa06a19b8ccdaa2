"""Data sets of each layout, to be broken in a copy, and what `hpc validate` then finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Clip

from hpc import validate
from hpc.data import layers

CLIPS = [[Clip(frames=400), Clip()], [Clip(frames=300)]]
RIG = [[Clip(cameras=("front", "left")) for _ in range(3)]]
OF_RIGS = ("sessions", "predict2-multiview")
TREE = "v0/resolution_720/aspect_ratio_16_9/duration_10_30"
TAR = "part_000000/000000.tar"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A data set of each layout that is asked for, made once."""
    base, made = tmp_path_factory.mktemp("good"), {}

    def make(layout: str) -> Path:
        if layout not in made:
            (base / layout).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(datasets, "WIDTH", 1024)
                stages = datasets.publish(base / layout, RIG if layout in OF_RIGS else CLIPS)
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
        told = {name: value(told) if callable(value) else value for name, value in (told | more).items()}
        return members | {".json": json.dumps({n: v for n, v in told.items() if v is not ...}).encode()}

    retar(path, edit)


def a_tar(place: Path, kind: str) -> Path:
    return place / TREE / kind / TAR


def only_first(place: Path) -> None:
    """Of a tree's bin keep the first clip alone."""
    for kind in ("video", "metas", "t5_xxl"):
        retar(a_tar(place, kind), lambda key, members: members if key == uuid(0, 0) else None)
    change(place / TREE / "wdinfo.json", total_key_count=1)
