"""Motion vectors: how the codec moves pieces of other frames to where they are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type

from hpc.data.video.container import Frame


def motion_vectors(frame: Frame) -> npt.NDArray[Any] | None:
    """The vectors of a frame of a `Decoder(..., vectors=True)`; None where the codec has none.

    A structured array, one record a block: `w`, `h` its size and `dst_x`, `dst_y` its centre in pixels; `motion_x`,
    `motion_y` its way from the frame it is taken from, in 1/`motion_scale` pixels; `source` < 0 for a frame before, > 0
    for one after. All in the picture as it is coded, before a rotation. H.264, MPEG-1, MPEG-2, MPEG-4 part 2 and their
    kin have them, but not in frames that are coded on their own (intra).
    """
    found = frame.side_data.get(Type.MOTION_VECTORS)
    return None if found is None else np.asarray(found.to_ndarray())
