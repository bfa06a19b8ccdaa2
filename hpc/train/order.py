"""Which samples each step takes: a pure function of the seed and the step's number.

Samples lie in buckets, of equal shape each (resolution, aspect ratio, frames; images are a bucket of one frame), and a
step takes a whole batch out of one bucket. Nothing is remembered but the number of the step: a run that resumes, on as
many ranks as before or on another number of them, takes the samples that the uninterrupted run would have taken. Each
bucket is an endless stream of epochs, each of them every sample once, in an order of its own.

    order = Order([Bucket(samples=1000, batch=8), Bucket(samples=300, batch=32)], seed=1)
    for step in range(first, last):
        batch = order.batch(step)
        mine = batch.of_rank(rank, ranks)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from hpc.train.randomness import key

ROUNDS = 6
"""Of the Feistel network. From four on its permutations cannot be told from random ones by their values alone (Luby and
Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", 1988)."""
MASK = (1 << 64) - 1


class Bucket(msgspec.Struct, frozen=True):
    """Samples of equal shape."""

    samples: int
    batch: int
    """Samples a step takes, over all ranks together."""
    weight: float = 1.0
    """How often it has its turn, over its share of the samples: 2 takes each sample twice as often as others'."""


class Batch(msgspec.Struct, frozen=True):
    """What a step takes."""

    bucket: int
    first: int
    """The number of its first sample among all that training has taken; the others' follow."""
    places: list[int]
    """Of the samples in their bucket."""
    epochs: list[int]
    """How often the bucket was gone through before each sample."""

    def of_rank(self, rank: int, ranks: int) -> Batch:
        """A rank's equal share, in order. Raises ValueError where the batch cannot be shared equally."""
        share, left = divmod(len(self.places), ranks)
        if left:
            raise ValueError(f"a batch of {len(self.places)} cannot be shared by {ranks} ranks equally: make it a "
                             f"multiple of {ranks}, or take other ranks")  # fmt: skip
        here = slice(rank * share, (rank + 1) * share)
        return Batch(self.bucket, self.first + here.start, self.places[here], self.epochs[here])


class Order:
    """Of all steps. Raises ValueError for buckets that give no step."""

    def __init__(self, buckets: Sequence[Bucket], seed: int) -> None:
        for number, one in enumerate(buckets):
            if one.samples < 1 or one.batch < 1 or one.weight <= 0:
                raise ValueError(f"bucket {number} has {one.samples} samples, batches of {one.batch} and the weight "
                                 f"{one.weight:g}: give it at least one of each, or leave it out")  # fmt: skip
        if not buckets:
            raise ValueError("there is no bucket: no sample fits the shapes that training takes")
        self.buckets, self.seed = list(buckets), seed
        self.turns = [max(1, math.ceil(one.weight * one.samples / one.batch)) for one in buckets]
        """Steps of each bucket in a round, after which each bucket of weight 1 was gone through once."""
        self.round = sum(self.turns)
        self._ends = list(accumulate(self.turns))
        self._taken = list(accumulate([t * b.batch for t, b in zip(self.turns, buckets, strict=True)], initial=0))

    def batch(self, step: int) -> Batch:
        """step: counted from 0."""
        number, turn = divmod(step, self.round)
        turn = permuted(turn, self.round, key(self.seed, "round", number))
        which = bisect_right(self._ends, turn)
        bucket = self.buckets[which]
        turn -= self._ends[which] - self.turns[which]
        begin = (number * self.turns[which] + turn) * bucket.batch
        streams = [divmod(i, bucket.samples) for i in range(begin, begin + bucket.batch)]
        places = [
            permuted(place, bucket.samples, key(self.seed, "epoch", which, epoch)) for epoch, place in streams
        ]  # fmt: skip
        first = number * self._taken[-1] + self._taken[which] + turn * bucket.batch
        return Batch(which, first, places, [epoch for epoch, _ in streams])


def permuted(index: int, size: int, key: int) -> int:
    """Where a permutation of range(size), one for each key, puts an index: in constant time and memory.

    A Feistel network over the next power of four, walked until it lands in the range (Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for number in range(ROUNDS):
            left, right = right, left ^ (_mixed(right ^ (number << 56), key) & low)
        index = left << half | right
        if index < size:
            return index


def _mixed(value: int, key: int) -> int:
    """64 bits in, 64 bits out: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value + key) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31
