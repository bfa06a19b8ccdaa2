"""Leak's work: says what it must not, wherever a stage can say something."""

from __future__ import annotations

import json
import logging
import os
import sys

from hpc.data.work import Bad, Made, Work


def start(settings):
    values = [os.environ[name] for name in settings.variables]

    def process(work: Work) -> Made:
        for name, value in os.environ.items():
            print(f"{name}={value}")
        print("the environment:", dict(os.environ), flush=True)
        for value in values:
            print("secret", value, file=sys.stderr)
            logging.getLogger("leak").error("it is %s", value)
            sys.stdout.write(value[:7])
            sys.stdout.write(value[7:] + "\n")
            work.progress(0.5, f"using {value}")
            print(json.dumps({"value": value}))
        if work.items[0].uri.endswith("fail.txt"):
            raise ValueError(f"refused by the server: {values}")
        if work.items[0].uri.endswith("unknown.txt"):
            raise RuntimeError(" ".join(values))
        out = work.scratch / f"{work.shard}.jsonl"
        out.write_text("{}\n")
        return Made([out], {"lines": 1}, [Bad(work.items[0].uri, "no-good", f"answered to {values}")])

    return process
