"""How near a video is to another: PSNR and SSIM of each frame.

SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
2004, with its Gaussian window of 11 x 11 pixels, sigma 1.5, at the places where it lies inside the picture, each colour
channel by itself:

    SSIM = (2 mx my + C1) (2 cxy + C2) / ((mx^2 + my^2 + C1) (vx + vy + C2)),   C1 = 0.01^2, C2 = 0.03^2

with means m, variances v and the covariance c under the window, of values from 0 to 1.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

WINDOW = 11  # pixels
SIGMA = 1.5


def psnr(one_BCTHW: Tensor, other_BCTHW: Tensor) -> Tensor:
    """dB of each frame [B, T], of videos from -1 to 1 (what is beyond is cut off). 100 for equal frames."""
    one, other = _from_0_to_1(one_BCTHW), _from_0_to_1(other_BCTHW)
    return -10 * (one - other).square().mean(dim=(1, 3, 4)).clamp_min(1e-10).log10()


def ssim(one_BCTHW: Tensor, other_BCTHW: Tensor) -> Tensor:
    """Of each frame [B, T], of videos from -1 to 1 (what is beyond is cut off), mean over pixels and colours. Raises
    ValueError for frames smaller than the window."""
    if min(one_BCTHW.shape[3:]) < WINDOW:
        raise ValueError(f"SSIM's window has {WINDOW} x {WINDOW} pixels; these frames {list(one_BCTHW.shape[3:])}")
    B, C, T, H, W = one_BCTHW.shape
    x, y = (_from_0_to_1(v).transpose(1, 2).reshape(B * T * C, 1, H, W) for v in (one_BCTHW, other_BCTHW))
    mx, my, xx, yy, xy = (_blurred(v) for v in (x, y, x * x, y * y, x * y))
    vx, vy, cxy = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return values.mean(dim=(1, 2, 3)).view(B, T, C).mean(-1)


def _from_0_to_1(video: Tensor) -> Tensor:
    return (video.float().clamp(-1, 1) + 1) / 2


def _blurred(x: Tensor) -> Tensor:
    """By shifted sums: GPUs round what goes into a convolution to 10 bits, and variances are small differences."""
    weights = [math.exp(-((place - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for place in range(WINDOW)]
    for axis in (2, 3):
        size = x.shape[axis] - WINDOW + 1
        shifted = (x.narrow(axis, place, size) * (one / sum(weights)) for place, one in enumerate(weights))
        x = functools.reduce(torch.add, shifted)
    return x
