"""Frames that stay in the GPU's memory until somebody asks for their pixels on the CPU."""

from __future__ import annotations

import weakref
from collections import deque

from hpc.curate.look import Look, Sizes
from hpc.data import video
from hpc.data.video import nvdec
from hpc.kernels.yuv import Planes

BATCH = 8  # frames that are downloaded at once
FULL_RANGE = 2  # color_range


class GpuLook(Look):
    """A Look whose `frame` is downloaded when it is first asked for."""

    __slots__ = ("__weakref__", "_frame", "coded", "held")

    def __init__(self, number: int, frame: video.Frame, sizes: Sizes, digest: bytes, held: Held) -> None:
        self.coded: video.Frame | None = frame
        """In the GPU's memory; None once it is downloaded."""
        self.held = held
        super().__init__(number, frame, sizes, digest)

    @property
    def frame(self) -> video.Frame:
        if self.coded:
            self.held.download(self)
        return self._frame

    @frame.setter
    def frame(self, frame: video.Frame) -> None:
        self._frame = frame

    @property
    def planes(self) -> Planes | None:
        if self.coded is None:
            return None
        full = self.coded.color_range == FULL_RANGE or self.held.info.pix_fmt == "yuvj420p"
        return Planes(*nvdec.planes(self.coded), int(self.coded.colorspace), full)


class Held:
    """The looks of one video whose frames may still be in the GPU's memory: the oldest are downloaded when they get too
    many. If frames are asked for one after the other, the next ones come with them."""

    def __init__(self, info: video.Video, decoder: video.Decoder, most: int) -> None:
        """most: bytes of the GPU's memory."""
        self.info = info
        self.downloader = nvdec.Downloader(info, decoder.plain)
        deep = 2 if info.pix_fmt in nvdec.TEN else 1
        self.most = max(2 * BATCH, most // (-(-info.width // 512) * 512 * info.height * 3 // 2 * deep))
        self.looks: deque[weakref.ref[GpuLook]] = deque()
        self.next, self.batch = -1, 1

    def look(self, number: int, frame: video.Frame, sizes: Sizes, digest: bytes) -> GpuLook:
        """Raises Unfit for a frame of another size."""
        if (frame.width, frame.height) != (self.info.width, self.info.height):
            raise video.Unfit(f"{frame.width}x{frame.height} in a video of {self.info.width}x{self.info.height}")
        look = GpuLook(number, frame, sizes, digest, self)
        self.looks.append(weakref.ref(look))
        if len(self.looks) > self.most:
            self.looks = deque(ref for ref in self.looks if self._there(ref))
            if len(self.looks) > self.most:
                self.download(self.looks[0]())
        return look

    def download(self, look: GpuLook) -> None:
        self.batch = min(2 * self.batch, BATCH) if look.number == self.next else 1
        batch = [look]
        for _ in range(len(self.looks)):
            later = self._there(self.looks[0])
            if later and later.number > look.number:
                if len(batch) == self.batch:
                    break
                batch.append(later)
            self.looks.popleft()
        self.next = batch[-1].number + 1
        coded = [one.coded for one in batch]
        for one, frame in zip(batch, self.downloader(coded), strict=True):
            one.frame, one.coded = frame, None

    def _there(self, ref: weakref.ref[GpuLook]) -> GpuLook | None:
        look = ref()
        return look if look and look.coded else None
