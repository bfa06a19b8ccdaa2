"""Stages whose shards are made by several processes together: ranks of torch.distributed, on one node or on several.

Such a stage has "gang" among its PHASES, and `resources` says on how many `nodes` it runs, and how many `workers`
(ranks) are on each. Every rank is a hpc.batch.runner and is told of every shard; rank 0 alone answers and publishes.
When one rank fails, all are ended.

    python -m hpc.batch.gang 2        here, without Slurm: two runners
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from hpc.batch import masking, records, slurm
from hpc.batch.kinds import settings_of
from hpc.batch.run import StagePlan

RUNNER = ["-m", "hpc.batch.runner"]
ECHOES = ("closed by peer", "reset by peer", "remote process", "remoteerror", "broken pipe", "connection refused")
"""Words of errors that ranks meet because another one is gone: gloo's, NCCL's, the store's."""
LEAVE_SECONDS = 5
"""After one rank failed the others get so long before they are killed."""
IMAGE_PYTHON = "python3"
"""In every image."""
NONE = "none"
"""Instead of the name of a checkpoint."""
TAKEN_AWAY = ("PREEMPTED", "REQUEUED")
"""States of starts that Slurm, or somebody, ended, which says nothing about the training."""


def is_gang(stage: StagePlan) -> bool:
    return "gang" in stage.phases


def command(stage: StagePlan, on_slurm: bool, container: Sequence[str] = (), given: int = 0) -> list[str]:
    """What starts the process, or the ranks, of a stage. container: pyxis's options for ranks in containers; given: see
    `nodes`."""
    if not is_gang(stage):
        return [sys.executable, *RUNNER]
    r = stage.resources
    if on_slurm:
        python = IMAGE_PYTHON if container else sys.executable
        ranks = [python, "-m", "hpc.batch.rank", "--", *RUNNER]
        return slurm.step(ranks, nodes=nodes(stage, given), tasks_per_node=r.workers, cpus_per_task=r.cpus,
                          container=container)  # fmt: skip
    return [sys.executable, "-m", "hpc.batch.gang", str(r.nodes * r.workers)]


def nodes(stage: StagePlan, given: int) -> int:
    """Of so many nodes that Slurm gave this start of a stage, `least_nodes` or more, how many its ranks take: the most
    that can share its batch. given: 0 without Slurm."""
    r = stage.resources
    if r.least_nodes is None or not 0 < given < r.nodes:
        return r.nodes
    shared_by = getattr(settings_of(stage.kind, stage.settings), "shared_by", lambda ranks: None)
    for number in range(given, r.least_nodes, -1):
        with contextlib.suppress(ValueError):
            shared_by(number * r.workers)
            return number
    return r.least_nodes


class Line(msgspec.Struct):
    """Of the file of failures."""

    rank: int
    failure: str
    detail: str
    node: str = ""


def leave(file: str, rank: int, why: str, detail: str, node: str) -> NoReturn:
    """Say why a rank failed and end this process, at once: the others may be waiting for it, and whoever started them
    ends them now."""
    with Path(file).open("ab") as out:
        out.write(msgspec.json.encode(Line(rank, why, masking.masked(detail), node)) + b"\n")
    os._exit(1)


def reason(file: str, status: int) -> tuple[str, str, str]:
    """(class of failure, detail, node) of a gang that ended: what the rank said that failed by itself. One that was
    killed says nothing, and the others tell of their lost connection."""
    try:
        lines = msgspec.json.Decoder(Line).decode_lines(Path(file).read_bytes())
        Path(file).unlink()
    except FileNotFoundError:
        lines = []
    for line in lines:
        if not any(word in line.detail.lower() for word in ECHOES):
            return line.failure, f"rank {line.rank}: {line.detail}", line.node
    said = f"; rank {lines[0].rank} said {lines[0].detail[:200]}" if lines else ""
    return "lost", f"a rank was killed, or lost its node (exit {status}){said}: see the log", ""


def newest(file: Path) -> str:
    """What a training says its newest checkpoint is, in hpc.data.work.SAVED."""
    try:
        return file.read_text(errors="replace").strip()[:200] or NONE
    except FileNotFoundError:
        return NONE


def counted(earlier: records.Fold, job: str, restart: int, on_slurm: bool) -> dict[str, list[str]]:
    """Shard -> the newest checkpoint at each earlier start of this task, less those starts that were taken away: that
    were told to leave, or of which Slurm says so. A start that vanished otherwise (with its node, killed for memory)
    may have to thank itself for it."""
    away = {number for number in range(restart) if earlier.ended.get((job, number)) == "stopped by signal"}
    vanished = {number for number in range(restart) if (job, number) not in earlier.ended}
    if vanished and on_slurm:
        states = slurm.starts(job)
        if len(states) == restart + 1:  # else nobody knows which is which
            away |= {number for number in vanished if states[number].startswith(TAKEN_AWAY)}
    return {shard: [checkpoint for number, checkpoint in some if number not in away]
            for shard, some in earlier.starts.items()}  # fmt: skip


def end_with_parent() -> None:
    """This process is killed when the one that started it ends, however that ends: it must not go on beside the one
    that takes its place."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(count: int) -> int:
    """Start the ranks, pass on what comes in and the signals, end all when one fails. Returns its exit status."""
    end_with_parent()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for number in range(count):
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        env = os.environ | {name: str(value) for name, value in names.items()}
        ranks.append(subprocess.Popen([sys.executable, *RUNNER], stdin=subprocess.PIPE, env=env))

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, pass_on)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    while (failed := next((r for r in ranks if r.poll()), None)) is None and any(r.poll() is None for r in ranks):
        if selector.get_map() and selector.select(0.2):
            data = os.read(0, 1 << 20)
            for rank in ranks:
                _give(rank, data)
            if not data:
                selector.unregister(0)
        else:
            time.sleep(0 if selector.get_map() else 0.05)
    if failed is None:
        return 0
    for rank in ranks:
        rank.terminate()
    until = time.monotonic() + LEAVE_SECONDS
    while any(r.poll() is None for r in ranks) and time.monotonic() < until:
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
    return failed.returncode if failed.returncode > 0 else 128 - failed.returncode


def _give(rank: subprocess.Popen, data: bytes) -> None:
    assert rank.stdin
    try:
        if data:
            rank.stdin.write(data)
            rank.stdin.flush()
        else:
            rank.stdin.close()
    except BrokenPipeError:
        pass  # it died: its status tells so


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
