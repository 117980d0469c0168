#!/usr/bin/env bash
# The whole chain on a small simulated archive, on one machine, in a few minutes: run by `make demo`.
# Everything it writes is in demo/. Given again it goes on where it stopped; finished steps are quick.

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" demo
export PYTHON

STEPS=10
step=0
minutes() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

# run WHAT COMMAND ...: one numbered step
run() {
    local what=$1
    shift
    step=$((step + 1))
    echo
    say "step $step of $STEPS, $(minutes) gone: $what"
    say "  ${*/#$PYTHON/python}"
    "$@" || die "stopped in step $step ($what), see above; make demo goes on from there, make clean starts over" $?
}

pretrain() { run "pretrain with $1 masking" bash slurm/pretrain.sh configs/pretrain/demo.yaml "name=$1" "masking.strategy=$1"; }

# finetune MODE NAME INIT: INIT null is from scratch
finetune() { run "$1, from $2" bash slurm/finetune.sh configs/finetune/demo.yaml "name=$2-$1" "mode=$1" "init=$3"; }

say "simulated archive -> shards -> two pretrainings -> fine-tuning -> comparison; a few minutes, all in demo/"
run "simulate an archive: one Sentinel-2 and one Landsat scene" "$PYTHON" preprocessing/simulate.py demo/archive
run "shard the Sentinel-2 scene" "$PYTHON" preprocessing/shard.py configs/shard/demo_sentinel2.yaml
run "shard the Landsat scene" "$PYTHON" preprocessing/shard.py configs/shard/demo_landsat.yaml
pretrain random
pretrain saliency
finetune linear_probe random demo/runs/random
finetune linear_probe saliency demo/runs/saliency
finetune full saliency demo/runs/saliency
finetune full scratch null
run "compare the runs" "$PYTHON" training/compare.py --output demo/runs

echo
say "the scores are of some 50 tiles: they show that the chain works, not which masking is better"
say "done in $(minutes). The runs in MLflow: make ui. Your own scenes: README.md"
