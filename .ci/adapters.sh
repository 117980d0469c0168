#!/usr/bin/env bash
# Tests the exported encoder as a backbone of the real timm, segmentation-models-pytorch, TorchGeo and TerraTorch, in an
# environment of their own: they pin much that the project does not want.
#
#   VENV=.venv-adapters  where the environment goes
#   PYTHON=python3       the Python (3.11 or later) it is made from
#   TORCH_INDEX_URL=     package index to take torch and torchvision from, for example PyTorch's own for CPU builds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv-adapters}
PYTHON=${PYTHON:-python3}
LIBRARIES=(timm==1.0.31 segmentation-models-pytorch==0.6.0 torchgeo==0.8.1 terratorch==1.2.11)
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt "$@"; }

[[ -x $VENV/bin/python ]] || "$PYTHON" -m venv "$VENV"
index=()
[[ -z ${TORCH_INDEX_URL:-} ]] || index=(--index-url "$TORCH_INDEX_URL")
# torch first and pinned: nothing that follows may replace it
pip "${index[@]}" "$(grep '^torch==' constraints.txt)"
[[ -z ${TORCH_INDEX_URL:-} ]] || pip "${index[@]}" torchvision
pip "${LIBRARIES[@]}" numcodecs psutil pydantic pytest pytest-timeout pyyaml safetensors

# a torchvision built for CUDA beside a torch that is not: none of these libraries' backbones needs its operators, but
# they all import it, and it does not import without their names
if ! "$VENV/bin/python" -c 'import torchvision' 2>/dev/null; then
    echo "adapters: torchvision's compiled operators do not load beside this torch; their names stand in for them"
    cat >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sitecustomize.py" <<'PY'
import torch

for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
fi
"$VENV/bin/python" -m pytest -q tests/training/test_export_adapters.py -W ignore
