"""The bins of Cosmos-Curate's data sets: by resolution, aspect ratio and duration, or by the frames of a window.

The bounds are those of cosmos_curate 29f1358: core/utils/dataset/dimensions.py, find_appropriate_bin. There a clip that
fits no bin is dropped with a warning; here the reason comes back instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpc.curate.settings.shard import duration_bin
from hpc.curate.windows import WINDOW

ASPECTS = ((0.65, "9_16"), (0.88, "3_4"), (1.16, "1_1"), (1.55, "4_3"), (10.0, "16_9"))
"""Width by height, up to and including."""


class Unfit(Exception):
    """A clip, or a window of one, that the layout has no place for."""

    def __init__(self, why: str, detail: str) -> None:
        super().__init__(why, detail)
        self.why = why
        """A word: "too-short", "too-wide", "no-caption", ..."""
        self.detail = detail


def resolution(width: int, height: int) -> str:
    """By the shorter side."""
    side = min(width, height)
    return "1080" if side >= 1080 else "720" if side >= 720 else "lt_720"


def aspect(width: int, height: int) -> str:
    """Raises Unfit for a picture more than ten times as wide as high."""
    ratio = width / height
    for most, name in ASPECTS:
        if ratio <= most:
            return name
    raise Unfit("too-wide", f"{width}x{height}: wider than 10:1")


def duration(seconds: float, bins: Sequence[str]) -> str:
    """The first of these bins ("5_10", ...) with the duration; both ends belong to a bin. Raises Unfit."""
    for name in bins:
        least, most = duration_bin(name)
        if least <= seconds <= most:
            return name
    why = "too-short" if seconds < min(duration_bin(name)[0] for name in bins) else "no-duration-bin"
    raise Unfit(why, f"{seconds:.3f} s; the bins are {', '.join(bins)}")


def by_duration(width: int, height: int, frames: int, fps: float, bins: Sequence[str]) -> str:
    """The folder of a clip, e.g. "resolution_720/aspect_ratio_16_9/duration_5_10". Raises Unfit."""
    shape = f"resolution_{resolution(width, height)}/aspect_ratio_{aspect(width, height)}"
    return f"{shape}/duration_{duration(frames / fps, bins)}"


def by_window(width: int, height: int, start_frame: int, window: int = WINDOW) -> str:
    """The folder of a captioning window, e.g. "resolution_720/aspect_ratio_16_9/frames_256_511": by its first frame,
    since the last window of a clip may be shorter or longer than the others. Raises Unfit."""
    first = start_frame // window * window
    shape = f"resolution_{resolution(width, height)}/aspect_ratio_{aspect(width, height)}"
    return f"{shape}/frames_{first}_{first + window - 1}"
