"""The windows of a clip: the stretches of frames that are captioned, and previewed, one by one."""

from __future__ import annotations

WINDOW = 256
LEAST = 4
"""A clip of fewer frames has no window."""


def remainder(window: int) -> int:
    """What is left at a clip's end is a window of its own from so many frames on, and else belongs to the last one."""
    return window // 2


def windows(frames: int, window: int = WINDOW) -> list[tuple[int, int]]:
    """[first, last] of each window of a clip of so many frames, counted from the clip's first, both inclusive.

    The rule of cosmos_curate's compute_windows: 256 frames, remainder 128, at least 4.

    >>> windows(300), windows(400)
    ([(0, 299)], [(0, 255), (256, 399)])
    """
    if frames < LEAST:
        return []
    starts = list(range(0, frames, window))
    if len(starts) > 1 and frames - starts[-1] < remainder(window):
        starts.pop()
    return [(first, after - 1) for first, after in zip(starts, [*starts[1:], frames], strict=True)]
