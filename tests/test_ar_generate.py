"""Making videos with the autoregressive model: what it computes is what the published code computes, and steps with
keys and values in slots choose what reading all tokens again each time does."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from forks import METHOD
from made import made
from test_ar_model import ARRAYS, BASE, VOCAB, WORLD, Made, tokens

from hpc.models.ar.generate import Decoder, Generator, Prompt, choose
from hpc.models.ar.presets import Preset

LONG = msgspec.structs.replace(BASE, shape=(3, 12, 10), yarn=None)  # more tokens than a piece has
LONG_WORLD = msgspec.structs.replace(WORLD, shape=(3, 12, 10))


def decoder(shape_of: Preset, **more: Any) -> Decoder:
    return Decoder(shape_of, Made(shape_of), "cpu", torch.float32, **more)


def prompt(shape_of: Preset, number: int, frames: int = 1) -> Prompt:
    each = shape_of.shape[1] * shape_of.shape[2]
    ids = torch.randint(0, VOCAB, (frames * each,), generator=torch.Generator().manual_seed(number))
    context = None
    if shape_of.context_dim is not None:
        context = torch.from_numpy(made(f"context {number}", 5, shape_of.context_dim))
    return Prompt(ids, seed=number, context_CD=context)


def again(model: Decoder, one: Prompt, temperature: float = 0.0, top_p: float = 1.0, classes: int = VOCAB) -> list[int]:
    """Ids, each by reading all that is before it."""
    p = model.preset
    draws = np.random.Generator(np.random.Philox(key=one.seed)).random(p.video_tokens)
    ids = one.ids_N.tolist()
    context = None if one.context_CD is None else one.context_CD[None]
    while len(ids) < p.video_tokens:
        x = model.read(torch.tensor([[p.bov] * p.first + ids]), context)
        uniform = torch.tensor([draws[len(ids)]])
        ids.append(int(choose(model.logits(x[:, -1])[:, :classes], uniform, temperature, top_p)))
    return ids


# Parity


def test_logits_are_those_of_the_published_code() -> None:
    model = decoder(BASE)
    logits = model.logits(model.read(tokens("tokens", 2, 72)).flatten(0, 1)).unflatten(0, (2, -1))
    np.testing.assert_allclose(logits[:, :-1].flatten()[::7], ARRAYS["base.logits"],
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    model = decoder(WORLD)
    ids = torch.full((2, 128), WORLD.pad)
    ids[:, 0], ids[:, 1:73] = WORLD.bov, tokens("tokens", 2, 72)
    found = model.read(ids, torch.from_numpy(made("context", 2, 5, 24)))
    logits = model.logits(found.flatten(0, 1)).unflatten(0, (2, -1))
    np.testing.assert_allclose(logits.flatten()[::7], ARRAYS["world.logits"], rtol=1e-5, atol=1e-5)


def test_weights_are_accounted_for() -> None:
    source = Made(BASE)
    del source["model.layers.1.attention.wk.weight"]
    with pytest.raises(ValueError, match=r"missing: model\.layers\.1\.attention\.wk\.weight"):
        Decoder(BASE, source, "cpu", torch.float32)


# Slots


@pytest.mark.parametrize(
    ("shape_of", "frames"), [(BASE, 1), (BASE, 2), (WORLD, 0), (WORLD, 1), (LONG, 2), (LONG_WORLD, 2)]
)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 0.9)])
def test_slots_choose_what_reading_all_again_does(
    shape_of: Preset, frames: int, temperature: float, top_p: float
) -> None:
    model = decoder(shape_of)
    prompts = [prompt(shape_of, number, frames) for number in range(2)]
    found = Generator(model, 3, temperature, top_p)(prompts)
    given = len(prompts[0].ids_N)
    for row, one in enumerate(prompts):
        assert found[row, :given].tolist() == one.ids_N.tolist(), "what is given stays, to the last id"
        assert found[row].tolist() == again(model, one, temperature, top_p)
    assert found[0, given:].tolist() != found[1, given:].tolist()
    assert found.min() >= 0 and found.max() < VOCAB


def test_a_video_is_the_same_in_whatever_batch() -> None:
    """Whoever stands beside it, wherever it stands, and whatever was in the slots before."""
    made_by = Generator(decoder(LONG_WORLD), 3, 1.0, 0.95)
    one, *others = (prompt(LONG_WORLD, number) for number in range(4))
    first = made_by([one])[0]
    assert torch.equal(made_by([*others[:2], one])[2], first)
    made_by([prompt(LONG_WORLD, 7, 2)])
    assert torch.equal(made_by([others[2], one])[1], first)
    assert not torch.equal(made_by([one._replace(seed=9)])[0], first)


def test_no_other_ids_than_the_tokenizers() -> None:
    model = decoder(BASE)
    found = Generator(model, 1, 1.0, 1.0, classes=20)([prompt(BASE, 1)._replace(ids_N=torch.arange(24))])
    assert found[0, 24:].max() < 20 and len(found[0, 24:].unique()) > 5


def test_what_cannot_begin() -> None:
    made_by = Generator(decoder(BASE), 2)
    with pytest.raises(ValueError, match="begins with a latent frame at least"):
        made_by([Prompt(torch.zeros(0, dtype=torch.long))])
    with pytest.raises(ValueError, match=r"2 prompts of \[24, 48\] ids"):
        made_by([prompt(BASE, 1, 1), prompt(BASE, 1, 2)])
    with pytest.raises(ValueError, match="need a prompt's embedding, and no other takes one"):
        made_by([prompt(BASE, 1)._replace(context_CD=torch.zeros(5, 24))])
    model = decoder(BASE)
    model.layers[0].out.fill_(float("nan"))
    with pytest.raises(ValueError, match="numbers that are none"):
        Generator(model, 2)([prompt(BASE, 1)])


# Choosing


def test_ids_are_chosen_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    rows = logits.expand(1000, -1)
    assert choose(rows, uniform, 1.0, 1.0).bincount(minlength=4).tolist() == [50, 500, 150, 300]
    assert choose(rows, uniform, 1.0, 0.79).bincount(minlength=4).tolist() == [0, 625, 0, 375]
    assert choose(rows, uniform, 1.0, 0.81).bincount(minlength=4)[0] == 0
    assert choose(rows, uniform, 1.0, 1e-6).bincount(minlength=4).tolist() == [0, 1000, 0, 0]
    assert choose(rows, uniform, 0.0, 1.0).eq(1).all()
    hot = choose(rows, uniform, 2.0, 1.0).bincount(minlength=4) / 1000
    np.testing.assert_allclose(hot, (logits / 2).softmax(0), atol=2e-3)
    even = torch.zeros(4, 7)
    assert choose(even, torch.tensor([0.0, 0.15, 0.5, 0.9999999]), 1.0, 1.0).tolist() == [0, 1, 3, 6]


# Ranks


def _rank(rank: int, ranks: int, port: int, to: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    found = [
        Generator(decoder(shape_of, group=dist.group.WORLD), 2, 1.0, 0.9)([prompt(shape_of, 1), prompt(shape_of, 2)])
        for shape_of in (LONG, WORLD)
    ]
    torch.save(found, f"{to}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_tensor_parallel_ranks_make_what_one_makes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_rank, (2, port, str(tmp_path)), nprocs=2, start_method=METHOD)
    for i, shape_of in enumerate((LONG, WORLD)):
        alone = Generator(decoder(shape_of), 2, 1.0, 0.9)([prompt(shape_of, 1), prompt(shape_of, 2)])
        for rank in range(2):
            assert torch.equal(torch.load(tmp_path / f"{rank}.pt")[i], alone), (i, rank)
