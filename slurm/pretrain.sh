#!/usr/bin/env bash
# Pretrains. On a cluster, from the project's root folder:
#     sbatch slurm/pretrain.sh [CONFIG] [a.b=c ...]           (no CONFIG: configs/pretrain/default.yaml)
#     sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 slurm/pretrain.sh CONFIG
# One task per GPU: give --ntasks-per-node and --gpus-per-node the same number. Without Slurm, as one process:
#     bash slurm/pretrain.sh [CONFIG] [a.b=c ...]
# Five minutes before the time limit, and when preempted, the run saves and the job goes back into the queue.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# under sbatch this file is a copy in a spool folder, without its neighbours
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[[ -f $here/common.sh ]] || { echo "pretrain: error: submit from the project's root folder: sbatch slurm/pretrain.sh" >&2; exit 2; }
# shellcheck source=common.sh
source "$here/common.sh" pretrain

train "${TRAIN_ENTRY:-training/pretrain.py}" "$@"
