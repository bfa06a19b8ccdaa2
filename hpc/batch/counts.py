"""The counts of a stage in words. Two prefixes make groups: `time_<on what>` are seconds of a worker's main thread,
`dropped_<why>` are clips."""

from __future__ import annotations

from collections.abc import Mapping

from hpc.data.units import seconds, size

GROUPS = ("time", "dropped")


def group(counts: Mapping[str, float], name: str) -> dict[str, float]:
    """The counts <name>_..., without the prefix, the largest first."""
    found = {k.removeprefix(f"{name}_"): v for k, v in counts.items() if k.startswith(f"{name}_") and v}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def words(counts: Mapping[str, float]) -> list[str]:
    """["12 clips", "3 dropped (2 short, 1 motion)", "0:55 of video"]: all but the times."""
    found = []
    for name, value in counts.items():
        if value and name.partition("_")[0] not in GROUPS:
            found.append(_word(name, value))
        elif value and name in GROUPS:
            inside = ", ".join(f"{n:,.0f} {why}" for why, n in group(counts, name).items())
            found.append(_word(name, value) + f" ({inside})" * bool(inside))
    return found


def _word(name: str, value: float) -> str:
    text = name.replace("_", " ")
    if name.endswith("_seconds"):
        return f"{seconds(value)} of {text.removesuffix(' seconds')}"
    if name.startswith("bytes"):
        return f"{size(value)} {text.removeprefix('bytes ')}"
    return f"{value:,.0f} {text.removesuffix('s') if value == 1 else text}"
