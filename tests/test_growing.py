"""A growing archive from end to end: a numbered set beside the first, and a training on both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from tests.training.processes import SMALL, run_cases
from training import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def python(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Landsat acquisitions, the second added after the first was sharded; returns the newest set."""
    folder = tmp_path_factory.mktemp("grown")
    words = ["--size-px", "576", "--products"]
    sharding = [f"scenes={folder}/archive", f"output={folder}/shards", "tile_px=48", "labels=null", "--grow"]
    # of another day: the same ground on the same day would be the same acquisition
    for seed, product in (("1", "landsat9-l2sp"), ("2", "landsat8-l2sr")):
        python("preprocessing/simulate.py", f"{folder}/archive/{seed}", *words, product, "--seed", seed)
        python("preprocessing/shard.py", "configs/shard/demo_landsat.yaml", *sharding)
    return folder / "shards-002"


@pytest.mark.slow
def test_a_training_on_the_newest_set_reads_all_of_the_series(grown: Path, tmp_path: Path) -> None:
    first, second = manifests.series(grown).values()
    assert (first.contract.level, second.contract.level) == ("L2SP", "L2SR")
    words = [f"output={tmp_path}", *SMALL, "steps=3", "batch.size=4", f"data.shards={grown}", "name=both"]
    assert run_cases(tmp_path, [("pretrain", words)]) == [True]
    both = checkpoint.read_state(checkpoint.find(tmp_path / "both")).data
    assert [(s.name, s.samples) for s in both.sets] == [(m.name, m.samples("train")) for m in (first, second)]
    record = both.of("landsat_oli")
    assert record.contract.level == "L2SP+L2SR"
    # over all pixels of both, and none of the two sets' own
    total = sum(histograms.read(folder)[1] for folder in manifests.series(grown))
    assert record.statistics == histograms.statistics(total)
    assert record.statistics not in (first.statistics, second.statistics)
