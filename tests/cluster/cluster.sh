#!/usr/bin/env bash
# A real Slurm on this machine, for the tests: munge, MariaDB, slurmdbd, slurmctld and four slurmd, each of which
# believes to be a machine of its own (n1..n4, 16 CPUs, 8 GPUs). Debian's packages, root, no systemd, no cgroups.
#
# Usage: eval "$(tests/cluster/cluster.sh up)"     start what is not running; prints the variables that clients need
#        tests/cluster/cluster.sh down             end it all, keep the state
#        tests/cluster/cluster.sh wipe             end it all, remove the state
#        tests/cluster/cluster.sh status           what runs; fails unless everything does
#        tests/cluster/cluster.sh node-kill n2     kill -9 that node's slurmd; its jobs' processes live on, like zombies
#        tests/cluster/cluster.sh node-up n2       start it again
#
# CLUSTER_STATE      the folder that everything lives in; two clusters with two folders don't disturb each other
# CLUSTER_PORT       the first of ten ports (at first start; found by itself when unset)
# CLUSTER_MAX_ARRAY  Slurm's MaxArraySize (at first start; default 1001, as Slurm's own)
# CLUSTER_SPANK      a line of plugstack.conf (at first start), e.g. "required /opt/pyxis/spank_pyxis.so"; what the plugin
#                    runs (enroot) must be in PATH
#
# Nothing outside the folder is changed: the nodes' names stand in a hosts file that only the nodes see. Every process
# has HPC_TEST_CLUSTER=<folder> in its environment, and is ended only by its recorded pid and if it has that mark.
set -euo pipefail

S=${CLUSTER_STATE:-/tmp/hpc-cluster-$(id -u)}
NODES=(n1 n2 n3 n4)
CPUS=16
GPUS=8
MEMORY=64000 # MB; made up, like the CPUs: nothing is bound or limited
export SLURM_CONF=$S/etc/slurm.conf HPC_TEST_CLUSTER=$S

die() {
  echo "cluster.sh: $*" >&2
  exit 1
}

# marked PID: is this process of our cluster? What a job was given as environment is enough to know it.
marked() { grep -qxz -e "HPC_TEST_CLUSTER=$S" -e "SLURM_CONF=$S/etc/slurm.conf" "/proc/$1/environ" 2>/dev/null; }

running() { # NAME
  local pid
  pid=$(cat "$S/pid/$1" 2>/dev/null) && marked "$pid"
}

start() { # NAME COMMAND...: in a session of its own, with no descriptor of the caller's but its log
  local name=$1
  shift
  running "$name" && return
  setsid "$@" </dev/null >>"$S/log/$name.out" 2>&1 3>&- 4>&- 9>&- &
  echo $! >"$S/pid/$name"
}

stop() { # NAME SECONDS: ask, wait, insist
  local pid
  if running "$1"; then
    pid=$(cat "$S/pid/$1")
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < $2 * 20; i++)); do
      marked "$pid" || break
      sleep 0.05
    done
    if marked "$pid"; then kill -9 "$pid"; fi
  fi
  rm -f "$S/pid/$1"
}

await() { # SECONDS WHAT COMMAND...
  local seconds=$1 what=$2
  shift 2
  for ((i = 0; i < seconds * 10; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  die "$what: not ready after $seconds s; its last words ($S/log):
$(tail -n 5 "$S/log/"*.out "$S/log/"*.log 2>/dev/null)"
}

client() { timeout 10 "$@"; } # a Slurm command without its controller waits for minutes

# Ten ports that nothing listens on, below those of ranks (hpc.batch.rank: 20000-32000) and of the kernel's choice.
free_ports() {
  local base port
  for _ in {1..50}; do
    base=$((10000 + RANDOM % 990 * 10))
    for ((port = base; port < base + 10; port++)); do
      grep -qi "$(printf ':%04X [0-9A-F]*:0000 0A' "$port")" /proc/net/tcp /proc/net/tcp6 2>/dev/null && continue 2
    done
    echo "$base" && return
  done
  die "no ten free ports in a row between 10000 and 19900"
}

configure() {
  local host port node gpu
  [[ -s $S/port ]] || echo "${CLUSTER_PORT:-$(free_ports)}" >"$S/port"
  port=$(cat "$S/port")
  host=$(uname -n) && host=${host%%.*}

  [[ -s $S/etc/munge.key ]] || (umask 377 && head -c 1024 /dev/urandom >"$S/etc/munge.key")
  { cat /etc/hosts && printf '127.0.0.1 %s\n' "${NODES[@]}"; } >"$S/etc/hosts"
  # Slurm takes nothing but device files for GPUs: these are /dev/null by another name
  for ((gpu = 0; gpu < GPUS; gpu++)); do
    [[ -c $S/dev/nvidia$gpu ]] || mknod -m 666 "$S/dev/nvidia$gpu" c 1 3
  done
  echo "NodeName=n[1-${#NODES[@]}] Name=gpu Type=h100 File=$S/dev/nvidia[0-$((GPUS - 1))]" >"$S/etc/gres.conf"

  # no plugin below uses cgroups, but slurmd loads this one all the same; v2 would ask for systemd, autodetect for /sys
  echo CgroupPlugin=cgroup/v1 >"$S/etc/cgroup.conf"

  printf '%s\n' "${CLUSTER_SPANK:-}" >"$S/etc/plugstack.conf"

  (umask 177 && cat >"$S/etc/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$S/run/munge
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile=$S/log/slurmdbd.log
PidFile=$S/run/slurmdbd.pid
END

  cat >"$S/etc/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$S/run/munge
PlugStackConfig=$S/etc/plugstack.conf
StateSaveLocation=$S/spool/ctld
SlurmdSpoolDir=$S/spool/%n
SlurmctldPidFile=$S/run/slurmctld.pid
SlurmdPidFile=$S/run/slurmd-%n.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
# no cgroups, no binding: the nodes are fake and overcommitted
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# quick reactions
SlurmdTimeout=12
KillWait=5
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,bf_continue,requeue_delay=1
# the site's limits: MinJobAge and MaxArraySize are Slurm's own defaults
MinJobAge=300
MaxArraySize=${CLUSTER_MAX_ARRAY:-1001}
MaxJobCount=20000
# no job of another cluster on this machine has its number, by which ranks choose the port where they meet
FirstJobId=$((port * 100))
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
# the clients of Slurm 22.05 ignore AuthInfo when they talk to slurmdbd, and look for the socket here
AccountingStoragePass=$S/run/munge
AccountingStorageTRES=gres/gpu,gres/gpu:h100
AccountingStoreFlags=job_comment,job_env,job_script
$(for node in "${NODES[@]}"; do
    echo "NodeName=$node NodeHostname=$node NodeAddr=127.0.0.1 Port=$((port + 2 + ${node#n})) CPUs=$CPUS" \
      "Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEMORY Gres=gpu:h100:$GPUS State=UNKNOWN"
  done)
PartitionName=DEFAULT Nodes=n[1-${#NODES[@]}] DefMemPerCPU=100 MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=small PriorityTier=10 PreemptMode=OFF MaxNodes=1 MaxTime=30
END
}

node_up() { # a slurmd with its own host name, which is what jobs see as theirs, and its own /etc/hosts
  # shellcheck disable=SC2016  # $1 and $2 belong to the inner shell
  start "slurmd-$1" unshare --uts --mount sh -c \
    'hostname "$1" && mount --bind "$2/etc/hosts" /etc/hosts && exec slurmd -D -N "$1" -f "$2/etc/slurm.conf"' sh "$1" "$S"
}

nodes_ready() {
  [[ $(client sinfo -h -N -p main -o %T | grep -cE '^(idle|mixed|allocated)$') == "${#NODES[@]}" ]]
}

database_up() {
  local options=(--no-defaults --user=root "--datadir=$S/mysql" --innodb-log-file-size=16M)
  local sql=(mariadb --no-defaults --user=root "--socket=$S/run/mysql")
  [[ -d $S/mysql/mysql ]] || mariadb-install-db "${options[@]}" --force --skip-test-db \
    --auth-root-authentication-method=normal >"$S/log/mariadb-install.out" 2>&1 ||
    die "mariadb-install-db failed: $(tail -n 5 "$S/log/mariadb-install.out")"
  start mariadbd mariadbd "${options[@]}" "--socket=$S/run/mysql" "--pid-file=$S/run/mariadbd.pid" \
    --bind-address=127.0.0.1 "--port=$(($(cat "$S/port") + 2))" --skip-name-resolve --performance-schema=OFF \
    --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2
  await 60 mariadbd "${sql[@]}" -e "select 1"
  "${sql[@]}" -e "create database if not exists slurm; create user if not exists slurm@'127.0.0.1' identified by 'slurm';
    grant all on slurm.* to slurm@'127.0.0.1'"
}

up() {
  local node program begun=$EPOCHREALTIME
  [[ $(id -u) == 0 ]] || die "must be root: every node needs a host name of its own (unshare --uts)"
  [[ ${#S} -le 80 ]] || die "CLUSTER_STATE=$S is too long: sockets live in it, and their paths end at 107 characters"
  PATH=$PATH:/usr/sbin:/sbin
  for program in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || die "$program is not installed: tests/run.sh installs all that is needed"
  done
  umask 022
  mkdir -p "$S"/{etc,dev,log,pid,run,spool/ctld} "${NODES[@]/#/$S/spool/}"
  if ! running slurmctld; then configure; fi
  start munged munged --foreground --force "--key-file=$S/etc/munge.key" "--socket=$S/run/munge" \
    "--pid-file=$S/run/munged.pid" "--log-file=$S/log/munged.log" "--seed-file=$S/spool/munge.seed"
  database_up
  await 20 munged munge "--socket=$S/run/munge" --no-input
  start slurmdbd slurmdbd -D
  await 30 slurmdbd client sacctmgr -n list cluster
  start slurmctld slurmctld -D
  for node in "${NODES[@]}"; do node_up "$node"; done
  await 60 "the nodes" nodes_ready
  echo "export SLURM_CONF=$SLURM_CONF HPC_TEST_CLUSTER=$S"
  echo "cluster.sh: ${#NODES[@]} nodes up in $((${EPOCHREALTIME/./} / 1000 - ${begun/./} / 1000)) ms" >&2
}

job_processes() { # the processes of this cluster's jobs, and the slurmstepd above them
  local pid
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    marked "$pid" || continue
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == slurmstepd ]] ||
      grep -qz '^SLURM_JOB_ID=' "/proc/$pid/environ" 2>/dev/null; then echo "$pid"; fi
  done
}

down() {
  local node pid
  if running slurmctld; then
    client squeue -h -o %A | sort -u | client xargs -r scancel || true
    for ((i = 0; i < 80; i++)); do
      [[ -n $(job_processes) ]] || break
      sleep 0.1
    done
  fi
  for node in "${NODES[@]}"; do stop "slurmd-$node" 10; done
  for pid in $(job_processes); do kill -9 "$pid" 2>/dev/null || true; done
  stop slurmctld 20
  stop slurmdbd 20
  stop mariadbd 30
  stop munged 10
}

status() {
  local name bad=0
  for name in munged mariadbd slurmdbd slurmctld "${NODES[@]/#/slurmd-}"; do
    if running "$name"; then echo "$name: pid $(cat "$S/pid/$name")"; else echo "$name: not running" && bad=1; fi
  done
  client sinfo || bad=1
  return "$bad"
}

node() { # NAME: is it one of ours?
  [[ " ${NODES[*]} " == *" ${1:-} "* ]] || die "${1:-nothing} given, allowed are: ${NODES[*]}"
}

case ${1:-} in
  up | down | status) "$1" ;;
  wipe) down && rm -rf --one-file-system "$S" ;;
  node-up) node "${2:-}" && PATH=$PATH:/usr/sbin:/sbin && node_up "$2" ;;
  node-kill) node "${2:-}" && running "slurmd-$2" && kill -9 "$(cat "$S/pid/slurmd-$2")" ;;
  *)
    sed -n '5,10s/^# //p' "$0" >&2
    exit 2
    ;;
esac
