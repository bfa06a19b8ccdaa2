"""Join's barrier and work."""

from __future__ import annotations

from hpc.data import storage
from hpc.data.work import Made, Work


def freeze(settings, upstream, superseded):
    (shards,) = upstream.values()
    rows = []
    for _, objects in shards:
        uri = next(iter(objects.values()))
        for i in range(len(storage.read(uri).splitlines())):
            rows.append([uri, i])
            if len(rows) == settings.lines:
                yield rows
                rows = []
    if rows:
        yield rows


def start(settings):
    def process(work: Work) -> Made:
        out = work.scratch / f"{work.shard}.txt"
        out.write_bytes(b"".join(storage.read(uri).splitlines(keepends=True)[i] for uri, i in work.rows))
        return Made([out], {"lines": len(work.rows)})

    return process
