"""The same attempt on this machine, without Slurm: the very same worker, run by submitit's LocalExecutor.

Dependencies, throttling and progress are done here; signals, time limits and requeueing are submitit's: it warns a task
with USR2 ahead of its time limit and starts it again when it leaves with the requeue status.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hpc.batch import records
from hpc.batch.run import Attempt, AttemptPlan, Run, StagePlan
from hpc.batch.script import warning

DRIVER = Path("/dev/nvidiactl")
"""There where this machine has GPUs of NVIDIA's."""


class Task(msgspec.Struct):
    stage: str
    row: int
    """Row of the plan; -1 for a barrier."""
    after: list[int]
    """Tasks (by their number) that must have ended, and how."""
    must_succeed: bool
    cpus: int
    job: object = None
    state: str = "waiting"
    """waiting, running, done, failed, cancelled"""


def tasks_of(attempt: Attempt, plan: AttemptPlan) -> list[Task]:
    """Everything up to the first barrier, or behind it: the same order and dependencies as submit.sh."""
    out: list[Task] = []
    made: dict[tuple[str, int], int] = {}
    for group in plan.groups:
        for chunk in group.chunks:
            for row in range(chunk.first_row, chunk.first_row + chunk.tasks):
                for name in group.stages:
                    stage = plan.stage(name)
                    after = [made[n, row] for n in stage.needs if (n, row) in made]
                    made[name, row] = len(out)
                    out.append(Task(name, row, after, True, stage.resources.cpus * stage.resources.workers))
    for stage in plan.stages:
        if not stage.width:
            continue
        if "barrier" in stage.phases:
            after = [i for i, t in enumerate(out) if t.stage in stage.needs]
            barrier = len(out)
            out.append(Task(stage.name, -1, after, False, 1))
            waits = [[barrier]] * stage.width
        else:
            waits = [[made[n, row] for n in stage.needs if (n, row) in made] for row in range(stage.width)]
        for row in range(stage.width):
            made[stage.name, row] = len(out)
            out.append(Task(stage.name, row, waits[row], True, stage.resources.cpus * stage.resources.workers))
    return out


def unseen(plan: AttemptPlan) -> str:
    """Where GPUs are here and no stage asks for one: the words that say so."""
    if not DRIVER.exists() or any(stage.resources.gpus for stage in plan.stages):
        return ""
    return "no stage asks for a GPU, so none sees one of this machine's: `resources: {gpus: 1}`"


def run_task(run: str, stage: str, attempt: int, row: int) -> int:
    """What submitit runs: the worker, as a batch job would."""
    from hpc.batch import masking, worker

    masking.install(Run(Path(run)).spec)
    status = worker.main(run, stage, str(attempt), "barrier" if row < 0 else str(row))
    if status:
        sys.exit(status)  # a status, not an exception: submitit reads "start me again" from it
    return status


def execute(run: Run, attempt: Attempt, env: dict[str, str], cores: int, tick: Callable[[list[Task]], None]) -> bool:
    """Run the attempt. tick(tasks) is called several times a second. True if every task ended well."""
    from submitit import LocalExecutor

    plan = attempt.plan()
    tasks = tasks_of(attempt, plan)
    saved = dict(os.environ)
    # `kill` and a closed terminal end a run as Ctrl-C does; what is ignored (nohup) stays ignored
    ends = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for signum in ends:
        signal.signal(signum, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    os.environ.update(env, PYTHONPATH=str(attempt.code), PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")
    try:
        while any(t.state in ("waiting", "running") for t in tasks):
            _reap(run, attempt, tasks)
            _skip_rows_that_are_not_there(attempt, plan, tasks)
            for task in tasks:
                used = sum(t.cpus for t in tasks if t.state == "running")
                if task.state != "waiting" or (used and used + task.cpus > cores):
                    continue
                before = [tasks[i].state for i in task.after]
                if any(s in ("waiting", "running") for s in before):
                    continue
                if task.must_succeed and any(s != "done" for s in before):
                    task.state = "cancelled"
                    continue
                _start(LocalExecutor, run, attempt, plan.stage(task.stage), task)
            tick(tasks)
            time.sleep(0.1)
    except BaseException:
        _stop(tasks)
        raise
    finally:
        for signum in ends:
            signal.signal(signum, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(saved)
        for folder in {t.stage for t in tasks}:
            for path in run.logs(folder).glob("*.pkl"):
                path.unlink()
    return all(t.state == "done" for t in tasks)


def _start(executor_class: type, run: Run, attempt: Attempt, stage: StagePlan, task: Task) -> None:
    executor = executor_class(folder=run.logs(stage.name), max_num_timeout=1_000_000)
    executor.update_parameters(
        timeout_min=stage.resources.time / 60, signal_delay_s=warning(stage.resources.time), stderr_to_stdout=True,
        gpus_per_node=stage.resources.gpus_of(stage.resources.workers),
    )  # fmt: skip
    # Ctrl-C goes to every process of the terminal: the tasks' don't listen, this one tells them to leave
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        task.job = executor.submit(run_task, str(run.folder), stage.name, attempt.number, task.row)
        task.state = "running"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _reap(run: Run, attempt: Attempt, tasks: list[Task]) -> None:
    for task in tasks:
        if task.state == "running" and task.job.done():  # type: ignore[attr-defined]
            # A task that left no result was killed, left with an error, or asked to be started again
            ok = task.job.paths.result_pickle.exists() and task.job.exception() is None  # type: ignore[attr-defined]
            task.state = "done" if ok else "waiting" if _asks_again(run, attempt, task) else "failed"


def _asks_again(run: Run, attempt: Attempt, task: Task) -> bool:
    """Whether its last start ended for the time limit: submitit itself starts a task again five times and no more."""
    starts = run.records(task.stage).glob(f"local{attempt.number}_{task.row}.*.jsonl")
    last = max(starts, key=lambda p: int(p.name.split(".")[-2]), default=None)
    lines = list(records.read(last)) if last else []
    return bool(lines) and isinstance(lines[-1], records.End) and lines[-1].why == "time limit"


def _skip_rows_that_are_not_there(attempt: Attempt, plan: AttemptPlan, tasks: list[Task]) -> None:
    """Behind a barrier the width was a guess: don't start a process to find no row."""
    for task in tasks:
        domain = plan.stage(task.stage).domain
        if task.state == "waiting" and task.row >= 0 and domain != "inputs" and attempt.barrier(domain).exists():
            if all(tasks[i].state == "done" for i in task.after) and task.row >= attempt.rows(domain):
                task.state = "done"


def _stop(tasks: list[Task]) -> None:
    """Tell every task to leave (again each second: one may just be starting), and wait until they have."""
    left = [t for t in tasks if t.state == "running"]
    for moment in range(300):
        left = [t for t in left if not t.job.done()]  # type: ignore[attr-defined]
        for task in left if moment % 10 == 0 else []:
            os.kill(int(task.job.job_id), signal.SIGTERM)  # type: ignore[attr-defined]  # submitit passes it on
        if not left:
            break
        time.sleep(0.1)
