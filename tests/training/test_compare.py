"""Runs side by side: every run has its row and its curve, and what cannot be compared is told."""

from __future__ import annotations

import base64
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgb

from pipeline.errors import ConfigError, MissingInputError, UnknownNameError
from tests.training.processes import ROOT, free_port
from training import compare, panels, seeds
from training.mlflow_client import connect
from training.recorded import RecordedRun
from training.tracking import RunIdentity, Tracker, TrackingConfig, send_all


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
    assert len(examples) == 4
    monkeypatch.chdir(folder)
    for example in examples:
        # the only address of an example is that of a server
        words = [word.replace("http://127.0.0.1:5000", "sqlite:///runs/mlflow.db") for word in example[2:]]
        assert compare.main(words) == 0
        told = capsys.readouterr().out
        # columns of the first table, rows of the second
        assert told.split("over seeds")[0].count("trial (") == 4
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
    connect(TrackingConfig().resolve(tmp_path)).create_experiment("spectral", tmp_path.as_uri())
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


def test_a_page_needs_nothing_else(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    panel = folder / "runs" / "trial" / "panels" / "reconstruction.png"
    panels.curves({"a": [(0, 0.0), (1, 1.0)]}, "stands for a panel", panel)
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    identity = RunIdentity(folder / "runs" / "trial", "pretrain", {"seed": 1, "steps": 3})
    send_all(identity, TrackingConfig(uri=uri), 3, "FINISHED")
    out = tmp_path / "new" / "compared.html"
    assert compare.main(["--output", str(folder / "runs"), "--html", str(out)]) == 0
    assert f"page: {out}" in capsys.readouterr().out
    text = out.read_text()
    # whatever a browser would fetch is inside
    assert {word.split(":")[0] for word in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"data"}
    assert "http" not in text
    assert "<script" not in text
    tree = ElementTree.fromstring(re.sub(r"<meta[^>]*>|<img[^>]*>|<!doctype html>", "", text))
    lines = tree.findall(".//polyline")
    # two runs, two metrics, in one colour a run
    assert len(lines) == 4
    assert len({line.attrib["stroke"] for line in lines}) == 2
    assert base64.b64decode(re.findall(r"base64,([^\"]*)", text)[0]) == panel.read_bytes()
    for heading in ("Results", "What differs: pretrain", "Curves", "Panels"):
        assert f"<h2>{heading}</h2>" in text


def seeded(output: Path, name: str, seed: int, value: float, **more: object) -> None:
    """Record a run as finished with one score."""
    run = output / name
    run.mkdir(parents=True)
    given = {"name": name, "output": str(output), "seed": seed, **more}
    config = TrackingConfig(system_metrics_s=0)
    kind = "classification" if "mode" in more else "pretrain"
    with Tracker(RunIdentity(run, kind, given), config, 0, active=True) as tracker:
        tracker.log(1, {"val_accuracy" if "mode" in more else "loss": value})
        tracker.commit(1)
        tracker.finish(complete=True)


@pytest.fixture(scope="module")
def seeds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings of three and one seeds, and a fitted fine-tune of each of the three."""
    output = tmp_path_factory.mktemp("seeds")
    for seed, loss in ((1, 0.5), (2, 0.6), (3, 0.7)):
        seeded(output, f"random-{seed}", seed, loss, **{"masking.strategy": "random"})
    seeded(output, "saliency-1", 1, 0.4, **{"masking.strategy": "saliency"})
    for seed, accuracy in ((1, 0.8), (2, 0.9), (3, 0.7)):
        seeded(output, f"knn-{seed}", seed, accuracy, mode="knn", init=str(output / f"random-{seed}"))
    return output


def test_runs_that_differ_in_their_seed_alone_are_told_with_confidence(
    seeds_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--output", str(seeds_folder)]) == 0
    told = capsys.readouterr().out.split("over seeds")[1].split("over steps")[0]
    rows = {line.split("  ")[0]: re.findall(r"\S+ \[\S+ \S+\]", line) for line in told.splitlines()}
    # by hand: 4.303 x 0.1 / sqrt(3)
    assert rows["random-1, random-2, random-3"] == ["0.600 [0.352, 0.848]"]
    # weights of another seed are the same setting
    assert rows["knn-1, knn-2, knn-3"] == ["0.800 [0.552, 1.048]"]
    assert "saliency" not in told


def test_runs_that_name_each_other_as_their_weights_are_told_all_the_same() -> None:
    # a folder made anew can start from a run that itself started from what was there before
    pair = {"a": "/runs/b", "b": "/runs/a"}
    runs = [
        RecordedRun(
            name, name, "pretrain", "FINISHED", 1.0, f"/runs/{name}", {"init": init}, {"loss": 1.0}, {}
        )
        for name, init in pair.items()
    ]
    assert [setting.name for setting in seeds.settings(runs)] == ["a", "b"]


@pytest.mark.parametrize(
    ("where", "names"),
    [(["masking.strategy=saliency"], ["saliency-1"]), (["name=random-*", "seed=2"], ["random-2"]),
     (["kind=classification", "status=finished"], ["knn-1", "knn-2", "knn-3"])],
)  # fmt: skip
def test_only_the_runs_asked_for_are_compared(
    seeds_folder: Path, capsys: pytest.CaptureFixture[str], where: list[str], names: list[str]
) -> None:
    assert compare.main(["--output", str(seeds_folder), "--where", *where]) == 0
    told = capsys.readouterr().out.split("results")[1].split("over s")[0]
    assert re.findall(r"^(\w+-\d) ", told, re.MULTILINE) == names


def test_what_where_cannot_mean_is_told(seeds_folder: Path) -> None:
    words = ["--output", str(seeds_folder), "--where"]
    with pytest.raises(ConfigError, match="--where takes KEY=PATTERN, not `saliency`"):
        compare.main([*words, "saliency"])
    with pytest.raises(
        UnknownNameError, match=r"unknown key `masking\.strategi`.*Did you mean `masking\.strategy`"
    ):
        compare.main([*words, "masking.strategi=random"])
    with pytest.raises(MissingInputError, match="none of the 7 runs is seed=9"):
        compare.main([*words, "seed=9"])


def test_fitted_runs_have_no_curve_and_are_compared_all_the_same(
    seeds_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--output", str(seeds_folder)]) == 0
    assert "loss over steps (without knn-1, knn-2, knn-3, which have no loss)" in capsys.readouterr().out
    assert compare.main(["--output", str(seeds_folder), "--where", "mode=knn"]) == 0
    assert "val_accuracy over steps: " in capsys.readouterr().out
