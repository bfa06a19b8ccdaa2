"""How sure a figure is: intervals by drawing the same number again, with replacement (Efron, 1979)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.evaluate import frechet
from hpc.evaluate.frechet import Statistics

AT_ONCE = 4_000_000  # draws: 32 MB
GROUPS = 20
"""Into which shards go for the intervals of Fréchet distances: 20 times 2,048^2 outer products are 0.7 GB for a set."""
FEWEST = 5  # groups, or values: fewer say nothing of how they scatter
MOST = 50  # draws for a Fréchet distance: their deviation is known to 10 %, and each takes 5 s for 2,048 features


def generator(seed: int, name: str) -> np.random.Generator:
    """Draws of one figure do not depend on which others there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def of_mean(values: Sequence[float] | npt.NDArray[Any], resamples: int, level: float, rng: np.random.Generator,
            check: Callable[[], None] = lambda: None) -> tuple[float, float] | None:  # fmt: skip
    """(low, high): the quantiles of means of as many values drawn with replacement; None for fewer than FEWEST."""
    found = np.asarray(values, np.float64)
    if len(found) < FEWEST:
        return None
    each = max(1, AT_ONCE // len(found))
    means = []
    for begin in range(0, resamples, each):
        check()
        means.append(found[rng.integers(0, len(found), (min(each, resamples - begin), len(found)))].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def of_distance(
    generated: Sequence[Statistics], real: Sequence[Statistics], resamples: int, level: float,
    rng: np.random.Generator, check: Callable[[], None] = lambda: None,
) -> tuple[float, float] | None:  # fmt: skip
    """(low, high) of the Fréchet distance of all groups together: it, and the deviation of distances of groups drawn
    with replacement, as of a normal distribution. Their quantiles are not taken: a set with fewer different features is
    farther from everything, so they lie above the figure itself. None for fewer than FEWEST groups of either."""
    from statistics import NormalDist

    if min(len(generated), len(real)) < FEWEST:
        return None
    drawn = []
    for _ in range(min(resamples, MOST)):
        check()
        counts = [np.bincount(rng.integers(0, len(one), len(one)), minlength=len(one)).tolist()
                  for one in (generated, real)]  # fmt: skip
        drawn.append(frechet.distance(frechet.combined(generated, counts[0]), frechet.combined(real, counts[1])))
    value = frechet.distance(frechet.combined(generated), frechet.combined(real))
    wide = NormalDist().inv_cdf((1 + level) / 2) * float(np.std(drawn, ddof=1))
    return max(0.0, value - wide), value + wide
