"""Cuts where the picture changes at once: the rules of PySceneDetect's ContentDetector and AdaptiveDetector (version
0.7.2, https://www.scenedetect.com/docs/latest/api/detectors.html) with its defaults, on frames as they come.

A frame's score is the mean change of hue, saturation and brightness from the frame before it, 0 to 255, on pictures 256
pixels long.
content    a frame whose score is at least the threshold begins a shot. Of flashes and other bursts, where such frames
           are less than 15 frames apart, the first begins a shot, and the last if the burst went on for long.
adaptive   a frame whose score is at least 15, and at least threshold times the mean of the two frames before and the
           two after it, begins a shot, if the shot before it then has 15 frames: quick movement changes them all.

Both rules remember what was before, for ever in unlucky cases. Here, so that a video planned as spans is cut as it is
in one go, their memory is built anew every STEP frames from what the last MEMORY frames were.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from hpc.curate.look import Look
from hpc.curate.split import Label
from hpc.data import video
from hpc.models.shots import STEP

LONGER_SIDE = 256  # pixels
APART = 15  # frames, the shortest shot
WINDOW = 2  # frames before and after one that its score is compared with
LEAST = 15.0  # score of a cut, whatever its neighbours have
MEMORY = 5 * STEP
LONG_AGO = -APART

# Reciprocals of 0..255 in 20.12 fixed point, as OpenCV's integer conversion to HSV has them.
BY = np.concatenate([[np.inf], np.arange(1.0, 256.0)])
TO_SATURATION = np.rint((255 << 12) / BY).astype(np.int32)
TO_HUE = np.rint((180 << 12) / (6 * BY)).astype(np.int32)


def hsv(rgb: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """uint8 [height, width, 3] -> hue 0..179 (half degrees), saturation and value 0..255, each uint8 [height * width].

    Equal to OpenCV's COLOR_RGB2HSV of 8 bits, to the bit.
    """
    r, g, b = np.ascontiguousarray(rgb.reshape(-1, 3).T)
    value = np.maximum(np.maximum(r, g), b)
    chroma = value - np.minimum(np.minimum(r, g), b)
    saturation = (chroma * TO_SATURATION.take(value) + 2048) >> 12
    # Masks of bits choose among the three formulas of the hue, much faster than np.where.
    red, green = -(value == r).astype(np.int16), -(value == g).astype(np.int16)
    r, g, b, c = (plane.astype(np.int16) for plane in (r, g, b, chroma))
    sixths = (red & (g - b)) | (~red & ((green & (b - r + 2 * c)) | (~green & (r - g + 4 * c))))
    hue = (sixths * TO_HUE.take(chroma) + 2048) >> 12
    hue += (hue >> 31) & 180
    return [hue.astype(np.uint8), saturation.astype(np.uint8), value]


class Scores:
    """The score of each frame; 0 of the first."""

    def __init__(self, width: int, height: int) -> None:
        """width, height: of the video, as shown."""
        shrink = max(1.0, max(width, height) / LONGER_SIDE)
        self.size = max(1, round(width / shrink)), max(1, round(height / shrink))
        self.before: list[npt.NDArray[np.uint8]] | None = None

    def push(self, look: Look) -> float:
        planes = hsv(look.points(*self.size))
        before, self.before = self.before or planes, planes
        # The larger less the smaller: their distance without leaving 8 bits.
        sums = [int((np.maximum(a, b) - np.minimum(a, b)).sum()) for a, b in zip(planes, before, strict=True)]
        return sum(total / planes[0].size for total in sums) / len(sums)


class Merge:
    """content: which of the frames that score high begin a shot."""

    def __init__(self, first: int | None) -> None:
        """first: number of the video's first frame; None to begin in its middle."""
        self.high = LONG_AGO if first is None else first
        """The last frame that scored high; at first the video's first."""
        self.any = first is None
        """Has there been a cut?"""
        self.burst: int | None = None
        """The second frame of a burst that goes on, or was too short."""

    def push(self, number: int, high: bool) -> int | None:
        """The next frame. Returns one that begins a shot: this one, or the one that scored high APART frames ago."""
        apart = number - self.high >= APART
        if high:
            self.high = number
        if self.burst is not None:
            if apart and not high and self.high - self.burst >= APART:
                self.burst = None
                return self.high
        elif high and apart:
            self.any = True
            return number
        elif high and self.any:
            self.burst = number
        return None


class Suppress:
    """adaptive: the same, where what comes too soon after a cut is none."""

    def __init__(self, first: int | None) -> None:
        self.cut = LONG_AGO if first is None else first

    def push(self, number: int, high: bool) -> int | None:
        if high and number - self.cut >= APART:
            self.cut = number
            return number
        return None


class Changes:
    """A split.Labeller by scores. Shots begin with the frame that has changed; no frame is between shots."""

    def __init__(self, info: video.Video, adaptive: bool, threshold: float, start: int) -> None:
        """start: number of the first frame that gets a label, a multiple of STEP."""
        self.adaptive, self.threshold = adaptive, threshold
        self.rule: type[Merge] | type[Suppress] = Suppress if adaptive else Merge
        self.first = start
        self.begin = max(0, start - MEMORY - WINDOW - 1)
        self.scores = Scores(info.width, info.height)
        self.window: deque[tuple[int, float]] = deque(maxlen=2 * WINDOW + 1)
        self.memory: deque[tuple[int, bool]] = deque(maxlen=MEMORY)
        self.block = -1
        """The memory was last built anew at STEP times this."""
        self.cuts: set[int] = set()
        """Numbers of frames that begin a shot and have no label yet."""
        self.labelled = start
        """Frames from `first` to before this one have labels."""

    def push(self, look: Look) -> list[Label]:
        if not self.window:
            self.start = None if self.begin else look.number
            self.cuts.update({look.number} if self.start is not None else ())
        self.window.append((look.number, self.scores.push(look)))
        if not self.adaptive:
            self._judge(look.number, self.window[-1][1] >= self.threshold)
        elif len(self.window) == 2 * WINDOW + 1:
            number, score = self.window[WINDOW]
            others = sum(s for n, s in self.window if n != number) / (2 * WINDOW)
            self._judge(number, score >= max(LEAST, self.threshold * others))
        return self._labels(self.memory[-1][0] + 1 - APART) if self.memory else []

    def finish(self) -> list[Label]:
        return self._labels(self.window[-1][0] + 1) if self.window else []

    def _judge(self, number: int, high: bool) -> None:
        if number // STEP > self.block:
            self.block = number // STEP
            known = self.start if self.start is not None and self.block * STEP <= MEMORY else None
            self.state = self.rule(known)
            for past, was_high in self.memory:
                if known is not None or past >= self.block * STEP - MEMORY:
                    self._remember(past, was_high)
        self._remember(number, high)
        self.memory.append((number, high))

    def _remember(self, number: int, high: bool) -> None:
        cut = self.state.push(number, high)
        if cut is not None and cut >= self.labelled:
            self.cuts.add(cut)

    def _labels(self, end: int) -> list[Label]:
        """Of the frames before `end`, for which the rule has decided."""
        labels = [Label.START if n in self.cuts else Label.INSIDE for n in range(self.labelled, end)]
        self.labelled = max(self.labelled, end)
        self.cuts = {cut for cut in self.cuts if cut >= self.labelled}
        return labels
