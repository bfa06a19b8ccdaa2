"""What `hpc doctor` runs on the nodes of an allocation. Each rank prints one line of JSON after the word PROBE.

    srun --ntasks-per-node=1 python -m hpc.batch.probe node FOLDER SCRATCH [IMAGE...]
    srun --ntasks-per-node=8 python -m hpc.batch.rank -- -m hpc.batch.probe all-reduce 256

The second measures an all-reduce over all ranks: NCCL where they have GPUs, gloo else. Bus bandwidth is nccl-tests'
(doc/PERFORMANCE.md): bytes / seconds * 2 (n - 1) / n, what one link must carry, whatever n.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

WORD = "PROBE "
ROUNDS, WARM = 20, 5


class Node(msgspec.Struct):
    """What one node says of itself."""

    node: str
    time: float
    gpus: list[str] = []
    """Name, driver, uncorrected memory errors since the driver was loaded."""
    problem: str = ""
    """Of the driver."""
    folder: bool = True
    """The run folder is seen."""
    scratch_free: float = 0.0
    """Bytes."""
    scratch_inodes: float = 1.0
    """Share that is free."""
    images: dict[str, bool] = {}
    """Path -> can be read."""


class AllReduce(msgspec.Struct):
    backend: str
    ranks: int
    bytes: int
    seconds: float
    bandwidth: float
    """Bus bandwidth in bytes per second."""


def gpus() -> tuple[list[str], str]:
    """(each GPU of this machine, what is wrong with the driver)."""
    query = "--query-gpu=name,driver_version,ecc.errors.uncorrected.volatile.total"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return [], ""
    except subprocess.TimeoutExpired:
        return [], "nvidia-smi does not answer in 60 s"
    if done.returncode:
        return [], (done.stdout + done.stderr).strip()[:300]
    return [line.strip() for line in done.stdout.splitlines() if line.strip()], ""


def node(folder: str, scratch: str, images: Sequence[str]) -> Node:
    found, problem = gpus()
    made = Node(os.uname().nodename.partition(".")[0], time.time(), found, problem)
    made.folder = os.access(folder, os.R_OK | os.X_OK)
    try:
        space = os.statvfs(scratch)
        made.scratch_free = float(space.f_bavail * space.f_frsize)
        made.scratch_inodes = space.f_favail / space.f_files if space.f_files else 1.0
    except OSError:
        made.scratch_inodes = 0.0
    made.images = {image: os.access(image, os.R_OK) for image in images}
    return made


def all_reduce(megabytes: int) -> AllReduce:
    """Over all ranks; the environment is torch.distributed's (hpc.batch.rank)."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    count = dist.get_world_size()
    x = torch.ones(megabytes * 2**20 // 4, device=device)
    begun = 0.0
    for number in range(WARM + ROUNDS):
        if number == WARM:
            if cuda:
                torch.cuda.synchronize()
            begun = time.perf_counter()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / ROUNDS
    bandwidth = x.nbytes / seconds * 2 * (count - 1) / count
    made = AllReduce(dist.get_backend(), count, x.nbytes, seconds, bandwidth)
    dist.destroy_process_group()
    return made


def main(what: str, *words: str) -> None:
    made = node(words[0], words[1], words[2:]) if what == "node" else all_reduce(int(words[0]))
    if what == "node" or os.environ.get("RANK") == "0":
        sys.stdout.write(WORD + msgspec.json.encode(made).decode() + "\n")


def lines(text: str) -> list[bytes]:
    """What ranks printed, as JSON."""
    return [line.partition(WORD)[2].encode() for line in text.splitlines() if line.startswith(WORD)]


def scratch_of(given: str | None) -> str:
    """Where a node makes files, as its worker decides it."""
    return given or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  what Slurm takes where TMPDIR is not set


def exists(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


if __name__ == "__main__":
    main(*sys.argv[1:])
