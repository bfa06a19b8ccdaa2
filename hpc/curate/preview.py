"""Small pictures of a clip, from frames of the one decode: the thumbnail, and an animated WebP of each window.

Both are made while the clip's length is not known: the thumbnail's picture in the middle is chosen from some that were
kept, and a window's animation is written once it is certain where the window ends.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from hpc.curate import windows
from hpc.curate.look import Look
from hpc.curate.settings.preview import Preview
from hpc.data.video import Video


def fit(info: Video, height: int) -> tuple[int, int]:
    """(width, height), no larger than the video, with its aspect ratio."""
    height = min(height, info.height)
    return max(1, round(info.width * height / info.height)), height


class Middle:
    """The picture in the middle of a clip whose length is not known before its end: within two frames of it, or 1/32 of
    the clip's length. Each frame that is held is 1/8 further in than the one before; those that came too early are
    forgotten, so there are never more than eight."""

    def __init__(self, info: Video, height: int) -> None:
        self.size = fit(info, height)
        self.looks: deque[tuple[int, Look]] = deque()
        self.frames = self.due = 0

    def take(self, look: Look) -> None:
        if self.frames == self.due:
            self.looks.append((self.frames, look))
            self.due += max(4, self.frames // 8)
            while len(self.looks) > 1 and self.looks[1][0] <= self.frames / 2:
                self.looks.popleft()
        self.frames += 1

    def picture(self) -> npt.NDArray[np.uint8]:
        middle = (self.frames - 1) / 2
        return min(self.looks, key=lambda held: abs(held[0] - middle))[1].rgb(*self.size)


class Window:
    """A window that is going on: its pictures, 1/fps seconds apart from its first frame on."""

    def __init__(self, first: int, seconds: float) -> None:
        self.first, self.begin = first, seconds
        self.pictures: list[npt.NDArray[np.uint8]] = []
        self.due = 0


class Windows:
    """The animated previews of a clip, each written when its window is over: at most 1.5 windows of pictures are held.

    Where the frames of a full window end, the window may go on with a rest that is too short for one of its own: until
    that is known, pictures are taken for both.
    """

    def __init__(self, info: Video, settings: Preview, stem: Path, slack: float) -> None:
        """stem: of the files that are written, <stem>.preview_<first>_<last>.webp. slack: seconds by which two times
        may differ by rounding."""
        self.settings, self.stem, self.slack = settings, stem, slack
        self.size = fit(info, settings.height)
        self.frames = 0
        self.window = Window(0, 0.0)
        self.rest: Window | None = None
        self.complete = 0
        """Pictures of the window before its rest began."""
        self.files: dict[tuple[int, int], Path] = {}
        """[first, last] frame of each window that is over, counted from the clip's first -> its file."""

    def take(self, look: Look, seconds: float) -> None:
        """The clip's next frame, `seconds` after its first one."""
        if self.frames and self.frames % self.settings.window == 0:
            self.rest = Window(self.frames, seconds)
            self.complete = len(self.window.pictures)
        for window in (self.window, self.rest):
            if window and seconds - window.begin >= window.due / self.settings.fps - self.slack:
                window.pictures.append(look.rgb(*self.size))
                window.due = int((seconds - window.begin + self.slack) * self.settings.fps) + 1
        self.frames += 1
        if self.rest and self.frames - self.rest.first == windows.remainder(self.settings.window):
            self._write(self.window, self.rest.first - 1, self.complete)
            self.window, self.rest = self.rest, None

    def close(self) -> None:
        """After the clip's last frame."""
        if self.frames >= windows.LEAST:
            self._write(self.window, self.frames - 1, len(self.window.pictures))

    def abandon(self) -> None:
        """Leave no file."""
        for path in self.files.values():
            path.unlink()

    def _write(self, window: Window, last: int, pictures: int) -> None:
        path = self.files[window.first, last] = Path(f"{self.stem}.preview_{window.first}_{last}.webp")
        first, *others = map(PIL.Image.fromarray, window.pictures[:pictures])
        first.save(path, save_all=True, append_images=others, duration=round(1000 / self.settings.fps), loop=0,
                   quality=self.settings.quality)  # fmt: skip
