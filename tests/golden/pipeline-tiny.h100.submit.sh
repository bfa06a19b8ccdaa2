#!/usr/bin/env bash
# Attempt 1 of run pipeline-tiny-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/pipeline-tiny-HASH
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
    PYTHONPATH=/TMP/runs/pipeline-tiny-HASH/attempt-1/code
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

# clips -> captions: 50 shards, about 50:00 a task
j0_clips=$(job clips map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/clips \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "clips", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/clips/%A_%a.out \
    "$scripts"/array.sbatch "$run" clips 1 0)
j1_captions=$(job captions map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/captions \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "captions", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/captions/%A_%a.out \
    --dependency="aftercorr:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" captions 1 0)
# data-members: freeze what is there, then 2 tasks at most
j2_data_members=$(job data-members barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/data-members-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "data-members", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/data-members/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_captions" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" data-members 1 barrier)
j3_data_members=$(job data-members map 0 2 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/data-members \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "data-members", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/data-members/%A_%a.out \
    --dependency="afterok:$j2_data_members" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" data-members 1 0)
# data: freeze what is there, then 8 tasks at most
j4_data=$(job data barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/data-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "data", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/data/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_captions:$j3_data_members" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" data 1 barrier)
j5_data=$(job data map 0 8 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/data \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "data", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/data/%A_%a.out \
    --dependency="afterok:$j4_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" data 1 0)
# ids: freeze what is there, then 1 tasks at most
j6_ids=$(job ids barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/ids-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ids", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ids/barrier-%j.out \
    --dependency="afterany:$j5_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ids 1 barrier)
j7_ids=$(job ids map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --ntasks-per-node=1 \
    --mem=4096M \
    --cpus-per-task=1 \
    --job-name=pipeline-tiny-HASH/ids \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ids", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ids/%A_%a.out \
    --dependency="afterok:$j6_ids" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ids 1 0)
# tokens-ids: freeze what is there, then 50 tasks at most
j8_tokens_ids=$(job tokens-ids barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/tokens-ids-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "tokens-ids", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/tokens-ids/barrier-%j.out \
    --dependency="afterany:$j5_data:$j7_ids" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens-ids 1 barrier)
j9_tokens_ids=$(job tokens-ids map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/tokens-ids \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "tokens-ids", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/tokens-ids/%A_%a.out \
    --dependency="afterok:$j8_tokens_ids" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens-ids 1 0)
# tokens: freeze what is there, then 2 tasks at most
j10_tokens=$(job tokens barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/tokens-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "tokens", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/tokens/barrier-%j.out \
    --dependency="afterany:$j5_data:$j7_ids:$j9_tokens_ids" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens 1 barrier)
j11_tokens=$(job tokens map 0 2 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/tokens \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "tokens", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/tokens/%A_%a.out \
    --dependency="afterok:$j10_tokens" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" tokens 1 0)
# ar: freeze what is there, then 1 tasks at most
j12_ar=$(job ar barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/ar-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar/barrier-%j.out \
    --dependency="afterany:$j11_tokens" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar 1 barrier)
j13_ar=$(job ar map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --ntasks-per-node=1 \
    --mem=4096M \
    --cpus-per-task=1 \
    --job-name=pipeline-tiny-HASH/ar \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar/%A_%a.out \
    --dependency="afterok:$j12_ar" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar 1 0)
# weights: freeze what is there, then 1 tasks at most
j14_weights=$(job weights barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/weights-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "weights", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/weights/barrier-%j.out \
    --dependency="afterany:$j13_ar" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" weights 1 barrier)
j15_weights=$(job weights map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/weights \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "weights", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/weights/%A_%a.out \
    --dependency="afterok:$j14_weights" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" weights 1 0)
# ar-videos: freeze what is there, then 50 tasks at most
j16_ar_videos=$(job ar-videos barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/ar-videos-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar-videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar-videos/barrier-%j.out \
    --dependency="afterany:$j15_weights:$j13_ar:$j7_ids:$j5_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar-videos 1 barrier)
j17_ar_videos=$(job ar-videos map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/ar-videos \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar-videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar-videos/%A_%a.out \
    --dependency="afterok:$j16_ar_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar-videos 1 0)
# ar-scores-measure: freeze what is there, then 50 tasks at most
j18_ar_scores_measure=$(job ar-scores-measure barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/ar-scores-measure-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar-scores-measure", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar-scores-measure/barrier-%j.out \
    --dependency="afterany:$j17_ar_videos:$j5_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar-scores-measure 1 barrier)
j19_ar_scores_measure=$(job ar-scores-measure map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/ar-scores-measure \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar-scores-measure", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar-scores-measure/%A_%a.out \
    --dependency="afterok:$j18_ar_scores_measure" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar-scores-measure 1 0)
# ar-scores: freeze what is there, then 24 tasks at most
j20_ar_scores=$(job ar-scores barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/ar-scores-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar-scores", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar-scores/barrier-%j.out \
    --dependency="afterany:$j19_ar_scores_measure" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar-scores 1 barrier)
j21_ar_scores=$(job ar-scores map 0 24 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/ar-scores \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "ar-scores", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-23 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/ar-scores/%A_%a.out \
    --dependency="afterok:$j20_ar_scores" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" ar-scores 1 0)
# vae: freeze what is there, then 1 tasks at most
j22_vae=$(job vae barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/vae-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "vae", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/vae/barrier-%j.out \
    --dependency="afterany:$j5_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" vae 1 barrier)
j23_vae=$(job vae map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --ntasks-per-node=1 \
    --mem=4096M \
    --cpus-per-task=1 \
    --job-name=pipeline-tiny-HASH/vae \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "vae", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/vae/%A_%a.out \
    --dependency="afterok:$j22_vae" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" vae 1 0)
# latents-encode: freeze what is there, then 50 tasks at most
j24_latents_encode=$(job latents-encode barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/latents-encode-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "latents-encode", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/latents-encode/barrier-%j.out \
    --dependency="afterany:$j5_data:$j23_vae" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents-encode 1 barrier)
j25_latents_encode=$(job latents-encode map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/latents-encode \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "latents-encode", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/latents-encode/%A_%a.out \
    --dependency="afterok:$j24_latents_encode" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents-encode 1 0)
# latents: freeze what is there, then 1 tasks at most
j26_latents=$(job latents barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/latents-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "latents", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/latents/barrier-%j.out \
    --dependency="afterany:$j5_data:$j23_vae:$j25_latents_encode" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents 1 barrier)
j27_latents=$(job latents map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/latents \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "latents", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/latents/%A_%a.out \
    --dependency="afterok:$j26_latents" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents 1 0)
# world: freeze what is there, then 1 tasks at most
j28_world=$(job world barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/world-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "world", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/world/barrier-%j.out \
    --dependency="afterany:$j27_latents:$j23_vae" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" world 1 barrier)
j29_world=$(job world map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --ntasks-per-node=1 \
    --mem=4096M \
    --cpus-per-task=1 \
    --job-name=pipeline-tiny-HASH/world \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "world", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/world/%A_%a.out \
    --dependency="afterok:$j28_world" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" world 1 0)
# world-weights: freeze what is there, then 1 tasks at most
j30_world_weights=$(job world-weights barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/world-weights-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "world-weights", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/world-weights/barrier-%j.out \
    --dependency="afterany:$j29_world" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" world-weights 1 barrier)
j31_world_weights=$(job world-weights map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/world-weights \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "world-weights", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/world-weights/%A_%a.out \
    --dependency="afterok:$j30_world_weights" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" world-weights 1 0)
# videos: freeze what is there, then 50 tasks at most
j32_videos=$(job videos barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/videos-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/videos/barrier-%j.out \
    --dependency="afterany:$j31_world_weights:$j29_world:$j23_vae:$j5_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 barrier)
j33_videos=$(job videos map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/videos \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/videos/%A_%a.out \
    --dependency="afterok:$j32_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 0)
# scores-measure: freeze what is there, then 50 tasks at most
j34_scores_measure=$(job scores-measure barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/scores-measure-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "scores-measure", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/scores-measure/barrier-%j.out \
    --dependency="afterany:$j33_videos:$j5_data" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores-measure 1 barrier)
j35_scores_measure=$(job scores-measure map 0 50 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/scores-measure \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "scores-measure", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-49 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/scores-measure/%A_%a.out \
    --dependency="afterok:$j34_scores_measure" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores-measure 1 0)
# scores: freeze what is there, then 24 tasks at most
j36_scores=$(job scores barrier 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/scores-barrier \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "scores", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/scores/barrier-%j.out \
    --dependency="afterany:$j35_scores_measure" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores 1 barrier)
j37_scores=$(job scores map 0 24 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=pipeline-tiny-HASH/scores \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "scores", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --signal=B:USR2@120 \
    --array=0-23 \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/scores/%A_%a.out \
    --dependency="afterok:$j36_scores" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j38_report=$(job report report 0 1 \
    --partition=cpu \
    --job-name=pipeline-tiny-HASH/report \
    '--comment={"hpc": "1", "run": "pipeline-tiny-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/pipeline-tiny-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/pipeline-tiny-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_clips:$j1_captions:$j2_data_members:$j3_data_members:$j4_data:$j5_data:$j6_ids:$j7_ids:$j8_tokens_ids:$j9_tokens_ids:$j10_tokens:$j11_tokens:$j12_ar:$j13_ar:$j14_weights:$j15_weights:$j16_ar_videos:$j17_ar_videos:$j18_ar_scores_measure:$j19_ar_scores_measure:$j20_ar_scores:$j21_ar_scores:$j22_vae:$j23_vae:$j24_latents_encode:$j25_latents_encode:$j26_latents:$j27_latents:$j28_world:$j29_world:$j30_world_weights:$j31_world_weights:$j32_videos:$j33_videos:$j34_scores_measure:$j35_scores_measure:$j36_scores:$j37_scores" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 39 jobs of pipeline-tiny-HASH, attempt 1; the report is job $j38_report"
