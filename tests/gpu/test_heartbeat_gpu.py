"""Ranks whose GPUs wait for each other: the slow one is named, and the one for which all others hang. Two ranks with
NCCL where there are two GPUs, with gloo elsewhere (HPC_TEST_ON_CPU=1)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from asked import skip_without_gpu

from hpc.batch import heartbeat
from hpc.batch.heartbeat import Heart, slowest

skip_without_gpu(__name__)

RANKS = 2
GPUS = torch.cuda.device_count() >= RANKS


def rank(folder: Path, mode: str) -> None:
    """Steps of a matmul and an all-reduce; mode: "slow" (rank 1 multiplies eight times) or "hang" (it stops)."""
    number = int(os.environ["RANK"])
    if GPUS:
        torch.cuda.set_device(number)
    os.environ["TORCH_NCCL_ENABLE_TIMING"] = "1"

    def tell(rank: int, node: str, words: str, stacks: str) -> None:
        (folder / "verdict").write_text(json.dumps([rank, words, stacks]))
        os._exit(3)

    heart = Heart(folder / "ranks", number, RANKS, 0.5, 5.0, tell)
    dist.init_process_group("nccl" if GPUS else "gloo")
    device = torch.device("cuda", number) if GPUS else torch.device("cpu")
    x = torch.randn(8192 if GPUS else 512, 8192 if GPUS else 512, device=device)
    with heart.watched():
        for step in range(60):
            y = x
            for _ in range(8 if mode == "slow" and number == 1 else 1):
                y = x @ y * 1e-3
            if mode == "hang" and number == 1 and step == 10:
                time.sleep(600)
            total = y.sum()
            dist.all_reduce(total)
            total.item()
            time.sleep(0.05)
            heart.beat()
    dist.destroy_process_group()


def together(folder: Path, mode: str) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, __file__, str(folder), mode], env=os.environ | common | {"RANK": str(n)})
             for n in range(RANKS)]  # fmt: skip
    until = time.monotonic() + 120
    try:
        while any(r.poll() is None for r in ranks) and not any(r.poll() for r in ranks):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        for one in ranks:
            one.kill()
    return [one.wait() for one in ranks]


def test_the_slow_rank_is_named(tmp_path: Path) -> None:
    assert together(tmp_path, "slow") == [0, 0]
    beats = heartbeat.read(tmp_path / "ranks")
    found = slowest(beats)
    assert found and [name.split(" on ")[0] for name in found.ranks] == ["rank 1"], beats


def test_the_rank_that_stops_is_named(tmp_path: Path) -> None:
    together(tmp_path, "hang")
    number, words, stacks = json.loads((tmp_path / "verdict").read_text())
    assert number == 1 and "behind: rank 1 on " in words and "has not entered 1 collective" in words
    assert "in rank" in stacks and "test_heartbeat_gpu.py" in stacks


if __name__ == "__main__":
    rank(Path(sys.argv[1]), sys.argv[2])
