#!/usr/bin/env bash
# Compares the runs of an output folder. On a cluster, from the project's root folder:
#     sbatch slurm/compare.sh [--output runs] ...             (what training/compare.py takes)
# Without Slurm:
#     bash slurm/compare.sh [--output runs] ...
#SBATCH --job-name=compare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append

# under sbatch this file is a copy in a spool folder, without its neighbours
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[[ -f $here/common.sh ]] || { echo "compare: error: submit from the project's root folder: sbatch slurm/compare.sh" >&2; exit 2; }
# shellcheck source=common.sh
source "$here/common.sh" compare

ask "${COMPARE_ENTRY:-training/compare.py}" "$@"
