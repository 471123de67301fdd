#!/usr/bin/env bash
# A real SLURM of several nodes on one Debian or Ubuntu host, for tests. Needs root.
#   scripts/slurm_local.sh install      apt packages that are missing; starts no service
#   scripts/slurm_local.sh up [NODES]   start the cluster, or what has died of it, and wait until it is idle (4 nodes)
#   scripts/slurm_local.sh status       daemons, nodes and jobs; exit code 0 when all is up
#   scripts/slurm_local.sh env          the line that makes a shell use it: eval "$(scripts/slurm_local.sh env)"
#   scripts/slurm_local.sh down         cancel all jobs, stop everything, keep the logs
#
# Every node is a slurmd in a hostname and mount namespace of its own (node1, node2, ...). Partitions: main, and low,
# whose jobs those of high preempt and requeue. All ports listen on 127.0.0.1, nothing outside the folder is written,
# and only SLURM_CONF leads to it, so that it can stand beside another SLURM. Settings, from the environment:
FOLDER=${ISOLOSS_SLURM:-${TMPDIR:-/tmp}/isoloss-slurm}  # configuration, state, logs, pid files
PORT=${ISOLOSS_SLURM_PORT:-18000}                       # the first port; the last one is 1,000 above
CPUS=${ISOLOSS_SLURM_CPUS:-2}                           # of a node, whatever the host has
GPUS=${ISOLOSS_SLURM_GPUS:-2}                           # of a node; their device files are those of /dev/null
ARRAY=${ISOLOSS_SLURM_ARRAY:-1001}                      # MaxArraySize

set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
CONF=$FOLDER/slurm.conf
RUN=$FOLDER/run
LOG=$FOLDER/log
PACKAGES=(munge slurm-client slurmctld slurmd slurmdbd mariadb-server-core)

fail() {
  echo "slurm_local.sh: $*" >&2
  exit 1
}

install() {
  local policy=/usr/sbin/policy-rc.d missing=() name
  for name in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q ' installed$' || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  if [ ! -e $policy ]; then  # forbids starting services with a configuration that is not there yet
    trap "rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
  fi
  local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}")
  "${get[@]}" >/dev/null 2>&1 || { apt-get -qq update && "${get[@]}" >/dev/null; }
}

# A daemon is a pid file and a process that carries this folder in its environment, so that a number that was given
# to another process since is not taken for it. SLURM's own children inherit the mark, jobs do not.
marked() { grep -qzxF "ISOLOSS_SLURM_DAEMON=$FOLDER" "/proc/$1/environ" 2>/dev/null; }

alive() {
  local pid
  pid=$(cat "$RUN/$1.pid" 2>/dev/null) && marked "$pid"
}

start() {  # NAME HOSTNAME COMMAND...: unless it runs; in namespaces where HOSTNAME is its name and can be looked up
  local name=$1 host=$2
  shift 2
  alive "$name" && return
  ISOLOSS_SLURM_DAEMON=$FOLDER SLURM_CONF=$CONF setsid unshare --uts --mount --propagation slave sh -c '
    hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"' - "$host" "$FOLDER/hosts" "$@" \
    </dev/null >>"$LOG/$name.out" 2>&1 &
  echo $! >"$RUN/$name.pid"
}

stop() {  # NAME: ask it to end, and kill it after 10 s
  local pid tenths=100
  if alive "$1"; then
    pid=$(cat "$RUN/$1.pid")
    kill "$pid"
    while marked "$pid" && ((tenths-- > 0)); do sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  fi
  rm -f "$RUN/$1.pid"
}

wait_for() {  # WHAT COMMAND...
  local what=$1 deadline=$((SECONDS + 60))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "$what: not within a minute; see $LOG"
    sleep 0.1
  done
}

configure() {  # NODES
  local i
  mkdir -p "$RUN" "$LOG" "$FOLDER"/{state,spool,database,devices}
  chmod 755 "$FOLDER" "$RUN"
  (umask 077 && head -c 1024 /dev/urandom >"$FOLDER/munge.key")
  { cat /etc/hosts; echo "127.0.0.1 head" $(seq -f 'node%g' "$1"); } >"$FOLDER/hosts"
  for ((i = 0; i < GPUS; i++)); do mknod -m 666 "$FOLDER/devices/gpu$i" c 1 3; done
  cat >"$FOLDER/gres.conf" <<END
NodeName=node[1-$1] Name=gpu File=$FOLDER/devices/gpu[0-$((GPUS - 1))]
END
  (umask 077 && cat >"$FOLDER/slurmdbd.conf") <<END
DbdHost=head
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$RUN/munge
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm
LogFile=$LOG/slurmdbd.log
PidFile=$RUN/slurmdbd.own
END
  cat >"$CONF" <<END
ClusterName=isoloss
SlurmctldHost=head(127.0.0.1)
SlurmctldPort=$PORT
SrunPortRange=$((PORT + 500))-$((PORT + 1000))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its last start has expired.
AuthInfo=socket=$RUN/munge,cred_expire=8
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$RUN/slurmctld.own
SlurmdPidFile=$RUN/slurmd.%n.own
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd.%n.log
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$RUN/munge
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
# No cgroups; nodes may claim more than the host has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
GresTypes=gpu
MaxArraySize=$ARRAY
# A folder of an earlier cluster's job is never taken for a new one's.
FirstJobId=$(($(date +%s) % 1000000 * 50 + 1))
# Whatever waits on a real cluster for minutes waits here for seconds.
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
SlurmdTimeout=15
KillWait=10
CompleteWait=0
MinJobAge=60
ReturnToService=1
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=60
PartitionName=main PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high PriorityTier=100 PreemptMode=OFF
END
  for ((i = 1; i <= $1; i++)); do
    echo "NodeName=node$i NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=$CPUS RealMemory=64000 Gres=gpu:$GPUS" >>"$CONF"
  done
  echo "$1" >"$FOLDER/nodes"
}

nodes_are() {  # STATE...: all nodes, by their short states
  local states
  states=$(sinfo -hN -p main -o %t | sort -u) && [ -n "$states" ] &&
    ! grep -qvxE "$(IFS='|'; echo "$*")" <<<"$states"
}

up() {
  local nodes left i
  [ "$(id -u)" = 0 ] || fail "needs root"
  unshare --uts --mount true 2>/dev/null || fail "this host does not permit namespaces (unshare --uts --mount)"
  type -P slurmctld slurmdbd munged mariadbd >/dev/null || fail "SLURM is not installed; run: $0 install"
  export SLURM_CONF=$CONF
  [ -e "$FOLDER/nodes" ] || configure "${1:-4}"
  nodes=$(cat "$FOLDER/nodes")
  [ "${1:-$nodes}" = "$nodes" ] || fail "is up with $nodes nodes; first: $0 down"
  start munged head munged --foreground --force --key-file="$FOLDER/munge.key" --socket="$RUN/munge" \
    --pid-file="$RUN/munged.own" --log-file="$LOG/munged.log" --seed-file="$FOLDER/munge.seed"
  start mariadbd head mariadbd --no-defaults --user=root --skip-networking --skip-grant-tables \
    --datadir="$FOLDER/database" --socket="$RUN/mariadb" --pid-file="$RUN/mariadbd.own" \
    --innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
  wait_for munged munge --socket="$RUN/munge" --no-input
  wait_for mariadbd test -S "$RUN/mariadb"
  start slurmdbd head env MYSQL_UNIX_PORT="$RUN/mariadb" slurmdbd -D
  wait_for slurmdbd sacctmgr -n list cluster
  sacctmgr -i add cluster isoloss >/dev/null 2>&1 || true  # known since an earlier start
  start slurmctld head slurmctld -D
  wait_for slurmctld scontrol ping
  for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$FOLDER/spool/node$i"
    start "node$i" "node$i" slurmd -D -N "node$i"
  done
  wait_for "nodes" nodes_are idle alloc mix comp drain drng down
  left=$(sinfo -hN -p main -t down,drain -o %N | sort -u | paste -sd,)
  [ -z "$left" ] || scontrol update nodename="$left" state=resume
  wait_for "nodes" nodes_are idle alloc mix
}

down() {
  local name pid
  [ -d "$FOLDER" ] || return 0
  if alive slurmctld; then
    export SLURM_CONF=$CONF
    squeue -h -o %A | sort -u | xargs -r scancel -Q || true
    for _ in $(seq 50); do [ -n "$(squeue -h)" ] || break; sleep 0.1; done
  fi
  for name in $(cd "$RUN" && ls | sed -n 's/^\(node.*\)\.pid$/\1/p') slurmctld slurmdbd mariadbd munged; do
    stop "$name"
  done
  for pid in $(cd /proc && echo [0-9]*); do  # steps that outlived their slurmd, and what they run
    if marked "$pid" || { grep -qzxF "SLURM_CONF=$CONF" "/proc/$pid/environ" &&
      grep -qz '^SLURM_JOB_ID=' "/proc/$pid/environ"; } 2>/dev/null; then
      kill -9 "$pid" 2>/dev/null || true
    fi
  done
  rm -rf "$FOLDER"/{nodes,state,spool,database,devices,run,hosts,munge.*,*.conf}
}

status() {
  local name code=0
  [ -e "$FOLDER/nodes" ] || fail "is down"
  for name in munged mariadbd slurmdbd slurmctld $(seq -f 'node%g' "$(cat "$FOLDER/nodes")"); do
    if alive "$name"; then echo "$name up, process $(cat "$RUN/$name.pid")"; else echo "$name down" && code=1; fi
  done
  export SLURM_CONF=$CONF
  if alive slurmctld; then sinfo && squeue; fi
  return $code
}

case ${1:-} in
  install | down | status) "$1" ;;
  up) up "${2:-}" ;;
  env) echo "export SLURM_CONF=$CONF" ;;
  *) sed -n '2,7s/^# //p' "$0" && exit 2 ;;
esac
