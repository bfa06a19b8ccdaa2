"""The first step of a submission: claim in the output what the plan counts on. `python -m hpc.batch.commit RUN ATTEMPT`

Publishes the new shard ids, begins the version folders, and leaves a pointer to the run. Of two submissions at once
that planned on the same state, the second fails here, before any job exists.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpc.batch import ledger
from hpc.batch.run import Attempt, Run, StagePlan


def commit(run: Run, attempt: Attempt) -> None:
    """Raises ledger.Conflict."""
    newest = run.attempts()[-1]
    if newest != attempt.number:
        raise ledger.Conflict(f"attempt {attempt.number} of {run.id} is out of date: submit attempt {newest}")
    plan = attempt.plan()
    if plan.generation:
        ledger.commit(plan.output, plan.generation, attempt.folder / "shards.jsonl")
    ledger.register(plan.output, run.folder)
    for stage in plan.stages:
        if stage.domain == "inputs":
            ledger.claim(stage.folder, info(stage))
        run.records(stage.name).mkdir(parents=True, exist_ok=True)
        run.logs(stage.name).mkdir(parents=True, exist_ok=True)
    run.logs("report").mkdir(parents=True, exist_ok=True)
    (attempt.folder / "committed").touch()


def info(stage: StagePlan, frozen: str = "") -> ledger.StageInfo:
    return ledger.StageInfo(stage.name, stage.kind, stage.fingerprint, stage.settings, stage.objects, frozen)


if __name__ == "__main__":
    run = Run(Path(sys.argv[1]))
    try:
        commit(run, run.attempt(int(sys.argv[2])))
    except ledger.Conflict as error:
        sys.exit(f"hpc: {error}")
