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
        if poison == "sum":  # the loss is infinite, its slope is not
            loss = loss + float("inf")
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
    first = engine.step(Work(engine, "", precision), 0.1, False).read()
    before = engine.weights()
    poisoned = engine.step(Work(engine, poison, precision), 0.1, False).read()
    kept = same(before, engine.weights())
    after = engine.step(Work(engine, "", precision), 0.1, False).read()
    return {
        "counted": first.counted,
        "observed": first.observed,
        "finite": [first.finite, poisoned.finite, after.finite],
        "kept": [kept, same(before, engine.weights())],
    }


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


found = [attempt(*case) for case in json.loads(sys.argv[1])]
print("FOUND", json.dumps(found))
"""


def test_t10_what_is_not_finite_never_reaches_the_weights() -> None:
    ways = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
    cases = [[*way, poison] for way in ways for poison in ("loss", "gradient", "sum")]
    command = [sys.executable, "-c", CODE, json.dumps(cases)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(told.split("FOUND ")[1])
    for case, result in zip(cases, found, strict=True):
        # skipped alone: the step before and the one after count
        assert result["finite"] == [True, False, True], case
        assert result["kept"] == [True, False], case
        assert (result["counted"], result["observed"]) == (1.0, {"seen": 3.0})
