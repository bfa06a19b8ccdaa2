"""Look's work: the environment and the place that a shard is made in."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import hpc
from hpc.data.work import Made, Work


def start(settings):
    def process(work: Work) -> Made:
        if settings.together:  # nobody goes on before so many are here: each is in the hands of another worker
            Path(settings.flags, work.shard).touch()
            until = time.monotonic() + 60
            while len(list(Path(settings.flags).iterdir())) < settings.together and time.monotonic() < until:
                work.check()
                time.sleep(0.05)
        out = work.scratch / f"{work.shard}.json"
        code, image, own = Path(hpc.__file__), Path("/etc/image"), Path("/opt/hpc/hpc/__init__.py")
        seen = {
            "env": dict(os.environ), "cwd": str(Path.cwd()), "code": str(code),
            "code_is_writable": os.access(code.parent, os.W_OK),
            "image": image.read_text() if image.exists() else "",  # of tests/cluster/test_containers.py
            "own_copy": own.exists() and own.parent.stat().st_ino == code.parent.stat().st_ino,
        }  # fmt: skip
        out.write_text(json.dumps(seen))
        return Made([out], {"looks": 1})

    return process
