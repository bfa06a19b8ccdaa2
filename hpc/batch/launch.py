"""Start attempts: on Slurm or here, the first one or a retry of what is missing."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from hpc.batch import commit, failure, finale, jsons, ledger, local, masking, prepare, slurm, status
from hpc.batch.cluster import Cluster
from hpc.batch.run import Run
from hpc.batch.spec import Spec, fingerprint, load


class Busy(Exception):
    """What is to be made is being made already."""


def plan(spec: Spec, cluster: Cluster, base: Path, *, on_slurm: bool, command: list[str],
         own_job: str = "", dry: bool = False) -> prepare.Prepared:  # fmt: skip
    """Plan the next attempt of a spec, unless something that makes the same is under way: raises Busy.

    own_job: a job to overlook, for the report job that retries. dry: for reading, maybe where there is no Slurm.
    """
    os.environ.update(cluster.env | spec.env)  # inputs and output are looked at where the jobs will look for them
    run = Run((base / f"{spec.name}-{spec.hash}").resolve())
    check_idle(spec, run, own_job)
    lost = lost_shards(run) if run.attempts() else {}
    here = None if on_slurm else cores()
    return prepare.prepare(
        spec, cluster, base, on_slurm=on_slurm, command=command, cores=here, lost=lost, dry=dry
    )  # fmt: skip


def check_idle(spec: Spec, run: Run, own_job: str) -> None:
    """Raise Busy while jobs live, of any attempt of any run, that make a stage of this spec in the same output."""
    own = {(name, fingerprint(spec, name)) for name in spec.stages}
    jobs: dict[str, str] = {}
    for folder in {run.folder, *ledger.runs(spec.output)[0]}:
        other = Run(folder)
        for number in other.attempts():
            made = {(s.name, s.fingerprint) for s in other.attempt(number).plan().stages if s.domain == "inputs"}
            if folder == run.folder or made & own:
                jobs |= {job.job: other.id for job in other.attempt(number).jobs()}
    # squeue alone says what lives: accounting may be late, or keep jobs for running that were lost long ago
    alive = {t.job for t in slurm.queue(jobs)} - {own_job} if jobs and slurm.available() else set()
    if alive:
        names = sorted({jobs[job] for job in alive})
        raise Busy(
            f"jobs {', '.join(sorted(alive, key=int))} of {', '.join(names)} are making the same: "
            f"`hpc status {names[0]}`, or `hpc cancel {names[0]}` first"
        )


def lost_shards(run: Run) -> dict[tuple[str, str], str]:
    """Shards whose workers vanished: (stage, shard) -> class of failure. Raises Busy while a local run is at them."""
    gathered = status.gather(run)
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
    if attempt and run.latest().number != int(attempt) and run.latest().jobs():
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
    masking.install(Run(Path(sys.argv[1])).spec)
    sys.exit(main(*sys.argv[1:]))
