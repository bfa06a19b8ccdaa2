"""Where decoding can begin in a file, found without decoding."""

from __future__ import annotations

import itertools

import msgspec

from hpc.data.video.container import Source, indexed, opened, packets


class Index(msgspec.Struct, frozen=True):
    """Where decoding can begin in a file."""

    frames: int
    """How many there are, as far as the container knows."""
    keys: list[tuple[int, int]]
    """(place in decoding order, timestamp) of each key frame."""
    by_dts: bool
    """The timestamps are decoding times (of the container's own index), not those at which the frames are shown."""


def index(source: Source) -> Index | None:
    """Count the frames and find the key frames, without decoding; None where decoding can begin at the start only.

    From the index of an mp4 or mov, at once; of other files by reading through them.
    """
    with opened(source) as (container, stream):
        if entries := indexed(container, stream):
            keys = [(place, entry.timestamp) for place, entry in enumerate(entries) if entry.is_keyframe]
            return Index(len(entries), keys, by_dts=True) if keys else None
        times, keys = set(), []
        count = 0
        for packet in packets(container, stream):
            if packet.is_discard:
                continue
            if packet.pts is None or packet.pts in times:
                return None
            if packet.is_keyframe:
                keys.append((count, packet.pts))
            times.add(packet.pts)
            count += 1
        in_order = all(a[1] < b[1] for a, b in itertools.pairwise(keys))
        return Index(count, keys, by_dts=False) if keys and in_order else None


def times(source: Source) -> list[float]:
    """When each frame is shown, in seconds from the first, without decoding."""
    with opened(source) as (container, stream):
        shown = sorted(one.pts for one in packets(container, stream) if one.pts is not None and not one.is_discard)
        return [float((pts - shown[0]) * stream.time_base) for pts in shown]
