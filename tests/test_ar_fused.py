"""The fused kernels in the autoregressive model: the same logits, loss and gradients as torch's layers, by Triton's
interpreter, in a process of its own (the interpreter is chosen when Triton is imported)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
TESTS = Path(__file__).parent


def test_the_fused_model_is_the_same(tmp_path: Path) -> None:
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{TESTS}:{TESTS / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, str(tmp_path / "meet")], env=env, timeout=240,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["base", "equal", "world", "equal"]


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
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
