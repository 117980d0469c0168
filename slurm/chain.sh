#!/usr/bin/env bash
# Submits a whole chain; each step starts when all of the step before have ended well, and a failure ends the rest.
#     bash slurm/chain.sh [--dry-run] STEP then STEP and STEP then STEP ...
#     STEP: shard|pretrain|finetune [SBATCH OPTIONS] [CONFIG] [a.b=c ...], or compare [OPTIONS]
# `then` waits for what is before it, `and` starts beside it. --dry-run prints what would be submitted. For example:
#     bash slurm/chain.sh shard configs/shard/default.yaml scenes=/path/to/archive \
#         then pretrain --nodes=4 name=random masking.strategy=random and pretrain --nodes=4 name=saliency \
#         then finetune init=runs/random name=random-tuned data.shards=/path/to/labelled/shards \
#         and finetune init=runs/saliency name=saliency-tuned data.shards=/path/to/labelled/shards \
#         then compare --output runs
# Without Slurm the steps run here, one after the other.

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" chain

dry=''
[[ ${1:-} != --dry-run ]] || { dry=1; shift; }
(($# > 0)) || { sed -n '2,/^$/{/^$/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 2; }
slurm=1
command -v sbatch >/dev/null || slurm=''
[[ $dry || $slurm ]] || say "no sbatch here: the steps run one after the other"

before=() now=() number=0

# submit STEP WORDS ...: prints nothing but what is done; adds the job to `now`
submit() {
    local kind=$1 options=() command=() job
    shift
    case $kind in
        shard | pretrain | finetune) while [[ ${1:-} == --* ]]; do options+=("$1"); shift; done ;;
        compare) ;;
        *) die "\`$kind\` is no step: shard, pretrain, finetune or compare" 2 ;;
    esac
    number=$((number + 1))
    if ((${#before[@]})); then
        # without the second a job whose condition can no longer be met waits for ever
        options=("--dependency=afterok:$(IFS=:; echo "${before[*]}")" --kill-on-invalid-dep=yes "${options[@]}")
    fi
    command=(sbatch --parsable "${options[@]}" "slurm/$kind.sh" "$@")
    if [[ $dry ]]; then
        job="<$number>"
        say "$job ${command[*]@Q}"
    elif [[ $slurm ]]; then
        job=$("${command[@]}") || die "could not submit: ${command[*]@Q}; what was submitted before it: ${before[*]:-nothing}"
        job=${job%%;*} # NUMBER;CLUSTER where there are several
        say "job $job: $kind $*"
    else
        say "step $number: $kind $*"
        bash "slurm/$kind.sh" "$@" || die "stopped in step $number ($kind $*)" $?
        return
    fi
    now+=("$job")
}

step=()
for word in "$@" "then"; do
    if [[ $word != "then" && $word != "and" ]]; then
        step+=("$word")
        continue
    fi
    ((${#step[@]})) || die "\`$word\` has no step before it" 2
    submit "${step[@]}"
    step=()
    [[ $word == "and" ]] || { before=("${now[@]}"); now=(); }
done
