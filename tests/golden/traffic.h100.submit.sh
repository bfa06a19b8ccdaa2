#!/usr/bin/env bash
# Attempt 1 of run traffic-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/traffic-HASH
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
    PYTHONPATH=/TMP/runs/traffic-HASH/attempt-1/code
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

# clips -> caption -> look-check -> words -> embed: 50 shards, about 50:00 a task
j0_clips=$(job clips map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=8192M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/clips \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "clips", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/traffic-HASH/logs/clips/%A_%a.out \
    "$scripts"/array.sbatch "$run" clips 1 0)
j1_caption=$(job caption map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=49152M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/caption \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "caption", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/traffic-HASH/logs/caption/%A_%a.out \
    --dependency="aftercorr:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" caption 1 0)
j2_look_check=$(job look-check map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=traffic-HASH/look-check \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "look-check", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/traffic-HASH/logs/look-check/%A_%a.out \
    --dependency="aftercorr:$j1_caption" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" look-check 1 0)
j3_words=$(job words map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=49152M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/words \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "words", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/traffic-HASH/logs/words/%A_%a.out \
    --dependency="aftercorr:$j1_caption" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" words 1 0)
j4_embed=$(job embed map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/embed \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "embed", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/traffic-HASH/logs/embed/%A_%a.out \
    --dependency="aftercorr:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" embed 1 0)
# look: freeze what is there, then 4 tasks at most
j5_look=$(job look barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/look-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "look", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/look/barrier-%j.out \
    --dependency="afterany:$j1_caption:$j2_look_check" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" look 1 barrier)
j6_look=$(job look map 0 4 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=traffic-HASH/look \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "look", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-3 \
    --output=/TMP/runs/traffic-HASH/logs/look/%A_%a.out \
    --dependency="afterok:$j5_look" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" look 1 0)
# dedup-fit: freeze what is there, then 2 tasks at most
j7_dedup_fit=$(job dedup-fit barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dedup-fit-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup-fit", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dedup-fit/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j4_embed" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-fit 1 barrier)
j8_dedup_fit=$(job dedup-fit map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/dedup-fit \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup-fit", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/traffic-HASH/logs/dedup-fit/%A_%a.out \
    --dependency="afterok:$j7_dedup_fit" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-fit 1 0)
# dedup-assign: freeze what is there, then 2 tasks at most
j9_dedup_assign=$(job dedup-assign barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dedup-assign-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup-assign", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dedup-assign/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j4_embed:$j8_dedup_fit" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-assign 1 barrier)
j10_dedup_assign=$(job dedup-assign map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/dedup-assign \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup-assign", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/traffic-HASH/logs/dedup-assign/%A_%a.out \
    --dependency="afterok:$j9_dedup_assign" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-assign 1 0)
# dedup-prune: freeze what is there, then 2 tasks at most
j11_dedup_prune=$(job dedup-prune barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dedup-prune-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup-prune", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dedup-prune/barrier-%j.out \
    --dependency="afterany:$j10_dedup_assign" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-prune 1 barrier)
j12_dedup_prune=$(job dedup-prune map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=traffic-HASH/dedup-prune \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup-prune", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/traffic-HASH/logs/dedup-prune/%A_%a.out \
    --dependency="afterok:$j11_dedup_prune" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup-prune 1 0)
# dedup: freeze what is there, then 2 tasks at most
j13_dedup=$(job dedup barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dedup-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dedup/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j4_embed:$j8_dedup_fit:$j10_dedup_assign:$j12_dedup_prune" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup 1 barrier)
j14_dedup=$(job dedup map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=4 \
    --job-name=traffic-HASH/dedup \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dedup", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/traffic-HASH/logs/dedup/%A_%a.out \
    --dependency="afterok:$j13_dedup" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dedup 1 0)
# dataset-members: freeze what is there, then 2 tasks at most
j15_dataset_members=$(job dataset-members barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dataset-members-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dataset-members", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dataset-members/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_caption:$j3_words:$j14_dedup" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset-members 1 barrier)
j16_dataset_members=$(job dataset-members map 0 2 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=traffic-HASH/dataset-members \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dataset-members", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/traffic-HASH/logs/dataset-members/%A_%a.out \
    --dependency="afterok:$j15_dataset_members" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset-members 1 0)
# dataset: freeze what is there, then 8 tasks at most
j17_dataset=$(job dataset barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dataset-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dataset", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dataset/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_caption:$j3_words:$j14_dedup:$j16_dataset_members" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset 1 barrier)
j18_dataset=$(job dataset map 0 8 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=traffic-HASH/dataset \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dataset", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/traffic-HASH/logs/dataset/%A_%a.out \
    --dependency="afterok:$j17_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset 1 0)
# dataset-index: freeze what is there, then 1 tasks at most
j19_dataset_index=$(job dataset-index barrier 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/dataset-index-barrier \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dataset-index", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/traffic-HASH/logs/dataset-index/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_caption:$j3_words:$j14_dedup:$j16_dataset_members:$j18_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset-index 1 barrier)
j20_dataset_index=$(job dataset-index map 0 1 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=traffic-HASH/dataset-index \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "dataset-index", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/traffic-HASH/logs/dataset-index/%A_%a.out \
    --dependency="afterok:$j19_dataset_index" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset-index 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j21_report=$(job report report 0 1 \
    --partition=cpu \
    --job-name=traffic-HASH/report \
    '--comment={"hpc": "1", "run": "traffic-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/traffic-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/traffic-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_clips:$j1_caption:$j2_look_check:$j3_words:$j4_embed:$j5_look:$j6_look:$j7_dedup_fit:$j8_dedup_fit:$j9_dedup_assign:$j10_dedup_assign:$j11_dedup_prune:$j12_dedup_prune:$j13_dedup:$j14_dedup:$j15_dataset_members:$j16_dataset_members:$j17_dataset:$j18_dataset:$j19_dataset_index:$j20_dataset_index" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 22 jobs of traffic-HASH, attempt 1; the report is job $j21_report"
