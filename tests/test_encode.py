"""How clips are written: encoders, sizes and rates, copies at key frames, and sound that stays with its pictures."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset

from hpc.curate import clip, clips, filters, source
from hpc.curate.settings import Clips, Encode, Split
from hpc.data import storage, video
from hpc.data.units import Seconds
from hpc.data.work import BadInput, Item, Work

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
SOFTWARE = ("libx264", "libx265", "libsvtav1")
FASTEST = {"libx264": "ultrafast", "libx265": "ultrafast", "libsvtav1": 11}
CODECS = {"libx264": ("h264", "avc1"), "libx265": ("hevc", "hvc1"), "libsvtav1": ("av1", "av01")}

X264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "24", "-bf", "3"]
PATTERN = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=24:d=4", *X264]
COPY = ["-i", "{plain.mp4}", "-c", "copy"]
OPEN = "open-gop=1:b-pyramid=2:scenecut=0:keyint=20:bframes=5"
# A white flash of two frames and a beep of 80 ms, every second from 0.48 s on; hardly any pixels.
LIGHT = "geq=lum='if(between(mod(N,25),12,13),235,16)':cb=128:cr=128"
FLASHES = ["-f", "lavfi", "-i", f"color=black:s=64x64:r=25:d=4.2,{LIGHT}"]


def beeps(rate: int, layout: str, *codec: str) -> list[str]:
    tone = f"aevalsrc='if(between(mod(t,1),0.48,0.56),0.5*sin(2*PI*1000*t),0)':s={rate}:c={layout}:d=4.2"
    return [*FLASHES, "-f", "lavfi", "-i", tone, "-pix_fmt", "yuv420p", *X264, *codec]


# name -> arguments of ffmpeg; {other} is another one of these files.
FILES: dict[str, list[str]] = {
    "film.mp4": ["-ss", "25", "-t", "2", "-i", str(TRAILER), "-vf", "scale=320:180", *X264, "-c:a", "aac"],
    "plain.mp4": PATTERN,
    "open.mp4": [*PATTERN, "-x264-params", OPEN],
    "open.mkv": ["-i", "{open.mp4}", "-c", "copy"],
    "open.ts": ["-i", "{open.mp4}", "-c", "copy"],
    "hevc.mp4": [*PATTERN, "-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", "-x265-params",
                 "keyint=24:log-level=error:bframes=4:open-gop=1:scenecut=0"],
    "vp9.webm": [*PATTERN, "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"],
    "mpeg2.ts": [*PATTERN, "-c:v", "mpeg2video", "-g", "15", "-bf", "2", "-q:v", "3"],
    "edit-list.mp4": ["-ss", "1.3", "-t", "2.2", *COPY],
    "tall.mp4": [*COPY, "-metadata:s:v", "rotate=90"],
    "refresh.mp4": [*PATTERN, "-x264-params", "intra-refresh=1:keyint=24"],
    "one-gop.mp4": [*PATTERN, "-g", "999"],
    "plain.gif": ["-f", "lavfi", "-i", "testsrc2=s=64x64:r=10:d=1"],
    "raw.h264": COPY,
    "plain.avi": [*PATTERN, "-c:v", "mpeg4", "-bf", "2"],
    "vfr.mkv": [*PATTERN, "-vf", "select='lt(n,48)+not(mod(n,3))'", "-vsync", "vfr"],
    "odd-444.mp4": ["-f", "lavfi", "-i", "testsrc2=s=161x121:r=24:d=1", "-pix_fmt", "yuv444p", *X264],
    "colors.mp4": ["-f", "lavfi", "-i", "testsrc2=s=96x96:r=24:d=1", *X264, "-color_primaries", "bt470bg",
                   "-colorspace", "bt470bg", "-color_trc", "smpte170m", "-color_range", "tv"],
    "aac.mp4": beeps(48000, "stereo", "-c:a", "aac"),
    "late.mp4": ["-i", "{aac.mp4}", "-itsoffset", "1.7", "-i", "{aac.mp4}", "-map", "0:v", "-map", "1:a", "-c", "copy"],
    "aac.mkv": ["-i", "{aac.mp4}", "-c", "copy"],
    "aac.ts": ["-i", "{aac.mp4}", "-c", "copy"],
    "ac3.ts": beeps(48000, "5.1", "-c:a", "ac3"),
    "eac3.mp4": beeps(48000, "stereo", "-c:a", "eac3"),
    "mp3.mp4": beeps(44100, "mono", "-c:a", "libmp3lame"),
    "opus.mkv": beeps(48000, "stereo", "-c:a", "libopus"),
    "flac.mkv": beeps(48000, "stereo", "-c:a", "flac"),
    "alac.mov": beeps(44100, "stereo", "-c:a", "alac"),
    "pcm.mov": beeps(48000, "stereo", "-c:a", "pcm_s16le"),
    "pcm192.mov": beeps(192000, "mono", "-c:a", "pcm_s24be"),
    "mulaw.mov": beeps(8000, "mono", "-c:a", "pcm_mulaw"),
    "vorbis.mkv": beeps(44100, "stereo", "-c:a", "libvorbis"),
    "mp2.ts": beeps(48000, "stereo", "-c:a", "mp2"),
    "truehd.mkv": beeps(48000, "stereo", "-c:a", "truehd", "-strict", "-2"),
    "two.mkv": ["-i", "{pcm.mov}", "-i", "{alac.mov}", "-map", "0", "-map", "1:a", "-c", "copy",
                "-metadata:s:a:0", "language=deu"],
    "gap.mkv": ["-i", "{pcm.mov}", "-c:v", "copy", "-af", "aselect='not(between(t,0.8,1.2))'", "-c:a", "flac"],
    "unknown.mkv": ["-i", "{pcm.mov}", "-c", "copy", "-f", "matroska"],
}  # fmt: skip


@pytest.fixture(scope="module")
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


class Cut:
    """cut(path, encode): the clips of a video, one every `stride` seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, itertools.count()

    def __call__(
        self, path: Path, encode: Encode, stride: float = 1.0, part: int = 0, parts: int = 1
    ) -> list[clip.Made]:
        settings = Clips(split=Split(detector="stride", stride=Seconds(stride), min_clip=Seconds(0.2)), encode=encode)
        entry = storage.stat(str(path))
        assert entry is not None
        scratch = self.folder / str(next(self.runs))
        scratch.mkdir()
        tools = source.Tools(settings, None, filters.start(settings.filter))
        item = Item(entry.uri, entry.size, entry.etag, part, parts)
        with path.open("rb") as file:
            return source.cut(tools, item, "", file, scratch, lambda: None, lambda *_: None)[0]


@pytest.fixture
def cut(tmp_path: Path) -> Cut:
    return Cut(tmp_path)


def ffprobe(path: Path) -> list[dict[str, Any]]:
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", path]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=180).stdout)["streams"]


def mp4(one: clip.Made) -> Path:
    path = one.members[".mp4"]
    assert isinstance(path, Path)
    return path


def luma(path: Path) -> list[np.ndarray]:
    return [frame.to_ndarray()[: frame.height].astype(int) for _, frame in video.Decoder(path)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a - b).mean())))


def times(path: Path) -> list[float]:
    """Seconds at which the frames are shown, from the first one on."""
    found = [frame.pts * frame.time_base for _, frame in video.Decoder(path)]
    return [float(pts - found[0]) for pts in found]


def packets(path: Path, kind: str = "video") -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def fingerprints(found: list[clip.Made]) -> list[tuple[Any, ...]]:
    names = ("uuid", "start_frame", "end_frame", "verdict")
    return [(*(one.row[name] for name in names),
             hashlib.md5(mp4(one).read_bytes()).hexdigest() if one.members else "") for one in found]  # fmt: skip


# ---- encoders


@pytest.mark.parametrize("encoder", SOFTWARE)
def test_frames_come_back(made: Callable[[str], Path], cut: Cut, encoder: str) -> None:
    path = made("film.mp4")
    found = cut(path, Encode(encoder=encoder, preset=FASTEST[encoder]))
    assert [(one.row["start_frame"], one.row["end_frame"]) for one in found] == [(0, 24), (24, 48)]
    original = luma(path)
    for one in found:
        row, (stream,) = one.row, ffprobe(mp4(one))
        assert (stream["codec_name"], stream["codec_tag_string"]) == CODECS[encoder]
        assert (stream["pix_fmt"], stream["nb_frames"], row["num_frames"]) == ("yuv420p", "24", 24)
        assert (row["codec"], row["width"], row["height"], row["fps"]) == (CODECS[encoder][0], 320, 180, 24.0)
        assert (row["audio_codec"], row["audio_streams"], row["audio_dropped"]) == ("", 0, [])
        assert row["bytes"] == mp4(one).stat().st_size
        assert times(mp4(one)) == [n / 24 for n in range(24)] and float(stream["duration"]) == 1
        clip_luma = luma(mp4(one))
        quality = [psnr(a, b) for a, b in zip(original[row["start_frame"] : row["end_frame"]], clip_luma, strict=True)]
        assert min(quality) > 33


def test_a_bitrate_is_kept(made: Callable[[str], Path], cut: Cut) -> None:
    path = made("film.mp4")
    for encoder in SOFTWARE:
        size = {}
        for rate in (0.2, 0.8):
            (one,) = cut(path, Encode(encoder=encoder, preset=FASTEST[encoder], bitrate_mbps=rate), 2.0)
            size[rate] = one.row["bytes"] * 8 / 2e6
        assert 0.5 < size[0.2] / 0.2 < 2 and size[0.8] > 1.8 * size[0.2], (encoder, size)


@pytest.mark.parametrize("encoder", SOFTWARE)
@pytest.mark.parametrize("rate", [{}, {"crf": None, "bitrate": 400_000}])
def test_the_bytes_do_not_depend_on_the_timing_of_threads(
    made: Callable[[str], Path], tmp_path: Path, encoder: str, rate: dict[str, Any]
) -> None:
    """The same frames on both cores, on one, and beside other work."""
    path = made("film.mp4")
    info, cores = video.probe(path), os.sched_getaffinity(0)
    coding = video.Coding(encoder=encoder, preset=str(FASTEST[encoder]), threads=4, **rate)
    digests, other = set(), None
    try:
        for number, allowed in enumerate([cores, {min(cores)}, cores]):
            os.sched_setaffinity(0, allowed)
            if number == 2:  # not for long: threads that wait spinning may get nowhere until it ends
                other = subprocess.Popen(["timeout", "3", "sh", "-c", "while :; do :; done"])
            encoder_ = video.Encoder(tmp_path / f"{number}.mp4", info, coding)
            for _, frame in itertools.islice(video.Decoder(path), 30):  # x265 spins where cores are few
                encoder_.write(frame, 512)
            encoder_.close()
            digests.add(hashlib.md5(encoder_.path.read_bytes()).hexdigest())
    finally:
        os.sched_setaffinity(0, cores)
        if other:
            other.terminate()
            other.wait()
    assert len(digests) == 1


@pytest.mark.parametrize("encoder", SOFTWARE)
def test_whatever_comes_in_is_even_420(made: Callable[[str], Path], cut: Cut, encoder: str) -> None:
    (one,) = cut(made("odd-444.mp4"), Encode(encoder=encoder, preset=FASTEST[encoder]))
    (stream,) = ffprobe(mp4(one))
    assert (stream["width"], stream["height"], stream["pix_fmt"]) == (160, 120, "yuv420p")
    assert (one.row["width"], one.row["height"]) == (160, 120)


@pytest.mark.parametrize("encoder", SOFTWARE)
def test_colors_are_said(made: Callable[[str], Path], cut: Cut, encoder: str) -> None:
    (one,) = cut(made("colors.mp4"), Encode(encoder=encoder, preset=FASTEST[encoder]))
    (stream,) = ffprobe(mp4(one))
    found = [stream[name] for name in ("color_range", "color_space", "color_transfer", "color_primaries")]
    assert found == ["tv", "bt470bg", "smpte170m", "bt470bg"]


@pytest.mark.parametrize("encoder", SOFTWARE)
def test_a_variable_rate_stays(made: Callable[[str], Path], cut: Cut, encoder: str) -> None:
    path = made("vfr.mkv")
    (one,) = cut(path, Encode(encoder=encoder, preset=FASTEST[encoder]), 9.0)
    assert one.row["is_vfr"] and times(mp4(one)) == pytest.approx(times(path), abs=1e-4)


def test_nvenc_is_found_missing_at_the_start() -> None:
    clips.start(Clips(split=Split(detector="stride"), encode=Encode(encoder="copy")))  # needs no encoder
    try:
        clips.start(Clips(split=Split(detector="stride"), encode=Encode(encoder="h264_nvenc")))
    except RuntimeError as error:
        assert re.search(r"h264_nvenc does not work on .*\n.*H100 and H200 have none.*libx264", str(error))
    else:
        pytest.skip("this machine has NVENC")


def test_a_clip_that_is_given_up_leaves_no_file(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Also before the encoder has let out a packet."""
    coding = video.Coding(encoder="libx265", preset="slow")
    encoder = video.Encoder(tmp_path / "clip.mp4", video.probe(made("film.mp4")), coding)
    encoder.write(next(frame for _, frame in video.Decoder(made("film.mp4"))), 512)
    encoder.abandon()
    assert list(tmp_path.iterdir()) == []


# ---- sizes and rates


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((1280, 720), 480, (854, 480)), ((720, 1280), 480, (480, 854)), ((320, 180), 480, (320, 180)),
        ((721, 721), 480, (480, 480)), ((1921, 1081), 1080, (1920, 1080)), ((4096, 64), 32, (2048, 32)),
        ((320, 180), None, (320, 180)), ((320, 180), 180, (320, 180)),
    ],
)  # fmt: skip
def test_sizes(size: tuple[int, int], short_side: int | None, expected: tuple[int, int]) -> None:
    info = video.Video(*size, 0, Fraction(1), "", "", Fraction(24), 0, 0.0, 0, Fraction(1, 24), "", 0)
    assert video.Coding(short_side=short_side).size(info) == expected


def test_scaled_clips(made: Callable[[str], Path], cut: Cut) -> None:
    (one,) = cut(made("film.mp4"), Encode(preset="ultrafast", short_side=90), 2.0)
    assert (one.row["width"], one.row["height"]) == (160, 90)
    (stream,) = ffprobe(mp4(one))
    assert (stream["width"], stream["height"], stream["nb_frames"]) == (160, 90, "48")
    small = video.Resizer(160, 90)
    pairs = zip(video.Decoder(made("film.mp4")), video.Decoder(mp4(one)), strict=True)
    assert max(np.abs(small(a).astype(int) - small(b)).mean() for (_, a), (_, b) in pairs) < 6


@pytest.mark.parametrize(
    ("name", "fps", "exact"),
    [
        ("plain.mp4", 24.0, "24"), ("plain.mp4", 12.0, "12"), ("plain.mp4", 10.0, "10"), ("plain.mp4", 48.0, "48"),
        ("plain.mp4", 29.97, "30000/1001"), ("vfr.mkv", 24.0, "24"), ("vfr.mkv", 7.5, "15/2"),
    ],
)  # fmt: skip
def test_a_constant_rate(made: Callable[[str], Path], cut: Cut, name: str, fps: float, exact: str) -> None:
    """At each tick the frame that the source shows then."""
    path, rate = made(name), Fraction(exact)
    (one,) = cut(path, Encode(preset="ultrafast", crf=10, fps=fps), 9.0)
    shown, pictures, copies = times(path), luma(path), luma(mp4(one))
    length = one.row["end_seconds"]
    count = int(np.ceil(length * float(rate) - 0.05))
    assert len(copies) == one.row["num_frames"] == count
    assert times(mp4(one)) == pytest.approx([float(n / rate) for n in range(count)], abs=1e-6)
    assert one.row["fps"] == pytest.approx(float(rate), abs=1e-6) and not one.row["is_vfr"]
    (stream,) = ffprobe(mp4(one))
    assert stream["r_frame_rate"] == stream["avg_frame_rate"] == f"{rate.numerator}/{rate.denominator}"
    for n, picture in enumerate(copies):
        expected = max(i for i, at in enumerate(shown) if at <= float(n / rate) + 0.002)
        quality = {i: psnr(picture, pictures[i]) for i in (expected - 1, expected, expected + 1) if 0 <= i < len(shown)}
        assert max(quality, key=quality.__getitem__) == expected, (n, quality)


# ---- copies


@pytest.mark.parametrize(
    ("name", "spans"),
    [
        ("plain.mp4", [(0, 39), (48, 77)]),
        ("open.mp4", [(0, 39), (40, 76), (80, 96)]),
        ("open.mkv", [(0, 39), (40, 76), (80, 96)]),
        ("open.ts", [(0, 39), (40, 76), (80, 96)]),
        ("hevc.mp4", [(0, 35), (48, 73)]),
        ("vp9.webm", [(0, 39), (48, 77)]),
        ("mpeg2.ts", [(0, 37), (45, 76), (90, 96)]),
        ("edit-list.mp4", [(16, 38), (40, 54)]),
        ("tall.mp4", [(0, 39), (48, 77)]),
        ("refresh.mp4", [(0, 39)]),
        ("one-gop.mp4", [(0, 39)]),
    ],
)
def test_copies(made: Callable[[str], Path], cut: Cut, name: str, spans: list[tuple[int, int]]) -> None:
    """Exactly the frames and times that the row names, from the source's own packets; no frame twice."""
    path = made(name)
    info, pictures = video.probe(path), dict(video.Decoder(path))
    coded = set(packets(path))
    found = cut(path, Encode(encoder="copy"), 1.6)
    kept = [one for one in found if one.members]
    bounds = [(one.row["start_frame"], one.row["end_frame"]) for one in kept]
    assert bounds == spans
    assert {one.row["verdict"] for one in found} <= {"keep", "no-key-frame", "short"}
    for one in kept:
        row = one.row
        copied = [frame for _, frame in video.Decoder(mp4(one))]
        wanted = [pictures[n] for n in range(row["start_frame"], row["end_frame"])]
        assert len(copied) == row["num_frames"] == len(wanted)
        assert all(np.array_equal(a.to_ndarray(), b.to_ndarray()) for a, b in zip(copied, wanted, strict=True))
        expected = [float((frame.pts - wanted[0].pts) * info.time_base) for frame in wanted]
        assert times(mp4(one)) == pytest.approx(expected, abs=1e-4) and copied[0].pts == 0
        assert row["start_seconds"] == float((wanted[0].pts - info.start_pts) * info.time_base)
        assert (row["codec"], row["bytes"]) == (info.codec, mp4(one).stat().st_size)
        again = video.probe(mp4(one))
        assert (again.width, again.height, again.rotation) == (row["width"], row["height"], info.rotation)
        if path.suffix != ".ts" or info.codec != "h264":  # mp4 has lengths in place of start codes
            assert set(packets(mp4(one))) <= coded


def test_copies_lie_inside_of_what_is_cut_without(made: Callable[[str], Path], cut: Cut) -> None:
    """Clips that a copy leaves nothing of are rows too, with the bounds of the cut."""
    path = made("plain.mp4")
    whole = cut(path, Encode(preset="ultrafast"), 0.55)
    copied = cut(path, Encode(encoder="copy"), 0.55)
    assert len(whole) == len(copied)
    for a, b in zip(whole, copied, strict=True):
        assert a.row["start_frame"] <= b.row["start_frame"] <= b.row["end_frame"] <= a.row["end_frame"]
        if b.row["verdict"] == "no-key-frame":
            assert all(a.row[name] == b.row[name] for name in ("start_frame", "end_frame", "start_seconds", "uuid"))
        if b.row["verdict"] == "short":
            assert b.row["end_seconds"] - b.row["start_seconds"] < 0.2
    assert {b.row["verdict"] for b in copied} == {"keep", "short", "no-key-frame"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("plain.gif", "gif is no codec for mp4"), ("raw.h264", "when their pictures are"), ("plain.avi", "avi does not")],
)
def test_what_cannot_be_copied_is_said(made: Callable[[str], Path], cut: Cut, name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        cut(made(name), Encode(encoder="copy"))
    assert caught.value.bad.reason == "cannot-be-copied"


@pytest.mark.parametrize("name", ["open.mp4", "open.mkv", "hevc.mp4", "mpeg2.ts"])
def test_copies_of_spans_are_the_same(made: Callable[[str], Path], cut: Cut, name: str) -> None:
    whole = cut(made(name), Encode(encoder="copy"), 1.1)
    spans = [one for part in range(2) for one in cut(made(name), Encode(encoder="copy"), 1.1, part, 2)]
    assert fingerprints(spans) == fingerprints(whole) and sum(one.row["verdict"] == "keep" for one in whole) >= 2


# ---- sound


def heard(path: Path, stream: int = 0) -> tuple[np.ndarray, int]:
    """The samples of a clip's sound [channels, samples] from the time of its first picture on, and their rate."""
    with av.open(str(path)) as container:
        source = container.streams.audio[stream]
        rate = source.codec_context.sample_rate
        sound, end = np.zeros((source.codec_context.channels, 10 * rate)), 0
        for frame in container.decode(source):
            part = frame.to_ndarray()
            if not frame.format.is_planar:
                part = part.reshape(-1, frame.layout.nb_channels).T
            if part.dtype.kind != "f":
                part = part / np.iinfo(part.dtype).max
            at = round(frame.pts * frame.time_base * rate)
            part, at = part[:, max(0, -at) :], max(0, at)
            sound[:, at : at + part.shape[1]] = part
            end = max(end, at + part.shape[1])
    return sound[:, :end], rate


def offsets(path: Path, stream: int = 0) -> list[float]:
    """Seconds from each flash to its beep (at most 0.3 s away)."""
    light = [frame.mean() for frame in luma(path)]
    flashes = [at for at, now, before in zip(times(path), light, [0, *light], strict=False) if now > 120 > before]
    sound, rate = heard(path, stream)
    tone = np.exp(2j * np.pi * 1000 * np.arange(round(0.08 * rate)) / rate)
    found = []
    for flash in flashes:
        first = max(0, round((flash - 0.3) * rate))
        near = sound[0, first : round((flash + 0.38) * rate)]
        if len(near) >= len(tone):
            found.append((first + np.abs(np.correlate(near, tone, "valid")).argmax()) / rate - flash)
    return found


ALWAYS = {"pcm.mov", "pcm192.mov", "mulaw.mov", "vorbis.mkv", "mp2.ts", "truehd.mkv"}  # mp4 holds these as AAC only


@pytest.mark.parametrize("audio", ["keep", "aac"])
@pytest.mark.parametrize(
    "name", ["aac.mp4", "aac.mkv", "aac.ts", "ac3.ts", "mp3.mp4", "opus.mkv", "flac.mkv", "alac.mov", *sorted(ALWAYS)]
)
def test_sound_stays_with_its_pictures(made: Callable[[str], Path], cut: Cut, name: str, audio: str) -> None:
    """Less than a frame of sound apart in every clip: a few samples where it is encoded."""
    codec = "aac" if audio == "aac" or name in ALWAYS else name.partition(".")[0]
    found = cut(made(name), Encode(preset="ultrafast", audio=audio), 1.7)
    delay = 0.0065 if name == "opus.mkv" else 0.0  # as in the source itself: libopus, through ffmpeg
    clips = 0
    for one in found:
        assert (one.row["audio_codec"], one.row["audio_streams"], one.row["audio_dropped"]) == (codec, 1, [])
        pictures, sound = ffprobe(mp4(one))
        assert sound["codec_name"] == codec and float(pictures["start_time"]) == 0
        for offset in offsets(mp4(one)):
            assert abs(offset + delay) < (0.002 if delay or name.endswith(("mkv", "mulaw.mov")) else 0.0002)
            clips += 1
        samples, rate = heard(mp4(one))
        length = one.row["end_seconds"] - one.row["start_seconds"]
        frame = 1024 if codec == "aac" else 4608
        assert -0.03 < samples.shape[1] / rate - length <= frame / rate
    assert clips >= 3


@pytest.mark.parametrize("encoder", ["libsvtav1", "copy"])
def test_sound_beside_other_encoders(made: Callable[[str], Path], cut: Cut, encoder: str) -> None:
    for audio in ("keep", "aac"):
        found = [one for one in cut(made("aac.ts"), Encode(encoder=encoder, audio=audio), 1.7) if one.members]
        assert found and all(abs(o) < 0.0002 for one in found for o in offsets(mp4(one)))
        assert all(one.row["audio_codec"] == "aac" for one in found)


def test_sound_at_a_constant_rate(made: Callable[[str], Path], cut: Cut) -> None:
    for one in cut(made("aac.mp4"), Encode(preset="ultrafast", audio="aac", fps=50.0), 1.7):
        assert all(abs(offset) < 0.001 for offset in offsets(mp4(one)))


def test_copied_sound_is_the_sources_own(made: Callable[[str], Path], cut: Cut) -> None:
    path = made("mp3.mp4")
    coded = packets(path, "audio")
    for one in cut(path, Encode(preset="ultrafast", audio="keep"), 1.7):
        found = packets(mp4(one), "audio")
        at = coded.index(found[0])
        while coded[at : at + len(found)] != found:  # silence repeats
            at = coded.index(found[0], at + 1)


def test_every_stream_is_kept(made: Callable[[str], Path], cut: Cut) -> None:
    """One is transcoded, one copied; both in time, with their language."""
    for one in cut(made("two.mkv"), Encode(preset="ultrafast", audio="keep"), 1.7):
        assert (one.row["audio_codec"], one.row["audio_streams"]) == ("aac", 2)
        _, first, second = ffprobe(mp4(one))
        assert (first["codec_name"], second["codec_name"], first["tags"]["language"]) == ("aac", "alac", "deu")
        assert all(abs(o) < 0.002 for stream in (0, 1) for o in offsets(mp4(one), stream))


def test_sound_that_begins_late(made: Callable[[str], Path], cut: Cut) -> None:
    """A clip before it has none; one in which it begins has silence until then."""
    for audio in ("keep", "aac"):
        found = cut(made("late.mp4"), Encode(preset="ultrafast", audio=audio))
        assert [one.row["audio_streams"] for one in found] == [0, 1, 1, 1, 1][: len(found)]
        sound, rate = heard(mp4(found[1]))
        assert np.abs(sound[:, : round(0.65 * rate)]).max() < 0.01
        sound, rate = heard(mp4(found[2]))  # the beep of 0.48 s, 1.7 s later
        tone = np.exp(2j * np.pi * 1000 * np.arange(round(0.08 * rate)) / rate)
        assert abs(np.abs(np.correlate(sound[0], tone, "valid")).argmax() / rate - 0.18) < 0.001


def test_missing_sound_is_silence(made: Callable[[str], Path], cut: Cut) -> None:
    """Behind a hole of 0.4 s the beeps are where they belong."""
    for audio in ("keep", "aac"):
        found = cut(made("gap.mkv"), Encode(preset="ultrafast", audio=audio), 2.0)
        assert all(abs(offset) < 0.002 for one in found for offset in offsets(mp4(one)))


def test_a_stream_that_cannot_be_decoded_is_left_out(made: Callable[[str], Path], cut: Cut, tmp_path: Path) -> None:
    """Its codec unknown, or its packets noise: the clip is kept, and the row says what is missing."""
    path = tmp_path / "unknown.mkv"
    path.write_bytes(made("unknown.mkv").read_bytes().replace(b"A_PCM/INT/LIT", b"A_PCM/XXX/LIT"))
    (one,) = cut(path, Encode(preset="ultrafast", audio="keep"), 9.0)
    assert (one.row["verdict"], one.row["audio_codec"], one.row["audio_streams"]) == ("keep", "", 0)
    assert one.row["audio_dropped"] == ["stream 1: unknown codec"] and one.row["num_frames"] == 105

    path, data = tmp_path / "noise.mkv", made("aac.mkv").read_bytes()
    for packet in packets(made("aac.mkv"), "audio"):
        data = data.replace(packet, b"\xff" * len(packet))
    path.write_bytes(data)
    (one,) = cut(path, Encode(preset="ultrafast", audio="aac"), 9.0)
    assert (one.row["audio_streams"], one.row["num_frames"]) == (0, 105)
    assert one.row["audio_dropped"] == ["stream 1: none of it can be decoded"]


def test_damaged_sound_costs_no_clip(made: Callable[[str], Path], cut: Cut, tmp_path: Path) -> None:
    """A packet that an mp4 does not take ends the stream in its clip; the next clip has it again."""
    path, data = tmp_path / "damaged.mp4", made("eac3.mp4").read_bytes()
    packet = packets(made("eac3.mp4"), "audio")[15]
    path.write_bytes(data.replace(packet, packet[:4] + b"\x40" + packet[5:], 1))
    first, second, *_ = cut(path, Encode(preset="ultrafast", audio="keep"), 1.7)
    assert [one.row["verdict"] for one in (first, second)] == ["keep", "keep"]
    assert first.row["audio_dropped"] == ["stream 1: ends at 0.507 s: Invalid data found when processing input"]
    assert 0.45 < heard(mp4(first))[0].shape[1] / 48000 < 0.52
    assert (second.row["audio_streams"], second.row["audio_dropped"]) == (1, [])
    whole = cut(path, Encode(preset="ultrafast", audio="aac"), 1.7)
    assert all(one.row["audio_dropped"] == [] for one in whole)


@pytest.mark.parametrize("name", ["aac.mp4", "aac.ts", "opus.mkv", "pcm.mov", "truehd.mkv"])
def test_spans_sound_the_same(made: Callable[[str], Path], cut: Cut, name: str) -> None:
    for audio in ("keep", "aac"):
        how = Encode(preset="ultrafast", audio=audio)
        whole = cut(made(name), how, 0.9)
        spans = [one for part in range(3) for one in cut(made(name), how, 0.9, part, 3)]
        assert fingerprints(spans) == fingerprints(whole)


def test_packets_are_kept_no_longer_than_needed(made: Callable[[str], Path]) -> None:
    tap = video.Tap("keep", pictures=True)
    most = 0
    for _, frame in video.Decoder(made("aac.mp4"), tap=tap):
        tap.forget(frame.pts * frame.time_base)
        most = max(most, len(tap.tracks[0].packets))
    assert most <= 80  # of 197: a second behind, and what lies before its pictures in the file
    assert tap.coded is not None and len(tap.coded.pictures) <= 8


# ---- the whole stage


def test_a_webdataset_of_it(made: Callable[[str], Path], tmp_path: Path) -> None:
    split = Split(detector="stride", stride=Seconds(1.0), min_clip=Seconds(0.2))
    settings = Clips(split=split, encode=Encode(encoder="libsvtav1", preset=11, audio="keep"))
    entry = storage.stat(str(made("film.mp4")))
    assert entry is not None
    items = [Item(entry.uri, entry.size, entry.etag)]
    done = clips.start(settings)(Work("000001", items, [], {}, tmp_path, "abc", lambda: None, lambda *_: None))
    samples = list(webdataset.WebDataset(str(done.objects[0]), shardshuffle=False))
    assert len(samples) == 2
    for sample in samples:
        about = json.loads(sample["json"])
        assert (about["codec"], about["audio_codec"], about["num_frames"]) == ("av1", "aac", 24)
        (tmp_path / "one.mp4").write_bytes(sample["mp4"])
        assert [stream["codec_name"] for stream in ffprobe(tmp_path / "one.mp4")] == ["av1", "aac"]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crf": 20.0, "bitrate_mbps": 4.0}, "bitrate_mbps: give crf .* or bitrate_mbps .*, not both"),
        ({"crf": 55.0}, "crf: 55 is too much: libx264 takes 1 to 51"),
        ({"encoder": "libx265", "crf": 60.0}, "crf: 60 is too much: libx265 takes 1 to 51"),
        ({"preset": "warp"}, "preset: 'warp' is not one of libx264: ultrafast, .*veryslow"),
        ({"preset": 8}, "preset: 8 is not one of libx264"),
        ({"encoder": "libsvtav1", "preset": "fast"}, "preset: 'fast' is not one of libsvtav1: 0, 1, .*13"),
        ({"encoder": "libsvtav1", "preset": 14}, "preset: 14 is not one of libsvtav1"),
        ({"encoder": "h264_nvenc", "preset": "slow"}, "preset: 'slow' is not one of h264_nvenc: p1, .*p7"),
        ({"short_side": 721}, "short_side: 721 is odd"),
        ({"encoder": "copy", "crf": 20.0}, "crf: `encoder: copy` encodes nothing"),
        ({"encoder": "copy", "preset": "fast"}, "preset: `encoder: copy` encodes nothing"),
        ({"encoder": "copy", "short_side": 720}, "short_side: `encoder: copy`"),
        ({"encoder": "copy", "fps": 24.0}, "fps: `encoder: copy`"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        Encode(**settings)


def test_settings_that_do() -> None:
    Encode(encoder="libsvtav1", crf=63.0, preset="13")
    Encode(encoder="copy", audio="keep")
    assert clip.coding(Encode()) == video.Coding()
    assert clip.coding(Encode(encoder="copy")) is None
    low = clip.coding(Encode(encoder="libsvtav1", bitrate_mbps=1.5, preset=8, fps=23.976, threads=8))
    assert low == video.Coding(
        encoder="libsvtav1", crf=None, bitrate=1_500_000, preset="8", threads=8, fps=Fraction(24000, 1001)
    )
    assert clip.coding(Encode(fps=12.5)).fps == Fraction(25, 2)  # type: ignore[union-attr]
