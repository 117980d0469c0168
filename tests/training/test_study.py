"""A study from its file to its table: real runs, what is done is kept, what fails is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config import ROOT, load
from pipeline.errors import ConfigError, MissingInputError
from tests.training.processes import SMALL, wait_for_step
from tests.training.shard_sets import SENTINEL2, write_shards
from training import study
from training.protocol import StudyConfig, as_words

CODE = """
import sys
from pathlib import Path
from pipeline.config import load
from training.protocol import StudyConfig
from training.study import work
for _ in range(2):
    for cell in load(StudyConfig, Path(sys.argv[1]), []).cells():
        work(cell, print)
"""


def tree(word: str) -> dict[str, object]:
    key, _, value = word.partition("=")
    return {key: yaml.safe_load(value)}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small study."""
    folder = tmp_path_factory.mktemp("study")
    shards = str(write_shards(folder / "shards", {"train": range(32), "val": range(32, 42)}, SENTINEL2))
    small = {k: v for word in SMALL for k, v in tree(word).items()} | {
        "steps": 4,
        "data.shards": shards,
        "data.image_px": 48,
    }
    tune = {"data.shards": shards, "batch.size": 8, "steps": 4, "optimiser.base_lr": 0.01}
    plain = {"mode": "logistic", "regularise": {}}
    made = {
        "name": "small", "output": str(folder / "runs"), "seeds": [0, 1], "reference": "saliency", "draws": 100,
        "pretrain": {"config": "configs/pretrain/demo.yaml", "words": small},
        "tasks": {"class": {"config": "configs/finetune/demo.yaml", "words": tune, "score": "val_accuracy"}},
        "rows": {
            "saliency": {}, "scratch": {"pretrain": None, "seeds": 1},
            "logistic": {"pretrain": None, "tune": plain, "seeds": 1},
        },
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
    )


@pytest.mark.slow
def test_a_study_runs_goes_on_and_tells_what_it_shows(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(StudyConfig, asked, [])
    with pytest.raises(MissingInputError, match="no run of `saliency` is done for task class"):
        study.main([str(asked), "--report"])
    done = call("-W", "ignore", "-c", CODE, asked)
    assert done.returncode == 0, done.stderr
    names = [
        "saliency-s0", "saliency-s0-class", "scratch-s0-class", "logistic-s0-class", "saliency-s1", "saliency-s1-class",
    ]  # fmt: skip
    # the second time nothing is trained
    assert done.stdout.split() == names * 2
    for name in names:
        assert (config.output / name / "COMPLETE").exists()
        assert (config.output / f"logs/{name}.log").read_text().count("this run\n") == 1
    capsys.readouterr()
    assert study.main([str(asked), "--report"]) == 0
    told = capsys.readouterr().out
    kept = json.loads((config.output / "report.json").read_text())["class"]
    assert told.startswith("class: val_accuracy of 1 groups, against saliency")
    assert [(row["row"], row["seeds"]) for row in kept["rows"]] == [
        ("saliency", 2), ("scratch", 1), ("logistic", 1),
    ]  # fmt: skip
    for row in kept["rows"]:
        scores = [_last(config.output / f"{row['row']}-s{seed}-class") for seed in range(row["seeds"])]
        assert row["score"]["value"] == pytest.approx(sum(scores) / len(scores))


def _last(run: Path) -> float:
    line = json.loads((run / "journal.jsonl").read_text().splitlines()[-1])
    return float(line["metrics"]["val_accuracy"])


@pytest.mark.slow
def test_a_row_that_fails_is_told_and_costs_the_others_nothing(asked: Path, tmp_path: Path) -> None:
    made = yaml.safe_load(asked.read_text()) | {"output": str(tmp_path / "runs"), "reference": "logistic"}
    made["rows"] = {
        "bad": {"pretrain": {"model": {"size": "enormous"}}},
        "logistic": made["rows"]["logistic"],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(made | {"seeds": [0]}, sort_keys=False))
    done = call("training/study.py", path, "--jobs", "2")
    assert done.returncode == 1
    assert "bad-s0 ended with code 2, see" in done.stdout
    assert "enormous" in (tmp_path / "runs/logs/bad-s0.log").read_text()
    assert (tmp_path / "runs/logistic-s0-class/COMPLETE").exists()
    assert "logistic      1" in done.stdout


def test_cells_come_seed_by_seed_and_are_listed(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([str(asked), "--cells"]) == 0
    assert capsys.readouterr().out == "4\n"
    assert study.main([str(asked), "seeds=[4]", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [
        ["0", "saliency-s4"], ["0", "saliency-s4-class"], ["1", "scratch-s4-class"], ["2", "logistic-s4-class"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="there is no cell 7: the study has cells 0 to 3"):
        study.main([str(asked), "--cell", "7"])


def test_rows_from_scratch_have_the_model_that_is_pretrained(asked: Path) -> None:
    config = load(StudyConfig, asked, [])
    cell = next(c for c in config.cells() if c.row == "scratch")
    (step,) = cell.steps({"size": "tiny", "patch_px": 8})
    assert {"init=null", 'model.size="tiny"', "model.patch_px=8", "seed=0"} <= set(step.words)


def test_no_cell_at_a_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        study.parser().parse_args(["--jobs", "0"])
    assert ended.value.code == 2
    assert "at least one cell must run, not 0" in capsys.readouterr().err


def test_later_words_win_and_an_empty_mapping_is_one() -> None:
    words = as_words({"a": {"b": 1, "c": [1]}, "d": {"e": 2}}, {"a.b": 3, "d": {}})
    assert words == ("a.b=3", "a.c=[1]", "d.e=2", "d={}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reference": "randm"}, "unknown row `randm`"),
        ({"rows": {"saliency": {"tasks": ["clas"]}}}, "unknown task `clas`"),
        ({"tasks": {}}, "tasks"),
    ],
)
def test_what_is_no_study_is_told(asked: Path, tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(asked.read_text()) | change, sort_keys=False))
    with pytest.raises(ConfigError, match=told):
        load(StudyConfig, path, [])


@pytest.mark.slow
def test_a_study_that_is_asked_to_stop_saves_its_cell_and_begins_no_other(
    asked: Path, tmp_path: Path
) -> None:
    made = yaml.safe_load(asked.read_text()) | {"output": str(tmp_path / "runs")}
    made["pretrain"]["words"] |= {"steps": 5000, "save_every_steps": 5000}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "training/study.py", path], cwd=ROOT, env=environment)
    wait_for_step(tmp_path / "runs/saliency-s0", 3, parent)  # type: ignore[arg-type]
    parent.terminate()
    assert parent.wait(60) == 85
    assert (tmp_path / "runs/saliency-s0/INTERRUPTED").exists()
    assert not (tmp_path / "runs/scratch-s0-class").exists()
