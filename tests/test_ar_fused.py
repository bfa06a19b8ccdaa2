"""The fused kernels in the autoregressive model: the same logits, loss and gradients as torch's layers, by Triton's
interpreter, in a process of its own (the interpreter is chosen when Triton is imported)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
TESTS = Path(__file__).parent


def test_the_fused_model_is_the_same(tmp_path: Path) -> None:
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{TESTS}:{TESTS / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, str(tmp_path / "meet")], env=env, timeout=240,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["base", "equal", "world", "equal", "update", "equal"]


def main(meet: str) -> None:
    import interpreted  # noqa: F401
    import test_ar_model as plain
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from hpc.models.ar import cpu, keys
    from hpc.models.ar.loss import losses
    from hpc.models.ar.model import ARModel, FusedSelfAttention, config

    torch.set_num_threads(1)
    with cpu.stand_in():
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        for name, preset in (("base", plain.BASE), ("world", plain.WORLD)):
            ids = plain.tokens("tokens", 1, preset.length)
            context = torch.randn(5, 1, 24) if preset.context_dim else None
            labels, mask = ids.roll(-1, 1).T.contiguous(), torch.arange(preset.length)[:, None] > 20
            found = []
            for kernels in ("torch", "fused"):
                net = ARModel(preset, config(preset), kernels=kernels)
                fused = isinstance(net.decoder.layers[0].self_attention, FusedSelfAttention)
                assert fused == (kernels == "fused")
                keys.fill(net, preset, plain.Made(preset))
                logits = net(ids, context)
                seen = logits.detach().clone()
                ce, z = losses(logits, labels, mask, 1e-2, kernels=kernels)
                (ce.sum() + z.sum()).backward()
                found.append([seen, ce, z, *(p.grad for p in net.parameters())])
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
            print(name, "equal")
        update(plain)
        dist.destroy_process_group()


def update(plain: Any) -> None:
    """Of the same gradients, one pass makes the weights and moments that the optimizer's own step makes."""
    import torch
    from megatron.core import parallel_state

    from hpc.models.ar import keys
    from hpc.train.ar_engine import Compute, Engine
    from hpc.train.settings.ar import Layout
    from hpc.train.settings.optimizer import Optimizer

    found = []
    for fused in (False, True):
        parallel_state.destroy_model_parallel()
        weights = keys.Initial(plain.BASE, lambda name: torch.Generator().manual_seed(len(name)))
        engine = Engine(plain.BASE, Layout(), Compute(kernels="fused"), Optimizer(weight_decay=0.1, clip=0.5), weights)
        assert engine.fused
        engine.fused = fused
        for step in range(1, 4):
            generator = torch.Generator().manual_seed(step)
            for buffer in engine.ddp.buffers:
                buffer.grad_data.copy_(torch.randn(buffer.grad_data.shape, generator=generator) * 1e-2)
            norm, moved = engine.update(1e-2 * step)
            assert moved and norm > 0.5
        [one] = engine._optimizers()
        mains = [p for group in one.optimizer.param_groups for p in group["params"]]
        assert {int(one.optimizer.state[p]["step"]) for p in mains} == {3}
        for models, masters in zip(one.model_float16_groups, one.shard_fp32_from_float16_groups, strict=True):
            assert all(torch.equal(a.view(-1), b.bfloat16()) for a, b in zip(models, masters, strict=True))
        moments = [one.optimizer.state[p][name] for p in mains for name in ("exp_avg", "exp_avg_sq")]
        found.append([*(p.detach() for p in mains), *moments])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
    print("update equal")


if __name__ == "__main__":
    main(sys.argv[1])
