"""What is watched: skipped steps, jumping losses, weights that drift apart, slow ranks."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from training import watch
from training.report import StepResult
from training.watch import NOTED, GuardsConfig, Peers, Watch, Watched, checksums
from training.world import World


def seen(step: int, loss: float, applied: bool = True) -> Watched:
    norm = 1.0 if applied else math.nan
    return Watched(step, StepResult(loss, norm, 0.1, applied, False, 8.0, {}), (f"tile_{step}", "tile_x"))


def watching(run: Path, **guards: float) -> Watch:
    return Watch(GuardsConfig.model_validate(guards), World(), run)


def noted(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / NOTED).read_text().splitlines()]


def test_t10_skipped_steps_are_counted_with_their_samples_and_end_the_run_after_some(tmp_path: Path) -> None:
    watched = watching(tmp_path, max_skipped=2)
    assert watched.see(seen(1, math.nan, applied=False)) == {"skipped_steps": 1.0}
    assert watched.see(seen(2, 1.0, applied=False)) == {"skipped_steps": 2.0}
    assert watched.see(seen(3, 1.0)) == {}  # the row is broken, the count is not
    assert watched.see(seen(4, math.inf, applied=False)) == {"skipped_steps": 3.0}
    watched.see(seen(5, math.nan, applied=False))
    with pytest.raises(
        TrainingError, match=r"3 steps in a row were not finite, the last is 6 .*noted\.jsonl"
    ):
        watched.see(seen(6, math.nan, applied=False))
    assert [(n["step"], n["why"]) for n in noted(tmp_path)] == [(s, "skipped") for s in (1, 2, 4, 5, 6)]
    assert noted(tmp_path)[0]["keys"] == ["tile_1", "tile_x"]


def test_t11_a_loss_ten_times_the_mean_of_its_window_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched, losses = watching(tmp_path), [1 + 0.05 * math.sin(s) for s in range(60)]
    with caplog.at_level(logging.WARNING):
        assert all(watched.see(seen(step, loss)) == {} for step, loss in enumerate(losses))
        assert watched.see(seen(60, 10.0)) == {"loss_spike": 1.0}
        assert watched.see(seen(61, 1.0)) == {}
    assert caplog.text.count("step 60: loss 10 is above") == 1
    assert [n["keys"] for n in noted(tmp_path)] == [["tile_60", "tile_x"]]


def test_a_level_that_stays_is_no_jump_for_ever(tmp_path: Path) -> None:
    watched = watching(tmp_path, spike_window=20)
    for step in range(30):
        watched.see(seen(step, 1.0))
    jumps = [bool(watched.see(seen(step, 3.0))) for step in range(30, 90)]
    assert jumps[0]
    assert not any(jumps[30:])


def test_the_file_of_noted_samples_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_NOTES_BYTES", 500)
    watched = watching(tmp_path, max_skipped=1000)
    for step in range(100):
        watched.see(seen(step, math.nan, applied=False))
    assert (tmp_path / NOTED).stat().st_size < 700
    assert watched.skipped == 100


class Two(World):
    """A world of two whose other rank says what it is told to."""

    def __init__(self, other: object) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "other", other)

    def gather(self, value: object) -> list[object]:
        return [value, self.other]  # type: ignore[attr-defined]


def told(module: nn.Module, busy_s: float) -> object:
    return watch._Told("node7", busy_s, checksums(module)[1])


def slowly(losses: Sequence[Tensor], seconds: float) -> Iterator[Tensor]:
    for loss in losses:
        watch.time.sleep(seconds)
        yield loss


def test_weights_that_drift_apart_are_named_by_one_bit() -> None:
    mine, theirs = nn.Linear(4, 4), nn.Linear(4, 4)
    theirs.load_state_dict(mine.state_dict())
    peers = Peers(GuardsConfig(compare_every_steps=10), Two(told(theirs, 0.0)))
    assert peers.compare(9, mine) == {}  # not due
    assert "slowest_rank_ratio" in peers.compare(10, mine)
    theirs.weight.data.view(torch.int32)[1, 2] ^= 1
    peers = Peers(GuardsConfig(compare_every_steps=10), Two(told(theirs, 0.0)))
    with pytest.raises(
        TrainingError, match=r"after step 10 the weights of ranks 1 are not .* weight \(1 in all\)"
    ):
        peers.compare(10, mine)


def test_a_rank_that_lags_behind_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    peers = Peers(GuardsConfig(compare_every_steps=5), Two(told(model, 0.5)))
    assert list(peers.timed(slowly([torch.ones(1)] * 2, 0.02))) == [torch.ones(1)] * 2
    with caplog.at_level(logging.WARNING):
        found = peers.compare(5, model)
    assert 5 < found["slowest_rank_ratio"] <= 12.5
    assert "rank 1 on node7 takes" in caplog.text
