"""Failures have a class, a class has a remedy, and the remedy is what the next attempt does."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import runs
from botocore.exceptions import ClientError, EndpointConnectionError

from hpc.batch import failure, finale, report, status
from hpc.data.storage import Changed, StorageError


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


def raised(error: BaseException) -> str:
    try:
        raise error
    except type(error) as caught:
        return failure.of_exception(caught)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (MemoryError(), "memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (StorageError("/x", "No space left on device", "free some", "ENOSPC"), "storage"),
        (Changed("/x", "a", "b"), "storage"),
        (ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), "storage"),
        (EndpointConnectionError(endpoint_url="http://x"), "storage"),
        (ConnectionResetError(), "storage"),
        (TimeoutError(), "storage"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "lost"),
        (RuntimeError("The server socket has failed to listen: code: -98, name: EADDRINUSE"), "lost"),
        (OSError(errno.ENOSPC, "No space left on device"), "node"),
        (OSError(errno.EIO, "Input/output error"), "node"),
        (OSError(errno.EROFS, "Read-only file system"), "node"),
        (OSError(errno.EMFILE, "Too many open files"), "node"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "code"),
        (PermissionError(errno.EACCES, "denied"), "code"),
        (ValueError("x"), "code"),
        (ZeroDivisionError(), "code"),
        (AssertionError(), "code"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else x,
)  # fmt: skip
def test_exceptions(error: BaseException, name: str) -> None:
    assert raised(error) == name


@pytest.mark.parametrize(("code", "name"), [(-9, "memory"), (137, "memory"), (-11, "crash"), (1, "crash")])
def test_exits(code: int, name: str) -> None:
    assert failure.of_exit(code) == name


@pytest.mark.parametrize(
    ("state", "name"),
    [("OUT_OF_MEMORY", "memory"), ("OUT_OF_ME+", "lost"), ("TIMEOUT", "timeout"), ("PREEMPTED", "preempted"),
     ("NODE_FAIL", "node"), ("BOOT_FAIL", "node"), ("CANCELLED by 1000", "lost"), ("CANCELLED+", "lost"),
     ("FAILED", "lost"), ("COMPLETED", "lost"), ("", "lost")],
)  # fmt: skip
def test_states_of_slurm(state: str, name: str) -> None:
    assert failure.of_state(state) == name


def test_every_class_is_explained_and_has_a_remedy() -> None:
    explained = [line.split()[0] for line in (failure.__doc__ or "").splitlines()[2:] if line]
    assert explained == list(failure.REMEDIES)
    assert all(remedy.words for remedy in failure.REMEDIES.values())
    for_a_person = {name for name, remedy in failure.REMEDIES.items() if not remedy.unattended}
    assert for_a_person == {"stuck", "crash", "code", "input"}
    assert failure.REMEDIES.keys() >= failure.AGAIN_AT_ONCE
    assert [name for name, remedy in failure.REMEDIES.items() if remedy.elsewhere] == ["node"]


def ended(spec: Path) -> tuple[bool, report.Report]:
    """Whether an attempt that was made now may be followed by another one without a person."""
    run = runs.go(spec).run
    gathered = status.gather(run, ask_slurm=False)
    made = report.build(run, gathered)
    return finale.may_retry(made, gathered), made


def test_unattended_retries(tmp_path: Path) -> None:
    """Within the budget, for what may pass by itself, and only while attempts get something done."""
    (tmp_path / "flags").mkdir()
    echo = runs.ECHO | {"flags": str(tmp_path / "flags")}
    spec = runs.spec(tmp_path, {"0.txt": "fine", "1.txt": "oom 4", "2.txt": "oom"}, {"echo": echo}, retries=3)
    assert ended(spec)[0], "killed for memory: worth more memory"
    again, made = ended(spec)
    assert not again, "nothing got done in this attempt"
    assert [f"{f.shard} {f.failure}" for f in made.failures] == ["000001 memory", "000002 memory"]
    assert ended(spec)[0], "one of them got done"
    assert not ended(spec)[0], "the budget is used up"


def test_what_is_for_a_person(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, {"0.txt": "fine", "1.txt": "fail", "2.txt": "bad"}, retries=3)
    again, made = ended(spec)
    assert not again
    assert made.failures[0].remedy == "look at the log; `hpc retry` tries again"
    assert [q.reason for q in made.quarantined] == ["no-good"]
    assert not ended(runs.spec(tmp_path / "b", {"0.txt": "oom"}))[0], "retries is 0 unless the spec says so"


def test_each_failed_attempt_doubles_the_memory(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, {"0.txt": "oom"})
    factors = []
    for _ in range(5):
        made = runs.go(spec)
        assert made.plan
        factors.append(made.plan.groups[0].memory)
    assert factors == [1, 2, 4, 8, 8]
