"""Tokenizers on a GPU: what a CPU computes, whole or in portions, compiled or not; and in bfloat16 nearly that."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent.parent))  # made

from made import made, weight

from hpc.models.tokenizers import causal, cosmos, wan

MAKERS = {
    "dv": lambda: cosmos.CosmosDiscrete(cosmos.Config(channels=32)),
    "cv": lambda: cosmos.CosmosContinuous(cosmos.Config(channels=32, spatial=8, levels=(), latent_channels=16)),
    "wan": lambda: wan.WanVAE(wan.Config(channels=32)),
}
VIDEO = torch.from_numpy(made("video", 1, 3, 33, 128, 192))


def network(kind: str, device: str = "cuda", dtype: torch.dtype = torch.float32) -> causal.CausalTokenizer:
    tokenizer = MAKERS[kind]()
    for name, parameter in tokenizer.named_parameters():
        parameter.data = torch.from_numpy(weight(name, *parameter.shape))
    tokenizer.eval().requires_grad_(False).to(device, dtype)
    causal.channels_last(tokenizer)
    return tokenizer


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Convolutions in float32 are rounded to TF32 unless told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the size of b's numbers, root mean square."""
    return ((a.float().cpu() - b.float().cpu()).norm() / b.float().cpu().norm()).item()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_gpu_computes_what_a_cpu_does(kind: str) -> None:
    here, there = network(kind, "cpu"), network(kind)
    z, _ = here.encoder(VIDEO, None)
    assert difference(there.encoder(VIDEO.cuda(), None)[0], z) < 1e-4
    latents = here.encode(VIDEO)
    assert difference(there.decode(latents.cuda()), here.decode(latents)) < 1e-4


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_portions_are_the_whole(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    """A video in the CPU's memory goes to the GPU in portions."""
    tokenizer = network(kind, dtype=dtype)
    whole = tokenizer.encode(VIDEO.cuda())
    parts = torch.cat(list(tokenizer.encode_stream(VIDEO.split(8, dim=2))), dim=-3)
    if tokenizer.vocabulary and dtype == torch.float32:
        assert (parts == whole).float().mean() > 0.999  # rounding moves a latent across the border of a level
    elif not tokenizer.vocabulary:
        assert difference(parts, whole) < tolerance
    decoded = torch.cat(list(tokenizer.decode_stream(whole.split(2, dim=-3))), dim=2)
    assert difference(decoded, tokenizer.decode(whole)) < tolerance


@pytest.mark.parametrize("kind", MAKERS)
def test_compiled_in_bfloat16_it_is_nearly_the_same(kind: str) -> None:
    exact, rounded = network(kind), network(kind, dtype=torch.bfloat16)
    torch.compiler.reset()
    rounded.encoder.compile(dynamic=False, fullgraph=True)
    rounded.decoder.compile(dynamic=False, fullgraph=True)
    z, _ = exact.encoder(VIDEO.cuda(), None)
    assert difference(rounded.encoder(VIDEO.cuda().bfloat16(), None)[0], z) < 5e-2
    latents = exact.encode(VIDEO.cuda())
    assert difference(rounded.decode(latents), exact.decode(latents)) < 5e-2
