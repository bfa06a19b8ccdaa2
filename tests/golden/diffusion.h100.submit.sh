#!/usr/bin/env bash
# Attempt 1 of run diffusion-HASH: exactly what `hpc submit` does. Reading this file is the dry run; running it submits.
# shellcheck disable=SC2016,SC2054,SC1003 # values stand in single quotes so that nothing in them is expanded
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

run=/TMP/runs/diffusion-HASH
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
    PYTHONPATH=/TMP/runs/diffusion-HASH/attempt-1/code
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
    --mem=8192M \
    --cpus-per-task=4 \
    --gres=gpu:h100:1 \
    --job-name=diffusion-HASH/clips \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "clips", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/diffusion-HASH/logs/clips/%A_%a.out \
    "$scripts"/array.sbatch "$run" clips 1 0)
j1_captions=$(job captions map 0 41 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=diffusion-HASH/captions \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "captions", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-40 \
    --output=/TMP/runs/diffusion-HASH/logs/captions/%A_%a.out \
    --dependency="aftercorr:$j0_clips" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" captions 1 0)
# dataset-members: freeze what is there, then 2 tasks at most
j2_dataset_members=$(job dataset-members barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/dataset-members-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "dataset-members", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/dataset-members/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_captions" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset-members 1 barrier)
j3_dataset_members=$(job dataset-members map 0 2 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=diffusion-HASH/dataset-members \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "dataset-members", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-1 \
    --output=/TMP/runs/diffusion-HASH/logs/dataset-members/%A_%a.out \
    --dependency="afterok:$j2_dataset_members" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset-members 1 0)
# dataset: freeze what is there, then 8 tasks at most
j4_dataset=$(job dataset barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/dataset-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "dataset", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/dataset/barrier-%j.out \
    --dependency="afterany:$j0_clips:$j1_captions:$j3_dataset_members" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset 1 barrier)
j5_dataset=$(job dataset map 0 8 \
    --partition=cpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=4096M \
    --cpus-per-task=2 \
    --job-name=diffusion-HASH/dataset \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "dataset", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/diffusion-HASH/logs/dataset/%A_%a.out \
    --dependency="afterok:$j4_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" dataset 1 0)
j6_latents_encode=$(job latents-encode map 0 8 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=diffusion-HASH/latents-encode \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "latents-encode", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/diffusion-HASH/logs/latents-encode/%A_%a.out \
    --dependency="aftercorr:$j5_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents-encode 1 0)
# latents: freeze what is there, then 1 tasks at most
j7_latents=$(job latents barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/latents-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "latents", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/latents/barrier-%j.out \
    --dependency="afterany:$j5_dataset:$j6_latents_encode" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents 1 barrier)
j8_latents=$(job latents map 0 1 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=8 \
    --job-name=diffusion-HASH/latents \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "latents", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/diffusion-HASH/logs/latents/%A_%a.out \
    --dependency="afterok:$j7_latents" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" latents 1 0)
# world: freeze what is there, then 1 tasks at most
j9_world=$(job world barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/world-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "world", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/world/barrier-%j.out \
    --dependency="afterany:$j8_latents" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" world 1 barrier)
j10_world=$(job world map 0 1 \
    --partition=gpu \
    --time=480 \
    --nodes=1 \
    --ntasks=8 \
    --ntasks-per-node=8 \
    --mem=8192000M \
    --cpus-per-task=12 \
    --gres=gpu:h100:8 \
    --job-name=diffusion-HASH/world \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "world", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-0 \
    --output=/TMP/runs/diffusion-HASH/logs/world/%A_%a.out \
    --dependency="afterok:$j9_world" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" world 1 0)
# videos: freeze what is there, then 16 tasks at most
j11_videos=$(job videos barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/videos-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/videos/barrier-%j.out \
    --dependency="afterany:$j10_world:$j5_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 barrier)
j12_videos=$(job videos map 0 16 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=65536M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=diffusion-HASH/videos \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "videos", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-15 \
    --output=/TMP/runs/diffusion-HASH/logs/videos/%A_%a.out \
    --dependency="afterok:$j11_videos" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" videos 1 0)
# scores-measure: freeze what is there, then 8 tasks at most
j13_scores_measure=$(job scores-measure barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/scores-measure-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "scores-measure", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/scores-measure/barrier-%j.out \
    --dependency="afterany:$j12_videos:$j5_dataset" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores-measure 1 barrier)
j14_scores_measure=$(job scores-measure map 0 8 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=8 \
    --gres=gpu:h100:1 \
    --job-name=diffusion-HASH/scores-measure \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "scores-measure", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-7 \
    --output=/TMP/runs/diffusion-HASH/logs/scores-measure/%A_%a.out \
    --dependency="afterok:$j13_scores_measure" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores-measure 1 0)
# scores: freeze what is there, then 24 tasks at most
j15_scores=$(job scores barrier 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/scores-barrier \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "scores", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=4096M \
    --output=/TMP/runs/diffusion-HASH/logs/scores/barrier-%j.out \
    --dependency="afterany:$j14_scores_measure" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores 1 barrier)
j16_scores=$(job scores map 0 24 \
    --partition=gpu \
    --time=240 \
    --nodes=1 \
    --ntasks=1 \
    --mem=32768M \
    --cpus-per-task=8 \
    --job-name=diffusion-HASH/scores \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "scores", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --signal=B:USR2@120 \
    --array=0-23 \
    --output=/TMP/runs/diffusion-HASH/logs/scores/%A_%a.out \
    --dependency="afterok:$j15_scores" \
    --kill-on-invalid-dep=yes \
    "$scripts"/array.sbatch "$run" scores 1 0)
# when all of it has ended, however: the report, and unattended retries if the spec allows any
j17_report=$(job report report 0 1 \
    --partition=cpu \
    --job-name=diffusion-HASH/report \
    '--comment={"hpc": "1", "run": "diffusion-HASH", "stage": "report", "attempt": 1, "spec": "HASH"}' \
    --requeue \
    --open-mode=append \
    --export=ALL \
    --chdir=/TMP/runs/diffusion-HASH \
    --time=60 \
    --nodes=1 \
    --ntasks=1 \
    --cpus-per-task=1 \
    --mem=2048M \
    --output=/TMP/runs/diffusion-HASH/logs/report/%j.out \
    --dependency="afterany:$j0_clips:$j1_captions:$j2_dataset_members:$j3_dataset_members:$j4_dataset:$j5_dataset:$j6_latents_encode:$j7_latents:$j8_latents:$j9_world:$j10_world:$j11_videos:$j12_videos:$j13_scores_measure:$j14_scores_measure:$j15_scores:$j16_scores" \
    --kill-on-invalid-dep=yes \
    "$scripts"/report.sbatch "$run" 1)
echo "submitted 18 jobs of diffusion-HASH, attempt 1; the report is job $j17_report"
