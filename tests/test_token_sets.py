"""Token data sets on disk: what is written is read again, by torch and by Megatron's own reader; ids stay ids."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc.data import tensors
from hpc.data.tokens import BOV, PAD, VOCABULARY, action, indexed, padded, video2world
from hpc.prepare.forms import megatron


def saved(value: Any, **more: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file, **more)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    "value",
    [torch.arange(6, dtype=torch.int32).view(2, 3), torch.arange(24)[4:], torch.tensor(3.0), torch.empty(0, 7),
     torch.ones(2, 3).half(), torch.randn(5, 3).bfloat16(), torch.tensor([True, False])],
)  # fmt: skip
def test_what_torch_saves_is_read_without_torch(value: torch.Tensor) -> None:
    file = saved(value)
    where = tensors.header(file)
    assert where.shape == tuple(value.shape) and where.dtype == str(value.dtype).removeprefix("torch.")
    assert np.array_equal(tensors.read(file, where), value.float() if where.dtype == "bfloat16" else value)
    if value.ndim > 1 and len(value) == 2:
        assert np.array_equal(tensors.read(file, where, 1, 2), value[1:])
        with pytest.raises(ValueError, match="rows 1 to 3"):
            tensors.read(file, where, 1, 3)


def test_a_view_is_named_and_not_read_as_something_else() -> None:
    file = saved(torch.arange(24).view(4, 6).T)
    where = tensors.header(file)
    assert not where.contiguous and where.shape == (6, 4)
    with pytest.raises(ValueError, match="contiguous"):
        tensors.read(file, where)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("gone-off",))


@pytest.mark.parametrize(
    ("value", "words"),
    [({"a": torch.ones(2)}, "a dict"), ([torch.ones(2)], "a list"), (5, "a int"), (Evil(), "mkdir"),
     (torch.nn.Parameter(torch.ones(2)), "_rebuild_parameter"),
     (torch.ones(3, dtype=torch.uint16), "_rebuild_tensor_v3")],
)  # fmt: skip
def test_files_that_hold_more_than_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        tensors.header(saved(value))
    assert not (tmp_path / "gone-off").exists(), "it was not run"


def test_damaged_files() -> None:
    whole = tensors.dumps(np.arange(300))
    old = saved(torch.ones(3), _use_new_zipfile_serialization=False).getvalue()
    for data in (whole[:1000], b"", b"nothing", old):
        with pytest.raises(ValueError, match="cut short"):
            tensors.loads(data)
    place = whole.index(b"K\x00\x4d\x2c\x01")  # the first number, and 300 of them
    with pytest.raises(ValueError, match="CRC"):
        tensors.loads(whole[:place] + b"K\x00\x4d\x2c\x02" + whole[place + 5 :])


def test_a_tensor_is_written_from_parts(tmp_path: Path) -> None:
    parts = [np.full((n, 1, 3, 4), n, np.int32) for n in (3, 1, 5)]
    assert tensors.write(tmp_path / "x.pt", iter(parts), "int32", (1, 3, 4)) == 9
    found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)
    assert found.dtype == torch.int32 and torch.equal(found, torch.from_numpy(np.concatenate(parts)))
    with (tmp_path / "x.pt").open("rb") as file:
        assert (tensors.read(file, tensors.header(file), 4, 6) == 5).all()
    assert tensors.write(tmp_path / "empty.pt", [], "float32", (7,)) == 0
    assert torch.load(tmp_path / "empty.pt", weights_only=True).shape == (0, 7)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []
    for wrong in (np.zeros((1, 2), np.int32), np.zeros((1, 1, 3, 4), np.int64), np.zeros((1, 1, 3, 4), np.float32)):
        with pytest.raises(ValueError, match="is expected"):
            tensors.write(tmp_path / "y.pt", [wrong], "int32", (1, 3, 4))


def test_every_id_comes_back(tmp_path: Path) -> None:
    """All 64,000, through the two forms; through bfloat16, 1,274 would."""
    ids = np.random.default_rng(0).permutation(VOCABULARY).astype(np.int32)
    through = torch.from_numpy(ids).to(torch.bfloat16).to(torch.int64)
    assert (through == torch.from_numpy(ids)).sum() == 1274
    names = video2world.names("train", 0)
    (tmp_path / names[0]).write_bytes(video2world.video(ids.reshape(5, 100, 128)))
    (tmp_path / names[1]).write_bytes(video2world.prompt(np.ones((3, 1024))))
    video, prompt = video2world.read(str(tmp_path), "train", 0)
    assert len(video) == 64065 and video[0] == BOV and (video[-64:] == PAD).all()
    assert np.array_equal(video[1:-64], ids)
    theirs = torch.load(tmp_path / "train_video_0.pt", weights_only=True)
    assert theirs.dtype == torch.int32 and np.array_equal(theirs, video)
    assert prompt.shape == (512, 1024) and (prompt[:3] == 1).all() and not prompt[3:].any()
    tensors.write(tmp_path / action.FRAMES, [ids.reshape(2, 1, 200, 160)], "int32", (1, 200, 160))
    tensors.write(tmp_path / action.ACTIONS, [action.ended(np.ones((1, 7)))], "float32", (7,))
    pairs = action.Pairs(str(tmp_path))
    assert len(pairs) == 1 and pairs.latent == (2, 200, 160)
    assert np.array_equal(np.concatenate([pairs[0].current, pairs[0].next]), ids)


def test_lengths_are_those_of_the_published_trainers() -> None:
    assert len(video2world.sequence(np.zeros((5, 40, 64), np.int32))) - 1 == 12_864
    pair = action.Pair(np.zeros(1200, np.int64), np.ones(1200, np.int64), np.zeros(7, np.float32))
    found = action.sequence(pair)
    assert len(found) - 1 == 2_432 and found[0] == BOV and (found[-32:] == PAD).all() and found[1201] == 1
    assert all((ids + padded(ids, 64)) % 64 == 0 and padded(ids, 64) > 0 for ids in range(1, 200))


@pytest.mark.parametrize("ids", [[-1], [VOCABULARY], [1.0]])
def test_what_is_no_id_is_not_written(ids: list[float]) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 63,999"):
        video2world.sequence(np.array(ids))


@pytest.mark.parametrize("shape", [(513, 1024), (0, 1024), (3, 768), (1024,)])
def test_embeddings_of_other_encoders_are_not_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="T5-XXL"):
        video2world.prompt(np.zeros(shape))


def test_no_words() -> None:
    assert not video2world.embedding(None).any()


def test_the_last_frame_of_a_trajectory_begins_no_pair(tmp_path: Path) -> None:
    frames = np.arange(5 * 2 * 3, dtype=np.int64).reshape(5, 1, 2, 3)
    tensors.write(tmp_path / action.FRAMES, [frames[:3], frames[3:]], "int64", (1, 2, 3))
    tensors.write(tmp_path / action.ACTIONS, [action.ended([[1.0] * 7, [2.0] * 7]), action.ended([[3.0] * 7])],
                  "float32", (7,))  # fmt: skip
    pairs = action.Pairs(str(tmp_path))
    assert [(p.current[0], p.next[0], p.action[0]) for p in pairs] == [(0, 6, 1), (6, 12, 2), (18, 24, 3)]
    assert action.ended([]).shape == (1, 7)
    for wrong in ([[1.0] * 6], [[np.nan] * 7], [1.0]):
        with pytest.raises(ValueError, match="finite numbers"):
            action.ended(wrong)


def test_documents_are_those_that_megatron_reads(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    made = []
    for number, count in enumerate((3, 2)):
        ids = np.random.default_rng(number).integers(0, VOCABULARY, (count, 12), np.int32)
        (tmp_path / f"{number}.bin").write_bytes(ids.tobytes())
        megatron.write_index(tmp_path / f"{number}.idx", np.full(count, 12))
        theirs = IndexedDataset(str(tmp_path / str(number)))
        assert all(np.array_equal(theirs[i], ids[i]) for i in range(count))
        made += list(ids)
    found = indexed.Documents([str(tmp_path / "0"), str(tmp_path / "1")])
    assert len(found) == 5 and all(np.array_equal(found[i], made[i]) and found[i].dtype == np.int64 for i in range(5))
    with pytest.raises(IndexError):
        found[5]
    data = (tmp_path / "0.idx").read_bytes()
    for wrong, words in ((data[:20], "cut short"), (data[:-8], "cut short"), (b"x" + data, "no index")):
        (tmp_path / "0.idx").write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"0\.idx: .*{words}"):
            indexed.Documents([str(tmp_path / "0")])
