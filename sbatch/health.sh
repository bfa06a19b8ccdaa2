#!/bin/bash
# Is this node fit for work? A line for each thing that is wrong with it; exit status 1 if there is any.
#
#   sbatch/health.sh                          by hand; hpc's jobs call it when they start
#   Prolog=/opt/hpc/sbatch/health.sh          in slurm.conf: Slurm drains a node that is not fit, and requeues the job
#   HealthCheckProgram=/opt/hpc/sbatch/health.sh   (with HealthCheckInterval=300): drains it itself, with the reason
#
# What it looks at can be set in the environment, e.g. by a script of two lines that calls this one. (SLURM_CONF must be
# set there, too, where slurm.conf is in no usual place: slurmd gives its programs no environment.)
#   HPC_HEALTH_GPUS=8            so many GPUs must answer (default: none must, but those that are there must be well)
#   HPC_HEALTH_FOLDERS=/tmp:/x   can be written to, and have room (default: $TMPDIR, else /tmp)
#   HPC_HEALTH_FREE=1024         MiB that must be free there
#   HPC_HEALTH_CLOCK=/lustre/me  a folder on a file server, whose clock must not be further away than
#   HPC_HEALTH_SKEW=10           seconds
# Root sees the kernel's log, too: errors of GPUs (Xid) of the last hour that are not a program's own.
set -euo pipefail
export PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin # slurmd gives its programs none

wrong=()
tell() { wrong+=("$*"); }

# 48 double-bit ECC, 64 and 95 memory that could not be mapped out or contained, 74 NVLink, 79 fallen off the bus,
# 119 and 120 the GPU's own firmware does not answer. Others (13, 31, 43, 45) are what programs do.
FATAL='48|64|74|79|95|119|120'

gpus() {
    local said row index ecc failed pending count=0
    if ! command -v nvidia-smi >/dev/null; then return; fi # GPUs of another make, or none
    local fields=index,ecc.errors.uncorrected.volatile.total,retired_pages.pending
    local status=0
    said=$(timeout 60 nvidia-smi --query-gpu=$fields,remapped_rows.failure --format=csv,noheader,nounits 2>&1) || status=$?
    if [ $status -ne 0 ] && grep -q 'not a valid field' <<<"$said"; then # an old driver
        status=0
        said=$(timeout 60 nvidia-smi --query-gpu=$fields --format=csv,noheader,nounits 2>&1) || status=$?
    fi
    if [ $status -eq 124 ]; then
        tell "GPU: nvidia-smi does not answer in 60 s"
        return
    elif [ $status -ne 0 ] || grep -qiE 'is lost|fallen off|unknown error|unable to determine' <<<"$said"; then
        tell "GPU: $(tr -s '\n' ' ' <<<"$said" | cut -c 1-200)"
        return
    fi
    while IFS= read -r row; do
        [ -n "$row" ] || continue
        count=$((count + 1))
        IFS=', ' read -r index ecc pending failed <<<"$row"
        if [[ $ecc =~ ^[1-9] ]]; then tell "GPU $index: $ecc uncorrected memory errors"; fi
        if [[ $pending == Yes ]]; then tell "GPU $index: memory pages wait to be retired: it must be reset"; fi
        if [[ ${failed:-} =~ ^(Yes|[1-9]) ]]; then tell "GPU $index: rows of memory could not be remapped"; fi
    done <<<"$said"
    if [ $count -lt "${HPC_HEALTH_GPUS:-0}" ]; then tell "GPU: $count answer, $HPC_HEALTH_GPUS are expected"; fi
}

kernel_log() {
    local up
    read -r up _ </proc/uptime
    while IFS= read -r line; do
        tell "GPU: the kernel says $line"
    done < <((dmesg 2>/dev/null || true) | awk -F'[][]' -v up="$up" -v fatal="$FATAL" '
        /NVRM: Xid/ && up - $2 < 3600 && match($0, /: [0-9]+,/) {
            xid = substr($0, RSTART + 2, RLENGTH - 3)
            if (xid ~ "^(" fatal ")$") print "Xid " xid ": " substr($3, 1, 160)
        }' | tail -n 3)
}

folder() { # FOLDER: there, writable, with room
    local made free inodes
    if ! made=$(timeout 30 mktemp "$1/.hpc-health-XXXXXX" 2>&1); then
        tell "$1: cannot be written to: ${made:-it does not answer in 30 s}"
        return
    fi
    rm -f "$made"
    free=$(df -Pm "$1" | awk 'NR == 2 {print $4}')
    if [ "$free" -lt "${HPC_HEALTH_FREE:-1024}" ]; then tell "$1: $free MiB free, ${HPC_HEALTH_FREE:-1024} are needed"; fi
    inodes=$(df -Pi "$1" | awk 'NR == 2 && $2 > 0 {print int(100 * $4 / $2)}')
    if [ "${inodes:-100}" -lt 2 ]; then tell "$1: $inodes % of inodes free"; fi
}

clock() { # FOLDER: the time of a file that is made there
    local made before there after
    before=$(date +%s)
    if ! made=$(timeout 30 mktemp "$1/.hpc-health-XXXXXX" 2>&1); then
        tell "$1: cannot be written to: ${made:-it does not answer in 30 s}"
        return
    fi
    there=$(stat -c %Y "$made") after=$(date +%s)
    rm -f "$made"
    local skew=$((before - there > there - after ? before - there : there - after))
    if [ $skew -gt "${HPC_HEALTH_SKEW:-10}" ]; then tell "the clock is $skew s away from that of $1"; fi
}

gpus
if [ "$(id -u)" = 0 ]; then kernel_log; fi
IFS=: read -ra folders <<<"${HPC_HEALTH_FOLDERS:-${TMPDIR:-/tmp}}"
for one in "${folders[@]}"; do folder "$one"; done
if [ -n "${HPC_HEALTH_CLOCK:-}" ]; then clock "$HPC_HEALTH_CLOCK"; fi

if [ ${#wrong[@]} -eq 0 ]; then exit 0; fi
printf '%s\n' "${wrong[@]}"
# as HealthCheckProgram: slurmd names the node, and there is no job
if [ -n "${SLURMD_NODENAME:-}" ] && [ -z "${SLURM_JOB_ID:-}" ]; then
    scontrol update nodename="$SLURMD_NODENAME" state=drain reason="hpc health: ${wrong[0]}"
elif command -v logger >/dev/null && [ "$(id -u)" = 0 ]; then
    logger -t hpc-health -- "${wrong[@]}" 2>/dev/null || true
fi
exit 1
