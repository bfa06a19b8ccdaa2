#!/usr/bin/env bash
# Attempt 1 of run tokens-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/tokens-HASH
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
    PYTHONPATH=/TMP/runs/tokens-HASH/attempt-1/code
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

# clips -> looks: 50 shards, about 50:00 a task
j0_clips=$(job clips map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=8192M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=tokens-HASH/clips \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "clips", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/tokens-HASH/logs/clips/%A_%a.out \
    "$scripts"/array.sbatch "$run" clips 1 0)
j1_looks=$(job looks map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=tokens-HASH/looks \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "looks", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/tokens-HASH/logs/looks/%A_%a.out \
    --dependency="aftercorr:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" looks 1 0)
# dedup-fit: freeze what is there, then 2 tasks at most
j2_dedup_fit=$(job dedup-fit barrier 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/dedup-fit-barrier \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup-fit", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/tokens-HASH/logs/dedup-fit/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_looks" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-fit 1 barrier)
j3_dedup_fit=$(job dedup-fit map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=tokens-HASH/dedup-fit \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup-fit", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/tokens-HASH/logs/dedup-fit/%A_%a.out \
    --dependency="afterok:$j2_dedup_fit" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-fit 1 0)
# dedup-assign: freeze what is there, then 2 tasks at most
j4_dedup_assign=$(job dedup-assign barrier 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/dedup-assign-barrier \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup-assign", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/tokens-HASH/logs/dedup-assign/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_looks:$j3_dedup_fit" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-assign 1 barrier)
j5_dedup_assign=$(job dedup-assign map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=tokens-HASH/dedup-assign \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup-assign", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/tokens-HASH/logs/dedup-assign/%A_%a.out \
    --dependency="afterok:$j4_dedup_assign" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-assign 1 0)
# dedup-prune: freeze what is there, then 2 tasks at most
j6_dedup_prune=$(job dedup-prune barrier 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/dedup-prune-barrier \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup-prune", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/tokens-HASH/logs/dedup-prune/barrier-%j.out \
    --dependency="afterany:$j5_dedup_assign" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-prune 1 barrier)
j7_dedup_prune=$(job dedup-prune map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=tokens-HASH/dedup-prune \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup-prune", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/tokens-HASH/logs/dedup-prune/%A_%a.out \
    --dependency="afterok:$j6_dedup_prune" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-prune 1 0)
# dedup: freeze what is there, then 2 tasks at most
j8_dedup=$(job dedup barrier 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/dedup-barrier \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/tokens-HASH/logs/dedup/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_looks:$j3_dedup_fit:$j5_dedup_assign:$j7_dedup_prune" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup 1 barrier)
j9_dedup=$(job dedup map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=tokens-HASH/dedup \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dedup", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/tokens-HASH/logs/dedup/%A_%a.out \
    --dependency="afterok:$j8_dedup" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup 1 0)
# dataset: freeze what is there, then 8 tasks at most
j10_dataset=$(job dataset barrier 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/dataset-barrier \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dataset", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/tokens-HASH/logs/dataset/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j9_dedup" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset 1 barrier)
j11_dataset=$(job dataset map 0 8 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=tokens-HASH/dataset \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "dataset", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/tokens-HASH/logs/dataset/%A_%a.out \
    --dependency="afterok:$j10_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset 1 0)
j12_tokens_ids=$(job tokens-ids map 0 8 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=16384M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=tokens-HASH/tokens-ids \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "tokens-ids", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/tokens-HASH/logs/tokens-ids/%A_%a.out \
    --dependency="aftercorr:$j11_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens-ids 1 0)
# tokens: freeze what is there, then 2 tasks at most
j13_tokens=$(job tokens barrier 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/tokens-barrier \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "tokens", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/tokens-HASH/logs/tokens/barrier-%j.out \
    --dependency="afterany:$j11_dataset:$j12_tokens_ids" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens 1 barrier)
j14_tokens=$(job tokens map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=16384M \
    --cpus-per-task=8 \
    --job-name=tokens-HASH/tokens \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "tokens", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/tokens-HASH/logs/tokens/%A_%a.out \
    --dependency="afterok:$j13_tokens" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j15_report=$(job report report 0 1 \
    --partition=cpu \
    --job-name=tokens-HASH/report \
    '--comment={"hpc": "1", "run": "tokens-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/tokens-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/tokens-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_clips:$j1_looks:$j2_dedup_fit:$j3_dedup_fit:$j4_dedup_assign:$j5_dedup_assign:$j6_dedup_prune:$j7_dedup_prune:$j8_dedup:$j9_dedup:$j10_dataset:$j11_dataset:$j12_tokens_ids:$j13_tokens:$j14_tokens" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 16 jobs of tokens-HASH, attempt 1; the report is job $j15_report"
