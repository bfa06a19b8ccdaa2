"""The windows of a clip: the stretches of frames that are captioned, and previewed, one by one; the frames that a model
looks at."""

from __future__ import annotations

WINDOW = 256
LEAST = 4
"""A clip of fewer frames has no window, and a model looks at so many frames of one at least."""
MOST_SAMPLES = 768


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


def samples(first: int, last: int, fps: float, rate: float) -> list[int]:
    """Which frames of a window a model looks at: `rate` a second, an even number from 4 to 768, evenly spread from the
    window's first to its last. fps: of the clip.

    The rule of qwen-vl-utils, which cosmos_curate 29f1358 has too (pipelines/video/utils/vision_process.py) but for the
    last frame, which it never takes. Clips of varying frame rates are sampled by number, not by time.

    >>> samples(0, 9, 10.0, 2.0), len(samples(0, 255, 24.0, 2.0))
    ([0, 3, 6, 9], 22)
    """
    frames = last + 1 - first
    most = min(MOST_SAMPLES, frames) // 2 * 2
    count = round(min(max(frames / fps * rate, LEAST), most) / 2) * 2 if fps > 0 else most
    return [first + round(i * (frames - 1) / (count - 1)) for i in range(count)]
