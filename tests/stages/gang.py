"""Gang's work: each step every rank adds its number, and all take the sum; what is saved is the sum so far."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from hpc.data.work import Made, Stopped, Work
from hpc.train.agree import agreed
from hpc.train.checkpoint import Checkpoints, Keeper, Ranks
from hpc.train.metrics import Metrics


def freeze(settings, upstream, superseded):
    yield [name for shards in upstream.values() for name, _ in shards]


def start(settings):
    dist.init_process_group("gloo")

    def process(work: Work) -> Made:
        rank, count = dist.get_rank(), dist.get_world_size()
        identity = {"fingerprint": work.fingerprint}
        keeper = Keeper(Path(work.folder, "checkpoints"), Checkpoints(every=5), identity,
                        Ranks(rank, count, dist.barrier))  # fmt: skip
        step, total = 0, 0
        if newest := keeper.newest():
            step, folder = newest
            total = json.loads((folder / "total").read_text())
        begun = step
        metrics = Metrics(Path(work.folder, "metrics.jsonl"), step) if rank == 0 else None
        while step < settings.steps:
            _misbehave(Path(settings.flags), rank, step - begun)
            time.sleep(settings.seconds)
            one = torch.tensor([rank + 1])
            dist.all_reduce(one)
            step, total = step + 1, total + int(one)
            leave, due = agreed(work.check, keeper.due(step, settings.steps))
            if metrics:
                metrics.step(step, total=total, ranks=count)
            if leave or due:
                keeper.save(step, lambda to, total=total: (to / "total").write_text(str(total)))
            work.progress(step / settings.steps, f"step {step}")
            if leave:
                raise Stopped
        out = work.scratch / f"{work.shard}.json"
        out.write_text(json.dumps({"total": total, "steps": step, "ranks": count, "rows": work.rows}))
        return Made([out], {"steps": step})

    return process


def _misbehave(flags: Path, rank: int, steps: int) -> None:
    """steps: taken since this start."""
    doom = flags / f"doom-{rank}"  # after so many steps, at every start
    if flags.name and doom.exists() and steps >= int(doom.read_text()):
        os.kill(os.getpid(), signal.SIGKILL)
    slow = flags / f"slow-{rank}"  # so many seconds, each step
    if flags.name and slow.exists():
        time.sleep(float(slow.read_text()))
    for word in ("fail", "kill", "hang", "stop"):
        if steps > 3 and flags.name and (flags / f"{word}-{rank}").exists():
            (flags / f"{word}-{rank}").unlink()
            if word == "fail":
                raise RuntimeError(f"rank {rank} was told to fail")
            if word == "hang":
                for_ever()
            os.kill(os.getpid(), signal.SIGSTOP if word == "stop" else signal.SIGKILL)


def for_ever() -> None:
    while True:
        time.sleep(1)
