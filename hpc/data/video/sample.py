"""Some pictures of a clip, for models that look at a few; how many it has."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image

from hpc.data.video.container import Source
from hpc.data.video.decode import Decoder
from hpc.data.video.index import index
from hpc.data.video.picture import Resizer
from hpc.data.video.probe import Video, probe


def sample(source: bytes | Source, frames: Sequence[int], width: int, height: int) -> npt.NDArray[np.uint8]:
    """uint8 [len(frames), height, width, 3], RGB, upright: these frames of a video, counted from 0, rising.

    For a frame that a damaged video lacks comes the next one that is there, and behind its end the last one. Raises
    BadInput for what is no video.
    """
    file = _opened(source)
    resize, last = Resizer(width, height), None
    out: list[npt.NDArray[np.uint8]] = []
    at = index(file) if frames and frames[0] else None  # to begin at the key frame before the first
    for number, frame in Decoder(file, frames[0] if at else 0, at):
        last = frame
        if len(out) < len(frames) and number >= frames[len(out)]:
            picture = resize(frame)
            out += [picture] * sum(wanted <= number for wanted in frames[len(out) :])
        if len(out) == len(frames):
            break
    if last is not None and len(out) < len(frames):
        out += [resize(last)] * (len(frames) - len(out))
    return np.stack(out) if out else np.empty((0, height, width, 3), np.uint8)


def measured(source: bytes | Source) -> tuple[Video, int]:
    """What a video says about itself, and how many frames it has. Raises BadInput for what is no video."""
    info = probe(_opened(source))
    if info.frames:
        return info, info.frames
    at = index(_opened(source))
    return info, at.frames if at else sum(1 for _ in Decoder(_opened(source)))


def _opened(source: bytes | Source) -> Source:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def still(data: bytes) -> npt.NDArray[np.uint8]:
    """A picture file, as uint8 [height, width, 3], RGB. Raises OSError (PIL's) for what is no picture."""
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
