#!/usr/bin/env bash
# All tests, on a fresh Debian or Ubuntu machine or container: installs what they need, starts a real Slurm, runs ruff,
# mypy and pytest (shellcheck is one of its tests), and leaves nothing running.
#
# Usage: bash tests/run.sh [--long] [pytest arguments...]      needs root, apt-get and Python 3.11 or later
#
# --long           also the tests marked `long`, and 90 minutes for all of them instead of 80
# HPC_TEST_VENV    the virtual environment to make and use (default: in TMPDIR, one for each pyproject.toml)
# HPC_TORCH_INDEX  a package index to take torch from, e.g. one that has CPU builds only
#
# Without root, or on a machine that shall keep its packages: `pip install -e '.[curate,curate-models,train,evaluate,test]' && pytest` runs all but
# the Slurm tests. (The packages' services of Slurm and MariaDB are not started, but enabled for the next boot.)
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # where a machine sets it, each of thousands of processes would compile what it imports

minutes=80
if [[ ${1:-} == --long ]]; then
  shift
  minutes=90
  export HPC_LONG=1
fi

die() {
  echo "tests/run.sh: $*" >&2
  exit 1
}

now() { echo $((${EPOCHREALTIME/./} / 100000)); } # in tenths of a second

begin() { # WHAT: what goes to $log from here on is shown only if the script fails before `end`
  what=$1 begun=$(now)
  : >"$log"
}

end() {
  local tenths=$(($(now) - begun))
  printf '%5d.%d s  %s\n' $((tenths / 10)) $((tenths % 10)) "$what"
  : >"$log"
}

packages() { # Debian's packages that are missing; none of their daemons is started
  local missing=() name
  local wanted=(slurmctld slurmd slurmdbd slurm-client slurm-wlm-basic-plugins slurm-wlm-mysql-plugin munge
    mariadb-server ffmpeg chromium prometheus git squashfs-tools busybox-static docker-registry)
  python3 -c 'import ensurepip' || wanted+=(python3-venv)
  for name in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f '${Status}' "$name") == *"ok installed" ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then # the packages' scripts ask this file before they start a service
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

environment() { # everything is installed once for each pyproject.toml; later runs only point it at this checkout
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
  if [[ -e $venv/complete ]]; then
    "${pip[@]}" install --no-deps --no-build-isolation --editable .
    return
  fi
  # what earlier versions of pyproject.toml left: 1.7 GB each
  find "${TMPDIR:-/tmp}" -maxdepth 1 -name "hpc-test-venv-$(id -u)-*.lock" -mtime +0 | while read -r old; do
    rm -rf "${old%.lock}" "$old"
  done
  python3 -m venv --clear "$venv"
  # torch by itself and first: an index may have it for CPUs, or not have the rest
  "${pip[@]}" install ${HPC_TORCH_INDEX:+--index-url "$HPC_TORCH_INDEX"} "$(grep -o 'torch>=[^"]*' pyproject.toml)"
  "${pip[@]}" install 'setuptools>=77' --editable '.[curate,curate-models,train,evaluate,test]'
  touch "$venv/complete"
}

# shellcheck disable=SC2317,SC2329  # it is the trap that runs it
finish() { # however the script ends; silent if all is well, so that pytest has the last word
  local status=$? pid one
  trap - EXIT INT TERM
  if ((status)) && [[ -s $log ]]; then
    cat "$log"
    echo "tests/run.sh: $what: failed"
  fi
  [[ -z $policy ]] || rm -f "$policy"
  for one in "${tests[@]}"; do
    if kill -INT "$one" 2>/dev/null; then wait "$one" || true; fi
  done
  for one in "${clusters[@]}"; do
    CLUSTER_STATE=$one tests/cluster/cluster.sh wipe >"$log" 2>&1 || { cat "$log" && status=1; }
  done
  while IFS=/ read -r _ _ pid _; do
    echo "tests/run.sh: left running by the tests, ended now: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline")"
    kill -9 "$pid" || true
    status=1
  done < <(grep -lxz "HPC_TEST_RUN=$work" /proc/[0-9]*/environ 2>/dev/null)
  rm -rf --one-file-system "$work"
  exit "$status"
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 is $(python3 -V), needed is 3.11 or later"
work=$(mktemp -d "${TMPDIR:-/tmp}/hpc-test.XXXXXX")
chmod 755 "$work" # jobs of other users read Slurm's configuration
log=$work/log policy="" tests=() clusters=()
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

marks=("HPC_TEST_RUN=$work") # in the environment of all that is started for the tests; `finish` looks for it
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
  begin "packages"
  packages >"$log" 2>&1 </dev/null
  end
  marks+=(HPC_TEST_REQUIRE_SLURM=1)
  clusters=("$work/slurm")
  (($#)) || clusters+=("$work/slurm2") # for the tests of all: half of those on Slurm have one of their own
else
  [[ ${CI:-} != true ]] || die "with CI=true the Slurm tests must run, and they need root and apt-get"
  echo "tests/run.sh: the Slurm tests will be skipped: they need root and apt-get"
fi

venv=${HPC_TEST_VENV:-${TMPDIR:-/tmp}/hpc-test-venv-$(id -u)-$({ python3 -V && cat pyproject.toml; } | sha256sum | head -c 12)}
exec 9>"$venv.lock"
touch "$venv.lock" # in use today
flock --nonblock 9 || { echo "tests/run.sh: waiting for another run to end, which uses $venv too" && flock 9; }
begin "virtual environment $venv"
environment >"$log" 2>&1 </dev/null
"$venv/bin/python" -m compileall -q -j 2 hpc kernels tests >"$log" 2>&1 </dev/null
end
PATH=$venv/bin:$PATH

if ((${#clusters[@]})); then
  begin "cluster"
  for one in "${clusters[@]}"; do
    env "${marks[@]}" CLUSTER_STATE="$one" tests/cluster/cluster.sh up >>"$log" 2>&1 9>&-
  done
  end
fi

deadline=$((SECONDS + minutes * 60)) status=0
begin "ruff"
ruff check --quiet . || { status=1 && what="ruff: failed"; }
end
# beside the tests: a core would have nothing to do meanwhile; what it finds is said at the end
mypy --no-error-summary </dev/null >"$work/mypy" 2>&1 9>&- &
tests=("$!")
# In the background, or a signal to this script would wait for the end of the tests; background jobs ignore SIGINT, but
# at the deadline pytest shall get one and say where it was. -v takes back the -q of pyproject.toml.
run_tests() { # CLUSTER or "", and pytest's arguments
  local slurm=()
  [[ -z $1 ]] || slurm=("HPC_TEST_CLUSTER=$1" "SLURM_CONF=$1/etc/slurm.conf")
  shift
  env --default-signal=INT "${marks[@]}" "${slurm[@]}" \
    timeout --foreground --signal=INT --kill-after=60 $((deadline - SECONDS)) \
    pytest -v -rfEs --durations=15 --color=no "$@" </dev/null 9>&- &
  tests+=("$!")
}
if (($# || ${#clusters[@]} == 0)); then
  run_tests "${clusters[0]:-}" "$@"
else # those on Slurm mostly wait, and say their part later; two processes take the others meanwhile, file by file
  ranks_on_slurm=(tests/cluster/test_{containers,pipeline,train}*.py tests/test_quickstart.py)
  run_tests "${clusters[0]}" "${ranks_on_slurm[@]}" >"$work/ranks_on_slurm" 2>&1
  run_tests "${clusters[1]}" tests/cluster "${ranks_on_slurm[@]/#/--ignore=}" >"$work/on_slurm" 2>&1
  run_tests "" --numprocesses=2 --dist=loadfile --ignore=tests/cluster "${ranks_on_slurm[@]/#/--ignore=}"
fi
for one in "${tests[@]}"; do
  wait "$one" || { code=$? && status=$code; }
done
[[ ! -e $work/on_slurm ]] || cat "$work"/{ranks_on_slurm,on_slurm}
sed 's/^/mypy: /' "$work/mypy"
tests=()
exit "$status"
