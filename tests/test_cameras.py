"""Sessions of several cameras through the whole stage, and through the command with a list of sessions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import runs

from hpc.curate import clips
from hpc.curate.settings import Clips, Encode, Split
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Item, Made, Work

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
SECONDS = Split(detector="stride", stride=Seconds(2.0), min_clip=Seconds(1.0))
FAST = Encode(preset="ultrafast", crf=30.0)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cameras, of which one has 30 frames a second in place of 24 and another stops after 5 of 8 seconds."""
    folder = tmp_path_factory.mktemp("rig")
    x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-an"]
    for session in ("s1", "s2"):
        (folder / session).mkdir()
        for camera, how in {
            "front": ["-t", "8", "-vf", "scale=320:180"],
            "left": ["-t", "8", "-vf", "fps=30,hue=s=0,scale=256:144"],
            "rear": ["-t", "8" if session == "s1" else "5", "-vf", "hflip,scale=320:180"],
        }.items():
            to = folder / session / f"{camera}.mp4"
            command = ["ffmpeg", "-v", "error", "-ss", "20", "-i", TRAILER, *how, *x264, to]
            subprocess.run(command, check=True, timeout=180)
    return folder


def cut(folder: Path, session: str, tmp_path: Path, **settings: Any) -> Made:
    items = []
    for path in sorted((folder / session).iterdir()):
        entry = storage.stat(str(path))
        assert entry is not None
        items.append(Item(entry.uri, entry.size, entry.etag, 0, 1, f"/rig/{session}", path.stem))
    process = clips.start(Clips(**{"split": SECONDS, "encode": FAST, **settings}))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return process(Work("000003", items, [], {}, scratch, "f", lambda: None, lambda *_: None))


def test_all_cameras_get_the_same_spans(rig: Path, tmp_path: Path) -> None:
    made = cut(rig, "s1", tmp_path)
    rows = layers.read_table(made.objects[1]).to_pylist()
    assert [(r["verdict"], r["camera"], r["start_seconds"], r["end_seconds"]) for r in rows] == [
        ("keep", "front", float(s), float(s + 2)) for s in (0, 2, 4, 6)
    ]
    assert (made.counts["inputs"], made.counts["clips"], made.bad) == (3, 4, [])
    with made.objects[0].open("rb") as file:
        members = dict(layers.read_tar(file))
    for row in rows:
        clip = members[row["uuid"]]
        assert set(clip) == {".mp4", ".json", ".webp", ".left.mp4", ".rear.mp4"}
        assert [(c["camera"], c["num_frames"], c["width"]) for c in row["cameras"]] == [
            ("left", 60, 256), ("rear", 48, 320)
        ]  # fmt: skip
        assert json.loads(clip[".json"])["cameras"][0]["source"] == str(rig / "s1" / "left.mp4")
        for camera, number in (("front", 48), ("left", 60), ("rear", 48)):
            path = tmp_path / "clip.mp4"
            path.write_bytes(clip[".mp4" if camera == "front" else f".{camera}.mp4"])
            shown = [frame.to_ndarray(format="gray") for _, frame in video.Decoder(path)]
            first = round(row["start_seconds"] * (30 if camera == "left" else 24))
            source = next(f for n, f in video.Decoder(rig / "s1" / f"{camera}.mp4") if n == first)
            assert len(shown) == number
            assert abs(shown[0].astype(int) - source.to_ndarray(format="gray")).mean() < 4
        with made.objects[0].open("rb") as file:
            for one in row["cameras"]:
                file.seek(one["offset"])
                assert file.read(one["size"]) == clip[f".{one['camera']}.mp4"]


def test_a_clip_that_a_camera_lacks_is_dropped_and_says_so(rig: Path, tmp_path: Path) -> None:
    made = cut(rig, "s2", tmp_path)
    rows = layers.read_table(made.objects[1]).to_pylist()
    assert [r["verdict"] for r in rows] == ["keep", "keep", "camera-missing", "camera-missing"]
    assert rows[2]["reasons"] == ["rear did not record all of it"] and rows[2]["cameras"] is None
    assert (made.counts["clips"], made.counts["dropped"], made.counts["dropped_camera-missing"]) == (2, 2, 2)
    with made.objects[0].open("rb") as file:
        assert {key for key, _ in layers.read_tar(file)} == {r["uuid"] for r in rows[:2]}


def test_a_clip_may_lack_a_camera(rig: Path, tmp_path: Path) -> None:
    made = cut(rig, "s2", tmp_path, missing_camera="keep")
    rows = layers.read_table(made.objects[1]).to_pylist()
    assert [r["verdict"] for r in rows] == ["keep"] * 4
    assert [[c["camera"] for c in r["cameras"]] for r in rows] == [["left", "rear"]] * 2 + [["left"]] * 2
    with made.objects[0].open("rb") as file:
        members = dict(layers.read_tar(file))
    assert [".rear.mp4" in members[r["uuid"]] for r in rows] == [True, True, False, False]


def test_the_camera_that_decides(rig: Path, tmp_path: Path) -> None:
    made = cut(rig, "s2", tmp_path, camera="rear")
    rows = layers.read_table(made.objects[1]).to_pylist()
    assert [(r["camera"], r["verdict"], r["end_seconds"]) for r in rows] == [
        ("rear", "keep", 2.0), ("rear", "keep", 4.0), ("rear", "keep", 5.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"camera": "top"}, "no-such-camera"), ({"encode": Encode(encoder="copy")}, "cannot-be-copied")],
)
def test_sessions_that_can_never_work(rig: Path, tmp_path: Path, settings: dict, reason: str) -> None:
    made = cut(rig, "s1", tmp_path, **settings)
    assert [(bad.uri, bad.reason) for bad in made.bad] == [("/rig/s1", reason)] and made.counts["clips"] == 0


def test_a_camera_whose_file_is_no_video(rig: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rig" / "s1"
    folder.mkdir(parents=True)
    for camera in ("front", "left"):
        (folder / f"{camera}.mp4").write_bytes((rig / "s1" / f"{camera}.mp4").read_bytes())
    (folder / "left.mp4").write_text("no video at all")
    made = cut(tmp_path / "rig", "s1", tmp_path)
    assert [(bad.uri, bad.reason) for bad in made.bad] == [(str(folder / "left.mp4"), "not-a-video")]
    assert made.counts["dropped_camera-missing"] == 4


def test_by_the_command(rig: Path, tmp_path: Path) -> None:
    spec = tmp_path / "rig.yaml"
    spec.write_text(
        f"name: rig\ninputs: {{uri: {rig}, group_by: '{{session}}/{{camera}}.mp4'}}\noutput: {tmp_path}/out\n"
        "shards: {size: 1B, split_above: 1B}\n"
        "stages:\n  clips: {kind: curate.clips, split: {detector: stride, stride: 2s, min_clip: 1s}, "
        "encode: {preset: ultrafast}}\n  shard: {kind: curate.shard, needs: clips}\n"
    )
    runs.hpc("run", spec)
    tables = sorted((tmp_path / "out" / "clips@v1").glob("*.parquet"))
    found = [layers.read_table(path).to_pylist() for path in tables]
    assert [[r["verdict"] for r in rows].count("keep") for rows in found] == [4, 2]
    [tar] = (tmp_path / "out" / "shard@v1").glob("*.tar")
    with tar.open("rb") as file:
        assert all({".mp4", ".left.mp4", ".rear.mp4"} <= members.keys() for _, members in layers.read_tar(file))
