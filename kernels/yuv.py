"""Decoded frames, planes of YUV 4:2:0, to RGB pictures of another size, by whole numbers alone: the same bytes on any
device.

    a plane P        P' = floor(Wv P / 2^(b - 2) + 1/2) in quarters of a level, then
                     P" = floor(P' Wh^T / 2^(b - 2) + 1/2) in sixteenths
    [R G B]          [Y" U" V"] M + bias, in 1/2^16 of a level, rounded and cut to 0..255

W are the weights of `bicubic`, in 1/2^b, rounded so that each row's sum stays 1. What is multiplied has 11 bits at
most, and all sums stay below 2^24, so that matmuls in fp32, and in TF32 too, are exact, whatever the order in which a
GPU or a CPU adds up. Nothing depends on the library, the device, or the company of a frame.

They are the pictures of swscale, which resizes on CPUs (hpc.data.video.Resizer), within rounding: chroma samples lie
left, two pixels beside each other have one color (but in odd widths), and what its x86 code loses by cutting off
fractions is lost too. Over the trailer of the quickstart they differ by half a level in the mean, rarely by 4 to 8.

There is no Triton form: to make a frame of 1280x720 one of 456x256 is 1.2 GFLOP of matmul, and video engines take
longer to decode it than a GPU for that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Luminance weights of red and blue by the frame's `colorspace`, ITU-T H.273; BT.601 for all others, as swscale does.
MATRICES = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
BT601 = (0.299, 0.114)
# What libav's x86 code loses by cutting off fractions on the way from limited-range YUV to RGB: measured over film.
SWSCALE_LOSS = (-1.8, -1.2, -1.5)
UNSCALED_LOSS = (-1.0, -1.5, -1.0)
"""The same of its code for pictures that keep their size."""
ODD_LOSS = (0.0, 0.0, 0.0)
"""And of that for odd widths."""
LEFT = 0.25
"""Of a chroma sample: how far its place, above the left one of two pixels, is from the middle of both."""
MOST = 2**23
"""Pixels that are made at once."""


class Planes(NamedTuple):
    """A 4:2:0 frame: 8 bits in uint8, or more in the upper bits of uint16."""

    y: Tensor
    """[height, width]"""
    uv: Tensor
    """[height / 2, width / 2, 2]"""
    colorspace: int
    full_range: bool


def key(planes: Planes) -> tuple[object, ...]:
    """What frames must share to be made into pictures together."""
    return (planes.y.shape, planes.y.dtype, planes.colorspace, planes.full_range)


def bicubic(source: int, target: int, shift: float = 0.0) -> Tensor:
    """Weights [target, source] of a resize that averages over the area of each new pixel: the kernel of Keys with
    a = -0.6, as wide as the new pixels, edges repeated. swscale's `bicubic`, without its rounding. shift: how far to
    the right, in old pixels, the new ones are looked for."""
    scale = max(source / target, 1.0)
    middles = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5 + shift
    reach = math.ceil(2 * scale)
    taps = middles.floor()[:, None] + torch.arange(-reach, reach + 2)
    d = (taps - middles[:, None]).abs() / scale
    near = 1.4 * d**3 - 2.4 * d**2 + 1
    far = -0.6 * d**3 + 3 * d**2 - 4.8 * d + 2.4
    values = torch.where(d < 1, near, torch.where(d < 2, far, 0))
    values /= values.sum(1, keepdim=True)
    weights = torch.zeros(target, source, dtype=torch.float64)
    return weights.scatter_add_(1, taps.clamp(0, source - 1).long(), values)


@functools.lru_cache(maxsize=256)
def whole(source: int, target: int, shift: float, device: torch.device) -> tuple[Tensor, int]:
    """(`bicubic` in whole numbers, float32 [target, source]; b: each row's sum is 2^b)."""
    exact = bicubic(source, target, shift)
    for bits in range(13, 8, -1):
        rounded = (exact * 2**bits).round()
        largest = exact.argmax(1, keepdim=True)
        rounded.scatter_add_(1, largest, 2**bits - rounded.sum(1, keepdim=True))
        if rounded.abs().max() <= 2**11:
            break
    return rounded.float().to(device), bits


def resized(plane_NHW: Tensor, height: int, width: int, deep: bool, shift: float = 0.0) -> Tensor:
    """float32 whole numbers of 8 bits (deep: 10) -> int32 [n, height, width], in 1/16 of a level of 8 bits."""
    rows, bits = whole(plane_NHW.shape[-2], height, 0.0, plane_NHW.device)
    columns, more = whole(plane_NHW.shape[-1], width, shift, plane_NHW.device)
    quarters = torch.floor((rows @ plane_NHW) * 2.0 ** -(bits - (0 if deep else 2)) + 0.5)
    return torch.floor((quarters @ columns.T) * 2.0 ** -(more - 2) + 0.5).int()


@torch.no_grad()
def rgb(frames: Sequence[Planes], width: int, height: int) -> Tensor:
    """uint8 [frames, height, width, 3] of frames with one `key`, on their device."""
    first = frames[0]
    out = torch.empty(len(frames), height, width, 3, dtype=torch.uint8, device=first.y.device)
    each = max(1, MOST // max(first.y.numel(), height * width))
    with torch.autocast(first.y.device.type, enabled=False):
        for begin in range(0, len(frames), each):
            some = frames[begin : begin + each]
            out[begin : begin + each] = _rgb(first, [f.y for f in some], [f.uv for f in some], width, height)
    return out


def _rgb(like: Planes, y: list[Tensor], uv: list[Tensor], width: int, height: int) -> Tensor:
    deep = like.y.dtype != torch.uint8
    y_NHW, uv_N2HW = _stacked(y), _stacked(uv).movedim(3, 1)
    if like.y.shape == (height, width):
        scale = 4 if deep else 16
        light = y_NHW.int() * scale
        color = uv_N2HW.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width].int() * scale
        loss = UNSCALED_LOSS
    else:
        light = resized(y_NHW, height, width, deep)
        each = width if width % 2 else width // 2
        color = resized(uv_N2HW.flatten(0, 1), height, each, deep, LEFT).unflatten(0, (-1, 2))
        color = color.repeat_interleave(width // each, 3)
        loss = ODD_LOSS if width % 2 else SWSCALE_LOSS
    (gain, red, green_u, green_v, blue), bias = matrix(like.colorspace, like.full_range, loss)
    light, u, v = light * gain, color[:, 0], color[:, 1]
    pictures = light + red * v + bias[0], light + green_u * u + green_v * v + bias[1], light + blue * u + bias[2]
    return torch.stack([(one >> 16).clamp_(0, 255).to(torch.uint8) for one in pictures], 3)


def matrix(colorspace: int, full_range: bool, loss: tuple[float, float, float]) -> tuple[list[int], list[int]]:
    """([gain of Y, V to red, U and V to green, U to blue], bias of R, G and B), which make 1/16 of levels of YUV into
    1/2^16 of levels of RGB, with 1/2 added. loss: levels, of frames of limited range."""
    red, blue = MATRICES.get(colorspace, BT601)
    green = 1 - red - blue
    light, color = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    r, b = 2 * (1 - red) * color, 2 * (1 - blue) * color
    gain, *rest = (round(one * 4096) for one in (light, r, -b * blue / green, -r * red / green, b))
    lost = (0.0, 0.0, 0.0) if full_range else loss
    dark = 0 if full_range else 16 * 16 * gain
    sums = rest[0], rest[1] + rest[2], rest[3]
    return [gain, *rest], [round((one + 0.5) * 65536) - dark - 128 * 16 * s for one, s in zip(lost, sums, strict=True)]


def _stacked(planes: list[Tensor]) -> Tensor:
    """float32: of 8 bits 0..255, of more the upper 10, 0..1023."""
    if planes[0].dtype == torch.uint8:
        return torch.stack(planes).float()
    deep = torch.stack([plane.view(torch.int16) for plane in planes])  # few operators know uint16
    return ((deep.int() & 0xFFFF) >> 6).float()
