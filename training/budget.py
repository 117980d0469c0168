"""What a run is going to cost, told before it starts: operations, memory, time, disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.console import clock, table
from training.engine import DTYPES
from training.flops import measure_peak
from training.runs import RunConfig
from training.world import World

USUAL_SHARE = 0.4
"""Of the device's best matrix product, what a step of a transformer commonly comes to."""
_MASTER_BYTES, _MOMENT_BYTES = 4, 8


@dataclass(frozen=True)
class Load:
    """What there is to do."""

    model: nn.Module
    steps: int
    steps_per_epoch: int
    flops: int
    """Operations of a step over all ranks; 0 where nobody counts them."""


def told(load: Load, config: RunConfig, world: World) -> str:
    """Lay the costs out for people."""
    parameters = sum(p.numel() for p in load.model.parameters())
    trained = sum(p.numel() for p in load.model.parameters() if p.requires_grad)
    precision = config.engine.resolve(world.device)
    stages = ", ".join(
        f"ZeRO {stage}: {state_bytes(parameters, trained, stage, world.size, precision) / 1e9:.2f} GB"
        for stage in range(4)
    )
    # checkpoints are float32 and whole, whatever precision, stage and ranks
    saved = 4 * parameters + _MOMENT_BYTES * trained
    # one more: older ones stay until the new one is whole
    kept = config.keep_last + 1 + (load.steps // config.keep_every_steps if config.keep_every_steps else 0)
    rows = [
        ("parameters", f"{parameters / 1e6:.2f} M, {trained / 1e6:.2f} M of them trained"),
        ("steps", f"{load.steps}, {load.steps_per_epoch} an epoch"),
        *(_work(load, precision, world) if load.flops else ()),
        ("memory", f"a rank's states: {stages}; what blocks keep for the backward pass comes on top"),
        (
            "disk",
            f"{kept} checkpoints of {saved / 1e9:.2f} GB = {kept * saved / 1e9:.2f} GB{_free(config.folder)}",
        ),
    ]
    return table(("what", "it takes"), rows)


def state_bytes(parameters: int, trained: int, stage: int, ranks: int, precision: str) -> float:
    """Return what weights, gradients and AdamW's state take on a rank."""
    each = DTYPES[precision].itemsize
    # stage 0 updates the weights themselves, the others a float32 copy that is shared out
    states = trained * (_MOMENT_BYTES / 1 if stage == 0 else (_MASTER_BYTES + _MOMENT_BYTES) / ranks)
    gradients = trained * each / (ranks if stage >= 2 else 1)
    return parameters * each / (ranks if stage == 3 else 1) + gradients + states


def _work(load: Load, precision: str, world: World) -> list[tuple[str, str]]:
    peak = measure_peak(world.device, DTYPES[precision])
    seconds = load.flops * load.steps / (USUAL_SHARE * peak * world.size)
    return [
        (
            "operations",
            f"{load.flops / 1e12:.3g} TFLOP a step, {load.flops * load.steps / 1e15:.3g} PFLOP in all",
        ),
        (
            "time",
            f"{clock(seconds)} at {USUAL_SHARE:.0%} of this device's {peak / 1e12:.2f} TFLOP/s x {world.size}",
        ),
    ]


def _free(folder: Path) -> str:
    """Tell the room on the disk that a run folder is going to lie on."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return f", {shutil.disk_usage(there).free / 1e9:.1f} GB free"
