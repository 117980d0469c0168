"""slurm/chain.sh: what would be submitted, the chain on a real Slurm, and the container that steps run in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from .conftest import ROOT, Slurm, wait_until

STANDIN = str(ROOT / "tests/slurm/standin.py")
CHAIN = ("bash", "slurm/chain.sh")


def call(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = clean | {"PYTHON": sys.executable} | variables
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_what_would_be_submitted() -> None:
    words = "shard c.yaml then pretrain --nodes=4 name=a and pretrain name=b then finetune init=runs/a then compare"
    done = call(*CHAIN, "--dry-run", *words.split(), "--output", "my runs")
    assert done.returncode == 0, done.stderr
    assert [line.replace("'", "") for line in done.stdout.splitlines()] == [
        "chain: <1> sbatch --parsable slurm/shard.sh c.yaml",
        "chain: <2> sbatch --parsable --dependency=afterok:<1> --kill-on-invalid-dep=yes --nodes=4 slurm/pretrain.sh name=a",
        "chain: <3> sbatch --parsable --dependency=afterok:<1> --kill-on-invalid-dep=yes slurm/pretrain.sh name=b",
        "chain: <4> sbatch --parsable --dependency=afterok:<2>:<3> --kill-on-invalid-dep=yes slurm/finetune.sh init=runs/a",
        "chain: <5> sbatch --parsable --dependency=afterok:<4> --kill-on-invalid-dep=yes slurm/compare.sh --output my runs",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [("pretain c.yaml", "`pretain` is no step"), ("shard then then compare", "`then` has no step")],
)
def test_what_is_no_chain_is_told(words: str, says: str) -> None:
    done = call(*CHAIN, "--dry-run", *words.split())
    assert done.returncode == 2
    assert says in done.stderr


def test_a_chain_without_words_tells_how_it_is_written() -> None:
    done = call(*CHAIN)
    assert done.returncode == 2
    assert "then compare --output runs" in done.stdout


def submit(slurm: Slurm, tmp_path: Path, *words: str) -> list[str]:
    entries = {f"{kind}_ENTRY": STANDIN for kind in ("TRAIN", "SHARD", "COMPARE")}
    done = slurm.call(
        *CHAIN,
        *words,
        SBATCH_OUTPUT=f"{tmp_path}/%x.log",
        STANDIN_FOLDER=str(tmp_path / "compare"),
        **entries,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"chain: job (\d+): ", done.stdout)


@pytest.mark.slurm
def test_t21_a_chain_waits_for_a_requeued_step_and_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    trained = tmp_path / "pretrain"
    chain = f"shard folder={tmp_path}/shard then pretrain folder={trained} do=wait then finetune folder={tmp_path}/tune then compare"
    jobs = submit(slurm, tmp_path, *chain.split())
    assert len(jobs) == 4
    wait_until(lambda: len(list(trained.glob("rank-*-life-0.json"))) == 2, "the pretraining")
    slurm.call("scancel", "--batch", "--signal=USR1", jobs[1])
    ended = [slurm.wait(job) for job in jobs]
    assert [job["JobState"] for job in ended] == ["COMPLETED"] * 4
    assert [job["Restarts"] for job in ended] == ["0", "1", "0", "0"]
    assert all(a["EndTime"] <= b["StartTime"] for a, b in pairwise(ended))
    assert (tmp_path / "compare/COMPLETE").exists()


@pytest.mark.slurm
def test_t21_what_fails_in_a_chain_ends_the_rest(slurm: Slurm, tmp_path: Path) -> None:
    chain = f"pretrain folder={tmp_path}/bad do=vanish then finetune folder={tmp_path}/tune then compare"
    ended = [slurm.wait(job) for job in submit(slurm, tmp_path, *chain.split())]
    assert [job["JobState"] for job in ended] == ["FAILED", "CANCELLED", "CANCELLED"]
    assert not (tmp_path / "tune").exists()


@pytest.fixture
def apptainer(tmp_path: Path) -> Path:
    """A program of that name that writes down what it is asked for, and runs it without any container."""
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\necho "$@" >>{tmp_path}/asked\nwhile [[ $1 != *.sif ]]; do shift; done\nshift\nexec "$@"\n'
    )
    program.chmod(0o755)
    return program


def test_a_container_is_a_variable_of_the_site(apptainer: Path, tmp_path: Path) -> None:
    site = {"CONTAINER": "/images/spectral.sif", "CONTAINER_BY": "apptainer", "CONTAINER_BINDS": "/data"}
    path = f"{apptainer.parent}:{os.environ['PATH']}"
    done = call("bash", "slurm/pretrain.sh", f"folder={tmp_path}/run", TRAIN_ENTRY=STANDIN, PATH=path, **site)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:7] == [
        "exec",
        "--pwd",
        str(ROOT),
        "--bind",
        f"{ROOT},/data",
        "/images/spectral.sif",
        sys.executable,
    ]
    assert (tmp_path / "run/COMPLETE").exists()


@pytest.mark.slurm
def test_in_a_job_every_task_runs_in_the_container(slurm: Slurm, apptainer: Path, tmp_path: Path) -> None:
    words = ["--nodes=2", f"--output={tmp_path}/log", "slurm/pretrain.sh", f"folder={tmp_path}/run"]
    path = f"{apptainer.parent}:{os.environ['PATH']}"
    number = slurm.sbatch(*words, TRAIN_ENTRY=STANDIN, PATH=path, CONTAINER="/images/spectral.sif")
    assert slurm.wait(number)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    # the run folder is asked for once, then each of the two tasks
    assert (tmp_path / "asked").read_text().count("/images/spectral.sif") == 3


@pytest.mark.parametrize(
    ("by", "says"), [("docker", "CONTAINER_BY=docker is neither"), ("apptainer", "apptainer not found")]
)
def test_a_container_that_cannot_be_is_told(by: str, says: str) -> None:
    done = call("bash", "slurm/pretrain.sh", CONTAINER="x.sif", CONTAINER_BY=by)
    assert done.returncode == 2
    assert says in done.stderr
