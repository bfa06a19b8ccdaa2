"""A step of a diffusion model: its rate, its update, what is kept for the way back and what is computed again."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from diffusion_runs import here, settings
from torch.utils._python_dispatch import TorchDispatchMode

from hpc.models.dit import Block, LearnedPositions, linear
from hpc.models.dit_presets import Config
from hpc.train import diffusion_model, diffusion_optimizer, ema, ranks
from hpc.train.estimate_diffusion import KEPT, POSITIONS
from hpc.train.schedule import cycled
from hpc.train.settings.diffusion import AdamW
from hpc.train.settings.optimizer import Cycle

__all__ = ["here"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


@pytest.mark.parametrize("cycle, shares", [
    (Cycle(f_max=0.5, f_min=0.2, warmup=2000, length=100_000),
     {0: 1e-06, 1: 0.0002509995, 1999: 0.49975000049999996, 2000: 0.5, 2001: 0.4999969387755102,
      50_000: 0.35306122448979593, 99_999: 0.2000030612244898, 100_000: 0.2}),
    (Cycle(), {0: 1e-06, 50: 0.49500049999999995, 99: 0.9801000099999999, 100: 0.99, 1999: 0.9871982745686422,
               50_000: 0.9163790947736934, 100_000: 0.8426106526631658}),
])  # fmt: skip
def test_the_published_schedule(cycle: Cycle, shares: dict[int, float]) -> None:
    """What LambdaLinearScheduler of cosmos_predict2 661da47 and of cosmos_predict2.5 50369b8 gives, by running it, for
    the published post-training of the 2B and for the published training."""
    for n, share in shares.items():
        assert cycled(cycle, 2**-14.5, n + 1) == pytest.approx(2**-14.5 * share, rel=1e-9)
    assert cycled(cycle, 1.0, cycle.length + 9999) == cycle.f_min
    with pytest.raises(ValueError, match="length: 100 steps must be more than the 100 of warmup"):
        Cycle(warmup=100, length=100)


def test_a_step_in_one_pass_is_that_of_one_by_one(here: ranks.Here) -> None:
    """Also its state, which either way goes on with."""
    o, given = AdamW(rate=1e-2, weight_decay=0.1, clip=0.5, betas=(0.9, 0.95)), settings(seed=3)
    both = []
    for at_once in (False, True):
        model = diffusion_model.build(given, here)
        diffusion_model.begin(model, given, here)
        optimizer = diffusion_optimizer.make(model, o)
        means = [ema.begin(model) for _ in range(4)]
        norms = []
        for number in range(4):
            random = torch.Generator().manual_seed(number)
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight)
                weight.grad.to_local().normal_(generator=random)  # type: ignore[attr-defined]
                if number == 2:
                    weight.grad.to_local().fill_(math.nan)  # type: ignore[attr-defined]
            one_pass = at_once and number != 3
            norms.append(diffusion_optimizer.step(model, optimizer, o, means, (0.9, 0.5, 0.1, 0.99), one_pass, "torch"))
        assert math.isnan(norms[2]) and min(norms[0], norms[1]) > 0.5
        both.append((model.state_dict(), means, optimizer.state_dict()["state"]))
    (a, a_means, a_state), (b, b_means, b_state) = both
    near = {"rtol": 1e-5, "atol": 1e-6}
    for name, value in a.items():
        torch.testing.assert_close(b[name].full_tensor(), value.full_tensor(), **near)
    for one, other in zip(a_means, b_means, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name].full_tensor(), value.full_tensor(), **near)
    assert {float(one["step"]) for one in b_state.values()} == {float(one["step"]) for one in a_state.values()} == {3.0}


class Counted(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recompute", "attention", "matmuls", "gelu"), [
    ("none", 1, 0, 1), ("matmuls", 1, 0, 2), ("attention", 1, 1, 2), ("blocks", 2, 1, 2),
])  # fmt: skip
def test_what_is_computed_again(recompute: Any, attention: int, matmuls: int, gelu: int) -> None:
    """Of a block's forward and backward pass: how often attention and GELU run, and whether its matrices do twice."""
    config = Config(channels=48, blocks=1, heads=2, condition_mask=True, text_channels=32)

    def run(again: Any) -> Counter[str]:
        block = Block(config, linear)
        given = (torch.randn(1, 1, 48), torch.randn(1, 1, 144), torch.randn(1, 16, 32),
                 (torch.randn(1, 64, 1, 24), torch.randn(1, 64, 1, 24)))  # fmt: skip
        forward = diffusion_model.recomputed(block.forward, again, settings(), torch.device("cpu"))
        with Counted() as counted:
            (block.forward if again == "none" else forward)(torch.randn(1, 1, 64, 48), *given, None).sum().backward()
        return counted.seen

    plain, found = run("none"), run(recompute)
    of_attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert plain[of_attention] == 2 and plain["gelu"] == 1
    assert found[of_attention] == 2 * attention and found["gelu"] == gelu
    assert (found["mm"] > plain["mm"]) == bool(matmuls) and found["mm"] >= plain["mm"]


@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_a_block_keeps_what_is_estimated(recompute: str) -> None:
    config = Config(channels=256, blocks=1, heads=2, condition_mask=True, text_channels=32)
    block, tokens = Block(config, linear).bfloat16(), 2048
    x = torch.randn(1, 1, tokens, 256, dtype=torch.bfloat16, requires_grad=True)
    given = (torch.randn(1, 1, 256), torch.randn(1, 1, 768), torch.randn(1, 16, 32, dtype=torch.bfloat16),
             (torch.randn(1, tokens, 1, 128), torch.randn(1, tokens, 1, 128)))  # fmt: skip
    shared = {one.untyped_storage().data_ptr() for one in (*block.parameters(), *given[:3], *given[3])}
    kept: dict[int, torch.Tensor] = {}

    def keep(one: torch.Tensor) -> torch.Tensor:
        if one.untyped_storage().data_ptr() not in shared:
            kept[one.untyped_storage().data_ptr()] = one
        return one

    forward = block.forward
    if recompute != "none":
        forward = diffusion_model.recomputed(forward, recompute, settings(), torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        forward(x, *given, None)
    found = sum(one.untyped_storage().nbytes() for one in kept.values()) / tokens / 256
    if recompute == "none":
        found -= 12  # what a GPU's norms of q and k do not keep: three float32
    assert found == pytest.approx(KEPT[recompute], rel=0.05)


def test_learned_positions_keep_what_is_estimated() -> None:
    config = Config(channels=256, blocks=1, heads=2, condition_mask=True, text_channels=32, learned_positions=True)
    positions, kept = LearnedPositions(config), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.setdefault(one.data_ptr(), one), lambda one: one):
        taken = positions(0, 2, 32, 32).to(torch.bfloat16)
    found = sum(one.untyped_storage().nbytes() for one in kept.values()) + 2 * taken.nbytes  # itself and its gradient
    assert found / taken.numel() == pytest.approx(POSITIONS, rel=0.05)
