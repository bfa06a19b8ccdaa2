"""Probe, decode and encode against files that ffmpeg makes here, the ugly ones among them."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hpc.data import video
from hpc.data.video import container
from hpc.data.work import BadInput

SOURCE = ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=24:d=4"]
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "24", "-bf", "3"]
COPY = ["-i", "{plain.mp4}", "-c", "copy"]

# name -> arguments of ffmpeg; {other} is another one of these files.
FILES: dict[str, list[str]] = {
    "plain.mp4": [*SOURCE, *X264],
    "front.mp4": [*COPY, "-movflags", "+faststart"],
    "open-gop.mp4": [*SOURCE, *X264, "-x264-params", "open-gop=1:b-pyramid=2:scenecut=0:keyint=20:bframes=5"],
    "fragments.mp4": [*COPY, "-movflags", "frag_keyframe+empty_moov"],
    "edit-list.mp4": ["-ss", "1.3", *COPY],
    "plain.mkv": COPY,
    "no-length.mkv": [*COPY, "-f", "matroska", "-live", "1"],
    "plain.ts": COPY,
    "small.ts": [*SOURCE, "-vf", "scale=160:120", *X264, "-frames:v", "10"],
    "plain.avi": [*SOURCE, "-c:v", "mpeg4", "-g", "24", "-bf", "2"],
    "plain.mpg": [*SOURCE, "-c:v", "mpeg2video", "-g", "15", "-bf", "2"],
    "plain.webm": [*SOURCE, "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "24"],
    "jpeg.mov": [*SOURCE, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-frames:v", "60"],
    "plain.gif": [*SOURCE, "-frames:v", "60", "-r", "12"],
    "raw.h264": [*COPY, "-f", "h264"],
    "vfr.mp4": [*SOURCE, "-vf", "select='lt(n,48)+not(mod(n,3))'", "-vsync", "vfr", *X264],
    "vfr.mkv": ["-i", "{vfr.mp4}", "-c", "copy"],
    "late.mp4": ["-itsoffset", "1.7", *COPY],
    "tall.mp4": [*COPY, "-metadata:s:v", "rotate=90"],
    "upside-down.mp4": [*COPY, "-metadata:s:v", "rotate=180"],
    "left.mp4": [*COPY, "-metadata:s:v", "rotate=270"],
    "odd-444.mp4": [*SOURCE, "-vf", "crop=319:179:0:0:exact=1,format=yuv444p", *X264, "-crf", "5"],
    "10-bit.mp4": [*SOURCE, "-vf", "format=yuv420p10le", *X264, "-frames:v", "40"],
    "wide-pixels.mp4": [*SOURCE, "-vf", "setsar=4/3", *X264, "-frames:v", "40"],
    "sound.mp4": ["-i", "{plain.mp4}", "-f", "lavfi", "-i", "sine=d=4", "-c:v", "copy", "-c:a", "aac"],
    "only-sound.mp4": ["-f", "lavfi", "-i", "sine=d=1"],
    "picture.jpg": [*SOURCE, "-frames:v", "1"],
    "song.m4a": ["-f", "lavfi", "-i", "sine=d=1", "-i", "{picture.jpg}", "-map", "0", "-map", "1", "-c:a", "aac",
                 "-c:v", "copy", "-disposition:v", "attached_pic", "-f", "mp4"],
    "cover.mp4": ["-i", "{plain.mp4}", "-i", "{picture.jpg}", "-map", "1", "-map", "0", "-c", "copy",
                  "-disposition:v:0", "attached_pic"],
    "tiny.mp4": [*SOURCE, "-vf", "scale=8:8", *X264, "-frames:v", "5"],
}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """made("plain.mp4"): the path of one of FILES, made when it is asked for first."""
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            arguments = [str(make(a[1:-1])) if a[0] == "{" else a for a in FILES[name]]
            subprocess.run(["ffmpeg", "-v", "error", "-bitexact", *arguments, path], check=True, timeout=180)
        return path

    return make


def digests(decoder: video.Decoder) -> list[tuple[int, int, int, str]]:
    """(number, pts, duration, digest of the pixels) of each frame."""
    return [(n, f.pts, f.duration, hashlib.md5(f.to_ndarray().tobytes()).hexdigest()) for n, f in decoder]


def ffprobe(path: Path, entries: str) -> dict:
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", path]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=180).stdout)


def encoded(path: Path, source: Path, frames: range, crf: float = 23) -> video.Video:
    """Encode these frames of the source to `path`, and probe it."""
    taken = [frame for number, frame in video.Decoder(source) if number in frames]
    ends = [frame.pts for frame in taken[1:]] + [taken[-1].pts + taken[-1].duration]
    encoder = video.Encoder(path, video.probe(source), video.Coding(crf=crf))
    for frame, end in zip(taken, ends, strict=True):
        encoder.write(frame, end - frame.pts)
    encoder.close()
    assert encoder.frames == len(taken)
    return video.probe(path)


def test_facts(made: Callable[[str], Path]) -> None:
    path = made("sound.mp4")
    assert video.probe(path) == video.Video(
        width=320, height=180, rotation=0, pixel_aspect=Fraction(1), codec="h264", pix_fmt="yuv420p",
        fps=Fraction(24), frames=96, duration=4.0, start_pts=0, time_base=Fraction(1, 12288), audio_codec="aac",
        bytes=path.stat().st_size,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("edit-list.mp4", {"frames": 64}),
        ("no-length.mkv", {"frames": 0, "duration": 0.0}),
        ("plain.ts", {"start_pts": 133500, "time_base": Fraction(1, 90000)}),
        ("late.mp4", {"start_pts": 20890}),
        ("tall.mp4", {"width": 180, "height": 320, "rotation": 270}),
        ("upside-down.mp4", {"width": 320, "height": 180, "rotation": 180}),
        ("left.mp4", {"width": 180, "height": 320, "rotation": 90}),
        ("odd-444.mp4", {"width": 319, "height": 179, "pix_fmt": "yuv444p"}),
        ("wide-pixels.mp4", {"pixel_aspect": Fraction(4, 3)}),
        ("cover.mp4", {"codec": "h264", "frames": 96}),
        ("jpeg.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)
def test_facts_of_ugly_files(made: Callable[[str], Path], name: str, facts: dict[str, object]) -> None:
    found = video.probe(made(name))
    assert {key: getattr(found, key) for key in facts} == facts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty-file"),
        (b"Dear diary,\nnothing moved today.\n" * 99, "not-a-video"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "not-a-video"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not-a-video"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(500), "corrupt"),
        (b"\x1aE\xdf\xa3" + bytes(500), "corrupt"),
        (bytes(5000), "not-a-video"),
    ],
)
def test_what_is_no_video(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        video.probe(path)
    assert (caught.value.bad.uri, caught.value.bad.reason) == (str(path), reason)


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("only-sound.mp4", "no-video-stream", "mov,mp4,m4a,3gp,3g2,mj2 with audio"),
        ("song.m4a", "no-video-stream", "with audio, video"),
        ("picture.jpg", "not-a-video", ""),
        ("tiny.mp4", "too-small", "8x8; 16 a side is the least"),
    ],
)
def test_files_without_a_video(made: Callable[[str], Path], name: str, reason: str, detail: str) -> None:
    with pytest.raises(BadInput) as caught:
        video.probe(made(name))
    assert caught.value.bad.reason == reason and detail in caught.value.bad.detail


def test_an_mp4_that_lost_its_end(made: Callable[[str], Path], tmp_path: Path) -> None:
    """With the index behind the data nothing is left; with the index in front, what is there is decoded."""
    path = tmp_path / "half.mp4"
    whole = made("plain.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="corrupt"):
        video.probe(path)

    whole = made("front.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert video.probe(path).frames == 96
    numbers = [number for number, _ in video.Decoder(path)]
    assert numbers == list(range(len(numbers))) and 20 < len(numbers) < 80


def test_damage_in_the_middle_is_survived_and_counted(made: Callable[[str], Path], tmp_path: Path) -> None:
    path, data = tmp_path / "damaged.mp4", bytearray(made("front.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(data)
    good, decoder = digests(video.Decoder(made("front.mp4"))), video.Decoder(path)
    found = digests(decoder)
    assert decoder.damaged > 0
    assert [n for n, *_ in found] == sorted({n for n, *_ in found}) and len(found) > 80
    assert found[:24] == good[:24] and found[-24:] == good[-24:]  # the other GOPs, with the same numbers and times


SEEKABLE = ["plain.mp4", "open-gop.mp4", "fragments.mp4", "plain.mkv", "no-length.mkv", "plain.ts", "plain.avi",
            "plain.mpg", "plain.webm", "jpeg.mov", "plain.gif", "vfr.mp4", "vfr.mkv", "late.mp4",
            "tall.mp4", "edit-list.mp4"]  # fmt: skip


@pytest.mark.parametrize("name", SEEKABLE)
def test_from_the_middle_as_from_the_start(made: Callable[[str], Path], name: str) -> None:
    path = made(name)
    at, whole = video.index(path), digests(video.Decoder(path))
    assert at is not None and at.frames == len(whole) and [n for n, *_ in whole] == list(range(len(whole)))
    for first in (1, 17, 23, 24, 25, 41, 45, 50, len(whole) - 1):
        assert digests(video.Decoder(path, first, at)) == whole[first:], first
    assert digests(video.Decoder(path, len(whole), at)) == []


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "plain.ts", "plain.avi"])
def test_seeking_does_not_decode_from_the_start(made: Callable[[str], Path], name: str) -> None:
    read = 0

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    path = made(name)
    at = video.index(path)
    assert at is not None and len(at.keys) >= 4
    decoder = video.Decoder(path, 93, at)
    with container.opened(path) as (file, stream):
        place, _ = decoder._begin(file, stream)
    assert 48 <= place <= 72
    with Counting(path) as file:
        assert [n for n, _ in video.Decoder(file, 93, at)] == [93, 94, 95]


@pytest.mark.parametrize("name", ["plain.mp4", "vfr.mp4", "vfr.mkv", "plain.ts", "late.mp4", "edit-list.mp4"])
def test_times_are_those_of_the_file(made: Callable[[str], Path], name: str) -> None:
    expected = [
        frame["best_effort_timestamp"] for frame in ffprobe(made(name), "frame=best_effort_timestamp")["frames"]
    ]
    assert [frame.pts for _, frame in video.Decoder(made(name))] == expected


def test_where_decoding_cannot_begin_in_the_middle(made: Callable[[str], Path]) -> None:
    assert video.index(made("raw.h264")) is None  # no times
    decoded = digests(video.Decoder(made("raw.h264")))
    assert [n for n, *_ in decoded] == list(range(96))
    assert {b[1] - a[1] for a, b in itertools.pairwise(decoded)} == {50000}  # 1/24 s, of 1/1200000
    with pytest.raises(ValueError, match="to begin at frame 50, give the file's index"):
        video.Decoder(made("raw.h264"), 50)


def test_joined_recordings_go_on(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(made("plain.ts").read_bytes() * 2)
    times = [frame.pts for _, frame in video.Decoder(path)]
    assert len(times) == 192 and all(0 < b - a < 9000 for a, b in itertools.pairwise(times))
    assert video.index(path) is None


def test_a_size_that_changes_in_the_middle(made: Callable[[str], Path], tmp_path: Path) -> None:
    """The clip keeps the size of the video's first frame."""
    path = tmp_path / "joined.ts"
    path.write_bytes(made("plain.ts").read_bytes() + made("small.ts").read_bytes())
    sizes = [(frame.width, frame.height) for _, frame in video.Decoder(path)]
    assert set(sizes[:96]) == {(320, 180)} and set(sizes[96:]) == {(160, 120)} and len(sizes) == 106
    found = encoded(tmp_path / "clip.mp4", path, range(90, 106))
    assert (found.width, found.height, found.frames) == (320, 180, 16)


@pytest.mark.parametrize("name", ["tall.mp4", "upside-down.mp4", "left.mp4"])
def test_frames_come_out_upright(made: Callable[[str], Path], name: str) -> None:
    path = made(name)
    frame = next(frame for number, frame in video.Decoder(path) if number == 30)
    command = ["ffmpeg", "-v", "error", "-i", path, "-vf", r"select=eq(n\,30)", "-frames:v", "1"]
    expected = subprocess.run([*command, "-f", "rawvideo", "-"], check=True, capture_output=True, timeout=180).stdout
    assert frame.to_ndarray().tobytes() == expected


@pytest.mark.parametrize(
    "name", ["with space.mp4", "-dash.mp4", "日本 é.mp4", 'it\'s "so".mp4', "50% #1:2?.mp4", "%03d.mp4"]
)
def test_names(made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(made("plain.mp4").read_bytes())
    with Path(name).open("rb") as file:
        assert (
            video.probe(name) == video.probe(file) == video.probe(io.BytesIO(file.read()) if file.seek(0) == 0 else "")
        )


def test_errors_of_the_storage_come_through(made: Callable[[str], Path]) -> None:
    class Unplugged(Exception): ...

    class File(io.BytesIO):
        calls = 0

        def read(self, size: int | None = -1) -> bytes:
            self.calls += 1
            if self.calls > 3:
                raise Unplugged
            return super().read(min(size or 0, 20_000))

    data = made("front.mp4").read_bytes()
    with pytest.raises(Unplugged):
        video.probe(File(data[:10] + data[10:]))
    file = File(data)
    file.calls = -1
    with pytest.raises(Unplugged):
        list(video.Decoder(file))


def test_a_clip(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Times and pixels as in the source, index in front, nothing in it that says when or by what it was made."""
    path, source = tmp_path / "clip.mp4", made("plain.ts")
    found = encoded(path, source, range(30, 75), crf=10)
    assert (found.width, found.height, found.frames, found.pix_fmt, found.fps) == (320, 180, 45, "yuv420p", 24)
    assert (found.start_pts, found.duration, found.audio_codec) == (0, 1.875, "")
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat") and b"Lav" not in data
    pairs = zip([f for n, f in video.Decoder(source) if 30 <= n < 75], video.Decoder(path), strict=True)
    for before, (_, after) in pairs:
        assert np.abs(before.to_ndarray().astype(int) - after.to_ndarray()).mean() < 2.5
    again = tmp_path / "again.mp4"
    encoded(again, source, range(30, 75), crf=10)
    assert data == again.read_bytes()


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_a_clip_keeps_a_variable_rate(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    found = encoded(tmp_path / "clip.mp4", made(name), range(40, 60))
    info = video.probe(made(name))
    before = [frame.pts * info.time_base for n, frame in video.Decoder(made(name)) if 40 <= n < 60]
    after = [frame.pts * found.time_base for _, frame in video.Decoder(tmp_path / "clip.mp4")]
    assert after == [pts - before[0] for pts in before]
    assert len({b - a for a, b in itertools.pairwise(after)}) > 1
    last = next(frame for n, frame in video.Decoder(made(name)) if n == 59)
    length = float(ffprobe(tmp_path / "clip.mp4", "format=duration")["format"]["duration"])
    assert length == pytest.approx(float(after[-1] + last.duration * info.time_base), abs=0.0015)


@pytest.mark.parametrize(
    ("name", "size"),
    [("odd-444.mp4", (318, 178)), ("10-bit.mp4", (320, 180)), ("jpeg.mov", (320, 180)), ("plain.gif", (320, 180)),
     ("tall.mp4", (180, 320))],
)  # fmt: skip
def test_clips_are_plain(made: Callable[[str], Path], tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """Whatever the source: yuv420p, even, upright; the picture is cropped at the right and bottom, not scaled."""
    found = encoded(tmp_path / "clip.mp4", made(name), range(10, 20), crf=5)
    assert (found.width, found.height, found.pix_fmt, found.rotation) == (*size, "yuv420p", 0)
    before = next(frame for number, frame in video.Decoder(made(name)) if number == 15).to_ndarray(format="rgb24")
    after = next(frame for number, frame in video.Decoder(tmp_path / "clip.mp4") if number == 5)
    assert np.abs(before[: size[1], : size[0]].astype(int) - after.to_ndarray(format="rgb24")).mean() < 6


def test_a_clip_keeps_the_shape_of_pixels(made: Callable[[str], Path], tmp_path: Path) -> None:
    assert encoded(tmp_path / "clip.mp4", made("wide-pixels.mp4"), range(5)).pixel_aspect == Fraction(4, 3)


def test_an_abandoned_clip_leaves_nothing(made: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = video.Encoder(tmp_path / "clip.mp4", video.probe(made("plain.mp4")), video.Coding())
    for _, frame in video.Decoder(made("plain.mp4")):
        encoder.write(frame, frame.duration)
    encoder.abandon()
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_cannot_work_is_found() -> None:
    video.try_encoder(video.Coding())
    video.try_encoder(video.Coding(short_side=144))
    with pytest.raises(RuntimeError, match=r"libx264 does not work on ") as caught:
        video.try_encoder(video.Coding(preset="no-such-preset"))
    assert video.refused(caught.value.__cause__)
    assert not video.refused(OSError(28, "No space left on device")) and not video.refused(KeyError())


def test_thumbnails(made: Callable[[str], Path]) -> None:
    _, frame = next(iter(video.Decoder(made("tall.mp4"))))
    small = video.Resizer(45, 80)(frame)
    assert small.shape == (80, 45, 3) and small.dtype == np.uint8
    data = video.webp(small, 75)
    assert data == video.webp(small, 75)
    picture = PIL.Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == ("WEBP", (45, 80))
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - small).mean() < 20
