"""The engine refuses what would poison the weights, on every ZeRO stage and in both precisions."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.training.processes import ROOT

CODE = """
import json
import sys
import torch
from torch import nn
from pipeline.errors import TrainingError
from training.engine import Engine, EngineConfig, Recipe
from training.world import World


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, poison):
        loss = self.linear(x).float().square().sum()
        if poison == "loss":
            loss = loss * float("nan")
        if poison == "gradient":  # the loss stays finite: the slope of a root at 0 does not
            loss = loss + torch.sqrt((self.linear.weight.float().sum() * 0).abs())
        return loss[None]


class Work:
    counted, observed = (1.0,), {"seen": 3.0}

    def __init__(self, engine, poison, precision):
        self.engine, self.poison = engine, poison
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @property
    def losses(self):
        yield self.engine.module(torch.ones(1, 4, dtype=self.dtype), self.poison)


def attempt(stage, precision, poison):
    torch.manual_seed(0)
    model = Model()
    recipe = Recipe([{"params": list(model.parameters()), "weight_decay": 0.0}], (0.9, 0.95), 1.0, 1, 1)
    engine = Engine(model, recipe, EngineConfig(zero_stage=stage, precision=precision), World())
    first, refused = engine.step(Work(engine, "", precision), 0.1, False), None
    try:
        engine.step(Work(engine, poison, precision), 0.1, False)
    except TrainingError as error:
        refused = str(error)
    finite = all(bool(torch.isfinite(v).all()) for v in engine.weights().values())
    return {"counted": first.counted, "observed": first.observed, "refused": refused, "finite": finite}


found = [attempt(*case) for case in json.loads(sys.argv[1])]
print("FOUND", json.dumps(found))
"""


def test_t10_what_is_not_finite_never_reaches_the_weights() -> None:
    ways = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
    cases = [[*way, poison] for way in ways for poison in ("loss", "gradient")]
    command = [sys.executable, "-c", CODE, json.dumps(cases)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(told.split("FOUND ")[1])
    for case, result in zip(cases, found, strict=True):
        assert result["refused"] is not None, case
        assert "lower optimiser.base_lr" in result["refused"]
        assert result["finite"], case
        assert (result["counted"], result["observed"]) == (1.0, {"seen": 3.0})
