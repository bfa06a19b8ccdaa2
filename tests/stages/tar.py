"""Tar's work: its one input, as it is."""

from __future__ import annotations

import shutil

from hpc.data.work import Made, Work


def start(settings):
    def process(work: Work) -> Made:
        out = work.scratch / f"{work.shard}.tar"
        shutil.copy(work.items[0].uri, out)
        return Made([out], {"tars": 1})

    return process
