"""Which form of an op is taken, and what is said where one cannot be."""

from __future__ import annotations

import subprocess
import sys

import interpreted  # noqa: F401
import pytest
import torch

from hpc import kernels
from hpc.kernels import choose, triton


def test_auto_is_torch_on_cpus() -> None:
    assert choose("auto", torch.ones(1)) == "torch"
    assert choose("torch", torch.ones(1)) == "torch"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_is_fused_on_gpus() -> None:
    assert choose("auto", torch.ones(1, device="cuda")) == "fused"


def test_fused_on_cpus_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match=r"fused cannot be used: the tensors are on cpu.*say `kernels: auto`"):
        choose("fused", torch.ones(1))
    monkeypatch.setattr(kernels, "triton", None)
    assert choose("auto", torch.ones(1)) == "torch"
    with pytest.raises(ValueError, match="Triton is not installed"):
        choose("fused", torch.ones(1))


def test_a_word_that_is_none() -> None:
    with pytest.raises(ValueError, match="'fast' is not one of auto, torch, fused"):
        choose("fast", torch.ones(1))


def test_without_triton_the_references_are_there() -> None:
    """As with a CPU build of torch, which brings no Triton."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from hpc.kernels import adamw_ema, cross_entropy, gated, gelu, modulate, qk_norm_rope
x = torch.randn(1, 3, 4)
print(modulate.modulate(x, x[:, 0], x[:, 0])[1].shape)
print(cross_entropy.cross_entropy(x, torch.zeros(1, 3).long())[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 3, 4])\ntorch.Size([1, 3])"
