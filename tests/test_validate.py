"""`hpc validate`: data sets that break no rule pass, a sample of them is looked at; the command."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import runs
from broken_sets import OF_RIGS, broken, change, found, good

from hpc import validate
from hpc.curate.settings.shard import LAYOUTS
from hpc.data import video

__all__ = ["broken", "good"]  # fixtures


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_ones_pass(broken: Callable[[str], Path], layout: str) -> None:
    assert found(broken(layout), layout) == set()
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
