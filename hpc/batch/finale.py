"""When everything of an attempt has ended, however: the report, one webhook call, and whether to retry unattended."""

from __future__ import annotations

import os
import sys
import urllib.request

import msgspec

from hpc.batch import failure, masking, records, report, status
from hpc.batch.run import Run
from hpc.data import storage

OLD_SECONDS = 86400.0


def finale(run: Run, ask_slurm: bool, say: bool = True) -> tuple[report.Report, status.Gathered]:
    """Compact the records, sweep left-over temporary files, write the report."""
    gathered = status.gather(run, ask_slurm, history=True)
    for name, stage in gathered.stages.items():
        records.compact(run.records(name))
        if stage.folder:
            try:
                storage.sweep(stage.folder, OLD_SECONDS)
            except (OSError, storage.StorageError) as error:  # housekeeping: some may not list unfinished uploads
                print(f"not swept: {error}", file=sys.stderr)
    made = report.write(run, gathered)
    if say:
        print(report.text(made), flush=True)
    return made, gathered


def notify(run: Run, made: report.Report, secret: str) -> None:
    """One POST per attempt to the URL in the environment variable `secret`."""
    url = os.environ.get(secret, "")
    if not url:
        print(f"no webhook call: the variable {secret} is not set", file=sys.stderr)
        return
    if not url.lower().startswith(("https://", "http://")):  # urllib would open files, too
        print(f"no webhook call: the variable {secret} holds no address that begins with https://", file=sys.stderr)
        return
    body = {"text": masking.masked(report.text(made), [secret]), "run": run.id, "state": made.status.state}
    try:
        request = urllib.request.Request(url, msgspec.json.encode(body), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).close()
    except Exception as error:  # the URL is a secret, and errors quote it: say what failed, not where
        print(f"the webhook call failed: {type(error).__name__}", file=sys.stderr)


def may_retry(made: report.Report, gathered: status.Gathered) -> bool:
    """Within the budget, something left that may be tried without a person, and the last attempt got something done."""
    plan, run = gathered.plan, Run(gathered.attempt.folder.parent)
    # attempts that were only planned cost nothing
    tried = [n for n in run.attempts() if n == plan.attempt or run.attempt(n).jobs()]
    if len(tried) > plan.retries:
        return False
    left = any(r.missing for r in made.status.stages)
    domains = {name: stage.domain for name, stage in gathered.stages.items()}
    final = {(domains[f.stage], f.shard) for f in made.failures if not failure.REMEDIES[f.failure].unattended}
    # not those either that only failed because an earlier stage of the same shard did, which is for a person
    worth = [f for f in made.failures
             if failure.REMEDIES[f.failure].unattended and (domains[f.stage], f.shard) not in final]  # fmt: skip
    progress = plan.attempt == 1 or any(
        w.attempt == plan.attempt for fold in gathered.folds.values() for s, w in fold.where.items() if s in fold.done
    )
    return bool(left or worth) and progress
