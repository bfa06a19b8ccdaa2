"""The order of samples is a pure function, every sample has its turn, and draws don't depend on who draws."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.train.order import Batch, Bucket, Order, permuted
from hpc.train.randomness import generator, key, numbers


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_every_index_once(size: int, seed: int) -> None:
    assert sorted(permuted(i, size, seed) for i in range(size)) == list(range(size))


def test_permutations_look_random() -> None:
    """Neighbours go apart, keys differ, and no place is preferred: each within four standard deviations."""
    size, keys = 50, 4000
    where = np.array([[permuted(i, size, key(1, k)) for i in range(size)] for k in range(keys)])
    counts = np.stack([np.bincount(where[:, i], minlength=size) for i in range(size)])
    spread = np.sqrt(keys / size * (1 - 1 / size))
    assert np.abs(counts - keys / size).max() < 5 * spread
    assert abs(np.mean(np.abs(np.diff(where, axis=1))) - (size + 1) / 3) < 0.2, "mean distance of two random places"
    large = [permuted(i, 100_000_007, 5) for i in range(2000)]
    assert len(set(large)) == 2000 and abs(np.mean(large) / 50_000_003 - 1) < 0.06


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_sample_has_its_turn(shapes: list[tuple[int, int]], seed: int) -> None:
    """In each epoch of a bucket every sample once; batches are of one bucket, full, and numbered without gaps."""
    order = Order([Bucket(*shape) for shape in shapes], seed)
    seen: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    taken: list[int] = []
    for step in range(3 * order.round):
        batch = order.batch(step)
        assert len(batch.places) == shapes[batch.bucket][1]
        taken += range(batch.first, batch.first + len(batch.places))
        for epoch, place in zip(batch.epochs, batch.places, strict=True):
            seen[batch.bucket, epoch].append(place)
    assert sorted(taken) == list(range(len(taken)))
    for bucket, (samples, _) in enumerate(shapes):
        epochs = sorted(epoch for which, epoch in seen if which == bucket)
        assert epochs == list(range(len(epochs))) and len(epochs) >= 3
        for epoch in epochs[:-1]:
            assert sorted(seen[bucket, epoch]) == list(range(samples))


def test_any_number_of_ranks_takes_the_same_samples() -> None:
    order = Order([Bucket(100, 12), Bucket(40, 24)], 3)
    for step in range(50):
        whole = order.batch(step)
        for ranks in (1, 2, 3, 4, 6, 12):
            shares = [order.batch(step).of_rank(rank, ranks) for rank in range(ranks)]
            assert list(itertools.chain(*(s.places for s in shares))) == whole.places
            assert [s.first for s in shares] == [whole.first + r * len(whole.places) // ranks for r in range(ranks)]
    with pytest.raises(ValueError, match="a batch of 12 cannot be shared by 5 ranks"):
        Batch(0, 0, list(range(12)), [0] * 12).of_rank(0, 5)


def test_seeds_and_rounds_differ_and_weights_weigh() -> None:
    def first(seed: int) -> list[int]:
        return [place for step in range(10) for place in Order([Bucket(1000, 4)], seed).batch(step).places]

    assert first(1) == first(1) != first(2)
    order = Order([Bucket(100, 10, weight=3.0), Bucket(100, 10)], 1)
    turns = collections.Counter(order.batch(step).bucket for step in range(400))
    assert turns == {0: 300, 1: 100}
    for wrong in ([], [Bucket(0, 4)], [Bucket(4, 0)], [Bucket(4, 4, 0.0)]):
        with pytest.raises(ValueError, match="bucket"):
            Order(wrong, 0)


def test_draws_depend_on_what_they_are_for_alone() -> None:
    words = [(s, w, n) for s in range(3) for w in ("noise", "start") for n in range(50)]
    assert len({key(*w) for w in words}) == len(words) and key(1, "a", 23) != key(1, "a2", 3) != key(12, "a", 3)
    here = numbers(1, "start", 7).integers(0, 1 << 40, 5)
    numbers(1, "start", 8).integers(0, 9)
    assert (numbers(1, "start", 7).integers(0, 1 << 40, 5) == here).all()
    noise = [torch.randn(64, generator=generator("cpu", 1, "noise", n)) for n in range(200)]
    assert torch.equal(noise[3], torch.randn(64, generator=generator("cpu", 1, "noise", 3)))
    together = torch.corrcoef(torch.stack(noise)) - torch.eye(200)
    assert together.abs().max() < 0.65, "no two samples' noise is alike (4.5 standard deviations)"
