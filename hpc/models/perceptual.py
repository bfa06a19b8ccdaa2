"""What a clip looks like over its length, as one short vector: near copies have a cosine near 1. No weights, no GPU.

It stays what it is when a clip is re-encoded, scaled, brightened a little, cropped about its middle, sped up, or
mirrored. Frames are taken at uniform fractions of the clip, so that time counts relative to its length. In formulas:

    P[s, c]     mean of the PER frames of the s-th of SEGMENTS parts, as 48x48 pixels; c: Y, and Cb and Cr times 1.5
    Q           (P - its mean under W) W, W(y, x) = w(y) w(x), w(x) = 1 - (2x - 1)^2: the middle counts, edges do not
    C[s, c, u, v]  the DCT-II of Q, u down and v across, of 0 < u^2 + v^2 < 25 (of Cb and Cr: u, v < 3), each times
                (u^2 + v^2)^0.4: pictures have less of what is finer, and this makes up for a part of it
    A[k]        the DCT-II of C along s, k < MOMENTS: A[0] is what the clip shows in the mean, the others how it changes
    B           A[0] / sqrt(|A[0]|^2 + 4^2), 1.3 A[1:] / sqrt(|A[1:]|^2 + 0.5^2): two shots of one scene look alike and
                move differently, so both count about the same, however little moves; 4 and 0.5 levels are noise
    E, O        the parts of B with even and odd v; mirroring turns O into -O
    R           B[0, Y] at (u, v) = (0, 1) and (1, 1), divided by sqrt(|R|^2 + 0.1^2)
    vector      [E, R[0] O, R[1] O], divided by its length

Products of two odd numbers do not change when both change their signs: mirrored clips have the same vector, without a
choice of a side that could go either way for pictures that are nearly symmetric.

The idea that few coefficients of a DCT tell pictures apart is that of perceptual hashes (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010); what is done about time, mirrors and scenes is ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 48  # pixels
SEGMENTS = 8
PER = 4  # frames a segment: one alone would be another one in a copy with other frame times
FRAMES = SEGMENTS * PER
ORDER = 5  # of spatial frequencies
CHROMA_ORDER = 3
MOMENTS = 6
YCC = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)  # ITU-R BT.601
CHROMA = 1.5
SLOPE = 0.8
CHANGE = 1.3
NOISE = (4.0, 0.5)  # levels
SYMMETRIC = 0.1
ANCHORS = ((0, 1), (1, 1))

Array = npt.NDArray[Any]


def times(frames: int) -> list[int]:
    """Which frames of a clip `describe` wants, of so many; FRAMES of them, rising."""
    return [min(int((i + 0.5) / FRAMES * frames), frames - 1) for i in range(FRAMES)]


def waves(order: int, size: int) -> Array:
    """float32 [order, size]: the first cosines of an orthonormal DCT-II."""
    x = (np.arange(size) + 0.5) / size
    rows = np.cos(np.pi * np.arange(order)[:, None] * x) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _kept() -> tuple[Array, Array]:
    """(weights float32 [3, ORDER, ORDER], which of them are not 0)"""
    v, u = np.meshgrid(np.arange(ORDER), np.arange(ORDER))
    squares = u**2 + v**2
    luma = np.where((squares > 0) & (squares < ORDER**2), squares ** (SLOPE / 2), 0)
    chroma = np.where((u < CHROMA_ORDER) & (v < CHROMA_ORDER), CHROMA * luma, 0)
    weights = np.stack([luma, chroma, chroma]).astype(np.float32)
    return weights, weights > 0


_X = (np.arange(SIDE) + 0.5) / SIDE
WINDOW = np.outer(1 - (2 * _X - 1) ** 2, 1 - (2 * _X - 1) ** 2).astype(np.float32)
WEIGHTS, KEPT = _kept()
ACROSS = np.arange(ORDER) % 2 == 1
DIMENSIONS = MOMENTS * int((KEPT & ~ACROSS).sum() + len(ANCHORS) * (KEPT & ACROSS).sum())


def describe(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """float32 [DIMENSIONS], of length 1 (of length 0, about, for a clip that shows nothing).

    pictures: uint8 [FRAMES, SIDE, SIDE, 3], RGB: the frames that `times` names, whatever their shape was.
    """
    parts = pictures.reshape(SEGMENTS, PER, SIDE, SIDE, 3).astype(np.float32).mean(1) @ YCC.T
    parts = np.moveaxis(parts, -1, 1)
    middle = (parts * WINDOW).sum((2, 3), keepdims=True) / WINDOW.sum()
    cosines = waves(ORDER, SIDE)
    found = cosines @ ((parts - middle) * WINDOW) @ cosines.T / SIDE * WEIGHTS
    moments = np.tensordot(waves(MOMENTS, SEGMENTS), found, 1) / np.sqrt(SEGMENTS, dtype=np.float32)
    moments[:1] /= np.hypot(np.linalg.norm(moments[:1]), NOISE[0])
    moments[1:] *= CHANGE / np.hypot(np.linalg.norm(moments[1:]), NOISE[1])
    anchors = np.array([moments[0, 0, u, v] for u, v in ANCHORS])
    anchors /= np.hypot(np.linalg.norm(anchors), SYMMETRIC)
    odd = moments[:, KEPT & ACROSS].ravel()
    vector = np.concatenate([moments[:, KEPT & ~ACROSS].ravel(), *(anchor * odd for anchor in anchors)])
    return (vector / max(float(np.linalg.norm(vector)), 0.02)).astype(np.float32)
