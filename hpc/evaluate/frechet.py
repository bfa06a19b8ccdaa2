"""The Fréchet distance of two sets of features from what can be added up: their number, sum and outer products.

    d = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

with means m and covariances S of each set: the squared 2-Wasserstein distance of two Gaussians (Dowson and Landau, "The
Fréchet Distance between Multivariate Normal Distributions", 1982). With Inception's features it is FID (Heusel et al.,
2017), with those of an I3D it is FVD (Unterthiner et al., 2018). All in float64.

The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: no root of
a matrix that has none, and no imaginary parts to be thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FIELDS = ("n", "total", "outer", "rows")


class Statistics:
    """Of features that were added: n, sum [dim] and outer products [dim, dim]. As long as there are fewer than `dim`
    they are kept as they are, float32 [n, dim], which is smaller and loses nothing."""

    def __init__(self, dim: int) -> None:
        self.dim, self.n = dim, 0
        self.total: Floats = np.zeros(dim)
        self.outer: Floats | None = None
        self.rows: npt.NDArray[np.float32] = np.empty((0, dim), np.float32)

    def add(self, features: npt.NDArray[Any]) -> None:
        """[n, dim]. Raises ValueError for another size, and for what is no number."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features are {list(features.shape)}; these statistics are of [n, {self.dim}]")
        if not np.isfinite(features).all():
            raise ValueError("some features are NaN or infinite: is the network's precision enough?")
        self.n += len(features)
        self.rows = np.concatenate([self.rows, features.astype(np.float32)])
        if len(self.rows) >= self.dim:
            self._fold()

    def merge(self, other: Statistics, weight: int = 1) -> None:
        """Add what another has, so many times. The same others in the same order give the same bits; in another order
        the same up to rounding, 1e-16 of the sums."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {other.dim} features and of {self.dim}: of two networks?")
        if not weight or not other.n:
            return
        self._fold()
        assert self.outer is not None
        total, outer = other.sums()
        self.n += weight * other.n
        self.total += weight * total
        self.outer += weight * outer

    def sums(self) -> tuple[Floats, Floats]:
        """The sum, and the outer products."""
        self._fold()
        assert self.outer is not None
        return self.total, self.outer

    def _fold(self) -> None:
        rows = self.rows.astype(np.float64)
        if self.outer is None:
            self.outer = np.zeros((self.dim, self.dim))
        if len(rows):
            self.total += rows.sum(0)
            self.outer += rows.T @ rows
            self.rows = self.rows[:0]

    def moments(self) -> tuple[Floats, Floats]:
        """Mean [dim] and covariance [dim, dim], without bias. Raises ValueError for fewer than two."""
        if self.n < 2:
            raise ValueError(f"a covariance is of two features at least; here are {self.n}")
        total, outer = self.sums()
        mean = total / self.n
        return mean, (outer - self.n * np.outer(mean, mean)) / (self.n - 1)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For np.savez: FIELDS, of which `outer` has no rows while features are kept as they are."""
        outer = np.empty((0, self.dim)) if self.outer is None else self.outer
        return {"n": np.array(self.n), "total": self.total, "outer": outer, "rows": self.rows}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Statistics:
        made = cls(len(arrays["total"]))
        made.n, made.total, made.rows = int(arrays["n"]), arrays["total"].copy(), arrays["rows"]
        made.outer = arrays["outer"].copy() if len(arrays["outer"]) else None
        return made


def combined(parts: Sequence[Statistics], weights: Sequence[int] | None = None) -> Statistics:
    """All of them, each so many times."""
    made = Statistics(parts[0].dim)
    for part, weight in zip(parts, weights or [1] * len(parts), strict=True):
        made.merge(part, weight)
    return made


def distance(one: Statistics, other: Statistics) -> float:
    """Of two sets of two features or more. 0 for equal moments; rounding alone gives some 1e-7 of the variance."""
    return of_moments(*one.moments(), *other.moments())


def of_moments(mean1: Floats, cov1: Floats, mean2: Floats, cov2: Floats) -> float:
    """Means [dim] and covariances [dim, dim]."""
    if np.array_equal(mean1, mean2) and np.array_equal(cov1, cov2):
        return 0.0
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = root @ cov2 @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    return max(0.0, float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross))
