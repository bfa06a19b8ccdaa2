"""Videos that are evaluated, as they are read: from a file or from the middle of a tar, a few frames at a time."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from hpc.data import storage, video
from hpc.data.video import fit
from hpc.data.work import BadInput
from hpc.evaluate.pairs import Place

Pictures = npt.NDArray[np.uint8]


class Film:
    """A video that is there and whole."""

    def __init__(self, place: Place, name: str) -> None:
        """Raises BadInput for one that is not there, is no video, or of which frames are damaged."""
        self.place, self.name = place, name
        if place.why:
            reason, _, detail = place.why.partition(":")
            raise BadInput(place.uri or name, reason, f"{name}: {detail.strip() or reason}")
        with self.open() as file:
            self.info, told = video.measured(file)
        with self.open() as file:
            decoder = video.Decoder(file)
            self.frames = sum(1 for _ in decoder)
        if decoder.damaged or self.frames < told:
            words = f"{name}: {self.frames} of {told} frames can be decoded, {decoder.damaged} are damaged"
            raise BadInput(self.uri, "damaged", words)
        self.fps = float(self.info.fps)

    @property
    def uri(self) -> str:
        return self.place.uri if self.place.size < 0 else f"{self.place.uri}#{self.name}"

    def open(self) -> BinaryIO:
        """Raises BadInput where it is gone, or another than was planned."""
        place = self.place
        try:
            if place.size < 0:
                return storage.open(place.uri, place.etag)
            return io.BytesIO(storage.read(place.uri, place.offset, place.offset + place.size, place.etag))
        except FileNotFoundError as error:
            raise BadInput(self.uri, "missing", f"{self.name} was there when the run was planned") from error
        except storage.Changed as error:
            raise BadInput(self.uri, "changed-since-planned", str(error)) from error

    def sample(self, numbers: list[int], height: int, width: int) -> Pictures:
        """uint8 [len(numbers), height, width, 3], RGB; numbers rise."""
        with self.open() as file:
            return video.sample(file, numbers, width, height)

    def pictures(self, numbers: Iterable[int], height: int, width: int) -> Iterator[Pictures]:
        """Each uint8 [height, width, 3]; numbers rise and may come again. One picture is held at a time."""
        wide, high, left, top = fit.placed(self.info.width, self.info.height, width, height, "crop")
        resize = video.Resizer(wide, high)
        wanted = iter(numbers)
        next_one = next(wanted, None)
        with self.open() as file:
            for number, frame in video.Decoder(file):
                if next_one is None:
                    return
                if number < next_one:
                    continue
                picture = fit.laid(resize(frame)[None], width, height, left, top)[0]
                while next_one is not None and next_one <= number:
                    yield picture
                    next_one = next(wanted, None)
