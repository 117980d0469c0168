"""Pretraining as processes: exact resume on every ZeRO stage, the same losses on more ranks, clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import ConfigError
from tests.training.processes import ROOT, SMALL, finish, run_cases, start
from training import journal
from training.pretrain import PretrainConfig, Pretraining
from training.world import World

STAGE_3 = ("name=mixed", "engine.zero_stage=3")
LONG = os.environ.get("LONG_TESTS") == "1"
RESIZED = list(product(range(4), range(4))) if LONG else [(0, 3), (1, 2), (2, 0), (3, 3)]
"""ZeRO stages before and after another number of ranks takes over."""


def losses(run: Path) -> list[float]:
    lines = journal.read(run)
    assert [line.step for line in lines] == list(range(1, len(lines) + 1))
    return [line.metrics["loss"] for line in lines]


def test_the_loss_falls_and_everything_observed_is_logged(trained: Path) -> None:
    found = losses(trained / "whole")
    assert len(found) == 20
    assert sum(found[-5:]) < 0.5 * sum(found[:5])
    last = journal.read(trained / "whole")[-1].metrics
    assert last["mask_lambda"] == 0.5
    assert {"grad_norm", "lr", "samples_per_s", "data_wait_share", "mask_top_quartile_shown"} <= set(last)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_20_steps_are_10_and_an_interruption_and_10_bit_for_bit(trained: Path, stage: int) -> None:
    lives = [
        json.loads(x).get("resumed_at")
        for x in (trained / f"stage{stage}" / journal.NAME).read_text().splitlines()
    ]
    assert [at for at in lives if at is not None] == [0, 10]
    whole, resumed = losses(trained / "whole"), losses(trained / f"stage{stage}")
    assert resumed == losses(trained / f"whole{stage}")
    # stages add up in other orders: equal to rounding, not to the bit
    assert resumed == pytest.approx(whole, rel=1e-6)


def test_micro_batches_and_loader_processes_do_not_change_the_loss(trained: Path) -> None:
    assert losses(trained / "accumulated") == pytest.approx(losses(trained / "whole"), rel=1e-6)


@pytest.fixture(scope="module")
def two_ranks(
    shards: Path, mixed: str, tmp_path_factory: pytest.TempPathFactory, trained: Path
) -> tuple[Path, list[object]]:
    """Runs of two processes, started by plain environment variables as srun gives them."""
    output = tmp_path_factory.mktemp("two")
    words = [f"output={output}", f"data.shards={shards}", *SMALL, "panel_images=0"]
    stage3 = [*words, "name=stage3", "engine.zero_stage=3"]
    cases = [
        ("pretrain", [*words, "name=both"]),
        ("pretrain", [*stage3, "stop_at=10"]),
        ("pretrain", stage3),
        ("pretrain", [words[0], mixed, *SMALL, *STAGE_3, "stop_at=8"]),
        ("pretrain", [words[0], mixed.replace("3}", "2}"), *SMALL, *STAGE_3]),
        ("pretrain", [words[0], mixed, *SMALL, *STAGE_3]),
    ]
    cases += [("pretrain", [*words, *resized(trained / f"stage{a}", output, b)]) for a, b in RESIZED]
    return output, run_cases(output, cases, ranks=2)


def resized(run: Path, output: Path, stage: int, ranks: int = 2) -> tuple[str, ...]:
    """Copy a run as it was after step 10, and return the words that go on with it at another ZeRO stage."""
    name = f"{run.name}-{stage}-on-{ranks}"
    whole = shutil.ignore_patterns("step-00000020", "COMPLETE")
    shutil.copytree(run, output / name, ignore=whole)
    return f"name={name}", f"engine.zero_stage={stage}", "batch.micro=2", "data.workers=1"


def test_two_processes_see_what_one_sees(two_ranks: tuple[Path, list[object]], trained: Path) -> None:
    output, outcomes = two_ranks
    assert outcomes[:3] == [True, False, True]
    for name in ("both", "stage3"):
        found, whole = losses(output / name), losses(trained / "whole")
        assert found[0] == pytest.approx(whole[0], rel=1e-6)
        assert found == pytest.approx(whole, rel=1e-5)
        observed, once = (
            journal.read(folder / name)[-1].metrics for folder, name in ((output, name), (trained, "whole"))
        )
        assert observed["mask_saliency_shown"] == pytest.approx(once["mask_saliency_shown"], rel=1e-9)


def test_two_sensors_train_together_under_zero_3_as_in_one_process(
    two_ranks: tuple[Path, list[object]], trained: Path
) -> None:
    output, outcomes = two_ranks
    assert (outcomes[3], outcomes[5]) == (False, True)
    # with the interruption between: the same step has the same sensor and samples on all ranks
    assert losses(output / "mixed") == pytest.approx(losses(trained / "mixed"), rel=1e-5)
    by_sensor = [
        {k for k in line.metrics if k.startswith("loss_")} for line in journal.read(output / "mixed")
    ]
    assert {len(names) for names in by_sensor} == {1}
    assert set.union(*by_sensor) == {"loss_sentinel2", "loss_landsat_oli"}
    assert {p.name for p in (output / "mixed/panels").iterdir()} == {
        "reconstruction-sentinel2.png", "reconstruction-landsat_oli.png",
    }  # fmt: skip


def test_t09_other_weights_are_other_data(two_ranks: tuple[Path, list[object]]) -> None:
    assert "was trained on other data" in str(two_ranks[1][4])
    assert "made.weight: 3.0 -> 2.0" in str(two_ranks[1][4])


@pytest.mark.parametrize(("before", "after"), RESIZED)
def test_t08_a_run_goes_on_with_other_ranks_stages_workers_and_micro_batches(
    two_ranks: tuple[Path, list[object]], trained: Path, before: int, after: int
) -> None:
    output, outcomes = two_ranks
    assert outcomes[6:] == [True] * len(RESIZED)
    found, whole = losses(output / f"stage{before}-{after}-on-2"), losses(trained / "whole")
    # what was observed of the masks is a mean over the batch: the same samples, cut and masked the same
    masks = [
        [line.metrics["mask_saliency_shown"] for line in journal.read(run)]
        for run in (output / f"stage{before}-{after}-on-2", trained / "whole")
    ]
    assert masks[0] == pytest.approx(masks[1], rel=1e-9)
    assert found[:10] == losses(trained / f"stage{before}")[:10]
    assert found[10:15] == pytest.approx(whole[10:15], rel=1e-5)
    assert found == pytest.approx(whole, rel=1e-4)


def test_t08_two_ranks_become_one(two_ranks: tuple[Path, list[object]], shards: Path, trained: Path) -> None:
    output, _ = two_ranks
    words = [f"output={output}", f"data.shards={shards}", *SMALL, "panel_images=0"]
    cases = [("pretrain", [*words, *resized(output / "stage3", output, 1, ranks=1)])]
    assert run_cases(output, cases) == [True]
    assert losses(output / "stage3-1-on-1")[10:15] == pytest.approx(
        losses(trained / "whole")[10:15], rel=1e-5
    )


def test_t08_a_batch_that_the_ranks_cannot_share_is_refused(shards: Path, tmp_path: Path) -> None:
    config = load(PretrainConfig, None, [f"output={tmp_path}", f"data.shards={shards}", *SMALL, "name=odd"])
    with pytest.raises(ConfigError, match=r"batch\.size 8 is no multiple of batch\.micro 2 x 3 ranks"):
        Pretraining(config, World(0, 3))


def test_two_trainings_never_share_a_run_folder(shards: Path, tmp_path: Path) -> None:
    first = start(shards, tmp_path, "name=one")
    while first.poll() is None and not (tmp_path / "one" / journal.NAME).exists():
        time.sleep(0.02)
    _, err = finish(start(shards, tmp_path, "name=one"), 2)
    assert f"one is in use by process {first.pid}" in err
    assert "Traceback" not in err
    finish(first)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["masking.strategy=salency"], "Did you mean `saliency`"),
        (["modell.size=tiny"], "unknown key `modell`. Did you mean `model`"),
        (["data.shards=/nowhere"], "no shard set at /nowhere"),
        (["batch.size=7", "batch.micro=2"], "batch.size 7 is no multiple"),
        (["model.bands_per_cube=4"], "model.bands_per_cube to one of [1, 2, 3, 6]"),
        (["engine.zero_stage=0", "engine.precision=bf16"], "set engine.zero_stage=1"),
        (["name=whole", "optimiser.base_lr=0.5"], "optimiser.base_lr: 0.03 -> 0.5"),
    ],
)
def test_what_cannot_run_is_one_clear_line(shards: Path, trained: Path, words: list[str], says: str) -> None:
    _, err = finish(start(shards, trained, "name=refused", *words), 2)
    assert says in err
    assert "Traceback" not in err
    assert err.count("error:") == 1


def test_an_occupied_port_is_one_clear_line(shards: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        five = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        _, err = finish(start(shards, tmp_path, "name=port", **five), 2)
    assert f"127.0.0.1:{port}" in err
    assert "Choose another MASTER_PORT" in err
    assert "Traceback" not in err


def test_a_finished_run_says_so_and_trains_no_more(shards: Path, trained: Path) -> None:
    before = (trained / "whole" / journal.NAME).read_bytes()
    (said,) = run_cases(
        trained, [("pretrain", [f"output={trained}", f"data.shards={shards}", *SMALL, "name=whole"])]
    )
    assert said is True
    assert (trained / "whole" / journal.NAME).read_bytes() == before


def test_the_folder_is_told_without_training(shards: Path, trained: Path) -> None:
    out, _ = finish(start(shards, trained, "name=whole", "--run-folder"))
    assert out.strip() == str(trained / "whole")


def test_help_shows_examples(run_help: Callable[[str], str]) -> None:
    assert "sbatch slurm/pretrain.sh" in run_help("training/pretrain.py")


@pytest.fixture
def run_help() -> Callable[[str], str]:
    return lambda entry: (
        subprocess.run(
            [sys.executable, entry, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )
