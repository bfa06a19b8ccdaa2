"""Token data as training takes it: what follows what, what counts, and that no sample knows of another."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import token_sets
import torch
from token_sets import Window

from hpc.data.tokens import BOV, PAD, VOCABULARY, action, video2world
from hpc.models.ar.loss import NO_LABEL
from hpc.prepare.forms import megatron
from hpc.prepare.settings import Action, Video2World
from hpc.train import token_data
from hpc.train.token_data import Batches, Clips

LATENT = (2, 2, 4)


def clips(folder: Path, counts: tuple[int, ...] = (3, 4)) -> tuple[list[str], np.ndarray]:
    """Megatron's files, and the ids in them."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (sum(counts), 16), np.int32)
    ids[0, :2] = 0, VOCABULARY - 1
    first = 0
    for number, count in enumerate(counts):
        (folder / f"{number}.bin").write_bytes(ids[first : first + count].tobytes())
        megatron.write_index(folder / f"{number}.idx", np.full(count, 16))
        first += count
    return [str(folder / str(number)) for number in range(len(counts))], ids


def test_the_last_input_of_a_clip_has_no_label(tmp_path: Path) -> None:
    """GPTDataset of megatron-core gives it the first token of the next document of its shuffled order."""
    prefixes, ids = clips(tmp_path)
    data = Clips(prefixes, LATENT)
    assert len(data) == 7
    for number, one in enumerate(data[i] for i in range(7)):
        assert one.tokens.dtype == one.labels.dtype == torch.int64 and one.tokens.tolist() == ids[number].tolist()
        assert one.labels.tolist() == [*ids[number, 1:].tolist(), NO_LABEL]
        assert one.loss_mask.tolist() == [True] * 15 + [False]


def test_given_frames_do_not_count(tmp_path: Path) -> None:
    """The first latent frame of 40 x 64 leaves out 40 x 64 - 1 inputs, as the models were trained (cosmos_predict1
    4ed35fa: autoregressive/training/model.py)."""
    prefixes, ids = clips(tmp_path)
    one = Clips(prefixes, LATENT, documents=[6, 2], given=1)[0]
    assert one.tokens.tolist() == ids[6].tolist() and one.labels.tolist()[:15] == ids[6, 1:].tolist()
    assert one.loss_mask.tolist() == [False] * 7 + [True] * 8 + [False]
    assert not Clips(prefixes, LATENT, given=2)[0].loss_mask.any()


def test_prompts(tmp_path: Path) -> None:
    windows = [[Window(f"clip-{i}", source=f"/films/{i}.mp4") for i in range(6)]]
    stages = token_sets.ids(tmp_path, windows, LATENT)
    stages |= token_sets.embeddings(tmp_path, [[(one.uuid, 0, 0, 99) for one in windows[0]]])
    folder, _ = token_sets.form(tmp_path, Video2World(), stages)
    seen = set()
    for split, count in {"train": 4, "test": 1, "val": 1}.items():
        data = token_data.Video2World(folder, split, LATENT, given=1)
        assert len(data) == count
        for number in range(count):
            one, (video, prompt) = data[number], video2world.read(folder, split, number)
            assert one.tokens.tolist() == video[:-1].tolist() and len(one.tokens) == 64 and one.tokens[0] == BOV
            assert one.labels.tolist() == [*video[1:17].tolist(), *[NO_LABEL] * 48] and (one.tokens[17:] == PAD).all()
            assert one.loss_mask.tolist() == [False] * 8 + [True] * 8 + [False] * 48
            assert one.context is not None and one.context_mask is not None
            assert np.array_equal(one.context, prompt)
            assert one.context_mask.sum() == prompt[0, 0] and one.context_mask[0], "as many tokens as it is filled with"
            seen.add(int(prompt[0, 0]))
    assert seen == {1, 2, 3, 4, 5, 6}
    with pytest.raises(ValueError, match=r"train_video_0.pt: 65 numbers; .*5 x 40 x 64 = 12,800 ids and 64 of padding"):
        token_data.Video2World(folder, "train")[0]


def test_actions(tmp_path: Path) -> None:
    film = token_sets.trajectory(tmp_path, "train", "1", 3)
    stages = token_sets.ids(tmp_path, [token_sets.frames(film, 3)], (1, 2, 3), frames=1)
    folder, _ = token_sets.form(tmp_path, Action(), stages)
    data = token_data.Action(f"{folder}/train")
    assert len(data) == 2 and data.latent == (2, 2, 3)
    for number in range(2):
        one, pair = data[number], data.pairs[number]
        assert one.tokens.tolist() == action.sequence(pair)[:-1].tolist() and len(one.tokens) == 128
        counted = one.labels[one.loss_mask]
        assert counted.tolist() == pair.next.tolist() and one.tokens[1:7].tolist() == pair.current.tolist()
        assert one.action is not None and one.action.dtype == torch.float32
        assert one.action.tolist() == pair.action.tolist()


def test_what_is_no_id_is_not_trained_on(tmp_path: Path) -> None:
    prefixes, ids = clips(tmp_path, (3,))
    ids[1, 5] = VOCABULARY
    (tmp_path / "0.bin").write_bytes(ids.tobytes())
    data = Clips(prefixes, LATENT)
    data[0]
    with pytest.raises(ValueError, match="the data set is damaged"):
        data[1]
    with pytest.raises(ValueError, match=r"document 0 of .* has 16 tokens; 2 x 2 x 5 = 20"):
        Clips(prefixes, (2, 2, 5))[0]


def test_steps_are_the_same_from_anywhere(tmp_path: Path) -> None:
    """From any step on, on any number of ranks and workers; and each clip once an epoch."""
    prefixes, ids = clips(tmp_path, (8, 8))
    batches = Batches(Clips(prefixes, LATENT), batch=4, seed=3)
    whole = [batches.at(step) for step in range(8)]
    for epoch in (whole[:4], whole[4:]):
        assert sorted(itertools.chain.from_iterable(one.places for one in epoch)) == list(range(16))
    assert sorted(itertools.chain.from_iterable(one.samples for one in whole)) == list(range(32))
    for one in whole:
        assert one.tokens.tolist() == ids[one.places].tolist() and one.tokens.shape == (4, 16) and one.context is None
    for ranks in (1, 2, 4):
        parts = [list(itertools.islice(batches.of_rank(rank, ranks, first_step=3), 4)) for rank in range(ranks)]
        for step, some in enumerate(zip(*parts, strict=True), 3):
            assert torch.equal(torch.cat([one.labels for one in some]), whole[step].labels)
            assert [place for one in some for place in one.places] == whole[step].places
    made = list(itertools.islice(batches.of_rank(1, 2, first_step=5, workers=2), 3))
    assert [one.places for one in made] == [one.places[2:] for one in whole[5:]]
    assert all(one.waited >= 0 for one in made)
    with pytest.raises(ValueError, match="cannot be shared by 3 ranks"):
        next(batches.of_rank(0, 3))
