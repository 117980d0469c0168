# What the scripts of this folder share: `source common.sh NAME`, NAME being who speaks.
# shellcheck shell=bash

set -euo pipefail
SELF=$1

say() { echo "$SELF: $*"; }
die() { echo "$SELF: error: $1" >&2; exit "${2:-1}"; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# modules, network interfaces, PYTHON, ... of this site; see site.env.example
# shellcheck source=/dev/null
[[ ! -f slurm/site.env ]] || source slurm/site.env

# The interpreter: what the user says, else the project's environment, else the system's or the container's.
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ${CONTAINER:-} || ! -x .venv/bin/python ]] || PYTHON=$PWD/.venv/bin/python
fi
# The container, see site.env.example: options of srun for pyxis, words before the command for apptainer.
# shellcheck disable=SC2034
container_options=() container_words=()
case ${CONTAINER:+${CONTAINER_BY:-apptainer}} in
    '') ;;
    pyxis) container_options=("--container-image=$CONTAINER" "--container-workdir=$PWD"
        "--container-mounts=$PWD:$PWD${CONTAINER_BINDS:+,$CONTAINER_BINDS}") ;;
    apptainer)
        container_words=(apptainer exec --pwd "$PWD" --bind "$PWD${CONTAINER_BINDS:+,$CONTAINER_BINDS}" "$CONTAINER")
        ((${SLURM_GPUS_ON_NODE:-0} == 0)) || container_words=(apptainer exec --nv "${container_words[@]:2}")
        command -v apptainer >/dev/null || die "apptainer not found, which CONTAINER_BY asks for (slurm/site.env)" 2 ;;
    *) die "CONTAINER_BY=$CONTAINER_BY is neither pyxis nor apptainer (slurm/site.env)" 2 ;;
esac
[[ ${CONTAINER:-} ]] || command -v "$PYTHON" >/dev/null || die "$PYTHON not found: run make setup, or set PYTHON (slurm/site.env is the place)" 2

in_slurm() { [[ -n ${SLURM_JOB_ID:-} ]]; }

# ask ENTRY WORDS ...: runs an entry once, on this node, in the container where there is one.
ask() {
    local once=()
    if ((${#container_options[@]})); then
        in_slurm || die "pyxis is a part of Slurm: submit with sbatch, or take CONTAINER_BY=apptainer" 2
        once=(srun --export=ALL --nodes=1 --ntasks=1 --overlap "${container_options[@]}")
    fi
    "${once[@]}" "${container_words[@]}" "$PYTHON" "$@"
}

# Prints an address of the job's first node that the other nodes can reach.
first_node() {
    local node address
    read -r node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    if ! getent hosts "$node" >/dev/null; then
        # virtual and cloud nodes often have names that only Slurm knows
        address=$(scontrol show node "$node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') || address=''
        node=${address:-$node}
    fi
    echo "$node"
}

# Sets what every rank must agree on. Each life of a requeued job meets on a port of its own, so that
# ranks left over from a dead node cannot join the next life.
set_meeting_point() {
    MASTER_ADDR=$(first_node)
    [[ -n $MASTER_ADDR ]] || die "Slurm does not name the first node of $SLURM_JOB_NODELIST"
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 10 + ${SLURM_RESTART_COUNT:-0}) % 12000))
    export MASTER_ADDR MASTER_PORT
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from the job by itself
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
    fi
}

# run_on_tasks [SRUN OPTIONS] -- COMMAND ...: starts COMMAND once per task with RANK, LOCAL_RANK and WORLD_SIZE set,
# passes USR1 on to the tasks, and returns their exit code. Without Slurm it becomes COMMAND itself.
run_on_tasks() {
    local options=() child status=0
    while [[ $1 != -- ]]; do options+=("$1"); shift; done
    shift
    in_slurm || exec "${container_words[@]}" "$@"
    set_meeting_point
    # exec inside: the task's process must be the one that gets srun's signals
    # shellcheck disable=SC2016
    srun --export=ALL --kill-on-bad-exit=1 "${container_options[@]}" "${options[@]}" bash -c \
        'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' task \
        "${container_words[@]}" "$@" &
    child=$!
    # passed on once: a second signal would end the tasks in the middle of their save
    trap 'trap "" USR1; kill -USR1 "$child" 2>/dev/null || true' USR1
    # where Slurm ends a job it tells the tasks itself: this shell only has to outlive them
    trap : TERM
    # a trapped signal ends `wait`, but not the child; the last `wait` has the child's own exit code
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
    wait "$child" || status=$?
    return "$status"
}

# Puts this job back into the queue, unless somebody is ending it: a requeue would undo scancel.
requeue() {
    local state job=$SLURM_JOB_ID
    # the last task of an array has the array's own number, which means all of them
    [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    state=$(squeue --noheader --jobs "$job" --format %T 2>/dev/null || true)
    if [[ $state != RUNNING ]]; then
        say "not requeued, as Slurm says this job is ${state:-gone}: submit the same command again to go on"
        return
    fi
    say "requeued: the next life goes on where this one stopped"
    scontrol requeue "$job" || say "could not requeue: submit the same command again to go on"
}

# train ENTRY [CONFIG] [a.b=c ...]: one training on all tasks of the job; without Slurm it becomes the entry itself.
# What happened is read off the run folder, not off the exit code alone: a job that was preempted, or whose
# first rank ended a moment before the others, has an exit code that says nothing about the run.
train() {
    local entry=$1 folder status=0
    shift
    in_slurm || exec "${container_words[@]}" "$PYTHON" "$entry" "$@"
    folder=$(ask "$entry" --run-folder "$@") || exit $?
    say "job $SLURM_JOB_ID, life ${SLURM_RESTART_COUNT:-0}: $SLURM_NTASKS tasks on $SLURM_JOB_NODELIST, run folder $folder"
    ((${SLURM_GPUS_ON_NODE:-0} * SLURM_NNODES <= SLURM_NTASKS)) ||
        say "warning: $SLURM_GPUS_ON_NODE GPUs a node for $SLURM_NTASKS tasks: sbatch --ntasks-per-node=$SLURM_GPUS_ON_NODE uses them all"
    rm -f "$folder/INTERRUPTED" # a former life's; from here on it would be this one's
    run_on_tasks -- "$PYTHON" "$entry" "$@" || status=$?

    if [[ $status == 0 && -e $folder/COMPLETE ]]; then
        say "complete: $folder"
    elif [[ -e $folder/INTERRUPTED ]]; then
        say "interrupted with everything saved in $folder"
        requeue
        exit 85
    elif [[ $status == 0 ]]; then
        die "$entry ended well but left neither COMPLETE nor INTERRUPTED in $folder: not taken for finished"
    else
        die "$entry ended with exit code $status: its last lines are above" "$status"
    fi
}
