"""One array task: take its row of the plan, have its shards made one after the other, record each, obey signals.

    python -m hpc.batch.worker RUN STAGE [ATTEMPT [FIRST_ROW | barrier] [pyxis's options for ranks in containers]]

Light: the stage itself runs in child processes (hpc.batch.runner), `workers` of them, which get their shards from here
one at a time, so a fast one does more. Exit status 0 means that the bookkeeping is complete, whatever became of single
shards: one bad shard never cancels eleven good ones downstream.

USR2 (sent by Slurm ahead of the time limit): hand out no more shards, let those in flight finish while there is time,
give up the rest, requeue this task alone. TERM (preemption, cancel): give up at once; who sent it decides what follows.
Preemption with a time of grace sends it to the ranks of a gang alone, which are a step: they leave with a checkpoint,
and this process stays until Slurm ends it, since a job that has ended is not requeued.
Nothing depends on a signal being received: what is not recorded is done again.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import msgspec
from submitit import JobEnvironment
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from hpc.batch import barrier, commit, failure, gang, health, jsons, masking, probe, records, slurm, twins
from hpc.batch.cluster import Cluster
from hpc.batch.gang import is_gang
from hpc.batch.plan import RowShard
from hpc.batch.run import Attempt, AttemptPlan, Run, StagePlan
from hpc.batch.runner import Order, Reply, Setup, saved
from hpc.batch.script import warning
from hpc.batch.twins import Twins

CONTAINED = "HPC_CONTAINED"
"""Set by sbatch/container.sbatch, which requeues the task when this process asks for it by its exit status."""
FINISH_SHARE = 0.5
"""After the warning, shards in flight may go on for this share of the time that is left."""
SAVE_SHARE = 0.8
"""...of which ranks may take so much for their checkpoint: they are told at once."""
LEAVE_SECONDS = 15
"""After TERM, a child has this long at most to notice and leave before it is killed."""
GRACE_SECONDS = 60
"""Ranks that Slurm itself told to leave have left: it has this long to end the job before the task requeues itself."""
LOOK_SECONDS, LOOK_SHARE = 30.0, 1 / 120
"""Between two looks at what other tasks do: this share of the time limit, but not more."""
MAX_TRIES = 2
MAX_CULPRITS = 3
"""A shard on more of whose inputs its process dies, twice on each, fails: the machine or the code is to blame."""
MAX_KILLS = 3
"""A shard on which this many workers vanished is taken to be their killer."""
MAX_IDLE_RESTARTS = 2
"""A task that was restarted this often in a row without finishing a shard gives up the shard in flight."""
MAX_BAD_NODES = 3
"""Starts on nodes that are not fit for work, after which a task is left for the next attempt."""
MAX_NODE_FAILURES = 3
"""After so many failures of the node's own in a row, its remaining shards are left for another node."""


class Place(msgspec.Struct):
    """Where this worker runs."""

    job: str
    raw_job: str
    index: int
    restart: int
    node: str
    on_slurm: bool
    container: tuple[str, ...] = ()
    """pyxis's options for ranks, whose launcher is outside of their containers."""
    nodes: int = 0
    """That Slurm gave."""


class Child(msgspec.Struct):
    k: int
    """Its number in this task: which GPUs are its own."""
    process: subprocess.Popen
    orders: IO[bytes]
    replies: IO[bytes]
    scratch: Path
    ready: bool = False
    start_seconds: float = 0.0
    order: Order | None = None
    items: list[int] = []
    """Which of the order's it is on, if the stage says so."""
    begun: float = 0.0
    buffer: bytes = b""
    stopping: bool = False
    killed: bool = False
    """Its shard is left to a twin; what it may still have said is not heard."""
    failures: str = ""
    """Of a gang: the file in which its ranks say why they failed."""
    why: str = ""
    """Class of failure, if the stage could not be started."""
    detail: str = ""


class State(msgspec.Struct):
    """What the loop knows."""

    todo: list[RowShard]
    warning: float
    """Seconds between USR2 and the time limit."""
    gang: bool = False
    """Its processes are ranks, which leave together and with a checkpoint."""
    on_slurm: bool = False
    twins: Twins | None = None
    """None where a shard is made by one task alone."""
    saves: str = ""
    """Where a gang says what its newest checkpoint is."""
    starts: dict[str, list[str]] = {}
    """Shard -> the newest checkpoint at each start of a gang on it."""
    most_starts: int = 0
    """With the same newest checkpoint."""
    tries: dict[str, int] = {}
    died_on: dict[str, list[int]] = {}
    """Shard -> the items on which its process died."""
    closing: str = ""
    """Why no more shards are handed out."""
    deadline: float = 0.0
    taken: bool = False
    """Slurm told the ranks to leave, and not this process."""
    done: int = 0
    node_failures: int = 0
    bad_starts: int = 0
    """Of processes that ended before they were ready."""
    working: bool = False
    """The stage has started in one of the processes."""
    left: int = 0
    """Shards given up for now."""
    shun: list[str] = []
    """Nodes for which the next start is not to be."""


def place() -> Place:
    """From Slurm's variables, through submitit. Without Slurm a task has no number but its row."""
    if "SLURM_JOB_ID" in os.environ and os.environ.get("SUBMITIT_EXECUTOR") != "local":  # `hpc run` works within jobs
        os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")  # how JobEnvironment knows which variables to read
    else:
        return Place("", str(os.getpid()), 0, 0, os.uname().nodename, False)
    env = JobEnvironment()
    return Place(
        job=env.job_id,
        raw_job=env.raw_job_id,
        index=int(env.array_task_id or 0),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        node=os.environ.get("SLURMD_NODENAME", env.hostname),
        on_slurm=True,
        nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", "1")),
    )


def main(run_folder: str, stage_name: str, attempt_number: str = "", first: str = "0", *container: str) -> int:
    run = Run(Path(run_folder))
    attempt = run.attempt(int(attempt_number)) if attempt_number else run.latest()
    if not (attempt.folder / "committed").exists():  # started by hand, and submit.sh was not
        commit.commit(run, attempt)
    if first == "barrier":
        return barrier.run(run, attempt, stage_name)
    plan = attempt.plan()
    stage = plan.stage(stage_name)
    if stage.domain != "inputs":
        frozen = attempt.barrier(stage_name)
        if not frozen.exists():
            print(f"{frozen} is missing: the barrier of {stage.domain} has not run in this attempt", file=sys.stderr)
            return 1
        stage = jsons.decode(frozen.read_bytes(), StagePlan)
    here = place()
    here.container = container
    row = attempt.read_row(stage.domain, int(first) + here.index)
    if row is None:
        return 0  # this array is wider than what its barrier found to do
    if not here.on_slurm:
        here.job = f"local{attempt.number}_{row.row}"
    return work(run, attempt, plan, stage, row.row, row.shards, here)


def work(run: Run, attempt: Attempt, plan: AttemptPlan, stage: StagePlan, row: int, shards: list[RowShard],
         here: Place) -> int:  # fmt: skip
    log, here = open_log(run, attempt, plan, stage, row, here)
    earlier = earlier_starts(run, stage, here)
    finished = earlier.done.keys() | earlier.failed.keys() | set(stage.done)
    left = [s for s in shards if s.id not in finished]
    state = State(left, warning(stage.resources.time), is_gang(stage), here.on_slurm)
    if state.gang:
        state.saves, state.most_starts = str(run.records(stage.name)), stage.starts
        state.starts = gang.counted(earlier, here.job, here.restart, here.on_slurm)
        give_up_stuck(log, state, earlier)
    else:
        give_up(log, state, earlier, here)
        if here.on_slurm:  # on this machine alone a second one would only be in the way
            every = min(LOOK_SECONDS, LOOK_SHARE * stage.resources.time)
            state.twins = Twins(run, attempt, stage, f"{here.job}.{here.restart}", every)
    if state.todo and here.on_slurm and (bad := unfit(run, attempt, plan, stage, here)):
        return leave_unfit(run, log, state, earlier, here, bad)
    # A signal only sets a flag; the loop wakes up through this pipe.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    caught: list[int] = []
    for signum in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: caught.append(signum))

    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"hpc-{here.job}-", dir=plan.scratch or None))
    except OSError as error:  # a node that can't hold files in the making: said of its shards, so that retries shun it
        return no_scratch(log, state, f"no scratch folder on {here.node}: {error}")
    selector = selectors.DefaultSelector()
    selector.register(wake_read, selectors.EVENT_READ, None)
    children: list[Child] = []
    try:
        for k in range(min(1 if state.gang else stage.resources.workers, len(state.todo))):
            children.append(start_child(run, attempt, plan, stage, scratch / str(k), k, here))
            selector.register(children[-1].replies, selectors.EVENT_READ, children[-1])
        while children:
            wait = state.twins.every if state.twins else None
            if not any(c.order or (state.todo and not state.closing) for c in children):
                found = state.twins.stand_by() if state.twins and not state.closing else None
                if found is None:
                    break
                if isinstance(found, RowShard):
                    state.todo.append(found)
                else:
                    wait = found
            for child in children:
                hand_out(child, state, log)
            if state.closing and state.deadline:
                wait = max(0.0, state.deadline - time.monotonic())
            if state.twins and state.twins.due():
                for child in children:
                    leave_to_twin(child, state.twins, log)
            for key, _ in selector.select(wait):
                if key.data is None:
                    os.read(wake_read, 4096)
                elif not receive(key.data, state, log):
                    selector.unregister(key.fileobj)
                    replacement = bury(key.data, state, log)
                    children.remove(key.data)
                    if replacement and state.todo and not state.closing:
                        child = start_child(run, attempt, plan, stage, key.data.scratch, key.data.k, here)
                        children.append(child)
                        selector.register(child.replies, selectors.EVENT_READ, child)
            while caught:
                on_signal(caught.pop(0), state)
            if state.closing and time.monotonic() >= state.deadline:
                stop_children(children, state, log)
                break
    finally:
        for child in children:
            if child.process.poll() is None:
                child.orders.close()
                try:
                    child.process.wait(5)
                except subprocess.TimeoutExpired:
                    child.process.kill()
        shutil.rmtree(scratch, ignore_errors=True)
    unfinished = len(state.todo) + state.left
    log.write(records.End(time.time(), state.closing or "row finished"))
    log.close()
    why = state.closing or "finished"
    print(f"row {row} of {stage.name}: {state.done} shards done, {unfinished} left ({why})", flush=True)
    if state.shun:
        health.note(run, {node: ["ranks failed there: see the log"] for node in state.shun}, here.job)
    if state.taken and unfinished and here.on_slurm and signal.SIGTERM not in caught:
        await_end(here)
    if state.closing in ("time limit", "hang", "bad node") and unfinished:
        if here.on_slurm and not os.environ.get(CONTAINED):
            requeue(here, state.shun)
        return LOCAL_REQUEUE_RETURN_CODE
    return 0 if state.closing in ("", "node") or not unfinished else 128 + signal.SIGTERM


def requeue(here: Place, away_from: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if away_from else signal.SIG_DFL)
    try:
        slurm.requeue(here.job, away_from)
    except slurm.SlurmError as error:
        print(error, file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(60)  # Slurm ends us, and the node is free at once


def await_end(here: Place) -> None:
    """Slurm ends a job that it preempts when its grace is over, and requeues it; one that nothing ends (a long grace,
    somebody's TERM to the step alone) gives its nodes back by itself."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(GRACE_SECONDS)
    requeue(here, [])


def unfit(run: Run, attempt: Attempt, plan: AttemptPlan, stage: StagePlan, here: Place) -> dict[str, list[str]]:
    """Nodes of this task that are not fit for work, and why."""
    preset, r = jsons.decode((attempt.folder / "cluster.json").read_bytes(), Cluster), stage.resources
    if not preset.health.check:
        return {}
    gpus = r.gpus_of(r.workers) if r.gpus else 0
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", r.nodes))
    return health.look(nodes=nodes, gpus=gpus, scratch=probe.scratch_of(plan.scratch), clock=run.folder,
                       health=preset.health, name=here.node, all_reduce=is_gang(stage))  # fmt: skip


def leave_unfit(run: Run, log: records.Log, state: State, earlier: records.Fold, here: Place,
                bad: dict[str, list[str]]) -> int:  # fmt: skip
    """Start again elsewhere, or leave the shards to the next attempt; either is kept away from these nodes."""
    health.note(run, bad, here.job)
    words = "; ".join(f"{node} is not fit for work: {', '.join(what)}" for node, what in bad.items())
    print(words, file=sys.stderr, flush=True)
    before = sum(why == "bad node" for why in earlier.ended.values())
    again = before < MAX_BAD_NODES and not os.environ.get(CONTAINED)
    for shard in state.todo if not again else ():
        log.write(records.Record("failed", shard.id, time.time(), failure="node", detail=words, node=next(iter(bad))))
    log.write(records.End(time.time(), "bad node"))
    log.close()
    if again:
        requeue(here, list(bad))
        return LOCAL_REQUEUE_RETURN_CODE
    return 0


def no_scratch(log: records.Log, state: State, words: str) -> int:
    print(words, file=sys.stderr)
    for shard in state.todo:
        log.write(records.Record("failed", shard.id, time.time(), failure="node", detail=words))
    log.write(records.End(time.time(), "node"))
    return 0


def open_log(
    run: Run, attempt: Attempt, plan: AttemptPlan, stage: StagePlan, row: int, here: Place
) -> tuple[records.Log, Place]:
    """This start's record file. Without Slurm nobody counts restarts: the first free number is ours."""
    boost = plan.boost(stage, row)
    while True:
        path = run.records(stage.name) / f"{here.job}.{here.restart}.jsonl"
        try:
            log = records.Log(path)
            break
        except FileExistsError:
            here = msgspec.structs.replace(here, restart=here.restart + 1)
    log.write(
        records.Worker(
            t=time.time(), run=run.id, attempt=attempt.number, stage=stage.name, fingerprint=stage.fingerprint,
            job=here.job, restart=here.restart, row=row, node=here.node, raw_job=here.raw_job,
            cpus=stage.resources.cpus * stage.resources.workers * gang.nodes(stage, here.nodes),
            gpus=stage.resources.gpus_of(stage.resources.workers) * gang.nodes(stage, here.nodes),
            memory=stage.resources.memory * boost.memory, time=stage.resources.time * boost.time,
        )
    )  # fmt: skip
    return log, here


def earlier_starts(run: Run, stage: StagePlan, here: Place) -> records.Fold:
    """What earlier starts of this very task came to. Their files are opened by name: no folder is listed."""
    out = records.Fold()
    for restart in range(here.restart):
        path = run.records(stage.name) / f"{here.job}.{restart}.jsonl"
        if path.exists():
            records.fold_lines(out, records.read(path), stage.fingerprint, None)
    return out


def give_up(log: records.Log, state: State, earlier: records.Fold, here: Place) -> None:
    """Shards that stood in the way of earlier starts are failed now, so that the others get their turn."""
    vanished = {s: n + (s in earlier.running) for s, n in earlier.kills.items()}
    culprits = {shard: "lost" for shard, n in vanished.items() if n >= MAX_KILLS}
    idle = 0
    for restart in range(here.restart - 1, -1, -1):
        finished = any(w.restart == restart and shard in earlier.done for shard, w in earlier.where.items())
        if finished or earlier.ended.get((here.job, restart)) != "time limit":
            break
        idle += 1
    if idle >= MAX_IDLE_RESTARTS:
        culprits |= dict.fromkeys(earlier.stopped or [s.id for s in state.todo[:1]], "timeout")
    for shard in [s for s in state.todo if s.id in culprits]:
        state.todo.remove(shard)
        why = culprits[shard.id]
        detail = (
            f"not finished in {idle} starts of this task in a row: it needs more time, or smaller shards"
            if why == "timeout"
            else f"{MAX_KILLS} workers vanished while they were on it"
        )
        log.write(records.Record("failed", shard.id, time.time(), failure=why, detail=detail))


def give_up_stuck(log: records.Log, state: State, earlier: records.Fold) -> None:
    """A training goes on from its checkpoint as often as it must, but not if it never gets to a new one."""
    for shard in [s for s in state.todo if stuck(state, s.id)]:
        state.todo.remove(shard)
        last = earlier.stopped.get(shard.id)
        if last is None:
            words = "its worker vanished, or was killed"
        else:
            words = f"{last.failure}: {last.detail}" if last.failure else "it was out of time, and did not save"
        detail = f"{stuck(state, shard.id)}; the last one: {words}"
        log.write(records.Record("failed", shard.id, time.time(), failure="stuck", detail=detail))


def stuck(state: State, shard: str) -> str:
    """Words, if ranks were started on it often enough without a new checkpoint."""
    newest = gang.newest(saved(state.saves, shard))
    count = state.starts.get(shard, []).count(newest)
    if count < state.most_starts:
        return ""
    there = "no checkpoint" if newest == gang.NONE else f"no checkpoint after {newest}"
    return f"{count} starts in a row came to {there} (starts: {state.most_starts})"


def start_child(run: Run, attempt: Attempt, plan: AttemptPlan, stage: StagePlan, scratch: Path, k: int,
                here: Place) -> Child:  # fmt: skip
    r = stage.resources
    env = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.setdefault(name, str(r.cpus))
    # Each worker sees its own GPUs, or its share of one, of those of this task; ranks see all of their node's.
    if r.gpus and r.workers > 1 and not is_gang(stage):
        visible = (env.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(r.gpus_of(r.workers))))).split(",")
        first = k // r.sharing * r.gpus_of(1)
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + r.gpus_of(1)])
    process = subprocess.Popen(
        gang.command(stage, here.on_slurm, here.container, here.nodes), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=env,
    )  # fmt: skip
    upstream = {}
    for need in stage.needs:
        if plan.stage(need).domain == stage.domain and stage.name != stage.domain:
            needed = barrier.frozen_stage(attempt, plan, need)
            upstream[need] = (needed.folder, needed.objects)
    failures = str(run.logs(stage.name) / f"{here.job}.{here.restart}.failures.jsonl") if is_gang(stage) else ""
    saves = str(run.records(stage.name)) if is_gang(stage) else ""
    meet = str(twins.place(attempt, stage.name)) if here.on_slurm and not is_gang(stage) else ""
    ranks = str(run.ranks(stage.name) / f"{here.job}.{here.restart}.{time.time():.0f}") if is_gang(stage) else ""
    setup = Setup(stage, upstream, str(scratch), 30.0 if here.on_slurm else 0.5, failures, saves, ranks,
                  meet, f"{here.job}.{here.restart}")  # fmt: skip
    assert process.stdin and process.stdout
    process.stdin.write(jsons.encode(setup) + b"\n")
    process.stdin.flush()
    os.set_blocking(process.stdout.fileno(), False)
    return Child(k, process, process.stdin, process.stdout, scratch, begun=time.monotonic(), failures=failures)


def hand_out(child: Child, state: State, log: records.Log) -> None:
    """Give the next shard to a child that waits for one."""
    if not child.ready or child.order or child.killed or child.stopping or state.closing or not state.todo:
        return
    shard = state.todo.pop(0)
    child.order = Order(shard.id, shard.items, culprits(shard.id, state), alone=shard.id in state.died_on)
    child.begun, child.items = time.monotonic(), []
    start = records.Record("start", shard.id, time.time(), twin=is_twin(shard.id, state))
    if state.gang:
        start.checkpoint = gang.newest(saved(state.saves, shard.id))
        state.starts.setdefault(shard.id, []).append(start.checkpoint)
    log.write(start)
    try:
        child.orders.write(msgspec.json.encode(child.order) + b"\n")
        child.orders.flush()
    except BrokenPipeError:
        pass  # it died while it waited; its end of the channel tells so next


def receive(child: Child, state: State, log: records.Log) -> bool:
    """Read what a child says. False when it is gone."""
    data = child.replies.read()
    if data == b"":
        return False
    *lines, child.buffer = (child.buffer + (data or b"")).split(b"\n")
    if child.killed:
        return True
    for line in lines:
        reply = msgspec.json.decode(line, type=Reply)
        now, seconds = time.time(), time.monotonic() - child.begun
        if reply.what == "ready":
            child.ready, child.start_seconds = True, seconds
            state.working = True
            continue
        if reply.what == "unable":
            child.why, child.detail = reply.failure, reply.detail
            continue
        assert child.order
        if reply.what == "on":
            child.items = reply.items
            continue
        if reply.what == "progress":
            note = records.Record("progress", reply.shard, now, seconds=seconds, detail=reply.detail)
            note.fraction, note.gpu, note.memory = reply.fraction, reply.gpu, reply.memory
            log.write(note)
            continue
        if child.start_seconds and reply.what == "done":  # once, with the first shard: imports, models
            reply.times["start"], child.start_seconds = child.start_seconds, 0.0
        order, child.order = child.order, None
        if reply.what == "stopped":
            state.left += not is_twin(order.shard, state)
            log.write(records.Record("stopped", order.shard, now, seconds=seconds))
            if state.gang and not child.stopping and not state.closing:
                print("the ranks were told to leave, and did", file=sys.stderr, flush=True)
                state.closing, state.deadline, state.taken = "stopped by signal", time.monotonic(), True
        elif reply.what == "done":
            state.done += 1
            state.node_failures = 0
            log.write(
                records.Record("done", order.shard, now, seconds=seconds, times=reply.times, objects=reply.objects,
                               counts=reply.counts, bad=reply.bad, gpu=reply.gpu, memory=reply.memory)
            )  # fmt: skip
        else:
            failed(order, reply.failure, reply.detail, "", seconds, state, log)
    return True


def culprits(shard: str, state: State) -> list[int]:
    """The items of a shard on which its process died often enough to make the shard without them."""
    died_on = state.died_on.get(shard, [])
    return sorted({item for item in died_on if died_on.count(item) == MAX_TRIES})


def failed(order: Order, why: str, detail: str, node: str, seconds: float, state: State, log: records.Log) -> None:
    """Try again later in this row, or record the failure. node: of the rank that failed."""
    tries = state.tries[order.shard] = state.tries.get(order.shard, 0) + 1
    print(f"shard {order.shard}: {why}: {detail} (try {tries})", file=sys.stderr, flush=True)
    state.node_failures = state.node_failures + 1 if why == "node" else 0
    leave = state.node_failures >= MAX_NODE_FAILURES  # recorded as a failure, so that the next attempt shuns this node
    without = len(culprits(order.shard, state))
    possible = without <= MAX_CULPRITS and (without < len(order.items) or not without)
    if is_twin(order.shard, state):  # the other one may do better, or says itself what is wrong
        log.write(records.Record("stopped", order.shard, time.time(), seconds=seconds, failure=why, detail=detail))
        return
    again = why in failure.AGAIN_AT_ONCE or (state.gang and why in ("lost", "hang"))
    if state.gang:
        if again and (words := stuck(state, order.shard)):
            again, why, detail = False, "stuck", f"{words}; the last one: {why}: {detail}"
    else:
        again = again and tries < MAX_TRIES * (1 + without) and possible
    if again and not leave:
        state.todo.append(RowShard(order.shard, order.items))
    log.write(records.Record("stopped" if again and not leave else "failed", order.shard, time.time(), seconds=seconds,
                             failure=why, detail=detail, node=node))  # fmt: skip
    # ranks that hang, or of which one has a broken GPU, are to start again on other nodes: Slurm is asked for them
    elsewhere = again and state.gang and state.on_slurm and why in ("hang", "node")
    if not state.closing and (leave or elsewhere):
        state.closing = "node" if leave else "hang" if why == "hang" else "bad node"
        state.shun = [node] if why == "node" and node and not leave else []
        state.deadline = time.monotonic()


def is_twin(shard: str, state: State) -> bool:
    return state.twins is not None and state.twins.making == shard


def leave_to_twin(child: Child, others: Twins, log: records.Log) -> None:
    """Give up the shard that a child is on, where another task has published it. What hangs is not asked to leave."""
    if child.order and others.overtaken(child.order.shard):
        words = "another task, which made it at the same time, was quicker"
        print(f"shard {child.order.shard}: {words}", flush=True)
        log.write(records.Record("stopped", child.order.shard, time.time(), detail=words))
        child.order, child.killed = None, True
        child.process.kill()


def bury(child: Child, state: State, log: records.Log) -> bool:
    """A child died. True if another should take its place."""
    status = child.process.wait()
    words = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
    if child.order:
        order, child.order = child.order, None
        seconds, why = time.monotonic() - child.begun, failure.of_exit(status)
        detail, node = f"its process ended with {words}", ""
        if child.failures:
            why, detail, node = gang.reason(child.failures, status)
        if why == "crash" and child.items:
            state.died_on.setdefault(order.shard, []).extend(child.items)
        failed(order, why, detail, node, seconds, state, log)
        return True
    if not child.ready and not child.stopping:  # it never came up: an import error, a model too large for the memory
        state.bad_starts += 1
        # srun's status where Slurm told ranks to leave before they could hear it
        ended = "lost" if state.gang and status == 128 + signal.SIGTERM else "code"
        why = failure.of_exit(status) if status < 0 else child.why or ended
        if (status < 0 or why == "lost") and state.bad_starts < MAX_TRIES:
            return True
        if state.working:  # it starts for others on this node: they will do what is left
            return False
        detail = f"the stage did not start ({child.detail or words}): see the log"
        for shard in state.todo:
            log.write(records.Record("failed", shard.id, time.time(), failure=why, detail=detail))
        state.todo.clear()
        return False
    return not child.stopping


def on_signal(signum: int, state: State) -> None:
    print(f"got {signal.Signals(signum).name}", file=sys.stderr, flush=True)
    now = time.monotonic()
    if signum == signal.SIGUSR2 and not state.closing:
        finish = 0.0 if state.gang else FINISH_SHARE * state.warning
        state.closing, state.deadline = "time limit", now + finish
    elif signum != signal.SIGUSR2:
        state.closing, state.deadline, state.taken = "stopped by signal", now, False


def stop_children(children: list[Child], state: State, log: records.Log) -> None:
    """Ask the children to leave; kill those that don't. What they were on counts as given up."""
    for child in children:
        child.stopping = True
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGUSR2 if state.gang else signal.SIGTERM)  # srun passes USR2 on, not TERM
    leave = min(LEAVE_SECONDS, state.warning / 4)
    if state.gang and state.closing == "time limit":
        leave = SAVE_SHARE * state.warning
    until = time.monotonic() + leave
    while any(c.order for c in children) and time.monotonic() < until:
        for child in children:
            if child.order and not receive(child, state, log):
                break
        time.sleep(0.05)
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        if child.order:
            log.write(records.Record("stopped", child.order.shard, time.time(), detail="killed: did not leave in time"))
            state.left += not is_twin(child.order.shard, state)
            child.order = None


if __name__ == "__main__":
    masking.install(Run(Path(sys.argv[1])).spec)
    sys.exit(main(*sys.argv[1:]))
