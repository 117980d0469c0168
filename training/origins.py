"""Where weights are: in a run or checkpoint, or in a folder that was exported, which holds the encoder alone."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import read_yaml
from pipeline.errors import ContractError
from training import checkpoint
from training.guards import COMPLETE
from training.spectral_backbone.load import CONFIG, WEIGHTS

STATE = "state.json"
"""In an export as in a checkpoint: what `checkpoint.read_state` reads."""
_ENCODER = "encoder."


def find(location: Path) -> Path:
    """Return the checkpoint or export that a folder means.

    Raises what `checkpoint.find` raises, and `ContractError` for a run that keeps no weights and for an export that
    does not tell what its weights are.
    """
    if (location / CONFIG).exists() and not (location / STATE).exists():
        raise ContractError(
            f"{location} was exported by an older version, and does not tell what its weights were trained as: export"
            " its run again (training/export.py RUN), or give the run itself."
        )
    # `*step`: checkpoints that were put aside as damaged tell that it did train
    if (location / COMPLETE).exists() and not any((location / "checkpoints").glob("*step-*")):
        mode = read_yaml(location / "config.yaml").get("mode")
        what = (
            f"mode: {mode} learns at once and leaves scores, no weights"
            if mode
            else "no training was done in it"
        )
        raise ContractError(
            f"the run in {location} holds no checkpoint: {what}. Give a run of training/pretrain.py, or of"
            " training/finetune.py with mode: full or linear_probe; of a chain of stages, one of the stages."
        )
    return checkpoint.find(location)


def read_weights(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the weights of a checkpoint or export whose names start with `prefix`, which is taken off.

    Raises `ContractError` where more than the encoder is asked of an export.
    """
    if not (folder / CONFIG).exists():
        return checkpoint.read_weights(folder, prefix)
    # names in an export are the encoder's own, without a prefix to look for
    if prefix != _ENCODER:
        raise ContractError(
            f"{folder} is an export, which holds the encoder alone and neither decoder nor head: give the run or"
            " checkpoint that it was made from."
        )
    return load_file(folder / WEIGHTS)
