"""A chain of pretrainings: each stage a run of its own, from the weights of the one before, resumed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config import ROOT, load
from pipeline.errors import ConfigError
from tests.training.processes import SMALL, run_cases
from training import journal, stages
from training.mlflow_client import connect
from training.pretrain import PretrainConfig

CHAIN = (
    "handover=interpolate",
    "stages=[{name: small, data: {image_px: 32}, steps: 4},{name: large, steps: 3, optimiser: {base_lr: 0.01}}]",
)


def test_the_shipped_chain_is_the_published_one() -> None:
    config = load(PretrainConfig, ROOT / "configs/pretrain/progressive.yaml", [])
    first, second = stages.split(config, config.stages)
    assert (first.data.image_px, second.data.image_px) == (96, 128)
    peaks = [one.optimiser.peak_lr(one.batch.size) for one in (first, second)]
    assert peaks == pytest.approx([3.2e-3, 1.6e-3])
    assert (first.init, second.init) == (None, Path("runs/progressive-1-fmow"))
    assert second.data.bands == first.data.bands
    assert (first.name, second.tracking.parent) == ("progressive-1-fmow", "progressive")


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("{name: one, epoch: 3}", "stage `one`: unknown key `epoch`. Did you mean `epochs`"),
        ("{data: {image_px: 32}}", "stage 1 has no `name`"),
        ("{name: one, masking: {ratio: 2}}", "stage `one`: `masking.ratio`"),
    ],
)
def test_a_mistake_in_a_stage_is_told_before_the_first_begins(shards: Path, stage: str, says: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(PretrainConfig, None, ["name=chain", f"data.shards={shards}", f"stages=[{stage}]"])
    assert says in str(told.value)


def test_a_chain_goes_from_stage_to_stage_and_is_resumed_in_the_middle(shards: Path, tmp_path: Path) -> None:
    words = [f"output={tmp_path}", f"data.shards={shards}", *SMALL, "panel_images=0", "name=chain", *CHAIN]
    outcomes = run_cases(
        tmp_path,
        [("pretrain", [*words, "stop_at=2"]), ("pretrain", [*words, "stop_at=3"]), ("pretrain", words)],
    )
    # stopped in the first stage; in the first again; then through to the end
    assert outcomes == [False, False, True]
    folders = [tmp_path / name for name in ("chain-1-small", "chain-2-large")]
    assert [[line.step for line in journal.read(f)] for f in folders] == [[1, 2, 3, 4], [1, 2, 3]]
    recorded = yaml.safe_load((folders[1] / "config.yaml").read_text())
    assert (recorded["init"], recorded["data"]["image_px"]) == (str(folders[0]), None)
    # the second begins where the first ended, not from scratch
    assert journal.read(folders[1])[0].metrics["loss"] < journal.read(folders[0])[0].metrics["loss"]
    assert (tmp_path / "chain/COMPLETE").exists()
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("spectral").experiment_id])
    found = {run.info.run_name: run for run in runs}
    assert set(found) == {"chain", "chain-1-small", "chain-2-large"}
    parents = {found[f.name].data.tags["mlflow.parentRunId"] for f in folders}
    assert parents == {found["chain"].info.run_id}
