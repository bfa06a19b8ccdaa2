"""Where to cut: from the frames of a video, one by one, to the frames of each clip, as soon as its cut is known.

A labeller (Shots, Strides, changes.Changes) says of each frame whether a shot begins with it, goes on, or neither. It
may be some hundred frames behind the decoder; Cutter keeps the frames that wait for their labels, applies the rules of
settings.Split, and hands each frame that belongs to a clip to that clip. All of it counts in time, never in an assumed
frame rate.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from hpc.curate.look import Look
from hpc.curate.settings import Split
from hpc.data import video
from hpc.models import shots, shots_gpu


class Label(enum.Enum):
    START = 1
    """A shot begins with this frame."""
    INSIDE = 2
    """The shot goes on, or ends, with this frame."""
    OUTSIDE = 3
    """In a transition."""


class Labeller(Protocol):
    begin: int
    """Number of the first frame that must be pushed."""
    first: int
    """Number of the first frame that gets a label."""

    def push(self, look: Look) -> list[Label]:
        """The labels of the next frames in order: as many as are known by now."""

    def finish(self) -> list[Label]:
        """The video is over: the labels of the frames that are left."""


class Shots:
    """Shots as TransNetV2 sees them. The first frame of a transition still belongs to the shot before it."""

    def __init__(self, model: shots.TransNetV2 | shots_gpu.Batcher, threshold: float, start: int) -> None:
        self.threshold = threshold
        self.first = max(0, start - shots.STEP)  # the label of frame `start` needs the frame before it
        self.begin = max(0, self.first - shots.CONTEXT)
        on_gpu = isinstance(model, shots_gpu.Batcher)
        self.detector = model.detector(self.first) if on_gpu else shots.Detector(model, self.first)
        self.next = self.begin
        self.in_transition = True  # nothing comes before the first frame

    def push(self, look: Look) -> list[Label]:
        small = look.planes or look.rgb(shots.WIDTH, shots.HEIGHT)
        labels = []
        # Damaged frames are missing: the detector sees the next one in their place, so that its windows stay in step.
        for _ in range(self.next, look.number + 1):
            labels += self._labels(self.detector.push(small))
        self.next = look.number + 1
        return labels

    def finish(self) -> list[Label]:
        return self._labels(self.detector.finish())

    def _labels(self, probabilities: Iterable[float]) -> list[Label]:
        labels = []
        for probability in probabilities:
            before, self.in_transition = self.in_transition, bool(probability > self.threshold)
            if before:
                labels.append(Label.OUTSIDE if self.in_transition else Label.START)
            else:
                labels.append(Label.INSIDE)
        return labels


class Strides:
    """A cut every `stride` seconds from the first frame on."""

    def __init__(self, info: video.Video, stride: float, start: int) -> None:
        self.info, self.stride = info, stride / float(info.time_base)
        self.slack = slack(info)
        self.begin = self.first = max(0, start - 1)
        self.next, self.piece = self.first, -1

    def push(self, look: Look) -> list[Label]:
        missing = [Label.INSIDE] * (look.number - self.next)
        piece = int((look.pts - self.info.start_pts + self.slack) // self.stride)
        label = Label.START if piece > self.piece else Label.INSIDE
        self.next, self.piece = look.number + 1, piece
        return [*missing, label]

    def finish(self) -> list[Label]:
        return []


def slack(info: video.Video) -> float:
    """How much two times may differ by rounding, in units of time_base: a container with milliseconds puts the 48th
    frame of 24 at 1.999 s or 2.001 s. Never more than a quarter of a frame."""
    return min(2.0, float(1 / (4 * info.fps * info.time_base)))


class Clip(Protocol):
    def take(self, number: int, pts: int, end: int, look: Look) -> None:
        """The next frame of the clip, shown from `pts` to `end`."""

    def close(self) -> None: ...


class Shot:
    def __init__(self, start: int) -> None:
        self.start = start
        self.end: int | None = None
        """Number of the first frame after it; None while it goes on."""
        self.pts: int | None = None
        """Time of its first frame that could be decoded."""
        self.clips = 0


class Cutter:
    """Give it every frame (`push`) and every label; it opens, fills and closes the clips of the shots that begin at a
    frame number in `own`."""

    def __init__(
        self,
        info: video.Video,
        split: Split,
        first: int,
        own: tuple[int, float],
        open_clip: Callable[[int, int, str], Clip],
    ) -> None:
        """first: number of the first frame that gets a label. open_clip(number of the first frame, its time, verdict):
        a verdict other than "" says why the clip is dropped, whatever it holds."""
        self.crop = split.crop / float(info.time_base) if split.at_shots else 0.0
        self.longest = split.max_clip / float(info.time_base) if split.at_shots else float("inf")
        self.truncate = split.long_shots == "truncate"
        self.slack = slack(info)
        self.own, self.open_clip = own, open_clip
        self.known = first
        """Frames before this number have labels."""
        self.queue: deque[Look] = deque()
        self.shots: deque[Shot] = deque()
        self.clip: Clip | None = None
        self.end: int | None = None
        """Time at which the video ends, once that is known."""

    @property
    def done(self) -> bool:
        """No further frame can belong to a shot that begins in `own`."""
        return self.known >= self.own[1] and not self.shots

    def push(self, look: Look, labels: list[Label]) -> None:
        """The next frame, and the labels that it made known."""
        self.queue.append(look)
        self._label(labels)

    def finish(self, labels: list[Label]) -> None:
        """The video ends here; these are the last labels."""
        if self.queue:
            self.end = self.queue[-1].pts + self.queue[-1].duration
        self._label(labels)
        if self.shots and self.shots[-1].end is None:
            self.shots[-1].end = self.known
        self._cut()

    def _label(self, labels: list[Label]) -> None:
        for label in labels:
            running = bool(self.shots) and self.shots[-1].end is None
            if running and label is not Label.INSIDE:
                self.shots[-1].end = self.known
            if label is Label.START and self.own[0] <= self.known < self.own[1]:
                self.shots.append(Shot(self.known))
            self.known += 1
        if labels:
            self._cut()

    def _cut(self) -> None:
        while self.shots and self._over(self.shots[0]):
            self.shots.popleft()
        if not self.shots:
            self._skip(self.known)

    def _skip(self, number: int) -> None:
        while self.queue and self.queue[0].number < number:
            self.queue.popleft()

    def _over(self, shot: Shot) -> bool:
        """Hand on what is certain to be in a clip of this shot; is that all of it?"""
        self._skip(shot.start)
        limit = self.known if shot.end is None else shot.end
        limit_pts = next((w.pts for w in self.queue if w.number >= limit), self.end)
        if limit_pts is None:  # all frames that came have labels; the end of the newest is not known yet
            if not self.queue:
                return False
            limit, limit_pts = self.queue[-1].number, self.queue[-1].pts
        if shot.pts is None and self.queue and self.queue[0].number < limit:
            shot.pts = self.queue[0].pts
        while self.queue and self.queue[0].number < limit:
            look = self.queue[0]
            end = self.queue[1].pts if len(self.queue) > 1 else self.end
            if look.pts >= shot.pts + self.crop - self.slack:
                if end > limit_pts - self.crop + self.slack:
                    break
                self._add(shot, look, end)
            self.queue.popleft()
        if shot.end is None or limit < shot.end:
            return False
        if shot.pts is not None and not shot.clips:  # nothing left after cropping
            self._open(shot, shot.start, shot.pts, "short")
            self.clip.take(shot.end - 1, shot.pts, limit_pts, None)
        if self.clip:
            self.clip.close()
            self.clip = None
        self._skip(shot.end)
        return True

    def _add(self, shot: Shot, look: Look, end: int) -> None:
        cut_short = self.truncate and shot.clips > 1
        if self.clip and end - self.clip_pts > self.longest + self.slack and not cut_short:
            self.clip.close()
            self.clip = None
        if self.clip is None:
            self._open(shot, look.number, look.pts, "past-max-clip" if self.truncate and shot.clips else "")
        self.clip.take(look.number, look.pts, end, look)

    def _open(self, shot: Shot, number: int, pts: int, verdict: str) -> None:
        self.clip, self.clip_pts = self.open_clip(number, pts, verdict), pts
        shot.clips += 1
