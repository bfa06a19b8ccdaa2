"""Diffusion transformers on a GPU: what a CPU computes, compiled or not, recomputed or not; attention by a fast kernel.
Without a GPU what does not need one runs on the CPU."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent))  # test_dit

from test_dit import LATENTS, PREDICT1, PREDICT25, given, published, tensor

from hpc.models import attention, samplers
from hpc.models.diffusion import EDM, Condition, Draws, Flow
from hpc.models.dit import DiT
from hpc.models.dit_presets import Config
from hpc.models.samplers import Sampling

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
CASES = {"predict1": (EDM(), PREDICT1, "predict1"), "predict2.5": (Flow(given_level=0.1), PREDICT25, "predict2")}
WIDE = Config(channels=512, blocks=2, heads=4, condition_mask=True, rope_stretch=(1.0, 3.0, 3.0), text_channels=128)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the size of b's numbers, root mean square."""
    return ((a.float().cpu() - b.float().cpu()).norm() / b.float().cpu().norm()).item()


def step(case: str, device: str) -> dict[str, Tensor]:
    """The loss of a training step, and gradients."""
    of, config, names = CASES[case]
    model = published(config, names).to(device)
    x0, noise, own = (tensor(name, *LATENTS).to(device) for name in ("x0", "noise", "given noise"))
    condition = Condition(tensor("text", 2, 6, config.text_input).to(device), given(1, 2).to(device), None,
                          torch.tensor([12.0, 30.0], device=device))  # fmt: skip
    normal = torch.tensor([0.3, -0.4], device=device)
    loss = of.loss(model, x0, condition, Draws(noise, normal, torch.ones(2, 2, device=device), normal, own))
    loss.loss.backward()
    return {"loss": loss.loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_computes_what_a_cpu_does(case: str) -> None:
    here, there = step(case, "cpu"), step(case, DEVICE)
    for name, value in here.items():
        assert difference(there[name], value) < 1e-4, name


def test_samples_are_those_of_a_cpu() -> None:
    model = published(PREDICT25, "predict2")
    condition = Condition(tensor("text", 2, 6, 80), given(1, 2), tensor("x0", *LATENTS))
    made = []
    for device in ("cpu", DEVICE):
        moved = condition._replace(**{name: x.to(device) for name, x in condition._asdict().items()
                                      if isinstance(x, Tensor)})  # fmt: skip
        noise, other = samplers.noise(LATENTS, 3).to(device), tensor("other", 2, 6, 80).to(device)
        how = Sampling("unipc", "shifted", 5, 3.0)
        made.append(samplers.sample(model.to(device), Flow(), how, moved, other, noise))
    assert difference(made[1], made[0]) < 1e-3


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("head", [64, 128])
def test_attention_goes_to_a_fast_kernel(head: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = attention.backend(torch.device("cuda", 0), torch.bfloat16, head)
    assert kind in {one.name for one in attention.fast(torch.device("cuda", 0))}
    with pytest.warns(UserWarning, match="float32 with .* channels a head runs on PyTorch's"):
        attention.backend.__wrapped__(torch.device("cuda", 0), torch.float32, head)


@pytest.mark.skipif(not GPU, reason="no GPU")
def test_the_fast_kernels_backward_is_attentions() -> None:
    shape = (1, 1000, 4, 128)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    attention.attend(*inputs).square().sum().backward()
    q, k, v = (x.transpose(1, 2) for x in exact)
    (q @ k.mT / 128**0.5).softmax(-1).matmul(v).square().sum().backward()
    for mine, wanted in zip(inputs, exact, strict=True):
        assert difference(mine.grad, wanted.grad) < 0.02


def wide(dtype: torch.dtype, kernels: str = "auto") -> tuple[DiT, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = DiT(WIDE, kernels=kernels)
    for block in model.blocks:
        for name in ("self_attn", "cross_attn", "mlp"):
            torch.nn.init.normal_(getattr(block, f"adaln_modulation_{name}")[2].weight, std=0.3)
    x = tensor("x", 1, 16, 4, 16, 24), torch.tensor([400.0]), tensor("text", 1, 512, 128)
    return model.to(DEVICE, dtype), tuple(one.to(DEVICE) for one in x)


def run(model: DiT, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What it gives, and the whole gradient."""
    model.zero_grad()
    out = model(*inputs).latents_BCTHW
    (out * tensor("gradient", *out.shape).to(DEVICE)).sum().backward()
    return {"out": out.detach(), "gradient": torch.cat([p.grad.flatten().float() for p in model.parameters()])}


def test_bfloat16_is_near_float32() -> None:
    exact, rounded = run(*wide(torch.float32)), run(*wide(torch.bfloat16))
    assert difference(rounded["out"], exact["out"]) < 0.03
    assert difference(rounded["gradient"], exact["gradient"]) < 0.05


@pytest.mark.skipif(not GPU, reason="no GPU: tests/kernels/test_dit_kernel.py has it under Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_what_torchs_operators_do(dtype: torch.dtype) -> None:
    limit = 1e-4 if dtype == torch.float32 else 0.03
    fused, plain = (run(*wide(dtype, kernels)) for kernels in ("fused", "torch"))
    for name, value in plain.items():
        assert difference(fused[name], value) < limit, name


def test_recomputed_blocks_have_the_same_gradients() -> None:
    model, inputs = wide(torch.bfloat16)
    plain = run(model, inputs)
    for block in model.blocks:
        block.forward = lambda *x, forward=block.forward: checkpoint(forward, *x, use_reentrant=False)
    for name, value in run(model, inputs).items():
        assert difference(value, plain[name]) < 1e-3, name


@pytest.mark.parametrize("kernels", ["fused", "torch"] if GPU else ["torch"])
@pytest.mark.parametrize("backend", ["inductor"] if GPU else ["aot_eager"])
def test_compiled_blocks_compute_the_same(backend: str, kernels: str) -> None:
    """Each block as one graph."""
    model, inputs = wide(torch.bfloat16, kernels)
    plain = run(model, inputs)
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    for name, value in run(model, inputs).items():
        assert difference(value, plain[name]) < 0.05, name
