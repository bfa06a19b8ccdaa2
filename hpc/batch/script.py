"""submit.sh: the exact, readable list of sbatch calls of one attempt.

Submitting is running this file; the dry run is reading it. sbatch is called through `env -i` with a declared
environment and every value is a flag, so no variable of the user's shell (SBATCH_*, ...) changes anything. All values
are quoted; secrets pass through a pipe, by name, and stand nowhere.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from pathlib import Path

from hpc.batch import container
from hpc.batch.cluster import Cluster
from hpc.batch.gang import is_gang
from hpc.batch.plan import Chunk, chunks
from hpc.batch.run import Attempt, AttemptPlan, Run, StagePlan
from hpc.batch.spec import Spec
from hpc.data.units import seconds

WARNING_SECONDS = 120
"""A task is warned (USR2) this long before its time limit; Slurm may do so up to 60 s earlier."""

HEAD = """\
#!/usr/bin/env bash
# Attempt {attempt} of run {run}: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"

run={folder}
scripts=$run/attempt-{attempt}/code/hpc/sbatch

# The whole environment of the jobs. Secrets are passed by name, through a pipe: they stand in no file of the run and in
# no argument. (Slurm itself keeps the environment of a job where only its administrators can read.)
declared=({declared})
{secrets}
secrets >/dev/null # ends here if one is not set

clean() {{
    env -i "${{declared[@]}}" bash -c \\
        'while IFS= read -r -d "" pair; do export "${{pair?}}"; done <&3; exec "$@"' bash "$@" 3< <(secrets)
}}

# job STAGE PHASE FIRST_ROW TASKS <sbatch arguments>: submit, note the id in jobs.jsonl, print it
job() {{
    local id stage=$1 phase=$2 first_row=$3 tasks=$4
    shift 4
    id=$(clean sbatch --parsable "$@") || return
    id=${{id%%;*}}
    printf '{{"job":"%s","stage":"%s","phase":"%s","first_row":%d,"tasks":%d}}\\n' \\
        "$id" "$stage" "$phase" "$first_row" "$tasks" >>jobs.jsonl || {{
        clean scancel "$id" # a job that stands nowhere could not be cancelled later
        return 1
    }}
    echo "$id"
}}

# All or nothing: if one submission is refused, the ones before it are taken back.
undo() {{
    local -a ids
    if [ -e jobs.jsonl ]; then
        mapfile -t ids < <(sed 's/.*"job":"\\([0-9]*\\)".*/\\1/' jobs.jsonl)
        if ((${{#ids[@]}})); then
            echo "submission failed: cancelling ${{ids[*]}}" >&2
            clean scancel "${{ids[@]}}" || true
        fi
        mv jobs.jsonl jobs.cancelled.jsonl
    fi
}}
if ! (set -o noclobber && : >jobs.jsonl) 2>/dev/null; then # of two at once, one gets on
    echo "attempt {attempt} was submitted already (jobs.jsonl); 'hpc retry' makes a new one from what is missing" >&2
    exit 1
fi

trap undo ERR
trap 'undo; exit 130' INT TERM HUP

# Claim the shard ids and the output folders that this plan counts on; fails if another plan was quicker.
clean {python} -m hpc.batch.commit "$run" {attempt}
"""


class Shell(str):
    """Shell source, put into the script as it is. Everything else is quoted."""


def quote(value: object) -> str:
    return value if isinstance(value, Shell) else shlex.quote(str(value))


def environment(spec: Spec, cluster: Cluster, attempt: Attempt) -> dict[str, str]:
    """What the jobs see, secrets apart."""
    python = cluster.python or sys.executable
    sbatch = shutil.which("sbatch")
    path = [str(Path(p).parent) for p in (python, sbatch) if p]
    path += [p for p in ("/usr/local/bin", "/usr/bin", "/bin") if p not in path]
    keep = {k: os.environ[k] for k in ("HOME", "USER", "LOGNAME", "SLURM_CONF") if k in os.environ}
    return keep | {
        "PATH": ":".join(dict.fromkeys(path)),
        "LANG": "C.UTF-8",
        "HPC_PYTHON": python,
        "PYTHONPATH": str(attempt.code),
        "PYTHONDONTWRITEBYTECODE": "1",
    } | cluster.env | spec.env  # fmt: skip


def warning(time_limit: float) -> int:
    """Seconds before the time limit at which a task is warned: a quarter of short limits, so that work can be done."""
    return int(min(WARNING_SECONDS, time_limit / 4))


def site_flags(cluster: Cluster) -> list[str]:
    """Flags that the cluster preset gives to every job."""
    flags = [
        f"--{name}={value}"
        for name in ("partition", "account", "qos", "constraint", "reservation", "wckey")
        if (value := getattr(cluster, name))
    ]
    for name, value in cluster.sbatch.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False:
            flags.append(f"--{name}={value}")
    return flags


def resource_flags(stage: StagePlan, cluster: Cluster, memory: float = 1.0, time: float = 1.0) -> list[str]:
    """Where a stage's tasks go and what they get; memory and time are factors on what the spec asks for."""
    r = stage.resources
    here = cluster.for_stage(stage.name, stage.kind)
    flags = [*site_flags(here), f"--time={math.ceil(r.time * time / 60)}"]
    if is_gang(stage):  # a task of Slurm's for each rank
        tasks = [f"--nodes={r.nodes}", f"--ntasks={r.nodes * r.workers}", f"--ntasks-per-node={r.workers}"]
        if r.least_nodes and r.least_nodes < r.nodes:  # without tasks, whose number Slurm would keep for other starts
            tasks = [f"--nodes={r.least_nodes}-{r.nodes}", f"--mincpus={r.workers * r.cpus}"]
        cpus = r.cpus
    else:
        tasks, cpus = ["--nodes=1", "--ntasks=1"], r.cpus * r.workers
        if here.whole_nodes:
            cpus = here.cpus_per_node or cpus
    if here.whole_nodes:
        flags += [*tasks, "--exclusive", "--mem=0", f"--cpus-per-task={cpus}"]
    else:
        memory = math.ceil(r.memory * r.workers * memory / 2**20)
        flags += [*tasks, f"--mem={memory}M", f"--cpus-per-task={cpus}"]
    if r.gpus:
        kind = f"{here.gpu_type}:" if here.gpu_type else ""
        flags.append(f"--gres=gpu:{kind}{r.gpus_of(r.workers)}")
    return flags


def job_flags(run: Run, plan: AttemptPlan, stage: str, job: str, export: str = "") -> list[str]:
    """What every job of a run has in common. export: more of the environment, NAME=VALUE."""
    return [
        f"--job-name={run.id}/{job}", f"--comment={comment(run, plan, stage)}", "--requeue", "--open-mode=append",
        f"--export=ALL{',' * bool(export)}{export}", f"--chdir={run.folder}",
    ]  # fmt: skip


def comment(run: Run, plan: AttemptPlan, stage: str) -> str:
    """For dashboards; Slurm takes 1024 characters at most."""
    return json.dumps({"hpc": "1", "run": run.id, "stage": stage, "attempt": plan.attempt, "spec": plan.spec_hash})


def output(run: Run, stage: str, pattern: str) -> str:
    # Slurm expands % in file names; the run's own path must not be
    return str(run.logs(stage)).replace("%", "%%") + "/" + pattern


def write(run: Run, attempt: Attempt, plan: AttemptPlan, spec: Spec, cluster: Cluster, max_array_size: int,
          exclude: dict[str, list[str]]) -> None:  # fmt: skip
    """Write submit.sh."""
    env = environment(spec, cluster, attempt)
    images = {name: container.image_of(stage, cluster) for name, stage in spec.stages.items()}
    if any(images.values()):
        env = container.DRIVER | env
    names = list(spec.secrets)
    secrets = ["secrets() {"]
    secrets += [f"    printf '%s\\0' {name}=\"${{{name}:?set this secret before you submit}}\"" for name in names]
    secrets += [] if names else ["    :"]
    secrets += ["}"]
    declared = "".join(f"\n    {quote(f'{k}={v}')}" for k, v in env.items()) + "\n"
    lines = [
        HEAD.format(
            attempt=attempt.number, run=run.id, folder=quote(run.folder), declared=declared,
            secrets="\n".join(secrets), python=quote(sys.executable),
        )
    ]  # fmt: skip
    by_stage: dict[str, list[str]] = {}  # stage -> shell variables of its jobs
    variables: list[str] = []
    arrays: dict[str, int] = {}  # stage -> how many arrays share its throttle
    for group in plan.groups:
        for name in group.stages:
            arrays[name] = arrays.get(name, 0) + len(group.chunks)
    for stage in plan.stages:
        if stage.width:
            arrays[stage.name] = len(chunks(stage.width, 0, max_array_size))

    def submit(stage: str, phase: str, chunk: Chunk, flags: list[str], script: str, args: list[object]) -> str:
        variable = f"j{len(variables)}_{stage.replace('-', '_')}"
        words = [quote(f) for f in flags]
        lines.append(
            f"{variable}=$(job {quote(stage)} {phase} {chunk.first_row} {chunk.tasks} \\\n    "
            + " \\\n    ".join(words)
            + f' \\\n    "$scripts"/{script} "$run" '
            + " ".join(f"\\\n    {quote(a)}" if str(a).startswith("--") else quote(a) for a in args)
            + ")"
        )
        variables.append(variable)
        by_stage.setdefault(stage, []).append(variable)
        return variable

    def after(kind: str, variables: list[str]) -> list[str]:
        if not variables:
            return []
        ids = ":".join(f"${v}" for v in variables)
        return [Shell(f'--dependency="{kind}:{ids}"'), "--kill-on-invalid-dep=yes"]

    def array(stage: StagePlan, chunk: Chunk, dependency: list[str], memory: float = 1.0,
              time: float = 1.0) -> str:  # fmt: skip
        throttle = f"%{max(1, stage.throttle // arrays[stage.name])}" if stage.throttle else ""
        image, by, inside, signalled, export = images[stage.name], "array.sbatch", [], "B:", ""
        if image:
            inside = container.options(run, attempt, image, cluster.for_stage(stage.name, stage.kind), [*env, *names])
            export = container.visible_gpus(stage.resources.gpus)
            if not is_gang(stage):  # the launcher of ranks is outside; other workers are in a step, which is signalled
                by, signalled = "container.sbatch", ""
        flags = [
            *resource_flags(stage, cluster, memory, time),
            *job_flags(run, plan, stage.name, stage.name, export),
            f"--signal={signalled}USR2@{warning(stage.resources.time)}",
            f"--array=0-{chunk.tasks - 1}{throttle}",
            f"--output={output(run, stage.name, '%A_%a.out')}",
            *([f"--exclude={','.join(exclude[stage.name])}"] if exclude.get(stage.name) else []),
            *dependency,
        ]
        args = [stage.name, attempt.number, chunk.first_row, *inside]
        return submit(stage.name, "map", chunk, flags, by, args)

    for group in plan.groups:
        words = f"{group.shards} shards, about {seconds(group.task_seconds)} a task"
        lines.append(f"# {' -> '.join(group.stages)}: {words}")
        for chunk in group.chunks:
            made: dict[str, str] = {}
            for name in group.stages:
                stage = plan.stage(name)
                needs = [made[n] for n in stage.needs if n in made]
                made[name] = array(stage, chunk, after("aftercorr", needs), group.memory, group.time)
    for stage in plan.stages:
        if not stage.width:
            continue
        needs = [v for n in stage.needs for v in by_stage.get(n, [])]
        if "barrier" in stage.phases:
            lines.append(f"# {stage.name}: freeze what is there, then {stage.width} tasks at most")
            flags = [
                *site_flags(cluster.for_stage("barrier", "barrier")),
                *job_flags(run, plan, stage.name, f"{stage.name}-barrier"),
                "--time=240", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=4096M",
                f"--output={output(run, stage.name, 'barrier-%j.out')}", *after("afterany", needs),
            ]  # fmt: skip
            barrier = submit(stage.name, "barrier", Chunk(0, 1), flags, "array.sbatch",
                             [stage.name, attempt.number, "barrier"])  # fmt: skip
            by_stage[stage.name] = []
            parts = chunks(stage.width, 0, max_array_size)
            for chunk in parts:
                array(stage, chunk, after("afterok", [barrier]))
        else:  # a map stage in a barrier's domain: its array has the width and the chunks of the one it needs
            parts = chunks(stage.width, 0, max_array_size)
            waits = [by_stage.get(n, []) for n in stage.needs]
            for i, chunk in enumerate(parts):
                array(stage, chunk, after("aftercorr", [w[i] for w in waits if len(w) == len(parts)]))

    lines.append("# when all of it has ended, however: the report, and unattended retries if the spec allows any")
    flags = [
        *site_flags(cluster.for_stage("report", "report")), *job_flags(run, plan, "report", "report"),
        "--time=60", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=2048M",
        f"--output={output(run, 'report', '%j.out')}",
    ]  # fmt: skip
    if mail := spec.notify.mail or cluster.mail:
        flags += [f"--mail-user={mail}", "--mail-type=END,FAIL"]
    flags += after("afterany", list(variables))
    last = submit("report", "report", Chunk(0, 1), flags, "report.sbatch", [attempt.number])
    said = f"submitted {len(variables)} jobs of {run.id}, attempt {attempt.number}; the report is job ${last}"
    lines.append(f'echo "{said}"')
    attempt.submit.write_text("\n".join(lines) + "\n")
    attempt.submit.chmod(0o750)
