"""Cuts by the changes of the picture are PySceneDetect's, whatever the scores; spans are cut as the whole video is."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accuracy
import cv2
import numpy as np
import pytest
import scenedetect
import test_clips as t
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.curate import changes
from hpc.curate.look import Look, Sizes
from hpc.curate.settings import Clips, Encode, Split
from hpc.curate.split import Label
from hpc.data import video
from hpc.data.units import Seconds

TRAILER = Path(__file__).parent.parent / "jobs" / "quickstart" / "trailer_bbb.mp4"
THEIRS = {"content": scenedetect.ContentDetector, "adaptive": scenedetect.AdaptiveDetector}
INFO = video.Video(320, 180, 0, Fraction(1), "h264", "yuv420p", Fraction(24), 0, 0.0, 0, Fraction(1, 24), "", 0)
both = pytest.mark.parametrize("detector", ["content", "adaptive"])


class Given:
    """Stands where Scores does."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = scores

    def push(self, look: Any) -> float:
        return self.scores[look.number]


def labels(scores: Sequence[float], detector: str, start: int = 0, missing: Sequence[int] = ()) -> list[Label]:
    """Of the frames from number `start` on."""
    labeller = changes.Changes(INFO, detector == "adaptive", Split(detector=detector).cut_above, start)  # type: ignore
    labeller.scores = Given(scores)  # type: ignore
    found: list[Label] = []
    for number in range(labeller.begin, len(scores)):
        if number not in missing:
            look: Any = SimpleNamespace(number=number)
            found += labeller.push(look)
            behind = number + 1 - start - len(found)
            assert len(labeller.memory) <= changes.MEMORY and behind < changes.APART + 2 + 1 + len(missing)
    return found + labeller.finish()


def starts(labels: Sequence[Label], first: int = 0) -> list[int]:
    assert Label.OUTSIDE not in labels
    return [number for number, label in enumerate(labels, first) if label is Label.START]


def theirs(scores: Sequence[float], detector: str) -> list[int]:
    """PySceneDetect's own class, with its score of a frame replaced."""

    class Scored(THEIRS[detector]):  # type: ignore
        def _calculate_frame_score(self, timecode: Any, frame: Any) -> float:
            return scores[timecode.frame_num]

    mine = Scored()
    timecodes = [scenedetect.FrameTimecode(n, 24.0) for n in range(len(scores))]
    return sorted(cut.frame_num for timecode in timecodes for cut in mine.process_frame(timecode, None))


@st.composite
def films(draw: st.DrawFn, most: int = changes.MEMORY) -> list[float]:
    """Scores of quiet and of busy frames, of cuts and of bursts of them, for up to about `most` frames."""
    scores = [0.0]
    length = draw(st.integers(1, most))
    while len(scores) < length:
        scores += draw(st.lists(st.sampled_from([0.0, 1.0, 8.0]), max_size=draw(st.sampled_from([2, 10, 30]))))
        scores.append(draw(st.sampled_from([14.9, 15.0, 26.9, 27.0, 90.0])))
    return scores[:length]


@both
@given(films())
@settings(max_examples=60, deadline=None)
def test_the_rules_are_theirs(detector: str, scores: list[float]) -> None:
    assert starts(labels(scores, detector)) == [0, *theirs(scores, detector)]


@both
@given(films(most=600), st.integers(5, 11), st.sets(st.integers(0, 599), max_size=5))
@settings(max_examples=40, deadline=None)
def test_spans_have_the_labels_of_the_whole(detector: str, scores: list[float], at: int, missing: set[int]) -> None:
    start = 50 * min(at, len(scores) // 50)
    context = range(start - changes.MEMORY - 3, start - changes.MEMORY)  # only there a missing frame may matter
    missing -= {*context, 0}
    whole = labels(scores, detector, missing=sorted(missing))
    assert labels(scores, detector, start, sorted(missing)) == whole[start:]


def test_bursts_of_cuts() -> None:
    """The first of a burst begins a shot, and the last of a long one."""
    scores = [0.0] * 200
    for n in (50, 55, 100, 105, 110, 115, 122):
        scores[n] = 30.0
    assert starts(labels(scores, "content")) == [0, 50, 122]
    scores[50:60] = [0.0] * 10
    assert starts(labels(scores, "content")) == [0, 100, 122]


def test_hsv_is_opencvs() -> None:
    random = np.random.default_rng(5)
    noise = random.integers(0, 256, (512, 512, 3), np.uint8)
    grays = random.integers(0, 250, (512, 512, 1), np.uint8) + random.integers(0, 6, (512, 512, 3), np.uint8)
    for rgb in (noise, grays):
        for ours, opencvs in zip(changes.hsv(rgb), cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)), strict=True):
            np.testing.assert_array_equal(ours.reshape(opencvs.shape), opencvs)


def cuts(path: Path, detector: Any) -> list[int]:
    sizes: Sizes = {}
    found: list[Label] = []
    labeller = changes.Changes(video.probe(path), detector == "adaptive", Split(detector=detector).cut_above, 0)
    for number, frame in video.Decoder(path):
        found += labeller.push(Look(number, frame, sizes))
    return starts(found + labeller.finish())[1:]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 s of the trailer, small, with all its cuts and few key frames."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    x264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "100", "-bf", "2", "-an"]
    t.ffmpeg("-i", TRAILER, "-t", "50", "-vf", "scale=320:180", *x264, path)
    return path


@both
def test_the_cuts_of_a_film_are_theirs(detector: Any, long: Path) -> None:
    expected = [scene[0].frame_num for scene in scenedetect.detect(str(long), THEIRS[detector]())][1:]
    assert cuts(long, detector) == expected and len(expected) >= 5


@both
def test_clips_of_spans_are_those_of_the_whole(detector: Any, long: Path, tmp_path: Path) -> None:
    stage = t.Stage(tmp_path)
    rules = Split(detector=detector, min_clip=Seconds(0.5), min_frames=8, crop=Seconds(0.1), max_clip=Seconds(3.0))
    settings = Clips(split=rules, encode=Encode(preset="ultrafast", crf=35.0))
    whole = t.by_clip(stage(settings, t.item(long)))
    parts = t.by_clip(*(stage(settings, t.item(long, part, 3)) for part in range(3)))
    assert parts == whole and sum(clip[4] == "keep" for clip in whole.values()) >= 10
    assert max(one[1] - one[0] for one in whole.values()) == 72  # longer shots in pieces of 3 s
    lost = t.by_clip(stage(Clips(split=Split(detector=detector), encode=settings.encode), t.item(long)))
    kept = [clip for clip in lost.values() if clip[4] == "keep"]
    assert kept and all(end - begin >= 48 for begin, end, *_ in kept)  # the defaults of shots: 2 s, 48 frames


@both
def test_a_cut_of_an_uneven_video_is_at_its_time(detector: Any, tmp_path: Path) -> None:
    """A cut after 4 s, the fourth of them at a third of the rate."""
    path = tmp_path / "uneven.mkv"
    shots = "testsrc2=s=320x180:r=24:d=4[a];color=navy:s=320x180:r=24:d=3[b];[a][b]concat"
    graph = f"{shots},select='lt(n,72)+not(mod(n,3))'"
    t.ffmpeg("-filter_complex", graph, "-vsync", "vfr", "-c:v", "libx264", path)
    (cut,) = cuts(path, detector)
    info = video.probe(path)
    times = {number: float((frame.pts - info.start_pts) * info.time_base) for number, frame in video.Decoder(path)}
    assert cut == 72 + 24 // 3 and abs(times[cut] - 4.0) < 0.002


@pytest.mark.parametrize(
    ("given", "in_force"),
    [({}, 0.4), ({"detector": "content"}, 27.0), ({"detector": "adaptive"}, 3.0), ({"threshold": 0.5}, 0.5)],
)
def test_each_detector_has_its_threshold(given: dict[str, Any], in_force: float) -> None:
    assert Split(**given).cut_above == in_force


@pytest.mark.parametrize(
    ("detector", "threshold", "words"),
    [
        ("transnetv2", 27.0, "27 is not a probability between 0 and 1, as detector transnetv2 needs it; 0.4 is usual"),
        ("transnetv2", 1.0, "1 is not a probability"),
        ("content", 0.4, "0.4 is not a mean change of 8-bit values, 1 to 255, as detector content needs it; 27 is"),
        ("adaptive", float("nan"), "nan is not a ratio of changes, 1 to 255"),
        ("stride", 0.4, "detector stride has none; leave it out, or name another detector"),
    ],
)
def test_thresholds_of_another_detector_are_refused(detector: Any, threshold: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Split(detector=detector, threshold=threshold)


def test_accuracy_on_joins_of_real_film(tmp_path: Path) -> None:
    """The small form of tests/accuracy.py."""
    film = tmp_path / "film.mp4"
    t.ffmpeg("-ss", "12", "-t", "28", "-i", TRAILER, "-vf", "scale=384:216", "-c:v", "libx264", "-an", film)
    hard, gradual = ("hard cut", "hard cut, every second piece re-encoded"), ("dissolve, 8 frames",)
    table = accuracy.measure(film, 9, seed=3, length=30, kinds=(*hard, *gradual), peers=False)
    for kind in hard:
        for found in (table[kind]["transnetv2"], table[kind]["content"], table[kind]["adaptive"]):
            assert found.near == found.exact == found.joins and found.false == 0
    assert table[gradual[0]]["transnetv2"].near >= 8 and table[gradual[0]]["transnetv2"].false <= 1
