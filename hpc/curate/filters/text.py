"""Text laid over the picture: titles, subtitles, logos, watermarks; told from text in the scene by staying where it is.

The text detector of PP-OCRv4 (mobile; https://github.com/PaddlePaddle/PaddleOCR, Apache-2.0) finds the boxes of text
lines on two frames a second; nothing is read. Text that is found again a second later, in about the same box and with
its edges where they were, pixel by pixel, has stayed. Where a camera or the text moves, by as little as a pixel or two,
the edges no longer meet: their correlation is above 0.6 for text that is laid over moving pictures, below 0.4 for text
that moves with them.

Cosmos-Curate (models/paddle_ocr.py at 29f1358) has the same detector and the same idea. There a box is followed on
every third frame, with an intersection over union of at least 0.9 from one to the next, and any that lasts 10 frames
drops the clip, as does text in a corner in more than a tenth of the frames with text. Here a corner needs no rule of
its own, and how much of the picture is under text decides.

Text in the scene that stands still before a camera that does looks like text laid over it.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.curate.filters import Open, displacement
from hpc.curate.look import Look
from hpc.curate.settings.filters import Text
from hpc.data.video import Video

DISTRIBUTION, WEIGHTS = "rapidocr", "ch_PP-OCRv4_det_mobile.onnx"
AREA = 640 * 360  # pixels, about: over busy pictures lines below 1/25 of the height can be missed
LEVEL = 0.3  # of the map: pixels above it are in the core of a line of text
SURE = 0.6  # mean of the map over a box
THIN = 3  # pixels: cores that are thinner are noise
UNCLIP = 1.6  # a core is the line shrunk by a margin of about area / perimeter times this
SAME = 0.6  # intersection over union of boxes in the same place: lines are found a word shorter now and then
ALIKE = 0.5  # correlation of the edges in them
STAYS = 0.9  # seconds: two samples later
PATIENCE = 1.1  # seconds for which a box may be missed

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def start(settings: Text) -> Open:
    """Raises FileNotFoundError without the detector, ModuleNotFoundError without what runs it."""
    return functools.partial(Overlay, load_detector())


def load_detector() -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """detect(uint8 [height, width, 3], RGB, sides multiples of 32) -> [height, width], 0 to 1: is there text?

    On one core, so that the same picture gives the same map wherever it runs.
    """
    try:
        import onnxruntime

        files = importlib.metadata.files(DISTRIBUTION) or []
        path = next(file.locate() for file in files if file.name == WEIGHTS)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the filter `text` needs {error.name}, which is not installed here: pip install 'hpc[curate-models]', "
            "or take `text` out of the spec"
        ) from error
    except StopIteration:
        raise FileNotFoundError(
            f"the filter `text` needs {WEIGHTS}, which rapidocr {importlib.metadata.version(DISTRIBUTION)} does not "
            "carry: pip install 'hpc[curate-models]' for the version that does, or take `text` out of the spec"
        ) from None
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())

    def detect(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        bgr = np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1), np.float32)
        return session.run(None, {name: bgr[None] / 127.5 - 1})[0][0, 0]

    return detect


class Overlay:
    every = 0.5  # seconds

    def __init__(self, detect: Callable[[Any], Any], info: Video) -> None:
        self.detect, self.size = detect, displacement.size(info, AREA)
        self.places: list[Place] = []
        self.covered: list[float] = []  # share of the picture under text, of each sample
        self.seconds, self.longest, self.most = 0.0, 0.0, 0.0

    def take(self, look: Look, seconds: float) -> None:
        self.seconds = seconds
        picture = look.rgb(*self.size)
        found = boxes(self.detect(picture))
        pixels = self.size[0] * self.size[1]
        self.covered.append(min(1.0, sum(map(area, found)) / pixels))
        self.places = [place for place in self.places if seconds - place.last < PATIENCE]
        sharp = edges(picture) if found else picture
        for box in found:
            near = [place for place in self.places if overlap(place.box, box) >= SAME and place.alike(sharp)]
            if near:
                max(near, key=lambda place: overlap(place.box, box)).last = seconds
            else:
                self.places.append(Place(box, sharp, seconds))
        staying = [place for place in self.places if place.last == seconds and seconds - place.first >= STAYS]
        self.longest = max([self.longest, *(seconds - place.first for place in staying)])
        self.most = max(self.most, min(1.0, sum(area(place.box) for place in staying) / pixels))

    def scores(self) -> dict[str, float]:
        found = {"text_cover": float(np.mean(self.covered))} if self.covered else {}
        if self.seconds >= STAYS:
            found |= {"text_area": self.most, "text_seconds": self.longest}
        return found


class Place:
    """Where text was found, first and last, and the edges that were there at first."""

    def __init__(self, box: Box, sharp: npt.NDArray[np.float32], seconds: float) -> None:
        self.box, self.first, self.last = box, seconds, seconds
        left, top, right, bottom = map(round, box)
        self.where = slice(top, bottom), slice(left, right)
        self.edges = sharp[self.where] - sharp[self.where].mean()

    def alike(self, sharp: npt.NDArray[np.float32]) -> bool:
        """Are the edges there the same, but for their strength?"""
        now = sharp[self.where] - sharp[self.where].mean()
        strength = float((now**2).sum() * (self.edges**2).sum()) ** 0.5
        return float((now * self.edges).sum()) > ALIKE * strength


def edges(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """How steep the brightness is at each pixel of [height, width, 3]."""
    luma = np.pad(picture.astype(np.float32).mean(2), ((0, 1), (0, 1)), "edge")
    return np.hypot(np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1])


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (area(one) + area(other) - both)


def boxes(found: npt.NDArray[np.float32]) -> list[Box]:
    """The upright boxes of the lines of text in a detector's map [height, width].

    The method of Liao et al., "Real-time Scene Text Detection with Differentiable Binarization", AAAI 2020: the map has
    the cores of the lines, each connected and shrunk by a margin, which is added again.
    """
    height, width = found.shape
    lines = []
    for left, top, right, bottom in cores(found > LEVEL):
        w, h = right - left, bottom - top
        if min(w, h) >= THIN and found[top:bottom, left:right].mean() >= SURE:
            margin = w * h * UNCLIP / (2 * (w + h))
            lines.append((max(0.0, left - margin), max(0.0, top - margin),
                          min(float(width), right + margin), min(float(height), bottom + margin)))  # fmt: skip
    return lines


def cores(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom (both behind the last pixel) of the connected parts of a mask, also over corners."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    where, first = np.nonzero(edges == 1)  # of the runs of pixels in each row, in order
    end = np.nonzero(edges == -1)[1]
    begin = np.searchsorted(where, np.arange(len(mask) + 1)).tolist()
    rows, starts, ends = where.tolist(), first.tolist(), end.tolist()
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = run = parents[parents[run]]
        return run

    for row in range(1, len(mask)):
        above, run = begin[row - 1], begin[row]
        while above < begin[row] and run < begin[row + 1]:
            if starts[above] <= ends[run] and starts[run] <= ends[above]:
                parents[root(run)] = root(above)
            if ends[above] < ends[run]:
                above += 1
            else:
                run += 1
    parts: dict[int, tuple[int, int, int, int]] = {}
    for run, (row, left, right) in enumerate(zip(rows, starts, ends, strict=True)):
        one = parts.get(root(run), (left, row, right, row))
        parts[root(run)] = (min(one[0], left), one[1], max(one[2], right), row + 1)
    return list(parts.values())
