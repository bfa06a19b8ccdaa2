"""Tale's second part: a file beside the objects for each of Echo's shards, with a name of its own."""

from __future__ import annotations

from pathlib import Path

from hpc.data import storage
from hpc.data.work import Made, Work


def freeze(settings, upstream, superseded):
    (count,) = (files[".json"] for _, files in upstream["tale-count"])
    for shard, files in upstream["echo"]:
        yield [shard, files[".jsonl"], count]


def start(settings):
    def process(work: Work) -> Made:
        shard, lines, count = work.rows
        files = {}
        for name in (f"{shard}/a.txt", f"{shard}/b.txt"):
            path = work.scratch / Path(name).name
            path.write_text(f"{len(storage.read(lines).splitlines())} of {storage.read(count).decode()}{settings.end}")
            files[storage.join(work.folder, settings.where, name)] = path
        out = work.scratch / f"{work.shard}.txt"
        out.write_text(shard)
        return Made([out], {"told": len(files)}, tree=files)

    return process
