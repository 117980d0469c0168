#!/usr/bin/env bash
# Turns archives of scenes into training shards. On a cluster, from the project's root folder:
#     sbatch slurm/shard.sh [CONFIG] [a.b=c ...]              (no CONFIG: configs/shard/default.yaml)
#     sbatch --cpus-per-task=32 --mem=64G slurm/shard.sh CONFIG scenes=/path/to/archive
# One task on one node; more CPUs decode more scenes at once. Without Slurm:
#     bash slurm/shard.sh [CONFIG] [a.b=c ...]
# The work goes on where it stopped when the same command is given again, and after a node failure by itself.
#SBATCH --job-name=shard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append

# under sbatch this file is a copy in a spool folder, without its neighbours
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[[ -f $here/common.sh ]] || { echo "shard: error: submit from the project's root folder: sbatch slurm/shard.sh" >&2; exit 2; }
# shellcheck source=common.sh
source "$here/common.sh" shard

run_on_tasks --ntasks=1 -- "$PYTHON" "${SHARD_ENTRY:-preprocessing/shard.py}" "$@"
