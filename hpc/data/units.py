"""Durations and sizes with their units: "2s" -> Seconds(2.0), "64GiB" -> Bytes(68719476736).

A bare number is refused: a limit of 10 that one person reads as seconds and another as minutes is a bug.
"""

from __future__ import annotations

import re

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"B": 1} | {f"{p}{u}": b**i for i, p in enumerate("KMGTP", 1) for u, b in (("iB", 1024), ("B", 1000))}


class Seconds(float):
    """A duration. Written as one or more of <number><ms|s|m|min|h|d>: "500ms", "2s", "1h30m"."""

    @classmethod
    def parse(cls, text: object) -> Seconds:
        return cls(_parse(text, SECONDS, "a duration", '"2s", "90min" or "1h30m"'))


class Bytes(int):
    """A size. Written as <number><B|KB|MB|GB|TB|PB|KiB|MiB|GiB|TiB|PiB>: "64GiB"."""

    @classmethod
    def parse(cls, text: object) -> Bytes:
        return cls(round(_parse(text, BYTES, "a size", '"512MiB" or "64GiB"')))


def _parse(text: object, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    """Raises ValueError saying what was given and what is allowed."""
    if isinstance(text, str):
        parts = re.findall(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
        whole = re.fullmatch(r"(\s*[0-9]+(?:\.[0-9]+)?\s*[A-Za-z]+\s*)+", text)
        if whole and all(unit in units for _, unit in parts):
            return sum(float(number) * units[unit] for number, unit in parts)
    raise ValueError(f"{text!r} is not {what}: write {example} (units: {', '.join(units)})")


def seconds(value: float) -> str:
    """60 -> "1:00", 3725 -> "1:02:05", 93784 -> "1-02:03:04": the way Slurm writes times."""
    s = round(value)
    days, hours, minutes = s // 86400, s // 3600 % 24, s // 60 % 60
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{s % 60:02}"
    return f"{hours}:{minutes:02}:{s % 60:02}" if hours else f"{minutes}:{s % 60:02}"


def size(value: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
