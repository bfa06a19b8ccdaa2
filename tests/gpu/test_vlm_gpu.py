"""Vision-language models on a GPU: the recorded steps are the steps, and what does not fit is halved."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent.parent))  # tiny_models

import tiny_models

from hpc.models import decode, vlm_local
from hpc.models.vlm import Request

MODELS = {"qwen2_5_vl": tiny_models.qwen2_5_vl, "qwen3_vl": tiny_models.qwen3_vl, "qwen2": tiny_models.qwen2}


def noise(count: int, height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def requests(name: str) -> list[Request]:
    if name == "qwen2":
        return [Request(None, 0.0, text) for text in ("One", "Another question", "x")]
    shapes = ((4, 300, 400), (7, 300, 400), (2, 320, 320), (5, 64, 64))
    return [Request(noise(*shape, seed), 2.0, "What is it?") for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_recorded_steps_are_the_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, penalty: float
) -> None:
    parts = vlm_local.load(MODELS[name](tmp_path / name), "cuda")
    engine = vlm_local.Local(*parts, 4, 100, frame_tokens=256)
    assert engine.network.dtype == torch.bfloat16 and engine.fast and engine.record
    inputs = engine.inputs([engine.prepare(request) for request in requests(name)])
    ends, pad = sorted(engine.ends), engine.generation.pad_token_id
    with caplog.at_level(logging.WARNING):
        found = [decode.greedy(engine.network, inputs, 100, ends, pad, penalty, record=record)
                 for record in (True, False, True)]  # fmt: skip
    assert not caplog.records, caplog.text
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(found[0].unique()) > 3


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_generate(tmp_path: Path, name: str) -> None:
    """In float32: in bfloat16 a tie is broken by the order of additions."""
    network, *rest = vlm_local.load(MODELS[name](tmp_path / name), "cuda")
    engine = vlm_local.Local(network.float(), *rest, 2, 40, frame_tokens=256)
    for request, answer in zip(requests(name), engine(requests(name)), strict=True):
        inputs = engine.inputs([engine.prepare(request)])
        whole = engine.network.generate(**inputs, max_new_tokens=40, do_sample=False)
        out = whole[0, inputs["input_ids"].shape[1] :]
        assert answer.text == engine.tokenizer.decode(out, skip_special_tokens=True).strip()
        assert answer.output_tokens == len(out)


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / whole)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, little_memory: None) -> None:
    folder = tiny_models.qwen2_5_vl(tmp_path / "model", positions=65536)
    engine = vlm_local.Local(*vlm_local.load(folder, "cuda"), 8, 8)
    frames = noise(22, 560, 1008, 0)  # 150 MB of patches each
    answers = engine([Request(np.roll(frames, i, 2), 2.0, "What is it?") for i in range(8)])
    assert all(answer.output_tokens for answer in answers), answers
    assert engine.batch < 8
