"""The inputs that break other suites, each through the whole stage beside a good video: a right clip, or a quarantine
record with its reason; the good video's clips come out whatever its neighbour is."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import hypothesis
import numpy as np
import pytest
import s3
from hypothesis import strategies
from test_clips import FAST, SECONDS, SHORT, TRAILER, Stage, by_clip, ffmpeg, item, rows

from hpc.curate.settings import Clips, Encode, Split
from hpc.curate.settings.filters import Filters, Resolution
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Bad, Item, Made

SECOND_BY_SECOND = Clips(split=SECONDS, encode=FAST)
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "24", "-bf", "3"]
SCENE = ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=24:d=4"]
SOUND = ["-f", "lavfi", "-i", "sine=d=4"]
COPY = ["-i", "{plain.mp4}", "-c", "copy"]

# name -> arguments of ffmpeg; {other} is another one of these files.
FILES: dict[str, list[str]] = {
    "good.mp4": ["-ss", "31", "-t", "2", "-i", str(TRAILER), "-vf", "scale=160:90", *X264, "-an"],
    "plain.mp4": [*SCENE, *X264],
    "vfr.mp4": ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=30:d=6", "-vf", "select='lt(n,90)+not(mod(n,3))'", "-vsync",
                "vfr", *X264],
    "even-cuts.mp4": ["-ss", "31", "-t", "10", "-i", str(TRAILER), "-vf", "scale=320:180", *X264, "-an"],
    "vfr-cuts.mkv": ["-i", "{even-cuts.mp4}", "-vf", "select='lt(n,100)+not(mod(n,3))'", "-vsync", "vfr", *X264],
    "tall.mp4": [*COPY, "-metadata:s:v", "rotate=90"],
    "picture.jpg": [*SCENE, "-frames:v", "1"],
    "cover.mp4": ["-i", "{plain.mp4}", "-i", "{picture.jpg}", "-map", "1", "-map", "0", "-c", "copy",
                  "-disposition:v:0", "attached_pic"],
    "song.m4a": [*SOUND, "-i", "{picture.jpg}", "-map", "0", "-map", "1", "-c:a", "aac", "-c:v", "copy",
                 "-disposition:v", "attached_pic", "-f", "mp4"],
    "piped.mkv": [*COPY, "-f", "matroska", "-live", "1"],
    "recorded.webm": [*SCENE, "-c:v", "libvpx", "-deadline", "realtime", "-f", "webm", "-live", "1"],
    "front.mp4": [*COPY, "-movflags", "+faststart"],
    "only-sound.mp4": SOUND,
    "pcm.mov": ["-i", "{plain.mp4}", *SOUND, "-c:v", "copy", "-c:a", "pcm_s24le"],
    "late.mp4": ["-itsoffset", "1.7", *COPY],
    "late.mkv": ["-itsoffset", "1.7", *COPY],
    "plain.ts": COPY,
    "10-bit.mp4": [*SCENE, "-pix_fmt", "yuv420p10le", *X264, "-crf", "4"],
    "12-bit-444.mkv": [*SCENE, "-pix_fmt", "yuv444p12le", "-c:v", "ffv1"],
    "422.mp4": [*SCENE, "-pix_fmt", "yuv422p", *X264, "-crf", "4"],
    "prores.mov": [*SCENE, "-pix_fmt", "yuv422p10le", "-c:v", "prores_ks"],
    "alpha.mov": [*SCENE, "-pix_fmt", "yuva444p10le", "-c:v", "prores_ks", "-profile:v", "4"],
    "odd.mp4": [*SCENE, "-vf", "crop=319:179:0:0:exact=1,format=yuv444p", *X264, "-crf", "4"],
    "444.mp4": [*SCENE, "-pix_fmt", "yuv444p", *X264, "-crf", "4"],
    "palette.gif": [*SCENE, "-r", "12", "-vf", "scale=out_color_matrix=bt709:flags=full_chroma_int,format=rgb24"],
    "alpha.gif": ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=12:d=4:alpha=128", "-vf", "split[a][b];[a]palettegen[p];"
                  "[b][p]paletteuse"],
    "grey.mkv": [*SCENE, "-pix_fmt", "gray", "-c:v", "ffv1"],
    "rgb.mov": [*SCENE, "-pix_fmt", "rgb24", "-c:v", "png"],
    "full-range.mp4": [*SCENE, "-vf", "scale=out_range=pc", "-color_range", "pc", *X264, "-crf", "4"],
    "jpeg.avi": [*SCENE, "-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj422p"],
    "wide-pixels.mp4": [*SCENE, "-vf", "setsar=4/3", *X264],
    "fields.mp4": ["-f", "lavfi", "-i", "testsrc2=s=320x192:r=50:d=4,scroll=horizontal=0.01", "-vf",
                   "interlace=scan=tff:lowpass=off", "-flags", "+ilme+ildct", *X264, "-crf", "6", "-x264-params",
                   "tff=1"],
    "one-gop.mp4": [*SCENE, "-c:v", "libx264", "-preset", "veryfast", "-g", "9999", "-sc_threshold", "0"],
    "edit-list.mp4": ["-ss", "1.3", *COPY],
    "open-gop.mp4": [*SCENE, *X264, "-x264-params", "open-gop=1:b-pyramid=2:scenecut=0:keyint=20:bframes=5"],
    "small.mp4": [*SCENE, "-vf", "scale=128:72", *X264],
    "tiny.mp4": [*SCENE, "-vf", "scale=8:8", *X264],
    "banner.mp4": [*SCENE, "-vf", "scale=960:64", *X264],
    "pixel.mp4": [*SCENE, "-vf", "scale=16:16", *X264, "-frames:v", "12"],
}  # fmt: skip
for kind, transfer in (("pq", "smpte2084"), ("hlg", "arib-std-b67")):
    FILES[f"{kind}.mp4"] = [*SCENE, "-vf", "scale=out_color_matrix=bt2020,format=yuv420p10le", *X264, "-color_trc",
                            transfer, "-color_primaries", "bt2020", "-colorspace", "bt2020nc"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """made("plain.mp4"): the path of one of FILES, made when it is asked for first."""
    folder = tmp_path_factory.mktemp("ugly")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            ffmpeg(*(str(make(a[1:-1])) if a[0] == "{" else a for a in FILES[name]), path)
        return path

    return make


class Shards:
    """Runs the stage on ugly inputs with a good one between them, whose clips must be what they are without them."""

    def __init__(self, stage: Stage, good: Path) -> None:
        self.stage, self.good, self.alone = stage, item(good), {}

    def __call__(self, *uglies: Item | Path, settings: Clips = SECOND_BY_SECOND, **options: Any) -> Made:
        items = [one if isinstance(one, Item) else item(one) for one in uglies]
        if settings not in self.alone:
            self.alone[settings] = by_clip(self.stage(settings, self.good))
        made = self.stage(settings, *items[:1], self.good, *items[1:], **options)
        found = by_clip(made)
        assert {key: found.get(key) for key in self.alone[settings]} == self.alone[settings]
        for row in rows(made):  # no torn file: each clip holds the frames that its row says
            if row["verdict"] == "keep":
                clip = video.Decoder(io.BytesIO(found[row["uuid"]][5][".mp4"]))
                assert sum(1 for _ in clip) == row["num_frames"] and clip.damaged == 0
        return made


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, made: Callable[[str], Path]) -> Shards:
    return Shards(Stage(tmp_path_factory.mktemp("stage")), made("good.mp4"))


def ugly(made: Made) -> list[dict[str, Any]]:
    """The rows of all but the good video."""
    return [row for row in rows(made) if not row["source"].endswith("good.mp4")]


def mp4s(made: Made) -> list[bytes]:
    """The clips of all but the good video."""
    members = by_clip(made)
    return [members[row["uuid"]][5][".mp4"] for row in ugly(made) if row["verdict"] == "keep"]


def reasons(bad: list[Bad]) -> list[tuple[str, str]]:
    return [(Path(one.uri).name, one.reason) for one in bad]


def pixels(path: Path | str, filters: str = "null") -> np.ndarray:
    """uint8 [frames, height * 3 / 2, width]: what ffmpeg makes of a file, as yuv420p of limited range."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    filters += ",scale=out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,format=yuv420p"
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", filters, "-vsync", "0", "-f", "rawvideo", "-"]
    data = subprocess.run(command, check=True, capture_output=True, timeout=180).stdout
    width, height = frame.width // 2 * 2, frame.height // 2 * 2
    return np.frombuffer(data, np.uint8).reshape(-1, height * 3 // 2, width).astype(int)


def frames_of(clips: list[bytes]) -> np.ndarray:
    return np.stack([f.to_ndarray() for clip in clips for _, f in video.Decoder(io.BytesIO(clip))]).astype(int)


def test_row_1_a_variable_rate(shards: Shards, made: Callable[[str], Path]) -> None:
    """30 frames a second, then 10: clips are cut by time, and keep each frame's."""
    one = shards(made("vfr.mp4"))
    found = ugly(one)
    assert [(r["start_seconds"], r["end_seconds"]) for r in found] == [(float(n), float(n + 1)) for n in range(6)]
    assert [r["num_frames"] for r in found] == [30, 30, 30, 10, 10, 10] and one.bad == []
    for row, clip in zip(found, mp4s(one), strict=True):
        times = [float(f.pts * f.time_base) for _, f in video.Decoder(io.BytesIO(clip))]
        assert times == pytest.approx([n / row["num_frames"] for n in range(row["num_frames"])], abs=1e-4)
    joined = ugly(shards(made("vfr.mp4"), settings=Clips(split=Split(detector="stride"), encode=FAST)))
    assert [(r["is_vfr"], r["num_frames"], r["fps"]) for r in joined] == [(True, 120, 20.0)]


def test_row_1_cuts_are_found_at_their_times(shards: Shards, made: Callable[[str], Path]) -> None:
    """With two thirds of the frames gone after 4 s, cuts are where they were, to a frame of what is left."""
    found = ugly(shards(made("even-cuts.mp4"), made("vfr-cuts.mkv"), settings=Clips(split=SHORT, encode=FAST)))
    even, uneven = (
        [r["start_seconds"] for r in found if r["source"].endswith(name)] for name in ("even-cuts.mp4", "vfr-cuts.mkv")
    )
    nearest = [min(abs(start - other) for other in uneven) for start in even]
    assert len(even) >= 5 and sum(off <= 0.2 for off in nearest) >= len(even) - 1


def test_row_2_rotation(shards: Shards, made: Callable[[str], Path]) -> None:
    one = shards(made("tall.mp4"))
    for row, clip in zip(ugly(one), mp4s(one), strict=True):
        assert (row["source_width"], row["source_height"], row["source_rotation"]) == (180, 320, 270)
        assert (row["width"], row["height"]) == (180, 320)
        info = video.probe(io.BytesIO(clip))
        assert (info.width, info.height, info.rotation) == (180, 320, 0)
    assert np.abs(frames_of(mp4s(one)) - pixels(made("tall.mp4")).reshape(96, 480, 180)).mean() < 4


def test_row_3_cover_art(shards: Shards, made: Callable[[str], Path]) -> None:
    one = shards(made("cover.mp4"), made("song.m4a"))
    assert [r["num_frames"] for r in ugly(one)] == [24] * 4 and {r["source_codec"] for r in ugly(one)} == {"h264"}
    assert reasons(one.bad) == [("song.m4a", "no-video-stream")]


@pytest.mark.parametrize("name", ["piped.mkv", "recorded.webm"])
def test_row_4_no_duration(shards: Shards, made: Callable[[str], Path], name: str) -> None:
    one = shards(made(name))
    assert [(r["num_frames"], r["source_seconds"], r["source_frames"]) for r in ugly(one)] == [(24, 0.0, 0)] * 4
    assert one.bad == [] and one.counts["damaged_frames"] == 0


def test_row_5_truncated(shards: Shards, made: Callable[[str], Path], tmp_path: Path) -> None:
    """What is there is salvaged, the rest counted."""
    half = tmp_path / "half.mp4"
    half.write_bytes(made("front.mp4").read_bytes()[: made("front.mp4").stat().st_size // 2])
    one = shards(half)
    whole = ugly(shards(made("front.mp4")))
    kept = [r for r in ugly(one) if r["verdict"] == "keep"]
    assert 1 <= len(kept) < 4 and one.bad == []
    assert [r["end_frame"] for r in kept[:-1]] == [r["end_frame"] for r in whole[: len(kept) - 1]]
    frames = one.counts["frames"] - 48
    assert one.counts["damaged_frames"] >= 96 - frames > 20
    assert {r["source_frames"] for r in kept} == {96}


def test_row_6_no_video_at_all(shards: Shards, made: Callable[[str], Path], tmp_path: Path) -> None:
    plain = made("plain.mp4").read_bytes()
    files = {
        "no-moov.mp4": plain[: plain.find(b"moov") - 4],
        "zero.mp4": b"",
        "notes.mp4": b"Dear diary,\nnothing moved today.\n" * 99,
        "nothing.mkv": bytes(5000),
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    one = shards(*(tmp_path / name for name in files), made("only-sound.mp4"))
    assert reasons(one.bad) == [
        ("no-moov.mp4", "corrupt"), ("zero.mp4", "empty-file"), ("notes.mp4", "not-a-video"),
        ("nothing.mkv", "not-a-video"), ("list.mp4", "not-a-video"), ("only-sound.mp4", "no-video-stream"),
    ]  # fmt: skip
    assert ugly(one) == [] and one.counts["inputs"] == 7


@pytest.mark.parametrize("audio", ["drop", "keep"])
def test_row_7_pcm_in_mov(shards: Shards, made: Callable[[str], Path], audio: str) -> None:
    settings = Clips(split=SECONDS, encode=Encode(preset="ultrafast", crf=30.0, audio=audio))  # type: ignore[arg-type]
    one = shards(made("pcm.mov"), settings=settings)
    assert [r["num_frames"] for r in ugly(one)] == [24] * 4 and one.bad == []
    assert {video.probe(io.BytesIO(clip)).audio_codec for clip in mp4s(one)} == {"" if audio == "drop" else "aac"}


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_row_8_a_late_start(shards: Shards, made: Callable[[str], Path], name: str) -> None:
    one = shards(made(name))
    assert [r["start_seconds"] for r in ugly(one)] == pytest.approx([0, 1, 2, 3], abs=2e-3)
    assert [r["num_frames"] for r in ugly(one)] == [24] * 4 and ugly(one)[0]["start_seconds"] == 0
    assert {video.probe(io.BytesIO(clip)).start_pts for clip in mp4s(one)} == {0}


def test_row_9_mpeg_ts(shards: Shards, made: Callable[[str], Path]) -> None:
    """Its clips are those of the mp4 that it was made from."""
    one, two = shards(made("plain.ts")), shards(made("plain.mp4"))
    assert [r["num_frames"] for r in ugly(one)] == [24] * 4
    assert (frames_of(mp4s(one)) == frames_of(mp4s(two))).all()


CODED = {  # name -> the greatest mean difference from ffmpeg's own conversion, encoding at crf 4 included
    "10-bit.mp4": 1.2, "12-bit-444.mkv": 1.2, "422.mp4": 1.2, "prores.mov": 1.2, "alpha.mov": 1.2,
    "odd.mp4": 1.2, "444.mp4": 1.2, "grey.mkv": 1.2, "full-range.mp4": 1.2, "jpeg.avi": 1.2, "wide-pixels.mp4": 1.2,
}  # fmt: skip
FINE = Clips(split=SECONDS, encode=Encode(preset="ultrafast", crf=4.0))


@pytest.mark.parametrize("name", CODED)
def test_rows_10_and_11_any_format(shards: Shards, made: Callable[[str], Path], name: str) -> None:
    """8-bit 4:2:0 with even sides; the colors are those of ffmpeg's own conversion."""
    one = shards(made(name), settings=FINE)
    size = (318, 178) if name == "odd.mp4" else (320, 180)
    assert one.bad == [] and len(mp4s(one)) == 4
    for clip in mp4s(one):
        with av.open(io.BytesIO(clip)) as container:
            context = container.streams.video[0].codec_context
            assert (context.pix_fmt, context.width, context.height, context.profile) == (
                "yuv420p", *size, "Constrained Baseline"
            )  # fmt: skip
    crop = f"crop={size[0]}:{size[1]}:0:0:exact=1"
    difference = np.abs(frames_of(mp4s(one)) - pixels(made(name), crop))
    assert difference.mean() < CODED[name]
    if name == "wide-pixels.mp4":
        assert {r["source_pixel_aspect"] for r in ugly(one)} == {4 / 3}
        assert video.probe(io.BytesIO(mp4s(one)[0])).pixel_aspect == Fraction(4, 3)


@pytest.mark.parametrize("name", ["palette.gif", "alpha.gif", "rgb.mov"])
def test_row_11_rgb(shards: Shards, made: Callable[[str], Path], name: str) -> None:
    """R, G and B go through BT.709, and the clip says so: whoever plays it gets the colors back."""
    one = shards(made(name), settings=FINE)
    assert one.bad == [] and len(mp4s(one)) == 4
    with av.open(io.BytesIO(mp4s(one)[0])) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_range) == ("yuv420p", 1, 1)
    with av.open(str(made(name))) as container:
        before = next(container.decode(video=0)).reformat(80, 45, "rgb24").to_ndarray().astype(int)
    _, frame = next(iter(video.Decoder(io.BytesIO(mp4s(one)[0]))))
    after = frame.reformat(80, 45, "rgb24").to_ndarray().astype(int)
    assert np.median(np.abs(before - after)) <= 2  # BT.601 read as BT.709 makes 10 and more of it


@pytest.mark.parametrize("name", ["pq.mp4", "hlg.mp4"])
def test_row_10_hdr(shards: Shards, made: Callable[[str], Path], name: str) -> None:
    one = shards(made(name))
    assert {(r["source_transfer"], r["source_primaries"], r["source_pix_fmt"]) for r in ugly(one)} == {
        (name.removesuffix(".mp4"), 9, "yuv420p10le")
    }
    for clip in mp4s(one):
        assert b"mdcv" not in clip
        with av.open(io.BytesIO(clip)) as container:
            frame = next(container.decode(video=0))
            assert frame.format.name == "yuv420p"
            assert (frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range) == (1, 1, 1, 1)
    spans = [shards.stage(SECOND_BY_SECOND, item(made(name), part, 2)) for part in range(2)]
    assert by_clip(*spans) == {key: clip for key, clip in by_clip(one).items() if key in by_clip(*spans)}
    assert len(by_clip(*spans)) == 4
    refused = shards(made(name), settings=Clips(split=SECONDS, encode=Encode(preset="ultrafast", hdr="refuse")))
    assert reasons(refused.bad) == [(name, "hdr")] and ugly(refused) == []


def test_row_12_interlaced(shards: Shards, made: Callable[[str], Path]) -> None:
    one = shards(made("fields.mp4"), settings=FINE)
    assert [(r["num_frames"], r["source_interlaced"]) for r in ugly(one)] == [(25, True)] * 4
    assert {r["source_interlaced"] for r in rows(one)} == {True, False}
    with av.open(str(made("fields.mp4"))) as container:
        coded = np.stack([frame.to_ndarray()[:192] for frame in container.decode(video=0)]).astype(int)

    def comb(frames: np.ndarray) -> float:
        """How much neighbouring lines differ more than those two apart."""
        near, far = np.abs(frames[:, 1:-1] - frames[:, :-2]).mean(), np.abs(frames[:, 2:] - frames[:, :-2]).mean()
        return near / far

    assert comb(frames_of(mp4s(one))[:, :192]) < 0.8 < 1.2 < comb(coded)
    spans = [shards.stage(FINE, item(made("fields.mp4"), part, 3)) for part in range(3)]
    assert by_clip(*spans) == {key: clip for key, clip in by_clip(one).items() if clip[1] - clip[0] == 25}


def test_row_13_one_group_of_pictures(shards: Shards, made: Callable[[str], Path], monkeypatch: Any) -> None:
    """Four clips of a video with a single key frame: one pass, each frame is decoded once."""
    decoded = 0
    frames = video.Decoder._frames

    def counted(self: video.Decoder, *arguments: Any) -> Any:
        nonlocal decoded
        for frame in frames(self, *arguments):
            decoded += 1
            yield frame

    alone = item(made("one-gop.mp4"))
    monkeypatch.setattr(video.Decoder, "_frames", counted)
    one = shards.stage(SECOND_BY_SECOND, alone)
    assert [r["num_frames"] for r in rows(one)] == [24] * 4 and decoded <= 96 + 2  # the probe looks at one or two
    monkeypatch.undo()
    spans = [shards.stage(SECOND_BY_SECOND, item(made("one-gop.mp4"), part, 2)) for part in range(2)]
    assert by_clip(*spans) == by_clip(shards.stage(SECOND_BY_SECOND, alone))


@pytest.mark.parametrize(("name", "frames"), [("edit-list.mp4", [24, 24, 16]), ("open-gop.mp4", [24] * 4)])
def test_row_14_edit_lists_and_b_frames(shards: Shards, made: Callable[[str], Path], name: str, frames: Any) -> None:
    """The first frame is the one that players show first; none is missing."""
    one = shards(made(name), settings=FINE)
    found = [r for r in ugly(one) if r["verdict"] == "keep"]
    assert [r["num_frames"] for r in found] == frames and found[0]["start_seconds"] == 0
    expected = pixels(made(name))
    assert np.abs(frames_of(mp4s(one)) - expected[: sum(frames)]).mean() < 1.2


def test_row_15_small_sides(shards: Shards, made: Callable[[str], Path]) -> None:
    """A small video is measured like any other; below a macroblock it is none."""
    one = shards(made("small.mp4"), made("tiny.mp4"))
    assert [(r["verdict"], r["width"], r["height"]) for r in ugly(one)] == [("keep", 128, 72)] * 4
    assert reasons(one.bad) == [("tiny.mp4", "too-small")]
    strict = Clips(split=SECONDS, encode=FAST, filter=Filters(resolution=Resolution(min_width=256, min_height=0)))
    found = ugly(shards(made("small.mp4"), settings=strict))
    assert [(r["verdict"], r["reasons"]) for r in found] == [("resolution", ["resolution_width 128 < 256"])] * 4


def test_row_16_short_and_wide(shards: Shards, made: Callable[[str], Path]) -> None:
    """Clips of two seconds and clips 15 times as wide as high come out; who wants neither says so, and it is noted."""
    settings = Clips(split=Split(detector="stride", stride=Seconds(2), min_clip=Seconds(2)), encode=FAST)
    found = ugly(shards(made("banner.mp4"), settings=settings))
    assert [(r["verdict"], r["width"], r["height"], r["num_frames"]) for r in found] == [("keep", 960, 64, 48)] * 2
    strict = Clips(split=settings.split, encode=FAST, filter=Filters(resolution=Resolution(min_width=0, min_height=0)))
    found = ugly(shards(made("banner.mp4"), settings=strict))
    assert [(r["verdict"], r["reasons"]) for r in found] == [("resolution", ["resolution_aspect 15 > 4"])] * 2


def test_row_17_the_same_name_twice(shards: Shards, made: Callable[[str], Path], tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.mp4", tmp_path / "a" / "x.mov"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(made("small.mp4"), path)
    found = ugly(shards(*paths))
    assert [r["source"] for r in found] == [str(path) for path in paths for _ in range(4)]
    assert len({r["uuid"] for r in found}) == 12


NAMES = strategies.text(
    strategies.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 240)


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(NAMES)
@hypothesis.example("-y.mp4")
@hypothesis.example(" 50% 'it''s' \"+\" #1?&:*.mp4")
@hypothesis.example("pipe:0")
@hypothesis.example("日本\n\t\x1b[31m.mp4")
@hypothesis.example("x" * 236 + ".mp4")
def test_row_18_names(shards: Shards, made: Callable[[str], Path], name: str) -> None:
    folder = made("pixel.mp4").parent / uuid.uuid4().hex
    folder.mkdir()
    path = folder / name
    shutil.copy(made("pixel.mp4"), path)
    if name.lower().endswith(".tar"):
        return
    one = shards.stage(SECOND_BY_SECOND, item(path))
    assert [(r["source"], r["num_frames"]) for r in rows(one)] == [(str(path), 12)] and one.bad == []
    with tarfile.open(one.objects[0]) as tar:
        assert all(re.fullmatch(r"[0-9a-f-]{36}\.(mp4|json|webp)", member) for member in tar.getnames())
    shutil.rmtree(folder)


@pytest.mark.parametrize("content", ["front.mp4", "plain.ts", ""])
def test_row_19_larger_than_the_memory(made: Callable[[str], Path], tmp_path: Path, content: str) -> None:
    """64 GiB, most of it a hole, with 4 GiB of address space: what is a video in it is cut."""
    path, scratch = tmp_path / f"huge{Path(content).suffix or '.mp4'}", tmp_path / "scratch"
    path.write_bytes(made(content).read_bytes() if content else b"")
    os.truncate(path, 64 * 2**30)
    scratch.mkdir()
    code = """if True:
        import resource, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import test_clips as t
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        made = t.clips.process(t.source.Tools(t.Clips(split=t.SECONDS, encode=t.FAST), None, {}), t.Work("000000",
            [t.item(sys.argv[2])], [], {}, Path(sys.argv[3]), "", lambda: None, lambda *a: None))
        print(int(made.counts["clips"]), ",".join(bad.reason for bad in made.bad))
    """
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["4"] if content else ["0", "not-a-video"])


def peak(path: Path, scratch: Path, detector: str) -> tuple[int, int]:
    """Frames, and MiB that a process needed at most to cut a file."""
    scratch.mkdir()
    code = """if True:
        import resource, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import test_clips as t
        model = t.shots.load_transnetv2() if sys.argv[4] == "transnetv2" else None
        settings = t.Clips(split=t.Split(detector=sys.argv[4]), encode=t.Encode(preset="ultrafast", crf=45.0))
        made = t.clips.process(t.source.Tools(settings, model, {}), t.Work("000000",
            [t.item(sys.argv[2])], [], {}, Path(sys.argv[3]), "", lambda: None, lambda *a: None))
        assert made.counts["clips"] >= 1
        print(int(made.counts["frames"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), str(scratch), detector]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    frames, rss = done.stdout.split()
    return int(frames), int(rss)


@pytest.mark.parametrize(
    ("detector", "fps", "seconds"),
    [
        ("stride", 12, (4, 12)),
        pytest.param("stride", 5, (60, 600), marks=pytest.mark.long),
        pytest.param("transnetv2", 5, (60, 600), marks=pytest.mark.long),
    ],
)
def test_row_19_memory_is_flat(tmp_path: Path, detector: str, fps: int, seconds: tuple[int, int]) -> None:
    """The same two seconds of 3840x2160 again and again: ten times the length needs no more memory."""
    loop = tmp_path / "loop.mp4"
    ffmpeg("-ss", "20", "-i", TRAILER, "-r", str(fps), "-frames:v", str(2 * fps), "-vf",
           "scale=3840:2160:flags=neighbor", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "35", "-an",
           loop)  # fmt: skip
    found = []
    for length in seconds:
        path = tmp_path / f"{length}.mp4"
        ffmpeg("-stream_loop", str(length // 2 - 1), "-i", loop, "-c", "copy", path)
        found.append(peak(path, tmp_path / f"scratch-{length}", detector))
    (frames, rss), (more_frames, more_rss) = found
    print(detector, found)
    assert (frames, more_frames) == (fps * seconds[0], fps * seconds[1])
    assert more_rss < rss + 100, f"{rss} MiB for {frames} frames, {more_rss} MiB for {more_frames}"
    assert more_rss < 3072


def test_row_19_many_tiny_files(shards: Shards, made: Callable[[str], Path], tmp_path: Path) -> None:
    """One shard of 80 videos and 80 that are none; no file is left open."""
    for number in range(80):
        shutil.copy(made("pixel.mp4"), tmp_path / f"{number}.mp4")
        (tmp_path / f"{number}.bad.mp4").write_bytes(b"no video %d" % number)
    before = len(list(Path("/proc/self/fd").iterdir()))
    one = shards(*sorted(tmp_path.iterdir()))
    assert (one.counts["clips"], len(one.bad), one.counts["inputs"]) == (80 + 2, 80, 161)
    assert {bad.reason for bad in one.bad} == {"not-a-video"}
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


@pytest.mark.parametrize(("what", "reason"), [("vanish", "missing"), ("change", "changed-since-planned")])
def test_row_20_objects_underway(
    shards: Shards, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, reason: str
) -> None:
    """An object that vanishes, or is replaced, while it is read: quarantined, and nothing of it comes out."""
    big = tmp_path / "big.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=640x360:r=24:d=4,noise=alls=60:allf=t", "-c:v", "libx264", "-preset",
           "ultrafast", "-qp", "6", "-movflags", "+faststart", big)  # fmt: skip
    assert big.stat().st_size > 24 * 2**20  # more than what is read ahead
    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        uri = "s3://bucket/raw/big.mp4"
        storage.put(uri, big)
        planned, calls = item(uri), 0

        def check() -> None:
            nonlocal calls
            calls += 1
            if calls == 12:
                storage.delete(uri) if what == "vanish" else storage.put(uri, made("plain.mp4"))

        one = shards(planned, check=check)
        assert reasons(one.bad) == [("big.mp4", reason)] and ugly(one) == []


def test_row_20_a_file_underway(shards: Shards, made: Callable[[str], Path], tmp_path: Path) -> None:
    """A local file that is written to while it is read."""
    path, calls = tmp_path / "growing.mp4", 0
    shutil.copy(made("plain.mp4"), path)

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            with path.open("ab") as file:
                file.write(b"more")

    one = shards(item(path), check=check)
    assert reasons(one.bad) == [("growing.mp4", "changed-since-planned")] and ugly(one) == []
    with one.objects[0].open("rb") as file:
        assert len(list(layers.read_tar(file))) == 2
