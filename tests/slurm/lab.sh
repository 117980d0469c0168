#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine alone: one controller and two virtual nodes on the loopback address.
#     lab.sh start       writes everything under LAB_DIR and waits until the nodes are idle
#     lab.sh stop        ends the daemons and whatever the jobs left running, and removes LAB_DIR
#     lab.sh kill-node node2 | start-node node2      as if that machine lost its power, and came back
# Afterwards SLURM_CONF=$LAB_DIR/slurm.conf makes sbatch, srun and squeue talk to it. Needs no root, systemd,
# cgroups, accounting daemon or change in /etc; no sacct therefore: ask `scontrol show job`.
#     LAB_DIR=/tmp/slurm-lab   short, it holds unix sockets
#     LAB_PORT=17900           the first of three TCP ports
set -euo pipefail

LAB_DIR=${LAB_DIR:-/tmp/slurm-lab}
LAB_PORT=${LAB_PORT:-17900}
NODES=(node1 node2)
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$LAB_DIR/slurm.conf

die() { echo "lab: error: $*" >&2; exit 1; }

write_configuration() {
    local host user i
    host=$(hostname -s) user=$(id -un)
    {
        cat <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$LAB_PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# also what a requeued job waits for, 120 s by default and at least 5
AuthInfo=socket=$LAB_DIR/munge.socket,cred_expire=5
StateSaveLocation=$LAB_DIR/state
SlurmdSpoolDir=$LAB_DIR/spool/%n
SlurmctldPidFile=$LAB_DIR/pid/slurmctld
SlurmdPidFile=$LAB_DIR/pid/%n
SlurmctldLogFile=$LAB_DIR/log/slurmctld
SlurmdLogFile=$LAB_DIR/log/%n
# plain processes: works in containers that lend no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
# nodes may claim more than this machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
# short clocks: tests of failures should not take minutes
SlurmdTimeout=8
SlurmctldTimeout=8
KillWait=5
WaitTime=0
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
# a job in the partition "urgent" throws one in "normal" off its nodes: TERM, the grace time, KILL, queued again
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=normal Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 GraceTime=10
PartitionName=abrupt Nodes=ALL DefaultTime=10 PriorityTier=1 GraceTime=0
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=2
CONF
        for i in "${!NODES[@]}"; do
            echo "NodeName=${NODES[i]} NodeHostname=$host NodeAddr=127.0.0.1 Port=$((LAB_PORT + 1 + i)) CPUs=4 RealMemory=4096"
        done
    } >"$SLURM_CONF"
}

start_node() { slurmd -N "$1" -f "$SLURM_CONF" -c; }

idle_nodes() { sinfo --noheader --partition=normal --states=idle --format=%D 2>/dev/null | head -n 1; }

start() {
    local program node
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null ||
            die "$program not found: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
    done
    [[ ! -e $LAB_DIR/slurm.conf ]] || die "$LAB_DIR is in use: lab.sh stop"
    mkdir -p "$LAB_DIR"/{state,pid,log}
    for node in "${NODES[@]}"; do mkdir -p "$LAB_DIR/spool/$node"; done
    write_configuration
    (umask 077 && head -c 128 /dev/urandom >"$LAB_DIR/munge.key")
    munged --force --key-file="$LAB_DIR/munge.key" --socket="$LAB_DIR/munge.socket" --pid-file="$LAB_DIR/pid/munged" \
        --log-file="$LAB_DIR/log/munged" --seed-file="$LAB_DIR/munge.seed" 2>/dev/null || die "munged: see $LAB_DIR/log/munged"
    slurmctld -f "$SLURM_CONF" -c -i 2>/dev/null || die "slurmctld: see $LAB_DIR/log/slurmctld"
    for node in "${NODES[@]}"; do start_node "$node" || die "slurmd: see $LAB_DIR/log/$node"; done
    for _ in {1..100}; do
        [[ $(idle_nodes) != "${#NODES[@]}" ]] || return 0
        sleep 0.2
    done
    sinfo --Node --long >&2 || true
    die "the nodes did not become idle: see $LAB_DIR/log"
}

# Prints the processes of this lab's jobs [on one node]: they carry its SLURM_CONF and their node in the environment.
job_processes() {
    local file variables
    for file in /proc/[0-9]*/environ; do
        variables=$({ tr "\0" "\n" <"$file"; } 2>/dev/null) || continue
        grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$variables" || continue
        grep -qE "^SLURMD_NODENAME=${1:-}" <<<"$variables" || continue
        file=${file#/proc/}
        echo "${file%/environ}"
    done
}

# Prints the step daemons that the given processes were started by.
step_daemons() {
    local pid parent
    for pid in "$@"; do
        parent=$(awk '/^PPid/ {print $2}' "/proc/$pid/status" 2>/dev/null) || continue
        [[ $(cat "/proc/$parent/comm" 2>/dev/null) != slurmstepd ]] || echo "$parent"
    done | sort -u
}

# kill_all SIGNAL [PID ...]: some of them may be gone already.
kill_all() { local signal=$1; shift; (($# == 0)) || kill "-$signal" "$@" 2>/dev/null || true; }

kill_node() {
    local tasks steps
    kill_all KILL "$(<"$LAB_DIR/pid/$1")"
    mapfile -t tasks < <(job_processes "$1")
    mapfile -t steps < <(step_daemons "${tasks[@]}")
    kill_all KILL "${steps[@]}" "${tasks[@]}"
    rm -f "$LAB_DIR/pid/$1"
}

stop() {
    local daemons tasks pid
    [[ -d $LAB_DIR ]] || return 0
    mapfile -t daemons < <(grep -hoE '[0-9]+' "$LAB_DIR"/pid/* 2>/dev/null)
    mapfile -t tasks < <(job_processes)
    kill_all KILL "${tasks[@]}"
    kill_all TERM "${daemons[@]}"
    for _ in {1..30}; do
        for pid in "${daemons[@]}"; do ! kill -0 "$pid" 2>/dev/null || { sleep 0.1; continue 2; }; done
        break
    done
    kill_all KILL "${daemons[@]}"
    rm -rf "$LAB_DIR"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    kill-node) kill_node "$2" ;;
    start-node) start_node "$2" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
