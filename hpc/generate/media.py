"""The frames that a video goes on from, of a picture, or of one end of a video, at the size that a model makes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hpc.data import storage, video
from hpc.data.video import fit
from hpc.data.work import BadInput
from hpc.generate.prompts import Request
from hpc.generate.settings.videos import PICTURES


def frames(one: Request, count: int, width: int, height: int, fps: float = 0.0) -> npt.NDArray[np.uint8]:
    """uint8 [count, height, width, 3], RGB: a picture so many times, the last ones of a video, as they come, or its
    first ones, `fps` a second; what is wider or higher is cut, around the middle. Raises BadInput."""
    try:
        end = None if one.media_size < 0 else one.media_offset + one.media_size
        data = storage.read(one.media, one.media_offset, end, one.media_etag or None)
    except (FileNotFoundError, storage.Changed) as error:
        raise BadInput(one.media, "changed-since-planned", str(error)) from error
    if one.media.lower().endswith(PICTURES):
        try:
            picture = video.still(data)
        except OSError as error:
            words = f"{one.name}: {len(data):,} bytes that begin with {data[:16]!r} are no picture that can be read"
            raise BadInput(one.media, "no-picture", words) from error
        wide, high, left, top = fit.placed(picture.shape[1], picture.shape[0], width, height, "crop")
        picture = video.Resizer(wide, high)(video.Frame.from_ndarray(np.ascontiguousarray(picture), "rgb24"))
        pictures = np.repeat(picture[None], count, axis=0)
    else:
        try:
            info, there = video.measured(data)
        except BadInput as error:
            raise BadInput(one.media, error.bad.reason, f"{one.name}: {error.bad.detail}") from error
        numbers = list(range(there - count, there))
        if one.beginning:
            numbers = [int(i * float(info.fps) / fps + 1e-6) for i in range(count)]
        if numbers[0] < 0 or numbers[-1] >= there:
            raise BadInput(one.media, "too-short", f"{one.name}: {there} frames; {count} are gone on from")
        wide, high, left, top = fit.placed(info.width, info.height, width, height, "crop")
        pictures = video.sample(data, numbers, wide, high)
    return fit.laid(pictures, width, height, left, top)
