#!/usr/bin/env bash
# Turns archives of scenes into training shards. On a cluster, from the project's root folder:
#     sbatch slurm/shard.sh [CONFIG] [a.b=c ...]              (no CONFIG: configs/shard/default.yaml)
#     sbatch --cpus-per-task=32 --mem=64G slurm/shard.sh CONFIG scenes=/path/to/archive
#     sbatch --nodes=4 --cpus-per-task=32 --mem=64G slurm/shard.sh CONFIG scenes=/path/to/archive
# One task a node, one worker process for each of its CPUs; more of them decode more scenes at once. On one node they
# are the entry's own; on several this script starts a Dask scheduler and its workers for the time of the job. The words
# workers=N and dask.address=tcp://host:port (or dask.scheduler_file=FILE) keep it from starting any. Dask takes work
# from whoever reaches its ports: stay on one node where you do not trust the network between them. Without Slurm:
#     bash slurm/shard.sh [CONFIG] [a.b=c ...]
# A minute before the time limit, when preempted and when a node fails the job goes back into the queue, and goes on
# where it stopped; so does the same command given again. With `sbatch --no-kill` the other nodes do a lost one's work.
#SBATCH --job-name=shard
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append

# under sbatch this file is a copy in a spool folder, without its neighbours
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[[ -f $here/common.sh ]] || { echo "shard: error: submit from the project's root folder: sbatch slurm/shard.sh" >&2; exit 2; }
# shellcheck source=common.sh
source "$here/common.sh" shard

# What a task of the workers' step does. Its nannies start a worker again that ran out of memory. USR1 is for the entry
# alone; at USR2 and TERM all end at once, for whatever they have in hand is made again.
# shellcheck disable=SC2016
WORKERS='set -m; trap "" USR1; "$@" & trap "kill -KILL -- -$! 2>/dev/null; exit 0" USR2 TERM; wait $!'
scheduler=''

# Starts a scheduler on this node and workers, one for each CPU of the job's tasks; sets `address`.
start_dask() {
    local host=(--host "$MASTER_ADDR")
    folder=$(mktemp -d)
    # Debian gives a machine's own name a loopback address, where other nodes do not reach it
    [[ $MASTER_ADDR == 127.* || $(getent hosts "$MASTER_ADDR") != 127.* ]] || host=()
    "${container_words[@]}" "$PYTHON" -m dask scheduler "${host[@]}" --port 0 --no-dashboard --scheduler-file "$folder/file" 2>"$folder/log" &
    scheduler=$!
    until address=$(sed -n 's/^ *"address": "\([^"]*\)".*/\1/p' "$folder/file" 2>/dev/null) && [[ $address ]]; do
        kill -0 "$scheduler" 2>/dev/null || die "the Dask scheduler did not start: $(tail -n 5 "$folder/log")"
        sleep 0.1
    done
    # one node's may end without the others, and with `sbatch --no-kill` a node may be lost
    srun --export=ALL --overlap --no-kill --kill-on-bad-exit=0 --wait=0 bash -c "$WORKERS" workers \
        "${container_words[@]}" "$PYTHON" -m dask worker "$address" --nworkers "$cpus" --nthreads 1 --memory-limit 0 --no-dashboard \
        --death-timeout 60 </dev/null &
    workers=$!
}

# Ends what start_dask started.
stop_dask() {
    [[ $scheduler ]] || return 0
    [[ ! -s $folder/log ]] || say "the Dask scheduler said: $(tail -n 5 "$folder/log")"
    kill -USR2 "$workers" 2>/dev/null || true
    # in a step that has not begun nobody hears it
    for _ in {1..50}; do
        kill -0 "$workers" 2>/dev/null || break
        sleep 0.1
    done
    kill "$workers" "$scheduler" 2>/dev/null || true
    wait "$workers" "$scheduler" 2>/dev/null || true
    rm -rf "$folder"
}

entry=("$PYTHON" "${SHARD_ENTRY:-preprocessing/shard.py}")
in_slurm || exec "${container_words[@]}" "${entry[@]}" "$@"

# as many processes as CPUs: one thread each
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} DASK_LOGGING__DISTRIBUTED=error
set_meeting_point
tasks=${SLURM_NTASKS:-1} cpus=${SLURM_CPUS_PER_TASK:-1} said=" $*"
if [[ $said == *" workers="* || $said == *" dask."*=* ]]; then
    words=()
elif ((tasks > 1)); then
    ((${#container_options[@]} == 0)) || die "with pyxis shard on one node, or take CONTAINER_BY=apptainer" 2
    start_dask
    # how many is for the plan alone
    words=("dask.address=$address" "workers=$((tasks * cpus))")
else
    words=("workers=$cpus")
fi
status=0
run_on_tasks --nodes=1 --ntasks=1 --overlap -- "${entry[@]}" "${words[@]}" "$@" || status=$?
stop_dask
if [[ $status == 85 ]]; then
    say "interrupted with its work kept"
    requeue
fi
exit "$status"
