"""Note's work: reads the shard of the stage before."""

from __future__ import annotations

from hpc.data import storage
from hpc.data.work import Made, Work


def start(settings):
    def process(work: Work) -> Made:
        (objects,) = work.upstream.values()
        lines = storage.read(next(iter(objects.values()))).splitlines()
        out = work.scratch / f"{work.shard}.note"
        out.write_text(f"{settings.prompt} {len(lines)}\n")
        return Made([out], {"notes": 1})

    return process
