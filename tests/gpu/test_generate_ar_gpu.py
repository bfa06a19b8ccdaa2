"""Generation as one CUDA graph a step: the ids of steps that are not recorded, and of reading all tokens again. On a
GPU in bfloat16 and float32; without one, with HPC_TEST_ON_CPU=1, in float32, where nothing is recorded.

    python -m pytest tests/gpu/test_generate_ar_gpu.py
"""

from __future__ import annotations

import msgspec
import pytest
import torch
from asked import skip_without_gpu

from hpc.models.ar import keys
from hpc.models.ar.generate import Decoder, Generator, Prompt
from hpc.models.ar.presets import Preset, preset

skip_without_gpu(__name__)

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
LONG = (5, 24, 20) if GPU else (2, 12, 12)  # 2,400 ids: two graphs
GIVEN = (LONG[0] - 1) * LONG[1] * LONG[2]  # 1,920: the first graph has 128 steps, and plain ones take 5 ms each
CLASSES = None if GPU else 1000  # sorting 64,000 takes a CPU long


def model(name: str, dtype: torch.dtype) -> Decoder:
    shape_of = msgspec.structs.replace(preset(name), shape=LONG)
    source = keys.Initial(shape_of, lambda name: torch.Generator().manual_seed(len(name)))
    return Decoder(shape_of, source, DEVICE, dtype)


def prompts(of: Preset, count: int) -> list[Prompt]:
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(0, of.classes, (count, GIVEN), generator=made)
    context = torch.randn(count, 512, 1024, generator=made)
    return [Prompt(ids[n], n, context[n] if of.context_dim else None) for n in range(count)]


@pytest.mark.parametrize("name", ["ar-tiny", "ar-tiny-video2world"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32] if GPU else [torch.float32])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_graphs_give_the_ids_of_plain_steps(name: str, dtype: torch.dtype, temperature: float) -> None:
    by = model(name, dtype)
    asked = prompts(by.preset, 3)
    graphs, plain = (Generator(by, 4, temperature, 0.9, CLASSES, record) for record in (True, False))
    found = graphs(asked)
    assert torch.equal(found, plain(asked))
    assert torch.equal(found, graphs(asked)), "again, and all steps are recorded now"
    assert torch.equal(graphs(asked[2:])[0], found[2]), "alone, in another row"
    assert torch.equal(found[:, :GIVEN], torch.stack([one.ids_N for one in asked]))


@pytest.mark.parametrize("name", ["ar-tiny", "ar-tiny-video2world"])
def test_places_of_the_logits_are_those_of_reading_it_all(name: str) -> None:
    """float32, all of a video at once: each id that was chosen is the likeliest, but for rounding."""
    by = model(name, torch.float32)
    asked = prompts(by.preset, 2)
    found = Generator(by, 2)(asked)
    given, p = GIVEN, by.preset
    for ids, one in zip(found, asked, strict=True):
        whole = torch.cat([torch.tensor([p.bov] * p.first, dtype=torch.long), ids])[None].to(DEVICE)
        x = by.read(whole, None if one.context_CD is None else one.context_CD[None])
        logits = by.logits(x[0, p.first + given - 1 : -1])
        best, took = logits.amax(-1), logits.gather(1, ids[given:, None].to(DEVICE))[:, 0]
        assert (best - took).max() < 1e-4
