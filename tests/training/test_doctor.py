"""The doctor tells what would be used, and by its exit code whether all that was asked for can be had."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from tests.training.processes import ROOT, free_port
from training import doctor
from training.attention import ATTENTIONS
from training.doctor import ABSENT, OK, PROBLEM, DoctorConfig, Finding
from training.world import World


def found(config: DoctorConfig) -> dict[str, Finding]:
    return {f.what.strip(): f for f in doctor.findings(config, World())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """What there is where nothing particular is asked for."""
    return found(DoctorConfig(output=tmp_path_factory.mktemp("output")))


def test_every_part_is_told_with_what_decided_it(plain: dict[str, Finding]) -> None:
    expected = {
        "python",
        "torch",
        "deepspeed",
        "mlflow",
        "device",
        "precision",
        "ZeRO",
        "attention",
        "disk",
        "MLflow",
    }
    assert expected | ATTENTIONS.keys() | {"Slurm", "xformers"} <= plain.keys()
    assert [f for f in plain.values() if f.state == PROBLEM] == []
    assert plain["torch"].used == torch.__version__
    assert plain["MLflow"].why == "the first run makes this file"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPU gets")
def test_a_cpu_gets_fp32_and_stage_0(plain: dict[str, Finding]) -> None:
    assert plain["device"].used.startswith("CPU, ")
    assert "sees no GPU" in plain["device"].why
    assert plain["precision"].used.startswith("fp32, ")
    assert (plain["ZeRO"].used, plain["ZeRO"].why) == (
        "stage 0, 1 ranks",
        "one rank in fp32 shares with nobody",
    )
    assert plain["xformers"].state == ABSENT
    assert [plain[name].used for name in ("auto", "sdpa", "by_image", "naive")] == ["works"] * 4


def test_what_cannot_be_had_is_a_problem_with_its_remedy(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    told = found(
        DoctorConfig.model_validate(
            {
                "engine": {"precision": "bf16", "zero_stage": 0},
                "attention": "sdpo",
                "data": {"shards": str(tmp_path / "nowhere")},
                "output": str(occupied),
                "tracking": {"uri": f"http://127.0.0.1:{free_port()}"},
            }
        )
    )
    problems = {name: f.why for name, f in told.items() if f.state == PROBLEM}
    assert problems.keys() == {"precision", "ZeRO", "attention", "shards", "disk", "MLflow"}
    assert "set engine.zero_stage=1" in problems["precision"]
    assert "Did you mean `sdpa`" in problems["attention"]
    assert "no shard set at" in problems["shards"]
    assert "choose another `output`" in problems["disk"]
    assert "no MLflow answers" in problems["MLflow"]


def test_shards_are_opened_as_a_training_would(shards: Path, tmp_path: Path) -> None:
    config = DoctorConfig.model_validate({"data": {"shards": str(shards)}, "output": str(tmp_path)})
    told = found(config)["shards"]
    assert (told.state, told.used) == (OK, f"{shards}: 40 samples of train")
    assert told.why.startswith("sentinel2 L2A, 48 px, B")


def test_a_package_that_is_absent_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", none)
    told = {f.what: f for f in doctor._packages()}
    assert (told["deepspeed"].state, told["deepspeed"].why) == (PROBLEM, "make setup installs it")
    assert told["s3fs"].state == ABSENT
    assert "'.[remote]'" in told["s3fs"].why


def test_another_version_than_the_tested_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_pins", lambda: {"torch": "1.0.0"})
    told = {f.what: f for f in doctor._packages()}
    assert told["torch"].why == "tested with 1.0.0 (constraints.txt)"
    assert told["numpy"].why == ""


def test_any_training_s_configuration_is_read_for_what_matters_here() -> None:
    config = doctor.read(["configs/finetune/eurosat.yaml", "model.attention=naive", "engine.zero_stage=2"])
    assert (config.attention, config.engine.zero_stage) == ("naive", 2)
    assert config.data is not None
    with pytest.raises(ConfigError, match="Did you mean"):
        doctor.read(["engine.zero_stagee=2"])


@pytest.mark.slow
def test_the_entry_returns_1_where_something_is_missing(tmp_path: Path) -> None:
    words = [sys.executable, "training/doctor.py", f"output={tmp_path}"]
    good = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "no problems"), good.stderr
    bad = subprocess.run([*words, "attention=none"], cwd=ROOT, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout.splitlines()[-1]) == (1, "1 problems: attention")
    assert not list(tmp_path.iterdir())
