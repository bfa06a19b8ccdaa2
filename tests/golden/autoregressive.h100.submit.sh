#!/usr/bin/env bash
# Attempt 1 of run autoregressive-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/autoregressive-HASH
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
    PYTHONPATH=/TMP/runs/autoregressive-HASH/attempt-1/code
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

# clips -> tokens-ids -> videos-prompts: 50 shards, about 50:00 a task
j0_clips=$(job clips map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=8192M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=autoregressive-HASH/clips \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "clips", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/autoregressive-HASH/logs/clips/%A_%a.out \
    "$scripts"/array.sbatch "$run" clips 1 0)
j1_tokens_ids=$(job tokens-ids map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=16384M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=autoregressive-HASH/tokens-ids \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "tokens-ids", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/autoregressive-HASH/logs/tokens-ids/%A_%a.out \
    --dependency="aftercorr:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens-ids 1 0)
j2_videos_prompts=$(job videos-prompts map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=49152M \
    --cpus-per-task=8 \
    --job-name=autoregressive-HASH/videos-prompts \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "videos-prompts", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/autoregressive-HASH/logs/videos-prompts/%A_%a.out \
    "$scripts"/array.sbatch "$run" videos-prompts 1 0)
# tokens: freeze what is there, then 2 tasks at most
j3_tokens=$(job tokens barrier 0 1 \
    --partition=cpu \
    --job-name=autoregressive-HASH/tokens-barrier \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "tokens", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/autoregressive-HASH/logs/tokens/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_tokens_ids" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens 1 barrier)
j4_tokens=$(job tokens map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=16384M \
    --cpus-per-task=8 \
    --job-name=autoregressive-HASH/tokens \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "tokens", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/autoregressive-HASH/logs/tokens/%A_%a.out \
    --dependency="afterok:$j3_tokens" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens 1 0)
# ar: freeze what is there, then 1 tasks at most
j5_ar=$(job ar barrier 0 1 \
    --partition=cpu \
    --job-name=autoregressive-HASH/ar-barrier \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "ar", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/autoregressive-HASH/logs/ar/barrier-%j.out \
    --dependency="afterany:$j4_tokens" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar 1 barrier)
j6_ar=$(job ar map 0 1 \
    --partition=gpu \
    --time=480 \
    --nodes=1 \
    --ntasks=8 \
    --ntasks-per-node=8 \
    --mem=786432M \
    --cpus-per-task=8 \
    --gres=gpu:h100:8 \
    --job-name=autoregressive-HASH/ar \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "ar", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/autoregressive-HASH/logs/ar/%A_%a.out \
    --dependency="afterok:$j5_ar" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar 1 0)
# convert: freeze what is there, then 1 tasks at most
j7_convert=$(job convert barrier 0 1 \
    --partition=cpu \
    --job-name=autoregressive-HASH/convert-barrier \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "convert", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/autoregressive-HASH/logs/convert/barrier-%j.out \
    --dependency="afterany:$j6_ar" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" convert 1 barrier)
j8_convert=$(job convert map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=49152M \
    --cpus-per-task=4 \
    --job-name=autoregressive-HASH/convert \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "convert", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/autoregressive-HASH/logs/convert/%A_%a.out \
    --dependency="afterok:$j7_convert" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" convert 1 0)
# videos: freeze what is there, then 50 tasks at most
j9_videos=$(job videos barrier 0 1 \
    --partition=cpu \
    --job-name=autoregressive-HASH/videos-barrier \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/autoregressive-HASH/logs/videos/barrier-%j.out \
    --dependency="afterany:$j2_videos_prompts:$j8_convert" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 barrier)
j10_videos=$(job videos map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=49152M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=autoregressive-HASH/videos \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/autoregressive-HASH/logs/videos/%A_%a.out \
    --dependency="afterok:$j9_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j11_report=$(job report report 0 1 \
    --partition=cpu \
    --job-name=autoregressive-HASH/report \
    '--comment={"hpc": "1", "run": "autoregressive-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/autoregressive-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/autoregressive-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_clips:$j1_tokens_ids:$j2_videos_prompts:$j3_tokens:$j4_tokens:$j5_ar:$j6_ar:$j7_convert:$j8_convert:$j9_videos:$j10_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 12 jobs of autoregressive-HASH, attempt 1; the report is job $j11_report"
