"""Do two pictures show one rigid scene? The Sampson error of what is matched in them, in pixels.

    e(x, y) = |y' F x| / sqrt((F x)_1^2 + (F x)_2^2 + (F' y)_1^2 + (F' y)_2^2)

to first order how far a match x, y is from fulfilling y' F x = 0 (Hartley and Zisserman, "Multiple View Geometry",
11.4.3), with a fundamental matrix F of the matches themselves, by RANSAC with the normalised 8-point method.

TSE: of each two frames that follow one another in a video, with an F of their own. CSE: of each two views at the same
times, with one F for all times, since cameras of a rig do not move against each other. The figures are medians and
means over all matches, outliers too, in pixels of pictures that are 540 pixels high: as in mvbench of NVIDIA's Cosmos
cookbook (metrics/sampson.py), which finds matches by SuperPoint and LightGlue where these are SIFT's (Lowe, 2004), so
that its bands (1, 3, 5 pixels) hold for the medians at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
HEIGHT = 540  # pixels: of this height are those that errors are told in
FEATURES = 2000  # of a picture
RATIO = 0.75  # of the distances to the nearest and the next descriptor (Lowe has 0.8)
FEWEST = 16  # matches: 8 fit exactly
TRIES = 512  # 8 inliers are among them with 99 % where 57 % of the matches are
INLIER = 1.0  # pixels
AT_ONCE = 64


class Error(NamedTuple):
    """Of the matches of two pictures, pixels."""

    median: float
    mean: float
    matches: int


class Described(NamedTuple):
    """What is found in a picture."""

    points_N2: Points
    """x, y."""
    vectors_ND: npt.NDArray[np.float32]


def eight_point(x_BN2: Points, y_BN2: Points) -> Points:
    """[B, 3, 3] of rank 2, with y' F x nearly 0, from [B, N, 2] pixels each, N >= 8; or one without B."""
    (x, to_x), (y, to_y) = _normalised(x_BN2), _normalised(y_BN2)
    rows = np.concatenate([y[..., 0:1] * x, y[..., 1:2] * x, x], -1)  # y[..., 2] is 1
    F = np.linalg.svd(rows)[2][..., -1, :].reshape(*rows.shape[:-2], 3, 3)
    u, s, v = np.linalg.svd(F)
    s[..., 2] = 0
    return np.swapaxes(to_y, -1, -2) @ (u * s[..., None, :]) @ v @ to_x


def _normalised(points: Points) -> tuple[Points, Points]:
    """Homogeneous points about 0 with a mean length of sqrt(2), and the matrix that made them."""
    centre = points.mean(-2, keepdims=True)
    scale = np.sqrt(2) / np.maximum(np.linalg.norm(points - centre, axis=-1).mean(-1), 1e-12)
    matrix = np.zeros((*points.shape[:-2], 3, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = scale
    matrix[..., :2, 2] = -scale[..., None] * centre[..., 0, :]
    matrix[..., 2, 2] = 1
    return homogeneous(points) @ np.swapaxes(matrix, -1, -2), matrix


def homogeneous(points: Points) -> Points:
    return np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1)


def errors(F: Points, x_N2: Points, y_N2: Points) -> Points:
    """Sampson errors, pixels: [N], or [B, N] of F [B, 3, 3]."""
    x, y = homogeneous(x_N2), homogeneous(y_N2)
    to_y, to_x = x @ np.swapaxes(F, -1, -2), y @ F  # lines
    squares = np.square(to_y[..., :2]).sum(-1) + np.square(to_x[..., :2]).sum(-1)
    return np.abs((to_y * y).sum(-1)) / np.sqrt(np.maximum(squares, 1e-300))


def fundamental(x_N2: Points, y_N2: Points, seed: int) -> Points:
    """F of the matches that agree best, by RANSAC: of TRIES times 8 of them the F with the least sum of errors, none
    counted as more than INLIER, then of all its inliers, as long as that makes it better. Raises ValueError for fewer
    than 8 matches."""
    if len(x_N2) < 8:
        raise ValueError(f"8 matches at least make a fundamental matrix; here are {len(x_N2)}")
    rng = np.random.default_rng([seed, len(x_N2)])
    best, least = np.zeros((3, 3)), np.inf
    for _ in range(0, TRIES, AT_ONCE):
        some = rng.random((AT_ONCE, len(x_N2))).argpartition(7, axis=1)[:, :8]
        tried = eight_point(x_N2[some], y_N2[some])
        costs = np.minimum(errors(tried, x_N2, y_N2), INLIER).sum(1)
        if costs.min() < least:
            best, least = tried[costs.argmin()], costs.min()
    for _ in range(5):
        inliers = errors(best, x_N2, y_N2) < INLIER
        if inliers.sum() < 8:
            break
        again = eight_point(x_N2[inliers], y_N2[inliers])
        cost = np.minimum(errors(again, x_N2, y_N2), INLIER).sum()
        if cost >= least:
            break
        best, least = again, cost
    return best


def described(grey_HW: npt.NDArray[np.uint8]) -> Described:
    """SIFT's points of a picture, in pixels of one that is HEIGHT high. Raises ModuleNotFoundError without OpenCV."""
    cv2 = opencv()
    found, vectors = cv2.SIFT_create(FEATURES).detectAndCompute(grey_HW, None)
    if not found:
        return Described(np.empty((0, 2)), np.empty((0, 128), np.float32))
    return Described(np.array([one.pt for one in found], np.float64) * (HEIGHT / len(grey_HW)), vectors)


def opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Sampson errors need OpenCV, whose SIFT finds the matches: pip install 'hpc[evaluate]', or `sampson: null`"
        ) from error
    return cv2


def matched(one: Described, other: Described) -> tuple[Points, Points]:
    """Points of each that are the other's nearest by far, in both directions: [N, 2] each, without doubles."""
    if min(len(one.points_N2), len(other.points_N2)) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    a, b = one.vectors_ND.astype(np.float64), other.vectors_ND.astype(np.float64)
    squares = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)
    nearest, back = squares.argmin(1), squares.argmin(0)
    two = np.partition(squares, 1, axis=1)
    good = (back[nearest] == np.arange(len(a))) & (two[:, 0] < RATIO**2 * two[:, 1])
    pairs = np.unique(np.concatenate([one.points_N2[good], other.points_N2[nearest[good]]], 1), axis=0)
    return pairs[:, :2], pairs[:, 2:]


def measured(pairs: Sequence[tuple[Points, Points]], seed: int) -> Error | None:
    """Of the matches of one or more pairs of pictures that share a fundamental matrix; None for fewer than FEWEST."""
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    if len(x) < FEWEST:
        return None
    found = errors(fundamental(x, y, seed), x, y)
    return Error(float(np.median(found)), float(found.mean()), len(x))
