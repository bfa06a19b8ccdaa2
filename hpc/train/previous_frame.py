"""What a model of video tokens must beat: a token guessed from the one at the same place in the frame before.

    p(t | s) = a [t = s] + b count(s, t) / count(s) + c unigram(t)

Counts are of the training clips. The shares a, b and c depend on how often s was seen (a power of two) and are fitted
by expectation maximization on the same clips, each pair against the counts without itself (interpolation with
leaving-one-out: Jelinek and Mercer, 1980; Ney, Essen and Kneser, 1994). Unigrams have half a count more of every id.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
ROUNDS = 30
HALF = 0.5


class PreviousFrame:
    """Fitted to clips, int64 [frames, places] each. Raises ValueError where no clip has two frames."""

    def __init__(self, clips: Iterable[Ints], vocabulary: int) -> None:
        before, after = pairs(clips)
        if not len(before):
            raise ValueError("no clip has two latent frames: there is no frame before to guess from")
        self.vocabulary = vocabulary
        self.seen = np.bincount(before, minlength=vocabulary)
        self.unigrams = np.bincount(after, minlength=vocabulary)
        self.keys, self.counts = np.unique(before * vocabulary + after, return_counts=True)
        buckets = self._bucket(before)
        parts = self._parts(before, after, without=1)
        self.shares = np.full((65, 3), 1 / 3)
        for _ in range(ROUNDS):
            each = parts * self.shares[buckets]
            each /= each.sum(1, keepdims=True)
            sums = np.stack([np.bincount(buckets, each[:, n], minlength=65) for n in range(3)], 1)
            totals = sums.sum(1, keepdims=True)
            self.shares = np.where(totals > 0, sums / np.maximum(totals, 1), self.shares)
        self.shares = (self.shares + 1e-6) / (1 + 3e-6)  # nothing is impossible

    def nll(self, clips: Iterable[Ints], given: int = 1) -> float:
        """Nats a token, over the frames behind the first `given`, at least the first one."""
        before, after = pairs(clips, given)
        return float(-np.log((self._parts(before, after, 0) * self.shares[self._bucket(before)]).sum(1)).mean())

    def _bucket(self, before: Ints) -> Ints:
        return np.log2(self.seen[before] + 1).astype(np.int64)

    def _parts(self, before: Ints, after: Ints, without: int) -> npt.NDArray[np.float64]:
        """[pairs, 3]: the three guesses. without: 1 to leave each pair itself out of the counts."""
        wanted = before * self.vocabulary + after
        place = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        together = np.where(self.keys[place] == wanted, self.counts[place], 0) - without
        of_before = self.seen[before] - without
        unigram = (self.unigrams[after] - without + HALF) / (
            self.unigrams.sum() - without + HALF * self.vocabulary
        )  # fmt: skip
        bigram = np.where(of_before > 0, together / np.maximum(of_before, 1), unigram)  # of what was never seen
        return np.stack([(before == after).astype(float), bigram, unigram], 1)


def pairs(clips: Iterable[Ints], given: int = 1) -> tuple[Ints, Ints]:
    """(ids of a frame, ids at the same places of the next one), of all frames behind the first `given`."""
    first = max(given, 1)
    found = [(clip[first - 1 : -1].ravel(), clip[first:].ravel()) for clip in clips]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])
