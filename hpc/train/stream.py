"""Batches that are made ahead of training, in worker processes; what comes does not depend on how many there are.

    for batch, waited in stream(functools.partial(batches.at, rank=0, ranks=8), first_step=100, workers=4): ...
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Made = TypeVar("Made")
LEAVE = {signal.SIGTERM, signal.SIGUSR2}
"""What tells a rank to save and leave. Slurm may send it to all processes of a step: those here end with their rank."""


def stream(
    at: Callable[[int], Made], first_step: int, workers: int = 0, ahead: int = 2
) -> Generator[tuple[Made, float], None, None]:  # fmt: skip
    """What `at` makes of each step from the first on, without end, and the seconds that were waited for it.

    workers: processes, 0 for none; ahead: batches of each that wait. `at` is sent to the processes.
    """
    loader = DataLoader(Steps(at, first_step), batch_size=None, num_workers=workers, **OPTIONS if workers else {},
                        prefetch_factor=ahead if workers else None)  # fmt: skip
    with unheard() if workers else contextlib.nullcontext():
        arriving = iter(loader)
    while True:
        begun = time.monotonic()
        made = next(arriving)
        yield made, time.monotonic() - begun


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Processes that begin here begin with LEAVE blocked: none is ended before it is `deaf`."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, LEAVE)
    try:
        resource_tracker.ensure_running()  # the first process would start it, and that unblocks TERM
        signal.pthread_sigmask(signal.SIG_BLOCK, LEAVE)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def deaf(worker: int) -> None:
    """A worker process hears nothing of LEAVE."""
    for number in LEAVE:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEAVE)


OPTIONS: dict[str, Any] = {"multiprocessing_context": "spawn", "worker_init_fn": deaf}


def by_thread(at: Callable[[int], Made], first_step: int, ahead: int = 2) -> Generator[tuple[Made, float], None, None]:
    """The same by one thread of this process, where `at` only copies what is in its memory."""
    with ThreadPoolExecutor(1) as pool:
        made = deque(pool.submit(at, first_step + number) for number in range(ahead))
        for step in itertools.count(first_step + ahead):
            made.append(pool.submit(at, step))
            begun = time.monotonic()
            one = made.popleft().result()
            yield one, time.monotonic() - begun


class Steps(IterableDataset[Made], Generic[Made]):
    """Each worker makes every so many-th step; the loader takes them in turn."""

    def __init__(self, at: Callable[[int], Made], first: int) -> None:
        self.at, self.first = at, first

    def __iter__(self) -> Iterator[Made]:
        worker = get_worker_info()
        step, stride = (self.first + worker.id, worker.num_workers) if worker else (self.first, 1)
        while True:
            yield self.at(step)
            step += stride
