"""The model that a model of video must beat finds what there is to find in the frame before, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from hpc.train.previous_frame import PreviousFrame, pairs


def clips(seed: int, count: int, stay: float, move: float) -> list[np.ndarray]:
    """A token stays, or becomes the next id, or any of 50."""
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        frames = [chance.integers(0, 50, 40)]
        for _ in range(4):
            last, drawn = frames[-1], chance.random(40)
            frames.append(np.where(drawn < stay, last, np.where(drawn < stay + move, (last + 1) % 50,
                                                                chance.integers(0, 50, 40))))  # fmt: skip
        made.append(np.stack(frames))
    return made


@pytest.mark.parametrize(("stay", "move"), [(0.6, 0.3), (0.0, 0.0), (0.9, 0.0)])
def test_it_comes_near_to_what_the_clips_were_drawn_from(stay: float, move: float) -> None:
    model = PreviousFrame(clips(1, 200, stay, move), 64)
    held = clips(2, 50, stay, move)
    before, after = pairs(held)
    any_ = (1 - stay - move) / 50
    true = -np.log(any_ + stay * (after == before) + move * (after == (before + 1) % 50)).mean()
    assert true - 0.02 <= model.nll(held) < true + 0.06


def test_all_guesses_together_are_one() -> None:
    model = PreviousFrame(clips(1, 20, 0.5, 0.2), 64)
    for before in (3, 63):  # seen, and never seen
        total = sum(np.exp(-model.nll([np.array([[before], [after]])])) for after in range(64))
        assert total == pytest.approx(1, abs=1e-5)


def test_what_counts() -> None:
    before, after = pairs([np.arange(12).reshape(4, 3)], given=2)
    assert before.tolist() == [3, 4, 5, 6, 7, 8] and after.tolist() == [6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="no clip has two latent frames"):
        PreviousFrame([np.zeros((1, 3), np.int64)], 8)
