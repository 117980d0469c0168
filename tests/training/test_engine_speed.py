"""What makes a step fast changes nothing of it: no waiting for the device, recomputed and compiled blocks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError

from tests.training.processes import ROOT
from training.engine import EngineConfig
from training.world import World

CODE = """
import json
import sys
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import masking
from training.architecture import ModelConfig
from training.chosen import Chosen
from training.engine import Engine, EngineConfig, Recipe
from training.model import SpatialSpectralMAE
from training.tokens import Layout, Normaliser
from training.world import World, to_device
from pipeline.contract import Normalisation

WORLD = World()
LAYOUT = Layout.even(6, 32)
NORMALISER = Normaliser(Normalisation("minmax", np.zeros(6, np.float32), np.ones(6, np.float32), True))


# counts what gives the host a number: item(), float(), a condition
class Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


class Work:
    counted, observed = (87.0,), {"seen": 3.0}

    def __init__(self, engine):
        self.engine = engine
        drawn = np.random.default_rng(0)
        self.image = torch.from_numpy(drawn.integers(0, 9000, (4, 6, 32, 32)).astype(np.int16))
        self.valid = np.ones((4, LAYOUT.places), bool)
        keys = masking.Keys(0, np.arange(4, dtype=np.uint64), 0)
        draw = masking.Draw(keys, np.zeros((4, LAYOUT.places)), LAYOUT.groups, 0.0, masking.MaskingConfig())
        self.choice = masking.choose(draw, self.valid)

    @property
    def losses(self):
        for part in (slice(0, 2), slice(2, 4)):
            chosen = Chosen.of(self.choice, self.valid, part, LAYOUT.tokens).to(WORLD.device)
            image = NORMALISER(to_device(self.image[part], WORLD.device))
            yield self.engine.module(image, chosen, "made").loss_sums


def run(config):
    torch.manual_seed(0)
    model = SpatialSpectralMAE(ModelConfig(size="tiny"), {"made": LAYOUT})
    groups = [{"params": list(model.parameters()), "weight_decay": 0.05}]
    engine = Engine(model, Recipe(groups, (0.9, 0.95), 1.0, 2, 2), EngineConfig(**config), WORLD)
    losses = [engine.step(Work(engine), 1e-3, False).read().loss for _ in range(3)]
    if WORLD.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")  # raises where the host would wait
    with Reads() as reads:
        report = engine.step(Work(engine), 1e-3, False)
    torch.cuda.set_sync_debug_mode("default") if WORLD.device.type == "cuda" else None
    return {"losses": [*losses, report.read().loss], "reads": reads.count}


with Reads() as one:
    float(torch.ones(1))
if one.count != 1:
    raise RuntimeError("a read is not counted")
print("FOUND", json.dumps([run(config) for config in json.loads(sys.argv[1])]))
"""


def run(configs: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    command = [sys.executable, "-c", CODE, json.dumps(configs)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found: list[dict[str, object]] = json.loads(told.stdout.split("FOUND ")[1])
    return found


def test_the_host_reads_nothing_of_a_step_before_its_report() -> None:
    stages = [{"zero_stage": stage} for stage in (0, 1, 2)]
    found = run(stages)
    for config, one in zip(stages, found, strict=True):
        assert one["reads"] == 0, config
        assert one["losses"] == pytest.approx(found[0]["losses"], rel=1e-5), config


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_a_gpu() -> None:
    # what would wait raises inside
    run([{"zero_stage": 1, "precision": "bf16"}, {"zero_stage": 2, "precision": "bf16"}])


@pytest.mark.slow
def test_recomputed_and_compiled_blocks_train_the_same() -> None:
    plain, recomputed, compiled = run([{}, {"recompute": True}, {"compile": True}])
    assert recomputed["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)


def test_compiled_blocks_and_zero_3_are_refused() -> None:
    with pytest.raises(ValidationError, match="compile: true cannot be had with zero_stage: 3"):
        EngineConfig(compile=True, zero_stage=3)


def test_the_stage_that_is_taken_by_itself_needs_somebody_to_share_with() -> None:
    cases = {(1, "fp32"): 0, (1, "bf16"): 1, (2, "fp32"): 1}
    for (ranks, precision), stage in cases.items():
        config = EngineConfig.model_validate({"precision": precision})
        assert config.stage(World(0, ranks, 0)) == stage
    assert EngineConfig(zero_stage=2).stage(World()) == 2
