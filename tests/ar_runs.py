"""Trainings of a tiny autoregressive model: tokens, settings, ranks in processes of their own, curves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forks import together
from stages import ids

from hpc.data.work import Stopped
from hpc.train import ranks
from hpc.train.checkpoint import Checkpoints
from hpc.train.metrics import lines
from hpc.train.settings import TrainAr
from hpc.train.settings.ar import HeldOut
from hpc.train.settings.optimizer import Optimizer

SHAPE = (3, 4, 4)


def settings(**more: Any) -> TrainAr:
    return TrainAr(**{
        "model": "ar-tiny", "steps": 6, "batch": 4, "shape": SHAPE, "precision": "fp32", "readers": 0,
        "optimizer": Optimizer(rate=3e-3, warmup=2, weight_decay=0.1), "checkpoints": Checkpoints(every=2),
        "validation": HeldOut(every=2, clips=2), **more,
    })  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Two .bin with their .idx and tables, as prepare.tokens leaves them."""
    place = tmp_path_factory.mktemp("tokens")
    return [{path.suffix: str(path) for path in ids.write(place, shard, SHAPE, 6)} for shard in ("000000", "000001")]


@pytest.fixture
def here() -> Iterator[ranks.Here]:
    """The only rank, in this process."""
    from megatron.core import parallel_state

    torch.set_num_threads(1)
    yield ranks.start()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def train(folder: Path, given: TrainAr, rows: list[Any], kill_at: int = 0) -> None:
    """What a rank does. kill_at: the last one is killed after so many steps; told to leave after -kill_at."""
    from hpc.train import ar

    here, steps = ranks.start(), 0

    def told() -> None:
        nonlocal steps
        steps += 1
        if kill_at == -steps:
            raise Stopped
        if here.rank == here.count - 1 and steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    weights = folder / "model"
    weights.mkdir(parents=True, exist_ok=True)
    try:
        made = ar.train(given, rows, folder, here, told, weights=weights)
        if here.rank == 0:
            (folder / "made.json").write_text(json.dumps(made))
    except Stopped:
        pass
    except ValueError as error:
        (folder / "error").write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


def run(count: int, folder: Path, given: TrainAr, rows: list[Any], kill_at: int = 0) -> list[dict[str, Any]]:
    """Lines of metrics of so many ranks in processes of their own."""
    group = together(count, train, folder, given, rows, kill_at)
    group[-1].join(120)
    for one in group:
        if kill_at > 0:
            one.kill()
        one.join(60)
    return list(lines(folder / "metrics.jsonl"))
