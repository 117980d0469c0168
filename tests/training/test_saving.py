"""Checkpoints are written while the training goes on, and hold the state of their own step all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.config import load
from pipeline.errors import OutputError
from tests.training.processes import ROOT, SMALL
from training.checkpoint import Store, find, read_snapshot, read_state
from training.pretrain import PretrainConfig
from training.saving import Saver
from training.sealed import verify
from training.states import Snapshot
from training.world import World

CODE = """
import json
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config import load
from training.checkpoint import Store, find, read_state
from training.engine import Engine, EngineConfig, Recipe
from training.pretrain import PretrainConfig
from training.saving import Saver
from training.world import World

origin, folder, words = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])


class Held(Store):
    def write(self, snapshot, state):
        assert gate.wait(60)
        super().write(snapshot, state)


class Work:
    counted, observed = (1.0,), {}

    def __init__(self, engine):
        self.engine = engine

    @property
    def losses(self):
        yield self.engine.module(torch.ones(1, 4)).square().sum()[None]


for stage in range(4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=True).eval(), nn.Linear(8, 4))
    recipe = Recipe([{"params": list(model.parameters()), "weight_decay": 0.0}], (0.9, 0.95), 1.0, 1, 1)
    engine = Engine(model, recipe, EngineConfig(zero_stage=stage, precision="fp32"), World())
    engine.step(Work(engine), 0.1, False).read()
    config = load(PretrainConfig, None, [*words, f"name=stage-{stage}"])
    gate, whole = threading.Event(), []
    with Saver(Held(folder / config.name, World()), config, whole.append) as saver:
        state = read_state(find(origin)).model_copy(update={"step": 1})
        saver.save(engine, state, last=False)
        save_file(engine.snapshot().weights | engine.snapshot().moments, folder / f"before-{stage}.safetensors")
        engine.step(Work(engine), 0.1, False).read()
        before = (list(whole), saver.failed)
        gate.set()
        saver.save(engine, state.model_copy(update={"step": 2}), last=True)
        assert (before, whole, saver.failed) == (([], False), [1, 2], False)
"""


def test_a_checkpoint_holds_the_state_of_its_step_though_training_went_on(
    trained: Path, tmp_path: Path, shards: Path
) -> None:
    words = [f"output={tmp_path}", f"data.shards={shards}", *SMALL]
    command = [sys.executable, "-c", CODE, trained / "whole", tmp_path, json.dumps(words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in range(4):
        saved = [tmp_path / f"stage-{stage}/checkpoints/step-0000000{step}" for step in (1, 2)]
        assert [list(verify(folder)) for folder in saved] == [[], []]
        first, second = (read_snapshot(folder) for folder in saved)
        before = load_file(tmp_path / f"before-{stage}.safetensors")
        found = first.weights | first.moments
        assert found.keys() == before.keys()
        assert all(found[name].equal(before[name]) for name in before)
        # every weight and moment moved on while the first was being written
        later = second.weights | second.moments
        same = {name for name in before if later[name].equal(before[name])}
        assert same <= {n for n in before if ".1." in f".{n}" and "exp_avg" not in n}, same


class Source:
    """What has a state to save: that of a finished run."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def snapshot(self) -> Snapshot:
        return read_snapshot(find(self.run))


def saver(output: Path, shards: Path, *words: str) -> Saver:
    config = load(
        PretrainConfig, None, [f"output={output}", "name=run", f"data.shards={shards}", *SMALL, *words]
    )
    return Saver(Store(output / "run", World()), config, lambda step: None)


def test_t07_a_write_that_failed_meanwhile_is_raised_at_the_next_save(
    trained: Path, tmp_path: Path, shards: Path
) -> None:
    source, state = Source(trained / "whole"), read_state(find(trained / "whole"))
    (tmp_path / "run").write_text("where the folder should be")
    with saver(tmp_path, shards) as writing:
        writing.save(source, state, last=False)  # type: ignore[arg-type]
        writing._writer.submit(lambda: None).result()  # what was given before is done
        assert writing.failed
        with pytest.raises(OutputError, match=f"step-{state.step:08d} could not be written"):
            writing.save(source, state, last=False)  # type: ignore[arg-type]


def test_t07_a_run_that_goes_on_tells_of_it_and_saves_when_it_can(
    trained: Path, tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, state = Source(trained / "whole"), read_state(find(trained / "whole"))
    (tmp_path / "run").write_text("where the folder should be")
    with saver(tmp_path, shards, "save_failure=go_on", "save_async=false") as writing:
        writing.save(source, state, last=False)  # type: ignore[arg-type]
        assert "is not saved, the run goes on" in caplog.text
        (tmp_path / "run").unlink()
        writing.save(source, state, last=False)  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "run/checkpoints").glob("step-*")] == [f"step-{state.step:08d}"]


def test_what_failed_last_is_told_where_a_run_ends_by_something_else(
    trained: Path, tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("where the folder should be")
    with pytest.raises(KeyboardInterrupt), saver(tmp_path, shards) as writing:
        writing.save(Source(trained / "whole"), read_state(find(trained / "whole")), last=False)  # type: ignore[arg-type]
        raise KeyboardInterrupt
    assert "could not be written" in caplog.text
