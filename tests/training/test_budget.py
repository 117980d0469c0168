"""What a run is going to take is told before it starts, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.training.processes import finish, start
from training.budget import state_bytes


@pytest.mark.parametrize(
    ("stage", "precision", "each"),
    [(0, "fp32", 16), (1, "fp32", 11), (2, "fp32", 8), (3, "fp32", 5), (1, "bf16", 7), (3, "bf16", 4)],
)
def test_states_take_what_the_stages_leave(stage: int, precision: str, each: float) -> None:
    assert state_bytes(1000, 1000, stage, 4, precision) == 1000 * each


def test_frozen_weights_take_no_states() -> None:
    assert state_bytes(1000, 10, 0, 1, "fp32") == 4 * 1000 + 12 * 10


def test_a_dry_run_tells_the_plan_for_any_number_of_ranks_and_writes_nothing(
    shards: Path, tmp_path: Path
) -> None:
    out, _ = finish(
        start(shards, tmp_path / "runs", "name=dry", "keep_every_steps=5", "--dry-run", "--ranks", "4")
    )
    assert "4 x cpu" in out
    assert "ZeRO 3: " in out
    assert "TFLOP a step" in out
    # the last two, the one being written, and four for good; of float32 weights and two moments
    assert "7 checkpoints of" in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_finds_what_would_be_refused(shards: Path, tmp_path: Path) -> None:
    _, err = finish(start(shards, tmp_path, "name=dry", "--dry-run", "--ranks", "3"), 2)
    assert "batch.size 8 is no multiple of batch.micro 2 x 3 ranks" in err


def test_the_estimate_is_of_the_models_own_weights() -> None:
    model = nn.Linear(10, 10)
    count = sum(p.numel() for p in model.parameters())
    assert state_bytes(count, count, 0, 1, "fp32") == 16 * 110
