"""Ranks of trainings as processes of tests: what all of them import is imported once, and each is forked from there."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

# Not on GPUs: with transformer-engine megatron-core's import begins CUDA, which a forked process cannot go on with
METHOD = "spawn" if torch.cuda.is_available() else "forkserver"
FORKS = multiprocessing.get_context(METHOD)
# torch's optimizers import the last one when they are made
FORKS.set_forkserver_preload(["hpc.train.ar", "hpc.train.diffusion", "hpc.train.tokenizer", "torch._dynamo"])


def _rank(rank: int, count: int, port: int, run: Callable[..., None], given: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    torch.set_num_threads(1)
    run(*given)


def together(count: int, run: Callable[..., None], *given: Any) -> list[BaseProcess]:
    """So many ranks, which find each other as those of a gang do, by the environment: started, in their order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [FORKS.Process(target=_rank, args=(number, count, port, run, given)) for number in range(count)]
    for one in group:
        one.start()
    return group
