"""Several inputs of a shard worked on at the same time, in threads; what they give comes in the inputs' order.

A GPU has several video engines, and a decoder keeps one of them busy at most: one video at a time leaves most idle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hpc.data.work import Stopped

AHEAD = 2  # times `lanes`: inputs taken up before the first of them is done

Job = TypeVar("Job")
Done = TypeVar("Done")


def in_order(
    jobs: Iterable[Job], work: Callable[[Job, Callable[[], None]], Done], lanes: int, check: Callable[[], None]
) -> Iterator[Done]:
    """work(job, check) of each job, up to `lanes` at a time.

    The check that `work` gets raises Stopped when `check` does, or when another job failed: the first error ends them
    all, and is raised here when they are over. With one lane nothing is done ahead, and in this very thread.
    """
    if lanes == 1:
        for job in jobs:
            yield work(job, check)
        return
    errors: list[BaseException] = []
    over = threading.Event()

    def checked() -> None:
        if over.is_set():
            raise Stopped
        check()

    def one(job: Job) -> Done:
        checked()
        try:
            return work(job, checked)
        except BaseException as error:
            if not over.is_set():
                errors.append(error)
                over.set()
            raise

    waiting: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(lanes, "lane") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(one, job))
                if len(waiting) == AHEAD * lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except Exception as error:
            raise (errors or [error])[0] from None
        finally:
            over.set()
            pool.shutdown(cancel_futures=True)


class Progress:
    """Of all lanes together."""

    def __init__(self, report: Callable[[float, str], None]) -> None:
        self.report = report
        self.lock = threading.Lock()
        self.done: dict[int, float] = {}

    def __call__(self, job: int, done: float, words: str) -> None:
        """done: what this job has done by now, as a share of all jobs."""
        with self.lock:
            self.done[job] = done
            self.report(min(1.0, sum(self.done.values())), words)
