"""Interlaced video comes out progressive: one frame for each, with its number and time, wherever decoding begins."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from hpc.data import video

SIZE = (320, 192)
SOURCE = ["-f", "lavfi", "-i", "testsrc2=s=320x192:r=50:d=4,scroll=horizontal=0.01"]
FIELDS = ["-vf", "interlace=scan=tff:lowpass=off", "-flags", "+ilme+ildct"]
BOTTOM = ["-vf", "interlace=scan=bff:lowpass=off", "-flags", "+ilme+ildct"]
FORMS = {
    "h264.mp4": [*FIELDS, "-c:v", "libx264", "-x264-params", "tff=1", "-g", "24", "-bf", "2", "-crf", "10"],
    "bottom.mkv": [*BOTTOM, "-c:v", "libx264", "-x264-params", "bff=1", "-g", "24", "-bf", "2", "-crf", "10"],
    "mpeg2.ts": [*FIELDS, "-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2"],
    "prores.mov": [*FIELDS, "-c:v", "prores_ks", "-frames:v", "40"],
    "mjpeg.mov": [*FIELDS[:2], "-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p", "-field_order", "tt"],
    "huffyuv.mkv": [*BOTTOM, "-c:v", "huffyuv", "-pix_fmt", "yuv422p", "-field_order", "bb"],
}
Luma = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fields")
    for name, options in FORMS.items():
        subprocess.run(["ffmpeg", "-v", "error", *SOURCE, *options, made / name], check=True, timeout=180)
    return made


@pytest.fixture(scope="module")
def whole() -> list[Luma]:
    """The luma of the scene at the times of the first fields, every line of it."""
    command = ["ffmpeg", "-v", "error", *SOURCE, "-vf", "format=yuv420p,select=not(mod(n\\,2))", "-vsync", "0"]
    data = subprocess.run([*command, "-f", "rawvideo", "-"], check=True, capture_output=True, timeout=180).stdout
    return list(np.frombuffer(data, np.uint8).reshape(-1, SIZE[1] * 3 // 2, SIZE[0])[:, : SIZE[1]].astype(int))


def luma(frame: av.VideoFrame) -> Luma:
    return frame.reformat(format="yuv420p", dst_color_range="MPEG").to_ndarray()[: SIZE[1]].astype(int)


def digests(decoder: video.Decoder) -> list[tuple[int, int, int, str]]:
    return [(n, f.pts, f.duration, hashlib.md5(f.to_ndarray().tobytes()).hexdigest()) for n, f in decoder]


@pytest.mark.parametrize("name", FORMS)
def test_it_is_seen_and_undone(folder: Path, whole: list[Luma], name: str) -> None:
    """The frames are nearer to the scene than those that were coded, and have their times."""
    assert video.probe(folder / name).interlaced
    with av.open(str(folder / name)) as container:
        coded = [(frame.pts, luma(frame)) for frame in container.decode(video=0)]
    decoded = list(video.Decoder(folder / name))
    assert [(number, frame.pts) for number, frame in decoded] == [(n, pts) for n, (pts, _) in enumerate(coded)]
    assert all(frame.duration * frame.time_base == pytest.approx(1 / 25) for _, frame in decoded[:-1])
    for number in (0, 5, 20, len(coded) - 1):
        before = np.abs(coded[number][1] - whole[number]).mean()
        after = np.abs(luma(decoded[number][1]) - whole[number]).mean()
        assert after < 0.67 * before, (number, before, after)


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.ts"])
def test_it_is_what_ffmpeg_makes_of_it(folder: Path, name: str) -> None:
    command = ["ffmpeg", "-v", "error", "-i", folder / name, "-vf", "bwdif=mode=send_frame:deint=interlaced"]
    data = subprocess.run([*command, "-f", "rawvideo", "-"], check=True, capture_output=True, timeout=180).stdout
    size = SIZE[0] * SIZE[1] * 3 // 2
    ours = b"".join(frame.to_ndarray().tobytes() for _, frame in video.Decoder(folder / name))
    assert len(ours) == len(data) == 100 * size
    # of the first frame, which has none before it, versions of bwdif think differently
    assert ours[size:] == data[size:]


@pytest.mark.parametrize("name", ["h264.mp4", "bottom.mkv", "mpeg2.ts", "mjpeg.mov"])
def test_from_the_middle_as_from_the_start(folder: Path, name: str) -> None:
    path = folder / name
    at, frames = video.index(path), digests(video.Decoder(path))
    assert at is not None and at.frames == len(frames) == 100
    for first in (1, 3, 24, 25, 46, 50, 71, 99):
        assert digests(video.Decoder(path, first, at)) == frames[first:], first


def test_fields_that_begin_in_the_middle(folder: Path, tmp_path: Path) -> None:
    """Progressive frames stay bit for bit what they were, before and after."""
    progressive, path = tmp_path / "progressive.ts", tmp_path / "mixed.mkv"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=320x192:r=25:d=4", "-c:v", "mpeg2video",
                    "-q:v", "2", "-g", "12", "-bf", "2", progressive], check=True, timeout=180)  # fmt: skip
    joined = f"concat:{progressive}|{folder / 'mpeg2.ts'}|{progressive}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", joined, "-c", "copy", path], check=True, timeout=180)
    with av.open(str(path)) as container:
        coded = [(f.interlaced_frame, hashlib.md5(f.to_ndarray().tobytes()).hexdigest()) for f in container.decode()]
    frames = digests(video.Decoder(path))
    assert len(frames) == len(coded) > 290 and not video.probe(path).interlaced
    fields = [interlaced for interlaced, _ in coded]
    assert fields[90:110] == [False] * 10 + [True] * 10 and not fields[-1]
    same = [ours[3] == digest for ours, (_, digest) in zip(frames, coded, strict=True)]
    assert same == [not interlaced for interlaced in fields]
    at = video.index(path)
    for first in (90, 98, 100, 101, 102, 150, 199, 200, 201, 250) if at else ():
        assert digests(video.Decoder(path, first, at)) == frames[first:], first
    assert at is not None


def test_progressive_video_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No filter is made, and the frames are bit for bit those of ffmpeg."""
    path = tmp_path / "progressive.mp4"
    subprocess.run(["ffmpeg", "-v", "error", *SOURCE, "-t", "1", "-c:v", "libx264", path], check=True, timeout=180)
    expected = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-"], check=True,
                              capture_output=True, timeout=180).stdout  # fmt: skip
    monkeypatch.setattr(av.filter, "Graph", None)
    decoder = video.Decoder(path)
    assert b"".join(frame.to_ndarray().tobytes() for _, frame in decoder) == expected and not decoder.interlaced
