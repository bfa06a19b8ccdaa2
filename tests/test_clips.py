"""The whole stage on real videos: the quickstart's trailer, pieces of it, and inputs that nobody would wish for."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import s3
import webdataset

from hpc.curate import clips, filters, shard, source
from hpc.curate.settings import Clips, Encode, Shard, Split
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Item, Made, Stopped, Work
from hpc.models import shots

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
SHOTS = json.loads((Path(__file__).parent / "golden" / "trailer_shots.json").read_text())["0.4"]
FAST = Encode(preset="ultrafast", crf=30.0)
SHORT = Split(min_clip=Seconds(0.5), min_frames=8, crop=Seconds(0.1), max_clip=Seconds(3.0))
CHANGES = Split(detector="content", min_clip=Seconds(0.5), min_frames=8, crop=Seconds(0.1), max_clip=Seconds(3.0))
SECONDS = Split(detector="stride", stride=Seconds(1.0), min_clip=Seconds(0.5))


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-bitexact", "-y", *arguments], check=True, timeout=180)


def item(path: str | Path, part: int = 0, parts: int = 1) -> Item:
    entry = storage.stat(str(path))
    assert entry is not None
    return Item(entry.uri, entry.size, entry.etag, part, parts)


class Stage:
    """Runs the stage in one scratch folder after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self.model = shots.load_transnetv2()

    def __call__(self, settings: Clips, *items: Item, check: Callable[[], None] = lambda: None) -> Made:
        self.runs += 1
        scratch = self.folder / f"{self.runs}"
        scratch.mkdir()
        self.progress: list[tuple[float, str]] = []
        model = self.model if settings.split.detector == "transnetv2" else None
        return clips.process(
            source.Tools(settings, model, filters.start(settings.filter)),
            Work("000007", list(items), [], {}, scratch, "abc", check, lambda *a: self.progress.append(a)),
        )


def rows(made: Made) -> list[dict[str, Any]]:
    return layers.read_table(made.objects[1]).to_pylist()


def by_clip(*made: Made) -> dict[str, tuple[Any, ...]]:
    """What must not depend on how the input was planned: uuid -> bounds, verdict and the bytes of the members."""
    found: dict[str, tuple[Any, ...]] = {}
    for one in made:
        with one.objects[0].open("rb") as file:
            members = dict(layers.read_tar(file))
        for row in rows(one):
            assert row["uuid"] not in found
            facts = tuple(row[name] for name in ("start_frame", "end_frame", "start_seconds", "end_seconds", "verdict"))
            found[row["uuid"]] = (*facts, members.get(row["uuid"]))
    return dict(sorted(found.items(), key=lambda pair: pair[1][0]))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def trailer(stage: Stage) -> Made:
    return stage(Clips(), item(TRAILER))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """10 s of the trailer with five cuts: at a constant rate, and with two thirds of the frames gone after 4 s."""
    folder = tmp_path_factory.mktemp("videos")
    even, uneven, short = folder / "even.mp4", folder / "uneven.mkv", folder / "short.mp4"
    x264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "48", "-bf", "3", "-an"]
    ffmpeg("-ss", "31", "-t", "10", "-i", TRAILER, "-vf", "scale=320:180", *x264, even)
    ffmpeg("-i", even, "-vf", "select='lt(n,100)+not(mod(n,3))'", "-vsync", "vfr", *x264, uneven)
    ffmpeg("-i", even, "-frames:v", "53", *x264, short)
    return {"even": even, "uneven": uneven, "short": short}


def test_the_cuts_are_the_published_ones(trailer: Made) -> None:
    """Each shot that TransNetV2's own code finds (ends inclusive), less 12 frames on both sides, if 48 are left."""
    expected = []
    for first, last in SHOTS:
        start, end = (first + 12, last + 1 - 12) if last + 1 - first > 24 else (first, last + 1)
        expected.append((start, end, "keep" if end - start >= 48 and last + 1 - first > 24 else "short"))
    assert [(r["start_frame"], r["end_frame"], r["verdict"]) for r in rows(trailer)] == expected
    assert trailer.bad == [] and [p.name for p in trailer.objects] == ["000007.tar", "000007.parquet"]
    counts = dict(trailer.counts)
    assert counts.pop("bytes_out") == trailer.objects[0].stat().st_size
    assert counts.pop("clip_seconds") == pytest.approx(748 / 24)
    spent = {name: counts.pop(name) for name in list(counts) if name.startswith("time_")}
    assert min(spent.values()) > 0 and {"time_decode", "time_detect", "time_encode"} <= spent.keys()
    assert counts == {
        "inputs": 1, "clips": 6, "dropped": 10, "dropped_short": 10, "frames": 1323, "damaged_frames": 0,
        "video_seconds": 55.125,
    }  # fmt: skip


def test_rows_tell_where_everything_is(trailer: Made) -> None:
    data = trailer.objects[0].read_bytes()
    meta = layers.read_meta(trailer.objects[1])
    assert meta == {
        "fingerprint": "abc", "shard": "000007", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert layers.read_table(trailer.objects[1]).schema.remove_metadata() == clips.SCHEMA
    at = 0
    for row in rows(trailer):
        name = f"{TRAILER}_{row['start_frame']}_{row['end_frame']}"
        assert row["uuid"] == str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        assert (row["source"], row["member"], row["etag"]) == (str(TRAILER), "", item(TRAILER).etag)
        assert row["start_seconds"] == row["start_frame"] / 24 and row["end_seconds"] == row["end_frame"] / 24
        assert (row["source_width"], row["source_codec"], row["source_fps"]) == (1280, "h264", 24.0)
        assert (row["source_frames"], row["source_audio_codec"], row["is_vfr"]) == (1323, "mp3", False)
        if row["verdict"] != "keep":
            assert row["bytes"] is None and row["offset"] is None
            continue
        assert row["offset"] == at and row["size"] % 512 == 0  # side by side, nothing between
        at += row["size"]
        mp4 = data[row["mp4_offset"] :][: row["mp4_size"]]
        clip = video.probe(io.BytesIO(mp4))
        assert (clip.width, clip.height, clip.frames, clip.fps) == (row["width"], row["height"], row["num_frames"], 24)
        assert (len(mp4), clip.codec, row["fps"]) == (row["bytes"], row["codec"], 24.0)
        assert clip.frames == row["end_frame"] - row["start_frame"] == sum(1 for _ in video.Decoder(io.BytesIO(mp4)))
    assert data[at:] == layers.END_OF_ARCHIVE


def test_the_tar_is_a_webdataset(trailer: Made) -> None:
    kept = [row for row in rows(trailer) if row["verdict"] == "keep"]
    samples = list(webdataset.WebDataset(str(trailer.objects[0]), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [row["uuid"] for row in kept]
    for sample, row in zip(samples, kept, strict=True):
        assert [k for k in sample if k[0] != "_"] == ["mp4", "json", "webp"]
        about = json.loads(sample["json"])
        assert about == {name: row[name] for name in about} and about["width"] == 1280 and "offset" not in about


def test_clips_and_thumbnails_show_the_source(trailer: Made) -> None:
    """Frame by frame the pixels of the source; the thumbnail is the frame in the middle."""
    row = next(row for row in rows(trailer) if row["start_frame"] == 605)
    with trailer.objects[0].open("rb") as file:
        members = next(m for key, m in layers.read_tar(file) if key == row["uuid"])
    source = (f for n, f in video.Decoder(TRAILER) if 605 <= n < 745)
    small = video.Resizer(320, 180)
    for number, (before, (_, after)) in enumerate(zip(source, video.Decoder(io.BytesIO(members[".mp4"])), strict=True)):
        if number in (0, 37, 139):
            assert np.abs(small(before).astype(int) - small(after)).mean() < 1.5
        if number == 69:
            picture = np.asarray(PIL.Image.open(io.BytesIO(members[".webp"])).convert("RGB"))
            assert picture.shape == (180, 320, 3) and np.abs(small(before).astype(int) - picture).mean() < 6


def test_the_gallery(trailer: Made) -> None:
    objects = {path.suffix: path for path in trailer.objects}
    pictures = clips.gallery(lambda suffix: objects[suffix].open("rb"), 3)
    assert [p[:2] for p in pictures] == [
        ("trailer_bbb.mp4", "0:01.2 to 0:09.0, 1280x720, 24 fps"),
        ("trailer_bbb.mp4", "0:25.2 to 0:31.0, 1280x720, 24 fps"),
        ("trailer_bbb.mp4", "0:38.0 to 0:40.6, 1280x720, 24 fps"),
    ]
    assert all(PIL.Image.open(io.BytesIO(p[2])).size == (320, 180) for p in pictures)
    assert len(clips.gallery(lambda suffix: objects[suffix].open("rb"), 48)) == 6


def test_the_next_stage_can_read_it(trailer: Made) -> None:
    files = {path.suffix: str(path) for path in trailer.objects}
    planned = list(shard.freeze(Shard(shuffle=False), {"clips": [("000007", files)]}, set()))
    assert planned == [[[files[".tar"], 0, trailer.objects[0].stat().st_size - 1024]]]
    assert list(shard.freeze(Shard(), {"clips": [("000007", files)]}, {(str(TRAILER), item(TRAILER).etag)})) == []


@pytest.mark.parametrize(("name", "parts"), [("even", 2), ("uneven", 3)])
def test_spans_make_the_same_clips(stage: Stage, videos: dict[str, Path], name: str, parts: int) -> None:
    settings = Clips(split=SHORT, encode=FAST)
    whole = stage(settings, item(videos[name]))
    expected = by_clip(whole)
    assert sum(row[4] == "keep" for row in expected.values()) >= 3
    assert any(row["is_vfr"] for row in rows(whole)) == (name == "uneven")
    made = [stage(settings, item(videos[name], part, parts)) for part in range(parts)]
    assert by_clip(*made) == expected
    for key in ("inputs", "clips", "dropped", "frames", "video_seconds", "clip_seconds"):
        assert sum(m.counts[key] for m in made) == pytest.approx(whole.counts[key]), key


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_spans_of_strides_make_the_same_clips(stage: Stage, videos: dict[str, Path], name: str) -> None:
    settings = Clips(split=SECONDS, encode=FAST)
    whole = stage(settings, item(videos[name]))
    expected = by_clip(whole)
    assert [round(row[2], 1) for row in expected.values()] == list(range(10))
    for parts in (2, 5, 9):
        made = [stage(settings, item(videos[name], part, parts)) for part in range(parts)]
        assert by_clip(*made) == expected
        assert sum(m.counts["frames"] for m in made) == whole.counts["frames"]


@pytest.mark.long
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_spans_of_the_trailer_make_the_same_clips(stage: Stage, trailer: Made, parts: int) -> None:
    made = [stage(Clips(), item(TRAILER, part, parts)) for part in range(parts)]
    assert by_clip(*made) == by_clip(trailer)


def test_the_same_again(stage: Stage, videos: dict[str, Path]) -> None:
    settings = Clips(split=SECONDS, encode=FAST)
    one, two = (stage(settings, item(videos["even"]), item(videos["uneven"])) for _ in range(2))
    assert [p.read_bytes() for p in one.objects] == [p.read_bytes() for p in two.objects]


def test_strides_have_ids_of_seconds(stage: Stage, videos: dict[str, Path]) -> None:
    settings = Clips(split=Split(detector="stride", stride=Seconds(1.5), min_clip=Seconds(0.5)), encode=FAST)
    found = rows(stage(settings, item(videos["short"])))
    names = [f"{videos['short']}_0.0_1.5", f"{videos['short']}_1.5_2.2083333333333335"]
    assert [row["uuid"] for row in found] == [str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in names]
    assert [(row["start_frame"], row["end_frame"], row["verdict"]) for row in found] == [
        (0, 36, "keep"),
        (36, 53, "keep"),
    ]


def test_long_shots_are_cut_or_truncated(stage: Stage, videos: dict[str, Path]) -> None:
    """2.2 s without a cut, at most 1 s each, nothing cropped."""
    for long_shots, expected in (
        ("stride", [(0, 24, "keep"), (24, 48, "keep"), (48, 53, "short")]),
        ("truncate", [(0, 24, "keep"), (24, 53, "past-max-clip")]),
    ):
        rules = Split(min_clip=Seconds(0.5), min_frames=8, crop=Seconds(0.0), max_clip=Seconds(1.0),
                      long_shots=long_shots, threshold=0.999)  # type: ignore[arg-type]  # fmt: skip
        found = rows(stage(Clips(split=rules, encode=FAST), item(videos["short"])))
        assert [(row["start_frame"], row["end_frame"], row["verdict"]) for row in found] == expected


def test_inputs_that_can_never_work(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    """They are named with a reason; the others are cut as if alone; the shard does not fail."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.mp4").write_text("nothing moved today\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(videos["short"].read_bytes()[:3000])
    (tmp_path / "junk.tar").write_bytes(b"not a tar at all" * 100)
    tarfile.open(tmp_path / "texts.tar", "w").close()
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "sound.mp4")
    (tmp_path / "gone.mp4").write_bytes(b"x")
    (tmp_path / "changed.mp4").write_bytes(b"x")
    names = ["empty.mp4", "notes.mp4", "cut.mp4", "junk.tar", "texts.tar", "sound.mp4", "gone.mp4", "changed.mp4"]
    items = [item(tmp_path / name) for name in names]
    (tmp_path / "gone.mp4").unlink()
    (tmp_path / "changed.mp4").write_bytes(b"xy")
    settings = Clips(split=SECONDS, encode=FAST)
    made = stage(settings, *items[:4], item(videos["short"]), *items[4:])
    assert [(Path(bad.uri).name, bad.reason) for bad in made.bad] == [
        ("empty.mp4", "empty-file"), ("notes.mp4", "not-a-video"), ("cut.mp4", "corrupt"), ("junk.tar", "corrupt"),
        ("texts.tar", "no-videos-in-tar"), ("sound.mp4", "no-video-stream"), ("gone.mp4", "missing"),
        ("changed.mp4", "changed-since-planned"),
    ]  # fmt: skip
    assert by_clip(made) == by_clip(stage(settings, item(videos["short"]))) and made.counts["inputs"] == 9


def test_nothing_but_bad_inputs(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    made = stage(Clips(split=SECONDS), item(tmp_path / "empty.mp4"))
    assert made.objects[0].read_bytes() == layers.END_OF_ARCHIVE
    assert layers.read_table(made.objects[1]).schema.remove_metadata() == clips.SCHEMA
    assert len(made.bad) == 1 and made.counts["clips"] == 0
    objects = {path.suffix: path for path in made.objects}
    assert clips.gallery(lambda suffix: objects[suffix].open("rb"), 4) == []


NAMES = ["a b.mp4", "日本 é.MP4", 'it\'s "so".mp4', "50% #1:2?.mp4", "-dash.mp4"]


def test_names_of_files(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(videos["short"].read_bytes())
    made = stage(Clips(split=SECONDS, encode=FAST), *(item(tmp_path / name) for name in NAMES))
    assert made.bad == [] and made.counts["clips"] == 2 * len(NAMES)
    assert list(dict.fromkeys(row["source"] for row in rows(made))) == [str(tmp_path / name) for name in NAMES]


@pytest.mark.parametrize("parts", [1, 3])
def test_tars_of_videos(stage: Stage, videos: dict[str, Path], tmp_path: Path, parts: int) -> None:
    path = tmp_path / "in.tar"
    with tarfile.open(path, "w") as tar:
        for name in [*NAMES, "sub/x.json", "sub/._hidden.mp4", "sub/empty.mov", "sub/y.mkv"]:
            source = videos["uneven"] if name.endswith("y.mkv") else videos["short"]
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "sub/empty.mov" else source.stat().st_size
            tar.addfile(info, source.open("rb"))
    settings = Clips(split=SECONDS, encode=FAST)
    made = [stage(settings, item(path, part, parts)) for part in range(parts)]
    found = [row for one in made for row in rows(one)]
    assert list(dict.fromkeys(row["member"] for row in found)) == [*NAMES, "sub/y.mkv"]
    assert {row["source"] for row in found} == {str(path)}
    assert found[0]["uuid"] == str(uuid.uuid5(uuid.NAMESPACE_URL, f"{path}#{NAMES[0]}_0.0_1.0"))
    (bad,) = [bad for one in made for bad in one.bad]
    assert (bad.uri, bad.reason) == (f"{path}#sub/empty.mov", "empty-file")
    alone = by_clip(stage(settings, item(videos["uneven"])))
    of_tar = [row for row in by_clip(*made).values() if row[5] and json.loads(row[5][".json"])["member"] == "sub/y.mkv"]
    assert [row[5][".mp4"] for row in of_tar] == [row[5][".mp4"] for row in alone.values()]


def test_a_tar_that_is_cut_short(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    """Of two members with one name the last counts; what is not there in full is not looked at."""
    path, short = tmp_path / "in.tar", videos["short"].read_bytes()
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.mp4", b"old"), ("b.mp4", short), ("a.mp4", short), ("c.mp4", short)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[: -len(short) // 2 - 10240])
    made = stage(Clips(split=SECONDS, encode=FAST), item(path))
    assert [row["member"] for row in rows(made)] == ["a.mp4"] * 3 + ["b.mp4"] * 3
    ((bad,), detail) = made.bad, made.bad[0].detail
    assert (bad.uri, bad.reason) == (str(path), "corrupt") and "cut short behind 2 videos" in detail


def test_objects_of_s3(stage: Stage, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same clips from an object, span by span; and an object that was replaced is told from one that is gone."""
    settings = Clips(split=SECONDS, encode=FAST)
    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        uri = "s3://bucket/raw/a b+%20.mp4"
        storage.put(uri, videos["even"])
        made = [stage(settings, item(uri, part, 2)) for part in range(2)]
        assert [m.bad for m in made] == [[], []]
        local = by_clip(stage(settings, item(videos["even"])))
        assert [r[5][".mp4"] for r in by_clip(*made).values()] == [r[5][".mp4"] for r in local.values()]
        planned = item(uri)
        storage.put(uri, videos["short"])
        assert [bad.reason for bad in stage(settings, planned).bad] == ["changed-since-planned"]
        storage.delete(uri)
        assert [bad.reason for bad in stage(settings, planned).bad] == ["missing"]


def test_a_file_that_lost_its_second_half(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    """What is there is kept, what is not is counted; spans that have nothing make nothing."""
    whole = tmp_path / "whole.mp4"
    ffmpeg("-i", videos["even"], "-c", "copy", "-movflags", "+faststart", whole)
    half = tmp_path / "half.mp4"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    settings = Clips(split=SECONDS, encode=FAST)
    made = stage(settings, item(half))
    assert made.bad == [] and 3 <= made.counts["clips"] <= 7
    assert made.counts["frames"] + made.counts["damaged_frames"] >= 240
    spans = [stage(settings, item(half, part, 3)) for part in range(3)]
    assert by_clip(*spans) == by_clip(made) and spans[2].counts["frames"] == 0


def test_a_file_that_can_only_be_read_from_its_start(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"
    ffmpeg("-i", videos["short"], "-c", "copy", path)
    settings = Clips(split=SECONDS, encode=FAST)
    first, second = (stage(settings, item(path, part, 2)) for part in range(2))
    assert (first.counts["clips"], second.counts["clips"]) == (2, 0) and first.bad == second.bad == []
    assert first.counts["frames"] == 53


def test_it_stops_when_told(stage: Stage, videos: dict[str, Path]) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Stopped

    for part, parts in ((0, 1), (1, 2)):
        calls = 0
        with pytest.raises(Stopped):
            stage(Clips(split=SECONDS, encode=FAST), item(videos["uneven"], part, parts), check=check)
        assert calls == 6 and not list((stage.folder / f"{stage.runs}").glob("*.tar"))


def test_progress_rises(stage: Stage, videos: dict[str, Path]) -> None:
    stage(Clips(split=SECONDS, encode=FAST), item(videos["even"]), item(videos["short"]))
    fractions = [fraction for fraction, _ in stage.progress]
    assert fractions == sorted(fractions) and 0 == fractions[0] < 0.4 < fractions[-1] <= 1
    assert stage.progress[1][1] == "even.mp4: frame 50, 2 clips"


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """One clip of 5 s and one of half a minute, 720p: held frames alone would be 0.9 GB."""
    paths = [tmp_path / "short.mp4", tmp_path / "long.mp4"]
    ffmpeg("-t", "5", "-i", TRAILER, "-c", "copy", "-an", paths[0])
    ffmpeg("-t", "30", "-i", TRAILER, "-c", "copy", "-an", paths[1])
    code = """if True:
        import resource, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import test_clips as t
        rules = t.Split(detector="stride", stride=t.Seconds(1000.0))
        settings = t.Clips(split=rules, encode=t.Encode(preset="ultrafast", crf=45.0))
        made = t.clips.process(t.source.Tools(settings, None, {}), t.Work("000000",
            [t.item(sys.argv[2])], [], {}, Path(sys.argv[3]), "", lambda: None, lambda *a: None))
        assert made.counts["clips"] == 1
        print(int(made.counts["frames"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    found = []
    for path in paths:
        scratch = tmp_path / path.stem
        scratch.mkdir()
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), str(scratch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append([int(word) for word in done.stdout.split()])
    (frames, rss), (more_frames, more_rss) = found
    assert more_frames > 700 > 150 > frames
    assert more_rss < rss + 60, f"{rss} MiB for {frames} frames, {more_rss} MiB for {more_frames}"


def test_start_loads_what_the_settings_ask_for() -> None:
    assert clips.start(Clips(split=SECONDS)).args[0].model is None  # type: ignore[attr-defined]


def test_ids_of_contents_survive_a_move(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    settings = Clips(split=CHANGES, encode=FAST, ids="content")
    source = videos["even"]
    moved = tmp_path / "elsewhere" / "renamed.mp4"
    moved.parent.mkdir()
    shutil.copy(source, moved)
    here, there = by_clip(stage(settings, item(source))), by_clip(stage(settings, item(moved)))
    kept = {uuid for uuid, facts in here.items() if facts[4] == "keep"}
    assert kept and kept == {uuid for uuid, facts in there.items() if facts[4] == "keep"}
    assert kept.isdisjoint(by_clip(stage(Clips(split=CHANGES, encode=FAST), item(source))))
    spans = by_clip(*(stage(settings, item(source, part, 3)) for part in range(3)))
    assert {uuid: facts[:5] for uuid, facts in spans.items()} == {uuid: facts[:5] for uuid, facts in here.items()}


def test_the_same_content_twice_in_a_shard(stage: Stage, videos: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    shutil.copy(videos["even"], again)
    made = stage(Clips(split=CHANGES, encode=FAST, ids="content"), item(videos["even"]), item(again))
    once = {r["uuid"] for r in rows(made) if r["verdict"] == "keep"}
    twice = [r for r in rows(made) if r["verdict"] == "duplicate"]
    assert once == {r["uuid"] for r in twice} and {r["source"] for r in twice} == {str(again)}
    assert made.counts["clips"] == made.counts["dropped_duplicate"] == len(once) > 0
    assert all(r["mp4_offset"] is r["width"] is None and r["reasons"] for r in twice)
    with made.objects[0].open("rb") as file:
        assert sorted(key for key, _ in layers.read_tar(file)) == sorted(once)


def test_a_few_clips_of_each_video(stage: Stage, videos: dict[str, Path]) -> None:
    settings = Clips(split=SECONDS, encode=FAST)
    every = [r["uuid"] for r in rows(stage(settings, item(videos["even"])))]
    made = stage(Clips(split=SECONDS, encode=FAST, limit_clips=2), item(videos["even"]), item(videos["uneven"]))
    assert len(every) > 2 and [r["uuid"] for r in rows(made)][:2] == every[:2]
    assert made.counts["clips"] == 4 and made.bad == []
