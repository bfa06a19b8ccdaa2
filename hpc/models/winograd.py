"""3x3x3 convolutions over space and time on a CPU, with few multiplications: Winograd's minimal filtering.

In space, a tile of m x m outputs takes (m + 2)^2 products in place of 9 m^2 (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2015, https://arxiv.org/abs/1509.09308); in time the three taps are summed up as they
are, so that branches of different dilations share one transform. Each product of the transform's points is a matrix
product over channels, for all frames of some tiles; everything is torch.mm and torch.bmm into memory that is kept.
These products are small: run them in `one_thread`, since several would mostly wait for each other.

Pictures lie in memory as [height, width, frames + gap, channels], the frames of a pixel one after the other: the
transforms are then products of small matrices with long rows, and a tap is the same matrix some rows further on. The
`gap` zero frames behind a pixel's frames, as many as the largest dilation, keep the taps of neighbors apart.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)  # and infinity: the usual ones, in the order of what they cost in precision
ONE = POINTS.index(1)  # what is added at this point is added to all outputs of a tile


def cook_toom(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """F(m, 3): the matrices A [m, m + 2], G [m + 2, 3], B [m + 2, m + 2] with `A @ ((G @ g) * (B @ d))` = the m outputs
    of a filter g of three taps on m + 2 inputs d, without the filter reversed. float64; m is at most 6.

    Toom and Cook multiply polynomials by their values at m + 2 points, V; Winograd's filtering is that transposed.
    """
    powers = torch.arange(m + 2, dtype=torch.float64)
    points = torch.tensor(POINTS[: m + 1], dtype=torch.float64)
    infinity = torch.eye(m + 2, dtype=torch.float64)  # the value there of a polynomial is its leading coefficient

    def values(degree: int) -> Tensor:
        return torch.cat([points[:, None] ** powers[: degree + 1], infinity[degree : degree + 1, : degree + 1]])

    scale = torch.linalg.inv(values(m + 1)).T.abs().amax(1)  # spread over G and B, so that neither loses precision
    return values(m - 1).T, values(2) * scale[:, None], torch.linalg.inv(values(m + 1)).T / scale[:, None]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread, then with as many as before.

    Threads wait actively for each other at the end of each operation. Where other work wants the cores, thousands of
    small operations took 17 times the CPU seconds on two threads, and 16 times as long.
    """
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


class Workspace(threading.local):
    """Memory by name, kept for each thread: to get it from the system anew costs a fifth of the network's time."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """float32, with whatever it holds."""
        size = math.prod(shape)
        if name not in self.kept or len(self.kept[name]) < size:
            self.kept[name] = torch.empty(size)
        return self.kept[name][:size].view(shape)


class Taps:
    """The sum over channels and over three frames, at several points at a time, each with its own weights."""

    def __init__(self, weights: list[Tensor], dilations: tuple[int, ...]) -> None:
        """weights: of each branch, [points, channels, 3, filters]."""
        self.gap = max(dilations)
        self.middle = torch.cat([w[:, :, 1] for w in weights], 2).float()
        filters = weights[0].shape[3]
        self.sides = [
            (w[:, :, tap].float().contiguous(), (tap - 1) * dilation, slice(i * filters, (i + 1) * filters))
            for i, (w, dilation) in enumerate(zip(weights, dilations, strict=True))
            for tap in (0, 2)
        ]

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x: [points, gap + rows, channels]; a row is a frame of a pixel, the first gap are zero and so are those of
        each pixel's gap. out: [points, rows, branches * filters]; what a pixel's gap holds then, has no meaning."""
        gap, rows = self.gap, out.shape[1] - self.gap
        for point in range(len(x)):
            frames, sums = x[point], out[point, :rows]
            torch.mm(frames[gap:-gap], self.middle[point], out=sums)
            for weights, shift, channels in self.sides:
                sums[:, channels].addmm_(frames[gap + shift :][:rows], weights[point])


class Patches:
    """relu(3x3x3 convolution) where channels are few: the 3x3 pixels around each become channels."""

    ROWS = 3  # of the picture, at a time

    def __init__(self, kernels: list[Tensor], bias: Tensor, dilations: tuple[int, ...], workspace: Workspace) -> None:
        """kernels: of each branch, [filters, channels, 3 (time), 3 (height), 3 (width)]; bias [branches * filters]."""
        self.taps = Taps([k.permute(3, 4, 1, 2, 0).flatten(0, 2)[None] for k in kernels], dilations)
        self.bias, self.workspace = bias, workspace

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """[height, width, frames + gap, channels] -> out, of the same shape with branches * filters channels."""
        (height, width, frames, channels), gap = x.shape, self.taps.gap
        around = self.workspace("line", height + 2, width + 2, frames, channels).zero_()
        around[1:-1, 1:-1] = x
        for top in range(0, height, self.ROWS):
            y = out[top : top + self.ROWS]
            rows = len(y) * width * frames
            patches = self.workspace("domain", 1, gap + rows, 9 * channels)
            patches[:, :gap] = 0
            shifted = [around[top + i : top + i + len(y), j : j + width] for i in range(3) for j in range(3)]
            torch.cat(shifted, 3, out=patches[0, gap:].view(len(y), width, frames, -1))
            self.taps(patches, y.view(1, rows, -1))
            y.add_(self.bias).relu_()[:, :, -gap:] = 0
        return out


class Winograd:
    """relu(3x3x3 convolution) by tiles."""

    def __init__(
        self,
        kernels: list[Tensor],
        bias: Tensor,
        dilations: tuple[int, ...],
        workspace: Workspace,
        tile: tuple[int, int],
        rows: int,
    ) -> None:
        """kernels, bias: as above; tile: outputs in height and width; rows: of tiles, at a time."""
        (a, g, b), (a2, g2, b2) = (cook_toom(m) for m in tile)
        weights = [torch.einsum("iy,jx,oczyx->ijczo", g, g2, kernel.double()).flatten(0, 1) for kernel in kernels]
        self.taps = Taps(weights, dilations)
        self.inputs, self.outputs = (b.float(), b2.float()), (a.float(), a2.float())
        self.bias, self.workspace, self.tile, self.rows = bias, workspace, tile, rows

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """[height, width, frames + gap, channels] -> out, of the same shape with branches * filters channels."""
        (height, width, frames, channels), filters, gap = x.shape, out.shape[3], self.taps.gap
        (tall, wide), (points, points2) = self.tile, (m + 2 for m in self.tile)
        across = -(-width // wide)
        for begin in range(0, height, self.rows * tall):
            tops = range(begin, min(height, begin + self.rows * tall), tall)
            rows = len(tops) * across * frames
            domain = self.workspace("domain", points * points2, gap + rows, channels)
            domain[:, :gap] = 0
            tiles = domain[:, gap:].view(points, points2, len(tops), across, frames * channels)
            for row, top in enumerate(tops):
                self._transform(x, top, tiles[:, :, row])
            sums = self.workspace("sums", points * points2, rows, filters)
            self.taps(domain, sums)
            tiles = sums.view(points, points2, len(tops), across, frames * filters)
            tiles[ONE, ONE].view(-1, filters).add_(self.bias)
            for row, top in enumerate(tops):
                y = out[top : top + tall]
                self._transform_back(tiles[:, :, row], y)
                y.relu_()[:, :, -gap:] = 0
        return out

    def _transform(self, x: Tensor, top: int, tiles: Tensor) -> None:
        """The row of tiles whose outputs begin at `top` -> tiles [points, points, tiles, frames * channels]. Beyond the
        picture's edges are zeros, so the columns of the matrices that meet them are left out."""
        (by_row, by_column), (height, width) = self.inputs, x.shape[:2]
        first, end = max(0, top - 1), min(height, top - 1 + len(by_row))
        line = self.workspace("line", len(by_row), width, x[0, 0].numel())
        torch.mm(by_row[:, first - top + 1 : end - top + 1], x[first:end].view(end - first, -1), out=line.flatten(1))
        for i in range(tiles.shape[2]):
            left = i * self.tile[1] - 1
            first, end = max(0, left), min(width, left + len(by_column))
            matrix = by_column[:, first - left : end - left].expand(len(line), -1, -1)
            torch.bmm(matrix, line[:, first:end], out=tiles[:, :, i])

    def _transform_back(self, tiles: Tensor, y: Tensor) -> None:
        """tiles -> y, the rows of the output that they make up: [at most tile[0], width, frames + gap, filters]."""
        by_row, by_column = self.outputs
        line = self.workspace("line", by_row.shape[1], *y.shape[1:]).flatten(2)
        for i, left in enumerate(range(0, y.shape[1], self.tile[1])):
            columns = line[:, left : left + self.tile[1]]
            torch.bmm(by_column[: columns.shape[1]].expand(len(line), -1, -1), tiles[:, :, i], out=columns)
        torch.mm(by_row[: len(y)], line.flatten(1), out=y.view(len(y), -1))
