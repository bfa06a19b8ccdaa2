"""The only module that runs Slurm commands. One call each, no loops, no daemon; works from Slurm 22.05 on.

The plain-text forms (-o, -P) are used, not --json: in 22.05 `squeue --json` ignores --jobs, and the shapes of the JSON
differ from release to release, while these columns have not changed in ten years.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

TIMEOUT = 60
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL",
        "DEADLINE", "REVOKED")  # fmt: skip


class SlurmError(Exception):
    """A Slurm command failed: which one, what it said, what to try."""


class Limits(msgspec.Struct, frozen=True):
    version: str = ""
    max_array_size: int = 1001
    """Array indices must be below this (Slurm's default is 1001)."""


class Task(msgspec.Struct, frozen=True):
    """An array task, or several pending ones that Slurm keeps as one entry."""

    job: str
    """The array's job id (or the job's own)."""
    indices: tuple[int, ...]
    """Array indices; empty for a job that is no array."""
    state: str
    reason: str = ""
    node: str = ""
    elapsed: float = 0.0
    exit_code: str = ""
    requested: str = ""
    """Trackable resources as accounting prints them, e.g. "billing=4,cpu=4,gres/gpu=1,mem=4G,node=1"."""
    live: bool = False
    """squeue knows it."""
    raw_job: str = ""
    user: str = ""
    account: str = ""

    def holds(self, resource: str) -> float:
        """How many it was given: "cpu", "gres/gpu"."""
        found = re.search(rf"(?:^|,){resource}=(\d+)", self.requested)
        return float(found[1]) if found else 0.0


def available() -> bool:
    return shutil.which("sbatch") is not None


def environment() -> dict[str, str]:
    """This process's, without what would change the formats, filters, cluster or job that Slurm's commands work on."""
    own = ("SLURM", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(own) or k == "SLURM_CONF"}
    return env | {"LC_ALL": "C.UTF-8", "SLURM_BITSTR_LEN": "0"}  # squeue cuts longer lists of array indices at 64


def call(command: Sequence[str], timeout: float = TIMEOUT) -> str:
    """Run one Slurm command and return its stdout. Raises SlurmError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: not found. This machine has no Slurm client: run on a login node, or use `hpc run` here"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer in {timeout:.0f} s: is slurmctld up? try `scontrol ping`"
        ) from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise SlurmError(f"{' '.join(command)[:400]}: exit {done.returncode}: {said[:2000]}")
    return done.stdout


def step(command: Sequence[str], *, nodes: int, tasks_per_node: int, cpus_per_task: int,
         container: Sequence[str] = ()) -> list[str]:  # fmt: skip
    """The command that runs another one in every task of a step of this job; what it reads comes to all of them. USR2
    sent to it comes to all of them too. When one fails, all are ended. container: pyxis's options."""
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes * tasks_per_node}", f"--ntasks-per-node={tasks_per_node}"]
    options = ["--kill-on-bad-exit=1", *tasks, f"--cpus-per-task={cpus_per_task}", "--export=ALL", *container]
    return ["srun", *options, *command]


def in_step(command: Sequence[str], timeout: float = 600) -> str:
    """Run what `step` made, inside of this process's own job, and return what its tasks printed. Raises SlurmError."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise SlurmError(f"{' '.join(command)[:400]}: exit {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


class Partition(msgspec.Struct, frozen=True):
    """Nodes of a partition that are alike, and in the same state."""

    name: str
    available: str
    """up, down, drain or inactive"""
    limit: str
    nodes: int
    state: str
    """idle, allocated, mixed, down, drained...; with a * where the node does not answer"""
    gres: str


AWAY = ("down", "drain", "fail", "maint", "reboot", "unknown", "power", "no_respond")
"""How states of nodes begin that take no jobs."""


def partitions() -> list[Partition]:
    """What of the cluster this user may see: one sinfo call."""
    text = call(["sinfo", "--noheader", "--format=%R|%a|%l|%D|%T|%G"])
    rows = [line.split("|") for line in text.splitlines()]
    return [Partition(name, up, limit, int(nodes), state, gres) for name, up, limit, nodes, state, gres in rows]


def keeps_accounting() -> bool:
    try:
        call(["sacct", "-nX", "--starttime=now-1minutes", "--format=JobID"])
    except SlurmError:
        return False
    return True


def limits() -> Limits:
    text = call(["scontrol", "show", "config"])
    found = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    # max_array_tasks (in SchedulerParameters) limits how many, MaxArraySize which indices: both bind an array 0..n-1
    tasks = re.search(r"max_array_tasks=(\d+)", found.get("SchedulerParameters", ""))
    size = int(found.get("MaxArraySize", "1001"))
    return Limits(
        version=found.get("SLURM_VERSION", ""),
        max_array_size=min(size, int(tasks[1]) if tasks else size),
    )


def parse_indices(text: str) -> tuple[int, ...]:
    """The bracket of a pending array: "5-7,9%8" -> (5, 6, 7, 9)."""
    out: list[int] = []
    for part in text.split("%")[0].split(","):
        if part and part != "...":
            first, _, rest = part.partition("-")
            last, _, step = rest.partition(":")
            out.extend(range(int(first), int(last or first) + 1, int(step or 1)))
    return tuple(out)


def split_id(text: str) -> tuple[str, tuple[int, ...]]:
    """ "12" -> ("12", ()); "12_3" -> ("12", (3,)); "12_[0-4%2]" -> ("12", (0, 1, 2, 3, 4))."""
    job, _, index = text.partition("_")
    return job, parse_indices(index.strip("[]")) if index else ()


def queue(jobs: Iterable[str]) -> list[Task]:
    """What of these jobs is pending or running: one squeue call. Jobs that Slurm has forgotten are simply not there."""
    ids = ",".join(jobs)
    if not ids:
        return []
    try:
        text = call(["squeue", "--noheader", "--jobs", ids, "--format=%i|%T|%r|%N|%A"])
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    out = []
    for line in text.splitlines():
        ident, state, reason, node, raw = line.strip().split("|")
        job, indices = split_id(ident)
        out.append(Task(job=job, indices=indices, state=state, reason=reason, node=node, raw_job=raw, live=True))
    return out


def accounting(jobs: Iterable[str], since: float, starts: bool = False) -> list[Task]:
    """What accounting knows of these jobs: one `sacct -nXP` call. Empty where the site keeps no accounting.

    starts: a Task for each start of a task that was requeued, in their order, not for its last alone.
    """
    ids = ",".join(jobs)
    if not ids:
        return []
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    fields = "JobID,State,NodeList,ElapsedRaw,ExitCode,AllocTRES,JobIDRaw,User,Account,Reason"
    every = ["--duplicates"] if starts else []
    try:
        text = call(["sacct", "-nXP", *every, "--jobs", ids, "--starttime", start, f"--format={fields}"])
    except SlurmError as error:
        if "accounting storage is disabled" in str(error).lower():
            return []
        raise
    out = []
    for line in text.splitlines():
        ident, state, node, elapsed, code, tres, raw, user, account, reason = line.split("|")[:10]
        job, indices = split_id(ident)
        out.append(
            Task(job=job, indices=indices, state=state, reason=reason, node=node, elapsed=float(elapsed or 0),
                 exit_code=code, requested=tres, raw_job=raw, user=user, account=account)
        )  # fmt: skip
    return out


def starts(job: str) -> list[str]:
    """The states in which the starts of a job, or array task, ended, the present one last: Slurm keeps one for each
    time that it was requeued. Empty where the site keeps no accounting, or accounting does not answer."""
    try:
        text = call(["sacct", "-nXPD", "--jobs", job, "--format=JobID,State"])
    except SlurmError:
        return []
    found = [line.split("|") for line in text.splitlines()]
    return [state for ident, state in found if ident == job]


def submit(script: Path) -> str:
    """Run a run's submit.sh. Its own words reach the caller in the SlurmError."""
    process = subprocess.Popen(["bash", str(script)], text=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        out, err = process.communicate()
    except KeyboardInterrupt:  # the script takes back what it has submitted: give it the time
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    if process.returncode:
        raise SlurmError(f"bash {script}: exit {process.returncode}\n{(err or out).strip()}")
    return out


def test_only(flags: Sequence[str], script: Path) -> str:
    """Ask Slurm whether it would take this job: `sbatch --test-only`. Raises SlurmError."""
    command = ["sbatch", "--test-only", *flags, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SlurmError((done.stderr or done.stdout).strip())
    return (done.stderr or done.stdout).strip()


def cancel(jobs: Sequence[str]) -> None:
    if jobs:
        call(["scancel", *jobs])


def throttle(job: str, tasks: int) -> None:
    """Let at most `tasks` tasks of a live array run at once; 0 takes the limit away."""
    try:
        call(["scontrol", "update", f"jobid={job}", f"arraytaskthrottle={tasks}"])
    except SlurmError as error:  # of an array whose first tasks have ended scontrol says so, and changes the others
        if "No error" not in str(error):
            raise


def requeue(job: str, away_from: Sequence[str] = ()) -> None:
    """Requeue one array task, named <array>_<task>; where nodes are named, to others: whoever calls this for itself
    must live through a TERM, since Slurm takes the nodes only once it has begun to end the job. Raises SlurmError.

    Never by its raw id: the last task of an array has the array's own id, and scontrol would requeue the whole array.
    """
    shunned = call(["squeue", "--noheader", "--jobs", job, "--format=%x"]).strip() if away_from else ""
    call(["scontrol", "requeue", job])
    nodes = ",".join([*([shunned] if shunned not in ("", "(null)") else []), *away_from])
    for _ in range(20) if away_from else ():
        try:
            call(["scontrol", "update", f"jobid={job}", f"excnodelist={nodes}"])
            return
        except SlurmError as error:  # it still runs; or the command was ended with the job
            said = error
        time.sleep(0.3)
    if away_from:
        raise said
