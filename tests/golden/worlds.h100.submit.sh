#!/usr/bin/env bash
# Attempt 1 of run worlds-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/worlds-HASH
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
    PYTHONPATH=/TMP/runs/worlds-HASH/attempt-1/code
    PYTHONDONTWRITEBYTECODE=1
    NCCL_IB_HCA==mlx5_0,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_9,mlx5_10,mlx5_11
    NCCL_SOCKET_IFNAME=bond0
    GLOO_SOCKET_IFNAME=bond0
    NCCL_IB_TIMEOUT=22
    NCCL_DEBUG=WARN
    TORCH_NCCL_ASYNC_ERROR_HANDLING=1
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

# videos-prompts: 50 shards, about 4:03 a task
j0_videos_prompts=$(job videos-prompts map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=65536M \
    --cpus-per-task=8 \
    --job-name=worlds-HASH/videos-prompts \
    '--comment={"hpc": "1", "run": "worlds-HASH", "stage": "videos-prompts", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/worlds-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/worlds-HASH/logs/videos-prompts/%A_%a.out \
    "$scripts"/array.sbatch "$run" videos-prompts 1 0)
# videos: freeze what is there, then 64 tasks at most
j1_videos=$(job videos barrier 0 1 \
    --partition=cpu \
    --job-name=worlds-HASH/videos-barrier \
    '--comment={"hpc": "1", "run": "worlds-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/worlds-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/worlds-HASH/logs/videos/barrier-%j.out \
    --dependency="afterany:$j0_videos_prompts" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 barrier)
j2_videos=$(job videos map 0 64 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=65536M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=worlds-HASH/videos \
    '--comment={"hpc": "1", "run": "worlds-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/worlds-HASH \
    --signal=B:USR2@120 \
    --array=0-63 \
    --output=/TMP/runs/worlds-HASH/logs/videos/%A_%a.out \
    --dependency="afterok:$j1_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j3_report=$(job report report 0 1 \
    --partition=cpu \
    --job-name=worlds-HASH/report \
    '--comment={"hpc": "1", "run": "worlds-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/worlds-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/worlds-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_videos_prompts:$j1_videos:$j2_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 4 jobs of worlds-HASH, attempt 1; the report is job $j3_report"
