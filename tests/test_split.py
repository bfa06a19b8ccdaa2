"""The cutter against a plain implementation that knows the whole video, whatever comes in and however late."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.curate import split
from hpc.curate.settings import Split
from hpc.curate.split import Label
from hpc.data import video
from hpc.data.units import Seconds

START, INSIDE, OUTSIDE = Label.START, Label.INSIDE, Label.OUTSIDE
TICK = Fraction(1, 1000)  # milliseconds


def info(fps: int = 25) -> video.Video:
    return video.Video(320, 180, 0, Fraction(1), "h264", "yuv420p", Fraction(fps), 0, 0.0, 0, TICK, "", 0)


def rules(**changes: Any) -> Split:
    return Split(crop=Seconds(0.1), min_clip=Seconds(0.5), max_clip=Seconds(1.0), **changes)


class Recorder:
    """Stands where clips.Clip does, and writes down what it is given."""

    def __init__(self, out: list[tuple], number: int, pts: int, verdict: str) -> None:
        self.out, self.verdict, self.numbers, self.end = out, verdict, [], pts
        self.begin = (number, pts)

    def take(self, number: int, pts: int, end: int, frame: object) -> None:
        assert pts >= self.end and (self.numbers or (number, pts) == self.begin or self.verdict == "short")
        self.numbers.append(number)
        self.end = end

    def close(self) -> None:
        self.out.append((self.verdict, self.begin, self.numbers, self.end))


def run(
    times: list[int],
    labels: list[Label],
    rules: Split,
    late: int,
    own: tuple[int, float] = (0, math.inf),
    first: int = 0,
) -> tuple[list[tuple], int]:
    """(clips, longest queue). times: of each frame, and the end; labels come `late` frames behind, five at a time."""
    out: list[tuple] = []
    cutter = split.Cutter(info(), rules, first, own, lambda *a: Recorder(out, *a))
    given, longest = first, 0
    for number in range(first, len(labels)):
        known = max(given, (number + 1 - late) // 5 * 5)
        look: Any = SimpleNamespace(number=number, pts=times[number], duration=times[number + 1] - times[number])
        cutter.push(look, labels[given:known])
        given = known
        longest = max(longest, len(cutter.queue))
        if cutter.done:
            return out, longest
    cutter.finish(labels[given:])
    assert not cutter.queue and not cutter.shots
    return out, longest


def plainly(times: list[int], labels: list[Label], rules: Split) -> list[tuple]:
    """What must come out, from the rules as they are written in settings.Split."""
    crop, longest, slack = 100, 1000, 2
    out = []
    starts = [i for i, label in enumerate(labels) if label is START]
    for start in starts:
        end = start + 1
        while end < len(labels) and labels[end] is INSIDE:
            end += 1
        inner = [
            i
            for i in range(start, end)
            if times[i] >= times[start] + crop - slack and times[i + 1] <= times[end] - crop + slack
        ]
        if not inner:
            out.append(("short", (start, times[start]), [end - 1], times[end]))
        pieces: list[list[int]] = []
        for i in inner:
            fits = pieces and times[i + 1] - times[pieces[-1][0]] <= longest + slack
            if fits or (len(pieces) == 2 and rules.long_shots == "truncate"):
                pieces[-1].append(i)
            else:
                pieces.append([i])
        for n, piece in enumerate(pieces):
            verdict = "past-max-clip" if n and rules.long_shots == "truncate" else ""
            out.append((verdict, (piece[0], times[piece[0]]), piece, times[piece[-1] + 1]))
    return out


@st.composite
def videos(draw: st.DrawFn) -> tuple[list[int], list[Label]]:
    labels: list[Label] = []
    for shot, gap in draw(st.lists(st.tuples(st.integers(1, 70), st.integers(0, 4)), min_size=1, max_size=6)):
        labels += [START, *[INSIDE] * (shot - 1), *[OUTSIDE] * gap]
    labels = [OUTSIDE] * draw(st.integers(0, 3)) + labels
    steps = draw(
        st.one_of(
            st.just([40] * len(labels)),
            st.lists(st.integers(10, 200), min_size=len(labels), max_size=len(labels)),
        )
    )
    times = [draw(st.integers(-50, 5000))]
    for step in steps:
        times.append(times[-1] + step)
    return times, labels


@given(videos(), st.integers(0, 130), st.sampled_from(["stride", "truncate"]))
@settings(max_examples=150, deadline=None)
def test_as_with_the_whole_video_at_hand(made: tuple[list[int], list[Label]], late: int, long_shots: Any) -> None:
    times, labels = made
    assert run(times, labels, rules(long_shots=long_shots), late)[0] == plainly(
        times, labels, rules(long_shots=long_shots)
    )


@given(videos(), st.integers(0, 60), st.lists(st.integers(0, 300), max_size=4))
@settings(max_examples=100, deadline=None)
def test_spans_make_the_same_clips(made: tuple[list[int], list[Label]], late: int, inner: list[int]) -> None:
    times, labels = made
    starts = [i for i, label in enumerate(labels) if label is START]
    bounds = [0, *sorted({*inner, *starts[1::2]}), math.inf]
    found = []
    for a, b in itertools.pairwise(bounds):
        if a < min(b, len(labels)):
            found += run(times, labels, rules(), late, own=(a, b), first=max(0, int(a) - 3))[0]
    assert found == plainly(times, labels, rules())


def test_the_queue_stays_short_in_a_long_shot() -> None:
    labels = [START, *[INSIDE] * 5000]
    for late in (0, 75):
        for setting in (rules(), rules(long_shots="truncate")):
            _, longest = run(list(range(0, 40 * 5002, 40)), labels, setting, late)
            assert longest <= late + 5 + 3 + 2  # the labels' lag and batch, the crop of 0.1 s, what has no end yet


def test_clips_come_out_as_soon_as_their_cut_is_known() -> None:
    out: list[tuple] = []
    cutter = split.Cutter(info(), rules(), 0, (0, math.inf), lambda *a: Recorder(out, *a))
    for number in range(30):
        look: Any = SimpleNamespace(number=number, pts=40 * number, duration=40)
        cutter.push(look, [START if number in (0, 20) else INSIDE])
        assert len(out) == (number >= 20)
    assert out == [("", (3, 120), list(range(3, 17)), 680)]


def test_lengths_hold_in_spite_of_rounded_times() -> None:
    """24 frames a second in whole milliseconds: a shot of 1.2 s less 0.1 s on both sides is 1 s, and one clip."""
    times = [round(1000 * i / 24) for i in range(30)]
    (clip,), _ = run(times, [START, *[INSIDE] * 28], rules(), late=0)
    assert clip[2] == list(range(3, 26)) and clip[3] - clip[1][1] == 958


@pytest.mark.parametrize(
    ("cuts", "labels"),
    [
        ("....", "SIII"),
        ("..X.", "SIIS"),  # the first frame of a transition is the last of the shot before
        (".XX.", "SIOS"),
        ("X...", "OSII"),  # a video that begins in a transition
        ("XXXX", "OOOO"),
        (".X", "SI"),
        ("..X..X.X", "SIISIISI"),
    ],
)
def test_labels_of_shots(cuts: str, labels: str) -> None:
    shots = split.Shots.__new__(split.Shots)
    shots.threshold, shots.in_transition = 0.4, True
    found = shots._labels([0.41 if c == "X" else 0.4 for c in cuts])
    assert "".join(label.name[0] for label in found) == labels


@pytest.mark.parametrize("start", [0, 50, 100])
def test_labels_of_strides(start: int) -> None:
    times = [1000 + round(1000 * i / 24) for i in range(150)]
    whole = video.Video(320, 180, 0, Fraction(1), "", "", Fraction(24), 0, 0.0, 1000, TICK, "", 0)
    strides = split.Strides(whole, 1.5, start)
    found: list[Label] = []
    for number in range(strides.begin, 150):
        look: Any = SimpleNamespace(number=number, pts=times[number])
        found += strides.push(look)
    labels = dict(enumerate(found, strides.first))
    assert [n for n in range(start, 150) if labels[n] is START] == [n for n in range(0, 150, 36) if n >= start]


def test_labels_of_strides_where_frames_are_missing() -> None:
    strides = split.Strides(info(), 1.0, 0)
    found: list[Label] = []
    for number in (0, 1, 5, 30):
        look: Any = SimpleNamespace(number=number, pts=40 * number)
        found += strides.push(look)
    assert len(found) == 31 and [n for n, label in enumerate(found) if label is START] == [0, 30]
