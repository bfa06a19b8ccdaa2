#!/usr/bin/env bash
# What an image has beyond its base. Runs inside of it, as (fake) root: of a Dockerfile, or of sbatch/image.sbatch.
#
#   install.sh NAME SOURCE        NAME: curate or train; SOURCE: this repository
#
# Packages are those of containers/NAME.lock, each checked against its hash.
set -euo pipefail

name=$1 source=$2
if ! command -v python3 >/dev/null || ! python3 -m pip --version >/dev/null 2>&1; then
    apt-get update
    apt-get install -y --no-install-recommends python3 python3-pip python3-dev python3-venv
    rm -rf /var/lib/apt/lists/*
fi
export PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
python3 -m pip install --require-hashes --no-deps -r "$source/containers/$name.lock"
if [ -e "$source/containers/$name-built.lock" ]; then # against the torch that is there now
    NVTE_FRAMEWORK=pytorch MAX_JOBS=${MAX_JOBS:-8} \
        python3 -m pip install --require-hashes --no-deps --no-build-isolation -r "$source/containers/$name-built.lock"
fi

# The suite, laid out as a run's code snapshot, which is mounted over it.
rm -rf /opt/hpc && mkdir -p /opt/hpc
cp -r "$source/hpc" /opt/hpc/hpc
cp -r "$source/kernels" "$source/sbatch" /opt/hpc/hpc/
printf '#!/bin/sh\nPYTHONPATH=/opt/hpc exec python3 -m hpc.cli "$@"\n' >/usr/local/bin/hpc
chmod 755 /usr/local/bin/hpc
PYTHONPATH=/opt/hpc python3 -c "import hpc.batch.worker, torch, av; print('torch', torch.__version__, 'av', av.__version__)"
