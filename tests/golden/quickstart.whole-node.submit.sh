#!/usr/bin/env bash
# Attempt 1 of run quickstart-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/quickstart-HASH
scripts=$run/attempt-1/code/hpc/sbatch

# The whole environment of the jobs. Secrets are passed by name, through a pipe: they stand in no file of the run and in
# no argument. (Slurm itself keeps the environment of a job where only its administrators can read.)
declared=(
    HOME=/home/tester
    USER=tester
    LOGNAME=tester
    PATH=/PATH
    LANG=C.UTF-8
    HPC_PYTHON=/PYTHON
    PYTHONPATH=/TMP/runs/quickstart-HASH/attempt-1/code
    PYTHONDONTWRITEBYTECODE=1
)
secrets() {
    :
}
secrets >/dev/null # ends here if one is not set

clean() {
    env -i "${declared[@]}" bash -c \
        'while IFS= read -r -d "" pair; do export "${pair?}"; done <&3; exec "$@"' bash "$@" 3< <(secrets)
}

# job STAGE PHASE FIRST_ROW TASKS <sbatch arguments>: submit, note the id in jobs.jsonl, print it
job() {
    local id stage=$1 phase=$2 first_row=$3 tasks=$4
    shift 4
    id=$(clean sbatch --parsable "$@") || return
    id=${id%%;*}
    printf '{"job":"%s","stage":"%s","phase":"%s","first_row":%d,"tasks":%d}\n' \
        "$id" "$stage" "$phase" "$first_row" "$tasks" >>jobs.jsonl || {
        clean scancel "$id" # a job that stands nowhere could not be cancelled later
        return 1
    }
    echo "$id"
}

# All or nothing: if one submission is refused, the ones before it are taken back.
undo() {
    local -a ids
    if [ -e jobs.jsonl ]; then
        mapfile -t ids < <(sed 's/.*"job":"\([0-9]*\)".*/\1/' jobs.jsonl)
        if ((${#ids[@]})); then
            echo "submission failed: cancelling ${ids[*]}" >&2
            clean scancel "${ids[@]}" || true
        fi
        mv jobs.jsonl jobs.cancelled.jsonl
    fi
}
if ! (set -o noclobber && : >jobs.jsonl) 2>/dev/null; then # of two at once, one gets on
    echo "attempt 1 was submitted already (jobs.jsonl); 'hpc retry' makes a new one from what is missing" >&2
    exit 1
fi

trap undo ERR
trap 'undo; exit 130' INT TERM HUP

# Claim the shard ids and the output folders that this plan counts on; fails if another plan was quicker.
clean /PYTHON -m hpc.batch.commit "$run" 1

# clips: 50 shards, about 19:16 a task
j0_clips=$(job clips map 0 2 \
    --partition=batch-gpu \
    --account=my-project \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --exclusive \
    --mem=0 \
    --cpus-per-task=64 \
    --job-name=quickstart-HASH/clips \
    '--comment={"hpc": "1", "run": "quickstart-HASH", "stage": "clips", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/quickstart-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/quickstart-HASH/logs/clips/%A_%a.out \
    "$scripts"/array.sbatch "$run" clips 1 0)
# shard: freeze what is there, then 8 tasks at most
j1_shard=$(job shard barrier 0 1 \
    --partition=batch \
    --account=my-project \
    --job-name=quickstart-HASH/shard-barrier \
    '--comment={"hpc": "1", "run": "quickstart-HASH", "stage": "shard", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/quickstart-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/quickstart-HASH/logs/shard/barrier-%j.out \
    --dependency="afterany:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" shard 1 barrier)
j2_shard=$(job shard map 0 8 \
    --partition=batch \
    --account=my-project \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --exclusive \
    --mem=0 \
    --cpus-per-task=128 \
    --job-name=quickstart-HASH/shard \
    '--comment={"hpc": "1", "run": "quickstart-HASH", "stage": "shard", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/quickstart-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/quickstart-HASH/logs/shard/%A_%a.out \
    --dependency="afterok:$j1_shard" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" shard 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j3_report=$(job report report 0 1 \
    --partition=batch \
    --account=my-project \
    --job-name=quickstart-HASH/report \
    '--comment={"hpc": "1", "run": "quickstart-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/quickstart-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/quickstart-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_clips:$j1_shard:$j2_shard" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 4 jobs of quickstart-HASH, attempt 1; the report is job $j3_report"
