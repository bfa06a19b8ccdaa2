"""Some pictures of a clip, for models that look at a few; how many it has."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image

from hpc.data.video.container import Frame, Source
from hpc.data.video.decode import Decoder
from hpc.data.video.index import index
from hpc.data.video.picture import Resizer
from hpc.data.video.probe import Video, probe


def sample(source: bytes | Source, frames: Sequence[int], width: int, height: int) -> npt.NDArray[np.uint8]:
    """uint8 [len(frames), height, width, 3], RGB, upright: these frames of a video, counted from 0, rising.

    For a frame that a damaged video lacks comes the next one that is there, and behind its end the last one. Raises
    BadInput for what is no video.
    """
    resize = Resizer(width, height)
    out: list[npt.NDArray[np.uint8]] = []
    for frame, times in chosen(opened(source), frames):
        out += [resize(frame)] * times
    return np.stack(out) if out else np.empty((0, height, width, 3), np.uint8)


def chosen(file: Source, frames: Sequence[int], nvdec: bool = False) -> Iterator[tuple[Frame, int]]:
    """The frames that `sample` takes, whoever decodes them, and how many of the asked ones each stands for. Begins at
    the key frame before the first. Raises as Decoder does."""
    at = index(file) if frames and frames[0] else None
    done, last = 0, None
    for number, frame in Decoder(file, frames[0] if at else 0, at, nvdec=nvdec):
        last = frame
        if done < len(frames) and number >= frames[done]:
            times = sum(wanted <= number for wanted in frames[done:])
            yield frame, times
            done += times
        if done == len(frames):
            return
    if last is not None:
        yield last, len(frames) - done


def measured(source: bytes | Source) -> tuple[Video, int]:
    """What a video says about itself, and how many frames it has. Raises BadInput for what is no video."""
    info = probe(opened(source))
    if info.frames:
        return info, info.frames
    at = index(opened(source))
    return info, at.frames if at else sum(1 for _ in Decoder(opened(source)))


def opened(source: bytes | Source) -> Source:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def still(data: bytes) -> npt.NDArray[np.uint8]:
    """A picture file, as uint8 [height, width, 3], RGB. Raises OSError (PIL's) for what is no picture."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
