"""Patches by Haar wavelets: a video of few channels and many pixels becomes one of many channels and few pixels.

One level halves frames, height and width and makes eight bands of it: along each axis, neighbours a and b become
(a + b) / 2 and (a - b) / 2. The next level does so to all eight. So four frames of 4x4 pixels become 64 numbers, the
first of them their mean. Halves are exact in floating point: what was put in comes out again to the last bit wherever
the sums are exact too, as they are for pixels in 8 bits.

Channels are ordered [later level's band, earlier level's band, channel], and a band's number has a bit each for time
(the largest), height and width. The first frame of a video stands for a whole patch: it is repeated. This is the order
and the scale of cosmos_predict1 4ed35fa: tokenizer/modules/patching.py (Patcher3D, UnPatcher3D, method haar), which
computes it by grouped convolutions with 1/sqrt(2) = 0.70710677.
"""

from __future__ import annotations

import torch
from torch import Tensor

AXES = (2, 3, 4)  # frames, height, width


def patch(video_BCTHW: Tensor, size: int, start: bool) -> Tensor:
    """[B, C, T, H, W] -> [B, C x size**3, t, H / size, W / size] for a `size` that is a power of two.

    start: these are the first frames of a video, 1 + k x size of them; t is then 1 + k. Else k x size, and t is k.
    """
    if start:
        first = video_BCTHW[:, :, :1].expand(-1, -1, size - 1, -1, -1)
        video_BCTHW = torch.cat([first, video_BCTHW], dim=2)
    for _ in range(size.bit_length() - 1):
        bands = [video_BCTHW]
        for axis in AXES:
            pairs = [band.unflatten(axis, (-1, 2)).unbind(axis + 1) for band in bands]
            bands = [half for a, b in pairs for half in ((a + b) / 2, (a - b) / 2)]
        video_BCTHW = torch.cat(bands, dim=1)
    return video_BCTHW


def unpatch(bands_BCTHW: Tensor, size: int, start: bool) -> Tensor:
    """The inverse of `patch`."""
    for _ in range(size.bit_length() - 1):
        bands = list(bands_BCTHW.chunk(8, dim=1))
        for axis in reversed(AXES):
            pairs = zip(bands[::2], bands[1::2], strict=True)
            bands = [torch.stack([low + high, low - high], axis + 1).flatten(axis, axis + 1) for low, high in pairs]
        bands_BCTHW = bands[0]
    return bands_BCTHW[:, :, size - 1 :] if start else bands_BCTHW
