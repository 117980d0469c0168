"""Shard sets and finished trainings, made once for all training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.processes import SMALL, Case, run_cases
from tests.training.shard_sets import LANDSAT, SENTINEL2, Kind, write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 40 training and 12 validation samples, 6 bands, 48 px, three classes."""
    return write_shards(
        tmp_path_factory.mktemp("shards") / "made", {"train": range(40), "val": range(40, 52)}
    )


@pytest.fixture(scope="session")
def more_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another set of the same sensor: 24 training and 6 validation samples of another scene."""
    folder = tmp_path_factory.mktemp("more") / "more"
    return write_shards(
        folder, {"train": range(100, 124), "val": range(124, 130)}, Kind(scene="more", name="more")
    )


@pytest.fixture(scope="session")
def landsat_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of another sensor: 24 training samples."""
    return write_shards(tmp_path_factory.mktemp("landsat") / "landsat", {"train": range(24)}, LANDSAT)


@pytest.fixture(scope="session")
def mixed(shards: Path, more_shards: Path, landsat_shards: Path) -> str:
    """The word for three sets of two sensors with weights: half the steps are Landsat's, a quarter of the others
    are of the second set.
    """
    weighted = {shards: 3, more_shards: 1, landsat_shards: 4}
    return f"data.shards=[{', '.join(f'{{path: {path}, weight: {w}}}' for path, w in weighted.items())}]"


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write further shard sets: `make_shards(name, train=range(n))`."""

    def make(name: str, kind: Kind = SENTINEL2, **splits: range) -> Path:
        return write_shards(tmp_path / name, splits, kind)

    return make


@pytest.fixture(scope="session")
def trained(shards: Path, mixed: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of finished single-process runs."""
    output = tmp_path_factory.mktemp("trained")
    common = [f"output={output}", f"data.shards={shards}"]
    cases: list[Case] = [("pretrain", [*common, *SMALL, "name=whole", "panel_every_steps=15"])]
    for stage in (0, 1, 2, 3):
        words = [*common, *SMALL, f"name=stage{stage}", f"engine.zero_stage={stage}", "panel_images=0"]
        cases += [("pretrain", [*words, "stop_at=10"]), ("pretrain", words)]
        cases.append(("pretrain", [*words, f"name=whole{stage}"]))
    cases.append(("pretrain", [*common, *SMALL, "name=accumulated", "batch.micro=2", "data.workers=1"]))
    cases.append(("pretrain", [*common[:1], mixed, *SMALL, "name=mixed"]))
    tune = [
        *common,
        "batch.size=8",
        "optimiser.base_lr=0.03",
        "optimiser.warmup_epochs=1",
        "epochs=4",
        f"init={output}/whole",
    ]
    cases += [("finetune", [*tune, f"name={mode}", f"mode={mode}"]) for mode in ("linear_probe", "full")]
    outcomes = run_cases(output, cases)
    assert outcomes == [True, *[False, True, True] * 4, True, True, True, True]
    return output
