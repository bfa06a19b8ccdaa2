"""What FP8 costs a small diffusion model of a film, in linear layers and in attention: held-out errors beside those of
bfloat16, of the same samples in the same order with the same noise, and beside what another seed changes.

    python tests/train_film_fp8.py film/latents@v1 --steps 300 --seeds 2

Latents are made as tests/train_film_diffusion.py says. `fp8-dpa` is fp8-delayed with transformer-engine's attention in
FP8 too (tests/bench_dit.py): it is faster, and no choice of the trainer, since its errors were larger (README.md).
Heads have 128 channels, as those of the published models.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import torch
import torch.distributed as dist
from bench_dit import attention_too, te_attention
from train_film_diffusion import by_shot, settings_of

from hpc.models.dit import DiT
from hpc.train import diffusion, diffusion_model, ranks, samples
from hpc.train.diffusion_measure import LEVELS

ROWS = "bf16,fp8-current,fp8-delayed,fp8-dpa"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the latents")
    parser.add_argument("--only", default=ROWS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    here, table = ranks.start(), by_shot(samples.listed(given.data))
    with tempfile.TemporaryDirectory() as scratch:
        settings = settings_of(table, given.steps, batch=given.batch, channels=256, blocks=6, heads=2, rank=64,
                               rate=1e-3, clips=32, readers=4)  # fmt: skip
        print("row          seed    mean  " + "  ".join(f"{level:7g}" for level in LEVELS) + "  seconds", flush=True)
        for seed in range(1, given.seeds + 1):
            for row in given.only.split(","):
                began, folder = time.monotonic(), Path(scratch, f"{row}-{seed}")
                one = msgspec.structs.replace(
                    settings, seed=seed, precision="fp8-delayed" if row == "fp8-dpa" else row
                )
                with attention_in_fp8() if row == "fp8-dpa" else contextlib.nullcontext():
                    last = diffusion.train(one, table, folder, here, lambda: None)["last"]
                found = [last["held_out"], *(last[f"held_out_{level:g}"] for level in LEVELS)]
                print(f"{row:12} {seed:4} " + "  ".join(f"{error:7.4f}" for error in found)
                      + f"  {time.monotonic() - began:7.0f}", flush=True)  # fmt: skip
    dist.destroy_process_group()


@contextlib.contextmanager
def attention_in_fp8() -> Iterator[None]:
    """Trainings in it compute self-attention so, forward and backward."""
    network, eight = diffusion_model.network, attention_too()

    def other(*given: Any) -> DiT:
        model = network(*given)
        for block in model.blocks if torch.cuda.is_available() else ():
            block.self_attn.attend = te_attention(model.config)
        return model

    with mock.patch.object(diffusion_model, "network", other), \
            mock.patch.object(diffusion_model, "recipe", lambda _: eight):  # fmt: skip
        yield


if __name__ == "__main__":
    main()
