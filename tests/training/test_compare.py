"""Runs side by side: every run has its row and its curve, and what cannot be compared is told."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgb

from pipeline.errors import MissingInputError, UnknownNameError
from tests.training.processes import ROOT, free_port
from training import compare
from training.mlflow_client import connect
from training.tracking import RunIdentity, Tracker, TrackingConfig


def record(run: Path, uri: str | None = None, seed: int = 1, metrics: tuple[str, ...] = ("loss",)) -> None:
    """Track three steps of a run."""
    run.mkdir(parents=True)
    with Tracker(
        RunIdentity(run, "pretrain", {"seed": seed, "steps": 3}), TrackingConfig(uri=uri), 0, active=True
    ) as tracker:
        for step in range(1, 4):
            tracker.log(step, dict.fromkeys(metrics, seed / step))
        tracker.commit(3)
        tracker.finish(complete=True)


def has_curve(picture: Path, colour: str) -> bool:
    pixels = image.imread(picture)[..., :3]
    return bool((np.abs(pixels - to_rgb(colour)).max(-1) < 0.02).sum() > 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/`: two runs of one name in different output folders, one database."""
    folder = tmp_path_factory.mktemp("compare")
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    record(folder / "runs" / "trial", uri, seed=1, metrics=("loss", "grad_norm"))
    record(folder / "other" / "trial", uri, seed=5, metrics=("loss", "grad_norm"))
    return folder


def test_two_runs_of_one_name_have_a_row_and_a_curve_each(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "loss.png"
    assert compare.main(["--output", str(folder / "runs"), "--picture", str(picture)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial (")]
    assert [row.split()[4] for row in rows] == ["0.3333", "1.6667"]
    assert len({row.split()[1] for row in rows}) == 2
    assert has_curve(picture, "tab:blue")
    assert has_curve(picture, "tab:orange")


def test_the_examples_of_help_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.parser().parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    examples = [shlex.split(line) for line in lines if line.startswith("  python training/compare.py")]
    assert len(examples) == 3
    monkeypatch.chdir(folder)
    for example in examples:
        # the only address of an example is that of a server
        words = [word.replace("http://127.0.0.1:5000", "sqlite:///runs/mlflow.db") for word in example[2:]]
        assert compare.main(words) == 0
        told = capsys.readouterr().out
        assert told.count("trial (") == 4  # columns of the first table, rows of the second
        drawn = next(line for line in told.splitlines() if " over steps: " in line)
        assert Path(drawn.rpartition(": ")[2]).stat().st_size > 5000
    assert Path("grad_norm.png").exists()


@pytest.mark.parametrize(
    ("metric", "told"),
    [("los", "Did you mean `loss`"), ("accuracy", "Known: grad_norm, loss")],
)
def test_a_metric_no_run_has_is_refused(folder: Path, metric: str, told: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown metric `{metric}`.*{told}"):
        compare.main(["--output", str(folder / "runs"), "--curve", metric])


def test_runs_that_have_logged_nothing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingInputError, match="no MLflow database"):
        compare.main(["--output", str(tmp_path)])
    connect(TrackingConfig().resolve(tmp_path)).create_experiment("spectral")
    with pytest.raises(MissingInputError, match="has no runs yet"):
        compare.main(["--output", str(tmp_path)])
    record(tmp_path / "young", metrics=())
    assert compare.main(["--output", str(tmp_path)]) == 0
    assert "no run has recorded a metric yet" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["word", "environment"])
def test_a_server_that_does_not_answer_is_one_line_and_quick(tmp_path: Path, by: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    words = ["--uri", address] if by == "word" else []
    environment |= {} if by == "word" else {"MLFLOW_TRACKING_URI": address}
    command = [sys.executable, str(ROOT / "training/compare.py"), *words]
    before = time.monotonic()
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert time.monotonic() - before < 60  # nearly all of it loads torch and mlflow
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert f"no MLflow answers at {address} ([Errno 111] Connection refused)" in ended.stderr
