"""Start attempts: on Slurm or here, the first one or a retry of what is missing."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from hpc.batch import commit, failure, finale, jsons, local, prepare, slurm, status
from hpc.batch.cluster import Cluster
from hpc.batch.run import Run
from hpc.batch.spec import Spec, load


class Busy(Exception):
    """An attempt of this run is still going."""


def check_idle(run: Run, own_job: str = "") -> dict[tuple[str, str], str]:
    """Raise Busy while jobs of the latest attempt live. Returns what was lost: (stage, shard) -> class of failure.

    own_job: a job to overlook, for the report job that retries.
    """
    if not run.attempts():
        return {}
    gathered = status.gather(run)
    alive = sorted({t.job for t in gathered.tasks if not t.state.startswith(slurm.DONE)} - {own_job})
    if alive:
        raise Busy(f"{run.id} has jobs {', '.join(alive)} going: `hpc status {run.id}`, or `hpc cancel {run.id}` first")
    ended = {f"{t.job}_{i}": t for t in gathered.tasks for i in t.indices}
    lost = {}
    for name, fold in gathered.folds.items():
        for shard, (worker, record) in fold.running.items():
            task = ended.get(worker.job)
            if task:
                lost[name, shard] = failure.of_state(task.state)
            elif worker.job.startswith("local") and worker.run == run.id and status.lives(worker, record, {}):
                where = f"process {worker.raw_job} on {worker.node}"
                raise Busy(f"{run.id} is being worked on by a local run right now: {where}")
    return lost


def plan(spec: Spec, cluster: Cluster, base: Path, *, on_slurm: bool, command: list[str],
         own_job: str = "") -> prepare.Prepared:  # fmt: skip
    run = Run((base / f"{spec.name}-{spec.hash}").resolve())
    lost = check_idle(run, own_job) if run.folder.is_dir() else {}
    here = None if on_slurm else cores()
    return prepare.prepare(spec, cluster, base, on_slurm=on_slurm, command=command, cores=here, lost=lost)


def submit(prepared: prepare.Prepared) -> str:
    """Run submit.sh. Returns what it said."""
    assert prepared.attempt
    return slurm.submit(prepared.attempt.submit)


def here(prepared: prepare.Prepared, spec: Spec, cluster: Cluster, tick: Callable[[list[local.Task]], None]) -> bool:
    """Run the attempt on this machine, with the environment that it would have on the cluster, and report."""
    assert prepared.attempt
    missing = [name for name in spec.secrets if name not in os.environ]
    if missing:
        raise ValueError(f"secrets {', '.join(missing)}: set these environment variables first")
    commit.commit(prepared.run, prepared.attempt)
    ok = local.execute(prepared.run, prepared.attempt, cluster.env | spec.env, cores(), tick)
    return ok


def cores() -> int:
    return len(os.sched_getaffinity(0))


def spec_of(run: Run) -> Spec:
    """The spec as it was resolved for this run."""
    specs = load(run.spec, check_paths=False)
    if len(specs) != 1 or f"{specs[0].name}-{specs[0].hash}" != run.id:
        raise ValueError(
            f"{run.spec} was changed and no longer is the spec of {run.id}: put it back, or submit yours anew"
        )
    return specs[0]


def cluster_of(run: Run) -> Cluster:
    """The cluster preset as it was for the latest attempt."""
    return jsons.decode((run.latest().folder / "cluster.json").read_bytes(), Cluster)


def unattended(run: Run) -> bool:
    """The report job's own retry. False if there was nothing to do."""
    spec = spec_of(run)
    own = os.environ.get("SLURM_JOB_ID", "")
    prepared = plan(spec, cluster_of(run), run.folder.parent, on_slurm=True, command=["unattended retry"], own_job=own)
    if prepared.attempt:
        print(submit(prepared))
    return prepared.attempt is not None


def main(folder: str, attempt: str = "") -> int:
    """The report job: `python -m hpc.batch.launch RUN ATTEMPT`. Reports, notifies once, retries within the budget."""
    run = Run(Path(folder))
    if attempt and run.latest().number != int(attempt):
        print(f"attempt {run.latest().number} came after {attempt}: its own report job will write the report")
        return 0
    made, gathered = finale.finale(run, ask_slurm=True)
    again = False
    if finale.may_retry(made, gathered):
        print(f"unattended retry {gathered.plan.attempt} of {gathered.plan.retries}", flush=True)
        try:
            again = unattended(run)
        except Exception:  # whatever it is: whoever waits for the end of this run is told of it all the same
            traceback.print_exc()
    if not again and gathered.plan.notify.get("webhook"):
        finale.notify(run, made, gathered.plan.notify["webhook"])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
