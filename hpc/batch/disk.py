"""How much may still be written into a folder: space and inodes of its file system, and what quotas leave of them.

    found = look(Path("runs"))
    found.room, found.files         # bytes and files, the least of all limits

Quotas are what `quota` says, and `lfs quota` on Lustre: of the user and of the group. Where neither is installed, or
keeps none, the file system alone counts.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import msgspec

from hpc.batch import probe
from hpc.data.units import size

TIMEOUT = 10
"""Seconds; a file server that is away must not keep a person waiting."""


class Limit(msgspec.Struct, frozen=True):
    """What one limit leaves. None: it does not limit this."""

    what: str
    room: float | None
    files: float | None


class Disk(msgspec.Struct, frozen=True):
    folder: str
    mount: str
    limits: list[Limit]
    """The file system's own is the first."""

    @property
    def room(self) -> float:
        return min((one.room for one in self.limits if one.room is not None), default=float("inf"))

    @property
    def files(self) -> float:
        return min((one.files for one in self.limits if one.files is not None), default=float("inf"))

    def words(self) -> str:
        said = []
        for one in self.limits:
            left = [f"{size(one.room)}"] if one.room is not None else []
            left += [f"{one.files:,.0f} files"] if one.files is not None else []
            said.append(f"{one.what} {' and '.join(left)}")
        return "; ".join(said)


def look(folder: Path) -> Disk:
    """Of a folder that need not exist yet. Raises OSError."""
    there = probe.exists(Path(os.path.abspath(folder)))  # noqa: PTH100
    mount, kind = mounted(there)
    space = os.statvfs(there)
    inodes = float(space.f_favail) if space.f_files else None
    limits = [Limit("free are", float(space.f_bavail * space.f_frsize), inodes)]
    for what, name in (("user", str(os.getuid())), ("group", str(os.getgid()))):
        if kind == "lustre":
            said = call(["lfs", "quota", "-q", f"-{what[0]}", name, str(there)])
        else:
            said = call(["quota", f"--{what}", "--no-wrap", "--raw-grace", "--show-mntpoint", "--hide-device"])
        if (found := left(said, mount)) and found != (None, None):
            limits.append(Limit(f"your {what}'s quota leaves", *found))
    return Disk(str(folder), mount, limits)


def mounted(path: Path) -> tuple[str, str]:
    """(where the file system of a path is mounted, its type)."""
    best = ("/", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        if path.is_relative_to(place) and len(place) >= len(best[0]):
            best = place, after.split(" ")[0]
    return best


def call(command: list[str]) -> str:
    """What it prints; "" where it is not installed or does not answer. Both commands exit with 1 where a limit is
    passed, and say so all the same."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def left(said: str, mount: str) -> tuple[float | None, float | None] | None:
    """(bytes, files) that may still be written at a mount, by columns of `quota` or `lfs quota`: KiB in use, soft and
    hard limit, grace, and the same of files. None: it is not listed."""
    words = said.split()
    for number, word in enumerate(words):
        values = [re.sub(r"[*\[\]]", "", one) for one in words[number + 1 : number + 9]]
        if word != mount or len(values) < 8 or not all(one.isdigit() for one in (*values[:3], *values[4:7])):
            continue
        used, soft, hard, files, soft_files, hard_files = (float(values[i]) for i in (0, 1, 2, 4, 5, 6))
        most, most_files = hard or soft, hard_files or soft_files
        return (max(0.0, (most - used) * 1024) if most else None,
                max(0.0, most_files - files) if most_files else None)  # fmt: skip
    return None
