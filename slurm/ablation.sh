#!/usr/bin/env bash
# Runs a study (training/study.py): each cell of rows x seeds is a task of an array of jobs, the report a job after them.
#     bash slurm/ablation.sh [--dry-run] [SBATCH OPTIONS] [STUDY.yaml] [a.b=c ...]     (default: configs/ablation/s2mae.yaml)
#     bash slurm/ablation.sh --gpus-per-node=1 --cpus-per-task=12 --time=4:00:00 configs/ablation/sigmae.yaml
# A second time it runs what is not done. --dry-run prints what would be submitted. Without Slurm, as bash or as
# `python training/study.py`, the cells run here one after the other.
#SBATCH --job-name=ablation
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# under sbatch this file is a copy in a spool folder, without its neighbours
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/common.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[[ -f $here/common.sh ]] || { echo "ablation: error: submit from the project's root folder: bash slurm/ablation.sh" >&2; exit 2; }
# shellcheck source=common.sh
source "$here/common.sh" ablation

ENTRY=${STUDY_ENTRY:-training/study.py}

# One task of the array: a cell. The words come by the command line as they were given.
if in_slurm && [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then
    status=0
    run_on_tasks -- "$PYTHON" "$ENTRY" "$@" --cell "$SLURM_ARRAY_TASK_ID" || status=$?
    [[ $status == 85 ]] || exit "$status"
    say "cell $SLURM_ARRAY_TASK_ID: interrupted with everything saved"
    requeue
    exit 85
fi
! in_slurm || { ask "$ENTRY" "$@"; exit; }

dry=''
[[ ${1:-} != --dry-run ]] || { dry=1; shift; }
options=()
while [[ ${1:-} == --* ]]; do options+=("$1"); shift; done
if [[ ! $dry ]] && ! command -v sbatch >/dev/null; then
    say "no sbatch here: the cells run one after the other"
    ask "$ENTRY" "$@"
    exit
fi
cells=$(ask "$ENTRY" "$@" --cells)
array=(sbatch --parsable "--array=0-$((cells - 1))" "${options[@]}" slurm/ablation.sh "$@")
if [[ $dry ]]; then
    say "$cells cells: ${array[*]@Q}"
    say "then: sbatch --dependency=afterany:<array> slurm/ablation.sh ${*@Q} --report"
    exit
fi
job=$("${array[@]}") || die "could not submit: ${array[*]@Q}"
job=${job%%;*} # NUMBER;CLUSTER where there are several
say "job $job: $cells cells"
# after any end: one bad row must not cost the table
report=$(sbatch --parsable "--dependency=afterany:$job" slurm/ablation.sh "$@" --report) || die "could not submit the report"
say "job ${report%%;*}: the report, in its output and in the study's folder"
