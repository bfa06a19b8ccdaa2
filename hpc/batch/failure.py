"""Why a shard or an array task failed, and what to do about it: one table.

node       the machine: full scratch disk, I/O errors, a node that died     -> elsewhere
memory     killed for memory                                                -> with twice the memory
timeout    the time limit came first, again and again                       -> with more time
preempted  a job of higher priority took the place                          -> again
hang       ranks waited for each other, and none of them got on             -> again, in another place
stuck      ranks were started again and again, and reached no new checkpoint -> after a person looked; `hpc retry`
lost       the task ended without a word (killed, cancelled by hand)        -> again
storage    the object store or shared file system did not take or give      -> again
upstream   the shard that it needs is not there                             -> together with that one
crash      the stage's process died (segmentation fault, abort)             -> again, less its culprit, or a person
code       the stage raised an exception                                    -> after a person looked; `hpc retry`
input      the input can never work                                         -> never: quarantined
"""

from __future__ import annotations

import errno
import signal

import msgspec


class Remedy(msgspec.Struct, frozen=True):
    unattended: bool
    """May be tried again without a person."""
    words: str
    memory: float = 1.0
    """Factor for the next attempt."""
    time: float = 1.0
    elsewhere: bool = False
    """Exclude the node for the next attempt."""


REMEDIES = {
    "node": Remedy(True, "again, on another node", elsewhere=True),
    "memory": Remedy(True, "again, with twice the memory", memory=2.0),
    "timeout": Remedy(True, "again, with twice the time", time=2.0),
    "preempted": Remedy(True, "again"),
    "hang": Remedy(True, "again; the log says which rank was behind, and the run's ranks/ has all stacks"),
    "stuck": Remedy(False, "look at the log; checkpoint more often, or give it more time; `hpc retry` tries again"),
    "lost": Remedy(True, "again"),
    "storage": Remedy(True, "again"),
    "upstream": Remedy(True, "again, after the shard it needs"),
    "crash": Remedy(False, "look at the log; `hpc retry` tries again"),
    "code": Remedy(False, "look at the log; `hpc retry` tries again"),
    "input": Remedy(False, "never: the input is quarantined"),
}
AGAIN_AT_ONCE = {"crash", "memory", "storage", "node"}
"""The worker itself tries these a second time before it records a failure: most pass."""
BROKEN = ("uncorrectable ecc", "fallen off the bus", "gpu is lost", "hardware stack error", "no cuda-capable device",
          "cuda driver initialization failed", "system not yet initialized")  # fmt: skip
"""Words of CUDA's errors of which the GPU is to blame, or its driver: never the stage."""

MET = ("eaddrinuse", "address already in use")
"""Words of an error of ranks whose port another process had: the next start has another one."""


def of_exception(error: BaseException) -> str:
    """The class of what a stage raised. Storage errors are known by name: this module imports no stage code."""
    if any(word in str(error).lower() for word in BROKEN):
        return "node"
    if any(word in str(error).lower() for word in MET):
        return "lost"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "memory"
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"StorageError", "BotoCoreError", "ClientError", "ConnectionError", "TimeoutError"}:
        return "storage"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE):
        return "node"
    return "code"


def of_exit(status: int) -> str:
    """The class of a stage process that died; status as subprocess gives it (negative: the signal)."""
    return "memory" if status in (-signal.SIGKILL, 128 + signal.SIGKILL) else "crash"


def of_state(state: str) -> str:
    """The class of an array task by Slurm's state word, e.g. "CANCELLED by 0" or "NODE_FAIL"."""
    word = state.split()[0].rstrip("+") if state else ""
    known = {"OUT_OF_MEMORY": "memory", "TIMEOUT": "timeout", "PREEMPTED": "preempted", "NODE_FAIL": "node",
             "BOOT_FAIL": "node"}  # fmt: skip
    return known.get(word, "lost")
