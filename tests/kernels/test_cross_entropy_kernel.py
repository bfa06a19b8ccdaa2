"""Cross entropy with the logsumexp: values and gradients are torch's own in fp64, alone and split over two ranks."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import interpreted  # noqa: F401  (the ranks are processes of their own)
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from hpc.kernels.cross_entropy import cross_entropy

Z = 0.1  # large beside 1e-4, so that a wrong gradient of the z-loss shows


def loss_of(ce: Tensor, lse: Tensor, mask: Tensor | None) -> Tensor:
    """That of Cosmos' autoregressive models: z over all positions, ce over those that count."""
    return (ce.mean() if mask is None else ce.sum() / mask.sum()) + Z * lse.square().mean()


def exact(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(ce, lse, gradient of the logits) by torch's own functions in fp64, on all classes."""
    leaf = logits.detach().double().requires_grad_()
    counts = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask != 0
    ce = F.cross_entropy(leaf.flatten(0, -2), torch.where(counts, labels, -100).flatten().long(), reduction="none")
    ce, lse = ce.view(labels.shape), leaf.logsumexp(-1)
    loss_of(ce, lse, mask).backward()
    assert leaf.grad is not None
    return ce.detach(), lse.detach(), leaf.grad


def near(found: Tensor | None, wanted: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert found is not None and found.dtype == dtype
    tolerance = {"rtol": 2e-6, "atol": 4e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(found.detach().double(), wanted, **tolerance)


def example(shape: tuple[int, ...], classes: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    logits = (torch.randn(*shape, classes, device=device) * 4).to(dtype)
    return logits, torch.randint(classes, shape, device=device)


@pytest.mark.parametrize("kernels", ["fused", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "classes", "masked"), [((3, 2), 37, True), ((5,), 64, False), ((2,), 8197, True)])
def test_equal_to_torchs_own(
    kernels: str, dtype: torch.dtype, shape: tuple[int, ...], classes: int, masked: bool, device: torch.device
) -> None:
    logits, labels = example(shape, classes, dtype, device)
    mask = None
    if masked:
        mask = (torch.arange(labels.numel(), device=device) % 2).view(shape)
        labels[mask == 0] = 64_002  # the padding of video2world: no class at all
    ce, lse, grad = exact(logits, labels, mask)
    leaf = logits.clone().requires_grad_()
    found = cross_entropy(leaf, labels, mask, kernels=kernels)
    near(found[0], ce)
    near(found[1], lse)
    loss_of(*found, mask).backward()
    near(leaf.grad, grad, dtype)


def test_masks_of_bools_and_the_last_and_first_class(device: torch.device) -> None:
    logits, _ = example((4,), 16, torch.float32, device)
    labels = torch.tensor([0, 15, 7, 7], dtype=torch.int32, device=device)
    mask = torch.tensor([True, True, False, True], device=device)
    logits[0, 1:] = -torch.inf
    ce, _ = cross_entropy(logits, labels, mask, kernels="fused")
    near(ce, exact(logits, labels, mask)[0])
    assert ce[0] == 0 and ce[2] == 0


def test_a_label_outside_the_vocabulary_is_loud(device: torch.device) -> None:
    logits, labels = example((3,), 16, torch.float32, device)
    labels[1] = 16
    for kernels in ("fused", "torch"):
        assert cross_entropy(logits, labels, kernels=kernels)[0].isnan().tolist() == [False, True, False]


def test_gradients_lie_over_the_logits(device: torch.device) -> None:
    """No second buffer; who else had saved the logits is told by autograd, and so is who asks twice."""
    logits, labels = example((3,), 16, torch.float32, device)
    leaf = logits.requires_grad_()
    made = leaf * 1.0
    ce, _ = cross_entropy(made, labels, kernels="fused")
    (other,) = torch.autograd.grad(made.square().sum(), leaf, retain_graph=True)
    assert torch.equal(other, 2 * leaf)
    also = made.square().sum()
    (grad,) = torch.autograd.grad(ce.sum(), made, retain_graph=True)
    assert grad.data_ptr() == made.data_ptr() and torch.equal(grad, made)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        also.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs once"):
        ce.sum().backward()


def test_what_does_not_fit_is_said(device: torch.device) -> None:
    logits, labels = example((3, 2), 16, torch.float32, device)
    with pytest.raises(ValueError, match=r"want labels of \[3, 2\].*given: \[6\] and None"):
        cross_entropy(logits, labels.flatten())


def on_a_rank(rank: int, port: int, folder: Path) -> None:
    """One of two ranks: its half of the classes; gloo everywhere, and the kernels of the interpreter."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))  # fmt: skip
    whole, labels, mask = torch.load(folder / "in.pt")
    out = {}
    for kernels in ("fused", "torch"):
        leaf = whole.chunk(2, dim=-1)[rank].clone().requires_grad_()
        ce, lse = cross_entropy(leaf, labels, mask, group=dist.group.WORLD, kernels=kernels)
        loss_of(ce, lse, mask).backward()
        out[kernels] = ce.detach(), lse.detach(), leaf.grad
    torch.save(out, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks run on CPUs, under the interpreter")
def test_split_over_two_ranks(tmp_path: Path, device: torch.device) -> None:
    logits, labels = example((5,), 2 * 35, torch.float32, device)
    labels[:2] = torch.tensor([0, 69])
    mask = torch.tensor([1, 1, 0, 1, 1])
    torch.save((logits, labels, mask), tmp_path / "in.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(on_a_rank, (port, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    wanted = exact(logits, labels, mask)
    for kernels in ("fused", "torch"):
        halves = [rank[kernels] for rank in ranks]
        assert torch.equal(halves[0][0], halves[1][0]) and torch.equal(halves[0][1], halves[1][1])
        for found, right in zip((*halves[0][:2], torch.cat([h[2] for h in halves], dim=-1)), wanted, strict=True):
            near(found, right)
