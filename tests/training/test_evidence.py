"""Scores scene by scene, and what several seeds of them show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ContractError, MissingInputError
from tests.training.shard_sets import SENTINEL2, contract_of
from training import scored
from training.evidence import Evidence
from training.scored import Scored, scene_of
from training.tasks import task


def mean(tallies: Sequence[np.ndarray]) -> float:
    """Score of tallies [right, all]."""
    right, every = np.sum(tallies, axis=0)
    return float(right / every)


def runs(
    accuracy: float, seeds: int, scenes: int = 40, hard: float = 0.3
) -> dict[int, dict[str, np.ndarray]]:
    """Runs whose scenes differ much, the same for all rows, and whose seeds differ little."""
    found = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        spread = np.random.default_rng(99).uniform(-hard, hard, scenes)
        right = np.clip(accuracy + spread + rng.normal(0, 0.01, scenes), 0, 1) * 100
        found[seed] = {f"scene_{n}": np.array([r, 100.0]) for n, r in enumerate(right)}
    return found


def test_pairs_show_a_difference_that_scenes_hide() -> None:
    found = {"reference": runs(0.60, 5), "better": runs(0.63, 5), "same": runs(0.60, 5)}
    reference, better, same = Evidence(found, None, mean).compare("reference", 400)
    assert reference.difference is None
    assert better.difference is not None and same.difference is not None
    # the rows' own intervals overlap by far
    assert better.score.low < reference.score.high
    assert better.difference.shown
    assert better.difference.value == pytest.approx(0.03, abs=1e-6)
    assert (better.better, better.pairs) == (5, 5)
    assert not same.difference.shown
    assert (same.difference.value, same.better) == (0, 0)


def test_scenes_of_a_group_are_one_piece_of_evidence() -> None:
    found = {"reference": runs(0.6, 3)}
    groups = {f"scene_{n}": str(n // 10) for n in range(40)}
    (apart,), (together,) = (Evidence(found, g, mean).compare("reference", 400) for g in (None, groups))
    assert apart.score.value == pytest.approx(together.score.value)
    assert len(Evidence(found, groups, mean).groups) == 4
    width = [row.score.high - row.score.low for row in (apart, together)]
    # standard error of 40 independent scenes: 0.3 / sqrt(3 * 40), so 95 % are about 0.107 wide
    assert width[0] == pytest.approx(0.107, rel=0.25)
    assert width[1] != pytest.approx(width[0], rel=0.02)


def test_a_report_made_again_is_the_same() -> None:
    found = {"reference": runs(0.60, 3), "other": runs(0.61, 3)}
    assert Evidence(found, None, mean).compare("reference", 200) == Evidence(found, None, mean).compare(
        "reference", 200
    )


def test_seeds_that_only_one_row_has_are_no_pairs() -> None:
    found = {"reference": runs(0.60, 3), "other": runs(0.61, 2), "none": {}}
    _, other = Evidence(found, None, mean).compare("reference", 200)
    assert (other.seeds, other.pairs) == (2, 2)


def test_runs_of_other_scenes_and_scenes_without_a_group_are_refused() -> None:
    found = {"reference": runs(0.60, 2), "other": runs(0.61, 1, scenes=39)}
    with pytest.raises(ContractError, match="other-s0 was scored on 39 scenes, reference-s0 on 40"):
        Evidence(found, None, mean)
    groups = {f"scene_{n}": "one" for n in range(39)}
    with pytest.raises(ContractError, match="1 of 40 scenes have no group, scene_39 for one"):
        Evidence({"reference": runs(0.60, 2)}, groups, mean)


def test_tallies_of_scenes_add_up_to_the_split_whoever_counts_them(tmp_path: Path) -> None:
    chosen = task("classification")(contract_of(SENTINEL2))
    keys = [f"a_b_{n % 3}_{n:05d}_00000" for n in range(12)]
    predicted, labels = torch.eye(3)[torch.arange(12) % 3], torch.arange(12) % 2
    whole, halves = Scored(chosen), [Scored(chosen), Scored(chosen)]
    whole.add(keys, predicted, labels)
    for part, half in ((slice(0, 5), halves[0]), (slice(5, 12), halves[1])):
        half.add(keys[part], predicted[part], labels[part])
    merged = Scored(chosen).merge([half.of_scene for half in halves])
    assert scene_of(keys[4]) == "a_b_1"
    assert np.array_equal(whole.tally, chosen.tally(predicted, labels))
    assert np.array_equal(whole.tally, merged.tally)
    whole.save(tmp_path)
    again = scored.read(tmp_path)
    assert sorted(again) == ["a_b_0", "a_b_1", "a_b_2"]
    assert all(np.array_equal(again[scene], merged.of_scene[scene]) for scene in again)


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_a_run_without_tallies_is_told(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / scored.NAME).write_bytes(content)
    with pytest.raises(MissingInputError, match=r"holds no tallies.npz"):
        scored.read(tmp_path)
